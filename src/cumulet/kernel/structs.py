"""What msgspec knows of our structs, worked out before there are threads.

msgspec finds out at the first use of a `Struct` what its fields are, and keeps what it has so far on the class: another
thread that uses the class meanwhile reads what is not there yet, and the process dies of SIGSEGV (0.22, in
``StructInfo_Convert``). Processes died of it in their first seconds, when messages, documents and requests all came at
once.

Owns: which classes are prepared. Fails: with `TypeError`, when a struct has a field of a type msgspec does not know.
"""

import threading
from collections.abc import Iterator
from typing import Any
from weakref import WeakSet

import msgspec

_lock = threading.Lock()
_prepared: WeakSet[Any] = WeakSet()


def prepare() -> None:
    """Work out every struct that is imported by now. Call it before threads that decode are started, and again after
    more was imported. A few hundred take some milliseconds."""
    with _lock:
        for one in known():
            if one not in _prepared:
                msgspec.json.Decoder(one)
                _prepared.add(one)


def known(*, prepared: bool = False) -> list[Any]:
    """Every struct that is imported, or those that are prepared."""
    return list(_prepared) if prepared else list(dict.fromkeys(_below(msgspec.Struct)))


def _below(base: Any) -> Iterator[Any]:
    for one in base.__subclasses__():
        yield one
        yield from _below(one)
