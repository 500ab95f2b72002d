"""What exists on a fake host, as data: caches, disks, taps, domains, volumes, exports, applied documents.

With a path, the world outlives the process as a real host would: each change is written whole and renamed into place.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from cumulet.agent.contract import ServerSpec, VolumeAttachment


class Disks(msgspec.Struct):
    root_gb: int
    image_id: str | None
    ephemeral_gb: int = 0
    swap_mb: int = 0
    config_drive: bool = False


class Domain(msgspec.Struct):
    instance_name: str
    spec: ServerSpec
    power_state: int = 4
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


class State(msgspec.Struct):
    images: dict[str, int] = {}  # image id -> bytes of the cached file
    disks: dict[str, Disks] = {}  # server id
    taps: dict[str, str] = {}  # port id -> server id
    domains: dict[str, Domain] = {}  # server id
    volumes: dict[str, Volume] = {}
    backups: dict[str, int] = {}  # backup id -> size in GiB
    documents: dict[str, dict[str, Any]] = {}  # kind -> id -> document


class World:
    """``with world.change() as state:`` to read and write; ``leftovers()`` for the question tests end with."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._lock = threading.RLock()
        self.state = State()
        if path is not None and path.exists():
            self.state = msgspec.json.decode(path.read_bytes(), type=State)

    @contextmanager
    def look(self) -> Iterator[State]:
        with self._lock:
            yield self.state

    @contextmanager
    def change(self) -> Iterator[State]:
        with self._lock:
            yield self.state
            if self._path is not None:
                self._save(self._path)

    def _save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_suffix(".new")
        new.write_bytes(msgspec.json.encode(self.state))
        os.replace(new, path)

    def leftovers(self) -> dict[str, list[str]]:
        """Everything that a deleted server, volume, port, network or router must not leave; image caches may stay."""
        with self._lock:
            state = self.state
            found = {
                "domains": list(state.domains),
                "disks": list(state.disks),
                "taps": list(state.taps),
                "volumes": list(state.volumes),
                "snapshots": [one for volume in state.volumes.values() for one in volume.snapshots],
                "backups": list(state.backups),
                "exports": [one for volume in state.volumes.values() for one in volume.exports],
                **{f"{kind} documents": list(docs) for kind, docs in state.documents.items()},
            }
        return {what: ids for what, ids in found.items() if ids}
