"""The documents this host last applied, one JSON file each, so that a restarted agent knows what it did.

A cache, never the truth: what exists is read from the kernel. Used to refuse older generations, to know what a removal
takes away, and to answer metadata while the control plane is away.
"""

import os
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from cumulet.agent.contract import DOCUMENTS
from cumulet.agent.network.shell import write_atomically

D = TypeVar("D")


class DocumentStore:
    def __init__(self, directory: Path) -> None:
        self._dir = directory
        self._held: dict[str, dict[str, Any]] = {}
        for kind, struct in DOCUMENTS.items():
            held = self._held[kind] = {}
            for path in sorted((directory / kind).glob("*.json")) if (directory / kind).is_dir() else ():
                try:
                    held[path.stem] = msgspec.json.decode(path.read_bytes(), type=struct)
                except msgspec.DecodeError:  # torn by a crash of the machine: the control plane gives it again
                    path.unlink(missing_ok=True)

    def get(self, struct: type[D], id: str) -> D | None:
        return self._held[struct.kind].get(id)  # type: ignore[attr-defined]

    def all(self, struct: type[D]) -> list[D]:
        return list(self._held[struct.kind].values())  # type: ignore[attr-defined]

    def put(self, document: Any) -> None:
        kind = document.kind
        if self._held[kind].get(document.id) == document:
            return
        write_atomically(self._path(kind, document.id), msgspec.json.encode(document).decode(), mode=0o600)
        self._held[kind][document.id] = document

    def drop(self, struct: Any, id: str) -> None:
        self._held[struct.kind].pop(id, None)
        self._path(struct.kind, id).unlink(missing_ok=True)

    def clear(self) -> None:
        for kind, held in self._held.items():
            for id in list(held):
                held.pop(id)
                self._path(kind, id).unlink(missing_ok=True)
            if (self._dir / kind).is_dir() and not os.listdir(self._dir / kind):
                (self._dir / kind).rmdir()

    def _path(self, kind: str, id: str) -> Path:
        if "/" in id or id.startswith("."):
            raise ValueError(f"not an id: {id!r}")
        return self._dir / kind / f"{id}.json"
