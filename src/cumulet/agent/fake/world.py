"""What exists on a fake host, as data: caches, disks, taps, domains, volumes, exports, applied documents.

With a path, the world outlives the process as a real host would (a small SQLite file, one row for each thing): what a
change looked up by its key is taken as changed and written before the change is over, however much else there is.
"""

import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from cumulet.agent.contract import DOCUMENTS, ServerSpec, VolumeAttachment


class Disks(msgspec.Struct):
    root_gb: int
    image_id: str | None
    ephemeral_gb: int = 0
    swap_mb: int = 0
    config_drive: bool = False
    content: str = ""  # stands for the bytes of the root disk: goes where they go


class Incoming(msgspec.Struct):
    """A server that may come from another host by live migration: the door is open."""

    from_host: str
    spec: ServerSpec


class Domain(msgspec.Struct):
    instance_name: str
    spec: ServerSpec
    power_state: int = 4
    leaving: int = 0  # while it is handed over to another host: the power state it had
    managed_save: bool = False
    volumes: dict[str, VolumeAttachment] = {}
    ports: dict[str, str] = {}  # port id -> MAC address
    console: list[str] = []
    boots: int = 0
    passwords: dict[str, str] = {}  # user -> password, as the guest was told


class Volume(msgspec.Struct):
    size_gb: int
    image_id: str | None = None
    source: str | None = None
    snapshots: list[str] = []
    exports: dict[str, int] = {}  # attachment id -> generation
    fence: dict[str, int] = {}  # attachment id -> highest generation ever exported
    content: str = ""  # stands for the bytes: goes where they go
    moved_by: str | None = None  # the move that brought it here


class _Noted(dict[str, Any]):
    """A table of things that notes which keys were looked up, set or removed."""

    def __init__(self, note: Callable[[str], object]) -> None:
        super().__init__()
        self._note = note

    def __getitem__(self, key: str) -> Any:
        self._note(key)
        return super().__getitem__(key)

    def __setitem__(self, key: str, value: Any) -> None:
        self._note(key)
        super().__setitem__(key, value)

    def __delitem__(self, key: str) -> None:
        self._note(key)
        super().__delitem__(key)

    def clear(self) -> None:
        for key in list(self):
            self._note(key)
        super().clear()

    def get(self, key: str, default: Any = None) -> Any:
        self._note(key)
        return super().get(key, default)

    def pop(self, key: str, *default: Any) -> Any:
        self._note(key)
        return super().pop(key, *default)


_KINDS: dict[str, Any] = {
    "images": int,  # image id -> bytes of the cached file
    "disks": Disks,  # by server id
    "aside": Disks,  # those kept while a resize is not confirmed, by server id
    "offers": str,  # server id -> the host that may read its disks
    "doors": Incoming,  # by server id
    "taps": str,  # port id -> server id
    "domains": Domain,  # by server id
    "volumes": Volume,
    "backups": int,  # backup id -> size in GiB
    "wires": dict[str, Any],  # "kind/id" of a document -> what stands there for it (`agent.fake.wires`)
    "leases": dict[str, Any],  # "network/MAC address" -> address, expires
    "quarantine": dict[str, Any],  # "kind/id" -> what was moved aside
    **{f"{kind} documents": dict[str, Any] for kind in DOCUMENTS},
}


class State:
    def __init__(self, note: Callable[[str, str], object]) -> None:
        self.tables = {kind: _Noted(partial(note, kind)) for kind in _KINDS}
        self.images: dict[str, int] = self.tables["images"]
        self.disks: dict[str, Disks] = self.tables["disks"]
        self.aside: dict[str, Disks] = self.tables["aside"]
        self.offers: dict[str, str] = self.tables["offers"]
        self.doors: dict[str, Incoming] = self.tables["doors"]
        self.taps: dict[str, str] = self.tables["taps"]
        self.domains: dict[str, Domain] = self.tables["domains"]
        self.volumes: dict[str, Volume] = self.tables["volumes"]
        self.backups: dict[str, int] = self.tables["backups"]
        self.wires: dict[str, dict[str, Any]] = self.tables["wires"]
        self.leases: dict[str, dict[str, Any]] = self.tables["leases"]
        self.quarantine: dict[str, dict[str, Any]] = self.tables["quarantine"]
        self.documents: dict[str, dict[str, dict[str, Any]]] = {k: self.tables[f"{k} documents"] for k in DOCUMENTS}


class World:
    """``with world.change() as state:`` to read and write; ``leftovers()`` for the question tests end with."""

    def __init__(self, path: Path | None = None) -> None:
        self._lock = threading.RLock()
        self._touched: set[tuple[str, str]] = set()  # not yet written
        self._file: sqlite3.Connection | None = None
        self.state = State(lambda kind, key: self._touched.add((kind, key)))
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._file.execute("PRAGMA journal_mode=WAL")
            self._file.execute("PRAGMA synchronous=OFF")
            self._file.execute(
                "CREATE TABLE IF NOT EXISTS things (kind TEXT, id TEXT, body BLOB, PRIMARY KEY (kind, id))"
                " WITHOUT ROWID"
            )
            for kind, key, body in self._file.execute("SELECT kind, id, body FROM things ORDER BY kind, id"):
                self.state.tables[kind][key] = msgspec.json.decode(body, type=_KINDS[kind])

    @contextmanager
    def look(self) -> Iterator[State]:
        with self._lock:
            yield self.state

    @contextmanager
    def change(self) -> Iterator[State]:
        with self._lock:
            yield self.state
            if self._file is None:
                self._touched.clear()
            else:
                self._save(self._file)

    def _save(self, file: sqlite3.Connection) -> None:
        file.execute("BEGIN IMMEDIATE")
        with file:  # commits, or rolls back and leaves what was touched for the next change to write
            for kind, key in sorted(self._touched):
                found = dict.get(self.state.tables[kind], key)
                if found is None:
                    file.execute("DELETE FROM things WHERE kind = ? AND id = ?", (kind, key))
                else:
                    body = msgspec.json.encode(found)
                    file.execute("INSERT OR REPLACE INTO things VALUES (?, ?, ?)", (kind, key, body))
        self._touched.clear()

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._file.close()

    def dump(self) -> bytes:
        """All that exists now, for `load`."""
        with self._lock:
            return msgspec.json.encode(self.state.tables)

    def load(self, content: bytes) -> None:
        """Only this exists."""
        found = msgspec.json.decode(content, type=dict[str, dict[str, msgspec.Raw]])
        with self.change() as state:
            for kind, table in state.tables.items():
                table.clear()
                for key, body in found.get(kind, {}).items():
                    table[key] = msgspec.json.decode(body, type=_KINDS[kind])

    def leftovers(self) -> dict[str, list[str]]:
        """Everything that a deleted server, volume, port, network or router must not leave.

        Image caches may stay, and members of a group until the control plane finds that nothing refers to it."""
        with self._lock:
            state = self.state
            found = {
                "domains": list(state.domains),
                "disks": list(state.disks),
                "aside": list(state.aside),
                "offers": list(state.offers),
                "doors": list(state.doors),
                "taps": list(state.taps),
                "volumes": list(state.volumes),
                "snapshots": [one for volume in state.volumes.values() for one in volume.snapshots],
                "backups": list(state.backups),
                "wires": list(state.wires),
                "leases": list(state.leases),
                "exports": [one for volume in state.volumes.values() for one in volume.exports],
                **{f"{kind} documents": list(docs) for kind, docs in state.documents.items() if kind != "group"},
            }
        return {what: ids for what, ids in found.items() if ids}
