"""Volumes as qcow2 files in a directory, snapshots inside them.

``<id>.qcow2`` is a volume; it is made under another name and renamed, so what has its name is whole. Whoever has the
image open decides who changes it: the storage daemon while the volume is exported, ``qemu-img`` otherwise. What is
read of an open volume is read from a snapshot, whose clusters nobody overwrites.
"""

import json
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cumulet.agent import aside
from cumulet.agent.errors import DriverError, not_found

GIB = 1 << 30
_ASIDE = "aside"
_FREE_FLOOR = 64 << 20
Alive = Callable[..., None]


def run_qemu_img(arguments: list[str], alive: Alive | None = None) -> str:
    """Run it, saying now and then that it lives. DriverError with its last words."""
    process = subprocess.Popen(
        ["qemu-img", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL
    )
    while True:
        try:
            out, said = process.communicate(timeout=2)
            break
        except subprocess.TimeoutExpired:
            if alive is not None:
                alive()
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        words = said.strip()[-400:]
        code = "no-space" if "No space left" in words else "internal"
        raise DriverError(code, f"qemu-img {arguments[0]}: {words}")
    return out


class FileVolumes:
    """Each volume has a lock: its files and its node in the daemon are changed by one thread at a time."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._guard = threading.Lock()
        self._locks: dict[str, threading.RLock] = {}

    def start(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        for left in self.root.glob(".part-*"):
            left.unlink(missing_ok=True)

    def lock(self, volume_id: str) -> threading.RLock:
        with self._guard:
            return self._locks.setdefault(volume_id, threading.RLock())

    def path(self, volume_id: str) -> Path:
        return self.root / f"{volume_id}.qcow2"

    def existing(self, volume_id: str) -> Path:
        path = self.path(volume_id)
        if not path.exists():
            raise not_found(f"volume {volume_id}")
        return path

    def ids(self) -> list[str]:
        return sorted(path.stem for path in self.root.glob("*.qcow2"))

    def put_aside(self, volume_id: str) -> Path:
        """Move a volume where nobody uses it; nothing is deleted."""
        return aside.move(self.path(volume_id), self.root / _ASIDE)

    def set_aside(self) -> list[str]:
        return sorted(path.stem for path in (self.root / _ASIDE).glob("*.qcow2"))

    def info(self, volume_id: str) -> dict[str, object]:
        return json.loads(run_qemu_img(["info", "-U", "--output=json", str(self.existing(volume_id))]))

    def size(self, volume_id: str) -> int:
        return int(str(self.info(volume_id)["virtual-size"]))

    def snapshots(self, volume_id: str) -> list[str]:
        found = self.info(volume_id).get("snapshots") or []
        assert isinstance(found, list)
        return [one["name"] for one in found]

    @contextmanager
    def making(self, volume_id: str, *, move_id: str | None = None) -> Iterator[Path]:
        """A path to write a new volume to; it becomes the volume if the block ends well. ``move_id``: the move that
        brings it, for `moved_by`."""
        part = self.root / f".part-{volume_id}"
        try:
            yield part
            with open(part, "rb") as written:
                os.fsync(written.fileno())
            if move_id is not None:
                with open(self._note(volume_id), "w") as note:
                    note.write(move_id)
                    note.flush()
                    os.fsync(note.fileno())
            os.replace(part, self.path(volume_id))
            directory = os.open(self.root, os.O_RDONLY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        finally:
            part.unlink(missing_ok=True)

    def create_blank(self, volume_id: str, size: int) -> None:
        with self.making(volume_id) as part:
            run_qemu_img(["create", "-q", "-f", "qcow2", str(part), str(size)])

    def create_from_raw(self, volume_id: str, source: Path, size: int, alive: Alive) -> None:
        self.need_space(source.stat().st_blocks * 512)
        with self.making(volume_id) as part:
            run_qemu_img(["convert", "-f", "raw", "-O", "qcow2", str(source), str(part)], alive)
            self.grow_file(part, size)

    def create_from_volume(self, volume_id: str, source_id: str, snapshot: str | None, size: int, alive: Alive) -> None:
        """A full copy. Without a snapshot the source must not be open anywhere."""
        with self.making(volume_id) as part:
            self.convert(source_id, snapshot, part, "qcow2", alive)
            self.grow_file(part, size)

    def convert(self, source_id: str, snapshot: str | None, target: Path, form: str, alive: Alive) -> None:
        source = self.existing(source_id)
        self.need_space(source.stat().st_blocks * 512)
        of = ["-U", "-l", f"snapshot.name={snapshot}"] if snapshot is not None else []
        run_qemu_img(["convert", *of, "-f", "qcow2", "-O", form, str(source), str(target)], alive)

    def grow(self, volume_id: str, size: int) -> None:
        """Of a volume that is not open. Never shrinks."""
        self.grow_file(self.existing(volume_id), size)

    def grow_file(self, path: Path, size: int) -> None:
        now = json.loads(run_qemu_img(["info", "--output=json", str(path)]))["virtual-size"]
        if size > now:
            run_qemu_img(["resize", "-q", "-f", "qcow2", str(path), str(size)])

    def delete(self, volume_id: str) -> None:
        self.path(volume_id).unlink(missing_ok=True)
        self._note(volume_id).unlink(missing_ok=True)

    def _note(self, volume_id: str) -> Path:
        return self.root / f"{volume_id}.moved-by"

    def moved_by(self, volume_id: str) -> str | None:
        """The move that brought this volume here, if one did and it is here."""
        try:
            return self._note(volume_id).read_text() if self.path(volume_id).exists() else None
        except FileNotFoundError:
            return None

    def snapshot(self, volume_id: str, verb: str, name: str) -> None:
        """``verb``: -c create, -d delete, -a go back to. Of a volume that is not open."""
        run_qemu_img(["snapshot", "-q", verb, name, str(self.existing(volume_id))])

    def space(self) -> tuple[int, int]:
        """Total and free bytes of the file system."""
        about = os.statvfs(self.root)
        return about.f_blocks * about.f_frsize, about.f_bavail * about.f_frsize

    def need_space(self, size: int) -> None:
        if self.space()[1] < size + _FREE_FLOOR:
            raise DriverError("no-space", f"the storage host has no space for {size} more bytes")
