"""What the kernel makes of an nftables script: loaded into a network namespace that lives as long as the question.

The kernel's own listing is the only form of a ruleset that compares: of what stands on the host, and of what is to.
"""

import ctypes
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from cumulet.agent.network.shell import CLONE_NEWNET, T, in_thread, nft, nft_json

_libc = ctypes.CDLL(None, use_errno=True)


class Table(msgspec.Struct, frozen=True):
    """Chain -> its rules in order, set or map -> its elements, chain -> where it hooks; all as JSON text."""

    chains: dict[str, list[str]] = {}
    sets: dict[str, list[str]] = {}
    hooks: dict[str, str] = {}


def table(script: str, family: str, name: str) -> Table:
    """The table that the script makes. ``nft`` must admit the script on a host without any devices."""

    def load() -> list[dict[str, Any]]:
        nft(script)
        return nft_json("list", "table", family, name) or []

    return parsed(in_nowhere(load))


def parsed(entries: Iterable[dict[str, Any]]) -> Table:
    """Of the entries of ``nft -j list table``."""
    found = Table(chains={}, sets={}, hooks={})
    for entry in entries:
        for kind, body in entry.items():
            if kind == "chain":
                found.chains.setdefault(body["name"], [])
                found.hooks[body["name"]] = _text({key: body.get(key) for key in ("hook", "prio", "policy", "type")})
            elif kind in ("set", "map"):
                found.sets[body["name"]] = sorted(map(_text, body.get("elem", [])))
            elif kind == "rule":
                rule = {key: body.get(key) for key in ("expr", "comment")}
                found.chains.setdefault(body["chain"], []).append(_text(rule))
    return found


def differs(wanted: list[str], held: list[str]) -> str | None:
    """In words; None: they are the same."""
    if wanted == held:
        return None
    missing, strange = Counter(wanted) - Counter(held), Counter(held) - Counter(wanted)
    words = [f"{sum(some.values())} {what}" for some, what in ((missing, "missing"), (strange, "unknown")) if some]
    return " and ".join(words) or "in another order"


def in_nowhere(function: Callable[[], T]) -> T:
    """``function()`` in a thread of its own, in an empty network namespace."""

    def job() -> T:
        if _libc.unshare(CLONE_NEWNET):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return function()

    return in_thread(job, "nowhere")


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
