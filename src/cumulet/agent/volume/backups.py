"""Backups of volumes: a directory each, of compressed chunks with their hashes.

``<id>/manifest.json`` is written last, so a backup that has one is whole. A chunk equal to the parent's is a hard link
to it: each directory stands for itself and may be deleted in any order. Holes are not stored.
"""

import hashlib
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from cumulet.agent import aside
from cumulet.agent.errors import DriverError, not_found

CHUNK = 4 << 20
_ASIDE = "aside"


class Chunk(msgspec.Struct, frozen=True):
    offset: int
    length: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True):
    volume_id: str
    size: int
    chunks: list[Chunk]


class BackupStore:
    def __init__(self, root: Path) -> None:
        self.root = root

    def start(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True)

    def manifest(self, backup_id: str) -> Manifest | None:
        try:
            return msgspec.json.decode((self.root / backup_id / "manifest.json").read_bytes(), type=Manifest)
        except FileNotFoundError:
            return None

    def ids(self) -> list[str]:
        return sorted(path.parent.name for path in self.root.glob("*/manifest.json"))

    def write(
        self, backup_id: str, volume_id: str, raw: Path, parent_id: str | None, alive: Callable[..., None]
    ) -> Manifest:
        """Store a raw sparse file. Doing it again finds it done."""
        done = self.manifest(backup_id)
        if done is not None:
            return done
        place = self.root / backup_id
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        known = self._known(parent_id)
        chunks: list[Chunk] = []
        with open(raw, "rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            for offset in _data_chunks(file.fileno(), size):
                data = os.pread(file.fileno(), CHUNK, offset)
                alive(min(1.0, offset / max(1, size)))
                if not data.strip(b"\0"):
                    continue
                digest = hashlib.sha256(data).hexdigest()
                target = place / digest
                if not target.exists():
                    if digest in known:
                        os.link(known[digest], target)
                    else:
                        _write_synced(target, zlib.compress(data, 1))
                chunks.append(Chunk(offset, len(data), digest))
        manifest = Manifest(volume_id, size, chunks)
        _write_synced(place / "manifest.part", msgspec.json.encode(manifest))
        os.replace(place / "manifest.part", place / "manifest.json")
        return manifest

    def read_into(self, backup_id: str, raw: Path, alive: Callable[..., None]) -> int:
        """Write the backup out as a raw sparse file; its size. Every chunk is checked."""
        manifest = self.manifest(backup_id)
        if manifest is None:
            raise not_found(f"backup {backup_id}")
        with open(raw, "wb", buffering=0) as out:
            out.truncate(manifest.size)
            for chunk in manifest.chunks:
                path = self.root / backup_id / chunk.sha256
                try:
                    data = zlib.decompress(path.read_bytes())
                except (OSError, zlib.error) as error:
                    raise DriverError("backup-damaged", f"backup {backup_id} cannot be read: {error}") from error
                if hashlib.sha256(data).hexdigest() != chunk.sha256:
                    raise DriverError("backup-damaged", f"backup {backup_id} has a damaged chunk at {chunk.offset}")
                os.pwrite(out.fileno(), data, chunk.offset)
                alive(min(1.0, chunk.offset / max(1, manifest.size)))
        return manifest.size

    def delete(self, backup_id: str) -> None:
        place = self.root / backup_id
        (place / "manifest.json").unlink(missing_ok=True)  # first: half a backup is none
        shutil.rmtree(place, ignore_errors=True)

    def put_aside(self, backup_id: str) -> Path:
        """Move a backup where nobody uses it. It stands for itself: what it shares with others are hard links."""
        return aside.move(self.root / backup_id, self.root / _ASIDE)

    def set_aside(self) -> list[str]:
        return sorted(path.parent.name for path in (self.root / _ASIDE).glob("*/manifest.json"))

    def _known(self, parent_id: str | None) -> dict[str, Path]:
        if parent_id is None:
            return {}
        parent = self.manifest(parent_id)
        if parent is None:
            raise not_found(f"backup {parent_id}")
        return {chunk.sha256: self.root / parent_id / chunk.sha256 for chunk in parent.chunks}


def _data_chunks(file: int, size: int) -> Iterator[int]:
    """Offsets of the chunks that hold data, by the file system's map of holes."""
    offset = 0
    while offset < size:
        try:
            data = os.lseek(file, offset, os.SEEK_DATA)
        except OSError:
            return  # only a hole is left
        offset = data - data % CHUNK
        yield offset
        offset += CHUNK


def _write_synced(path: Path, data: bytes) -> None:
    with open(path, "wb") as out:
        out.write(data)
        out.flush()
        os.fsync(out.fileno())
