"""The inside of a namespace of ours: making it, and bringing its devices, addresses and routes to what is wanted.

Routes of ours carry ``proto static``; only those are compared and removed. A fresh namespace is written without
reading. Namespaces are marked by a file in the run directory, so that a clean-up takes none of another system's.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from cumulet.agent.network import links
from cumulet.agent.network.shell import (
    has_ipv6,
    in_namespace,
    ip_batch,
    ip_json,
    namespaces,
    run,
    sysctls_astray,
    write_sysctls,
)


class Device(msgspec.Struct, frozen=True):
    """A device that is in the namespace. ``addresses`` with prefix length. Of ``lo`` only addresses are added."""

    name: str
    mtu: int
    mac: str
    addresses: tuple[str, ...]


class Wanted(msgspec.Struct, frozen=True):
    devices: tuple[Device, ...]
    prefixes: tuple[str, ...]  # names of devices that are ours: others of these prefixes are deleted
    routes: frozenset[tuple[str, str, str]] = frozenset()  # (destination CIDR or default/default6, via or "", device)
    sysctls: dict[str, str] = {}


class Changed(msgspec.Struct):
    added: dict[str, list[str]]  # device -> new addresses (without length), to be announced
    removed: list[str]  # addresses gone


class Namespaces:
    def __init__(self, run_dir: Path) -> None:
        self._dir = run_dir / "namespaces"

    def ensure(self, name: str, sysctls: dict[str, str]) -> bool:
        """True if it was made now."""
        if name in namespaces():
            if not (self._dir / name).exists():
                self._mark(name)
            return False
        self._mark(name)
        run(["ip", "netns", "add", name])
        in_namespace(name, lambda: write_sysctls(sysctls))
        return True

    def delete(self, name: str) -> None:
        if name in namespaces():
            run(["ip", "netns", "delete", name])
        (self._dir / name).unlink(missing_ok=True)

    def delete_all(self) -> None:
        ip_batch([f"netns delete {name}" for name in self.ours("")])
        self.forget_gone()

    def ours(self, prefix: str) -> list[str]:
        if not self._dir.is_dir():
            return []
        present = namespaces()
        return sorted(p.name for p in self._dir.iterdir() if p.name.startswith(prefix) and p.name in present)

    def forget_gone(self) -> None:
        if self._dir.is_dir():
            present = namespaces()
            for path in self._dir.iterdir():
                if path.name not in present:
                    path.unlink(missing_ok=True)

    def _mark(self, name: str) -> None:
        self._dir.mkdir(parents=True, exist_ok=True)
        (self._dir / name).touch()


def converge(namespace: str, wanted: Wanted, fresh: bool) -> Changed:
    """Addresses and routes to what is wanted; one ``ip`` process to read links, one per family to read routes, one to
    write if anything differs."""
    if wanted.sysctls and not fresh:
        in_namespace(namespace, lambda: write_sysctls(wanted.sysctls))
    held = {} if fresh else _held(namespace)
    lines, changed = _devices(held, wanted)
    # an address that goes takes routes with it, so routes are read after the addresses are right
    if not fresh:
        ip_batch(lines, namespace)
        lines = []
    lines += _routing(set() if fresh else _routes(namespace), wanted)
    ip_batch(lines, namespace)
    return changed


def astray(namespace: str, wanted: Wanted) -> list[str]:
    """What is not so, in words; looks only."""
    held = _held(namespace)
    missing = [device.name for device in wanted.devices if device.name not in held]
    words = [f"{name} is not there" for name in missing]
    sysctls = in_namespace(namespace, lambda: sysctls_astray(wanted.sysctls))
    words += [f"{name} is not {wanted.sysctls[name]}" for name in sysctls]
    present = msgspec.structs.replace(wanted, devices=tuple(d for d in wanted.devices if d.name in held))
    lines, _ = _devices(held, present)
    lines += _routing(_routes(namespace), wanted)
    todo = links.to_do(lines, namespace)
    return words + ([todo] if todo else [])


def _held(namespace: str) -> dict[str, dict[str, Any]]:
    return {link["ifname"]: link for link in ip_json("addr", "show", namespace=namespace)}


def _devices(held: dict[str, dict[str, Any]], wanted: Wanted) -> tuple[list[str], Changed]:
    """Lines for ``ip`` that bring what is held to what is wanted."""
    lo_is_up = "UP" in held.get("lo", {}).get("flags", [])
    lines: list[str] = [] if lo_is_up else ["link set dev lo up"]
    changed = Changed(added={}, removed=[])
    names = {d.name for d in wanted.devices}
    for name in held:
        if name not in names and name.startswith(wanted.prefixes):
            lines.append(f"link delete dev {name}")
    for device in wanted.devices:
        link = held.get(device.name, {})
        present = {
            f"{a['local']}/{a['prefixlen']}"
            for a in link.get("addr_info", [])
            if a.get("scope") != "link" or a.get("family") == "inet"
        }
        loopback = device.name == "lo"
        if not loopback and link.get("mtu") != device.mtu:
            lines.append(f"link set dev {device.name} mtu {device.mtu}")
        if not loopback and link and link.get("address") != device.mac:
            lines.append(f"link set dev {device.name} address {device.mac}")
        for address in sorted(present - set(device.addresses)) if not loopback else ():
            lines.append(f"addr del {address} dev {device.name}")
            changed.removed.append(address.split("/")[0])
        for address in device.addresses:
            if address not in present:
                extra = " nodad" if ":" in address else ""
                lines.append(f"addr add {address} dev {device.name}{extra}")
                changed.added.setdefault(device.name, []).append(address.split("/")[0])
        if not loopback and "UP" not in link.get("flags", []):
            lines.append(f"link set dev {device.name} up")
    return lines, changed


def _routing(present: set[tuple[str, str, str]], wanted: Wanted) -> list[str]:
    lines = [f"route del {_route(r)}" for r in sorted(present - wanted.routes)]
    return lines + [f"route replace {_route(r)} proto static" for r in _ordered(wanted.routes - present)]


def _ordered(routes: Iterable[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
    """Routes to a device first: others may go through what they reach."""
    return sorted(routes, key=lambda r: (bool(r[1]), r))


def _route(route: tuple[str, str, str]) -> str:
    destination, via, device = route
    target = "default" if destination in ("default", "default6") else destination
    kind = "inet6 " if via and ":" in via else ""
    return f"{target}{f' via {kind}{via}' if via else ''}{f' dev {device}' if device else ''}"


def _routes(namespace: str) -> set[tuple[str, str, str]]:
    found = set()
    for family in ("-4", "-6") if has_ipv6() else ("-4",):
        for entry in ip_json(family, "route", "show", "proto", "static", namespace=namespace):
            destination = entry["dst"]
            if destination == "default" and family == "-6":
                destination = "default6"
            elif destination != "default" and "/" not in destination:
                destination += "/32" if family == "-4" else "/128"
            found.add((destination, entry.get("gateway", ""), entry.get("dev", "")))
    return found
