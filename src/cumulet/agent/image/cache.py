"""The host's images, checked and uncompressed: what overlays of servers stand on.

Owns: one directory. A base is made under another name and renamed, so that what has its final name is whole; requests
for the same image at the same time share one fetch; leftovers of a killed process go at start. Bases are raw and
sparse; kernels and ramdisks are kept as they are. Refuses untrusted files as `inspect` says. A base of an image that
was deleted may come from another host, as it is in its cache.
Fails with `DriverError` (``image-invalid``, ``image-fetch``, ``image-gone``, ``no-space``).
"""

import os
import ssl
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

from cumulet.agent.contract import ImageSource
from cumulet.agent.errors import DriverError
from cumulet.agent.image import confine
from cumulet.agent.image.fetch import check_base, opened
from cumulet.agent.image.inspect import ImageInfo, ImageRefused, inspect_open, source_argument
from cumulet.agent.image.nbdpipe import lend

_KEEP_FREE_BYTES = 256 << 20
_SLOWEST_BYTES_PER_SECOND = 4 << 20


class CachedImage(msgspec.Struct, frozen=True):
    """``hit``: it was there already. ``bytes``: what it takes on disk. ``iso``: to be shown as a CD-ROM."""

    path: Path
    hit: bool
    bytes: int
    virtual_size_bytes: int
    iso: bool = False


class ImageCache:
    def __init__(self, directory: Path, trust: ssl.SSLContext | None = None) -> None:
        """``trust``: whom to believe that the image service is the image service; None: whom the system does."""
        self.directory = directory
        self.trust = trust
        self._guard = threading.Lock()
        self._locks: dict[str, threading.Lock] = {}

    def start(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        self.directory.chmod(0o755)  # the hypervisor's user reads bases
        for left in self.directory.glob(".part-*"):
            left.unlink(missing_ok=True)

    def get(
        self,
        source: ImageSource,
        progress: Callable[[float], None] = lambda fraction: None,
        bring: Callable[[Path], None] | None = None,
    ) -> CachedImage:
        """``bring``: writes the base of an image that was deleted, from another host's cache, into a file."""
        name = self._name(source)
        with self._guard:
            lock = self._locks.setdefault(name, threading.Lock())
        while not lock.acquire(timeout=5):
            progress(0.0)  # another request fetches it: this one lives
        try:
            found = self._look(name, source)
            if found is None:
                if bring is not None:
                    self._receive(name, source, progress, bring)
                else:
                    self._make(name, source, progress)
                found = self._look(name, source)
                if found is None:
                    raise DriverError("internal", f"image {source.image_id} vanished from the cache while it was made")
                return msgspec.structs.replace(found, hit=False)
            return found
        finally:
            lock.release()

    def find(self, source: ImageSource) -> CachedImage | None:
        """What is there of it."""
        return self._look(self._name(source), source)

    def prune(self, in_use: Iterable[Path], *, older_than_seconds: float) -> list[Path]:
        """Remove bases that no overlay stands on and that nobody asked for lately."""
        keep, removed = set(in_use), []
        for path in self.directory.iterdir():
            with self._guard:
                lock = self._locks.setdefault(path.name, threading.Lock())
            if path in keep or path.name.startswith(".") or not lock.acquire(blocking=False):
                continue
            try:
                if time.time() - path.stat().st_mtime > older_than_seconds:
                    path.unlink()
                    removed.append(path)
            finally:
                lock.release()
        return removed

    @staticmethod
    def _name(source: ImageSource) -> str:
        suffix = source.disk_format if source.disk_format in ("aki", "ari", "iso") else "raw"
        return f"{source.image_id}{'-' + source.sha512[:16] if source.sha512 else ''}.{suffix}"

    def _look(self, name: str, source: ImageSource) -> CachedImage | None:
        path = self.directory / name
        try:
            os.utime(path)  # the last time it was wanted
            about = path.stat()
        except FileNotFoundError:
            return None
        return CachedImage(path, True, about.st_blocks * 512, about.st_size, source.disk_format == "iso")

    def _make(self, name: str, source: ImageSource, progress: Callable[[float], None]) -> None:
        self._need_space(source.size)
        part, scratch = self.directory / f".part-{name}", self.directory / f".part-{name}.download"
        try:
            with opened(source, scratch, lambda fraction: progress(fraction / 2), self.trust) as file:
                try:
                    info = inspect_open(file, source.disk_format)
                except ImageRefused as refused:
                    raise DriverError("image-invalid", f"image {source.image_id}: {refused.reason}") from refused
                if source.disk_format in ("aki", "ari"):
                    _copy(file, part)
                else:
                    self._convert(file, info, part, progress)
            os.replace(part, self.directory / name)
        finally:
            part.unlink(missing_ok=True)

    def _receive(
        self, name: str, source: ImageSource, progress: Callable[[float], None], bring: Callable[[Path], None]
    ) -> None:
        part = self.directory / f".part-{name}"
        try:
            bring(part)
            with part.open("rb") as base:
                check_base(source, base.fileno(), progress)
                os.fchmod(base.fileno(), 0o644)
                os.fsync(base.fileno())
            os.replace(part, self.directory / name)
        finally:
            part.unlink(missing_ok=True)

    def _convert(self, file: int, info: ImageInfo, part: Path, progress: Callable[[float], None]) -> None:
        """Raw, sparse, by ``qemu-img`` without rights: it reads one descriptor and writes another."""
        target = os.open(part, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        size = -(-info.virtual_size_bytes // 512) * 512  # a disk has whole sectors
        try:
            os.ftruncate(target, size)
            if os.geteuid() == 0:
                os.fchown(target, confine.UNPRIVILEGED, confine.UNPRIVILEGED)
            flags = ["-n", "--target-is-zero", "-S", "64k", "-O", "raw"]

            def watch() -> str | None:
                progress(0.5 + min(0.5, os.fstat(target).st_blocks * 512 / max(1, size) / 2))
                return "no space" if self._free_bytes() < _KEEP_FREE_BYTES else None

            with lend(file) as fd:
                source = source_argument(fd, info.qemu_format)
                confine.run(
                    ["qemu-img", "convert", *flags, source, f"/dev/fd/{target}"],
                    lent=[fd, target],
                    seconds=60 + size / _SLOWEST_BYTES_PER_SECOND,
                    cpu_seconds=int(60 + size / _SLOWEST_BYTES_PER_SECOND),
                    file_bytes=size,
                    watch=watch,
                )
            if os.geteuid() == 0:
                os.fchown(target, 0, 0)
            os.fchmod(target, 0o644)
            os.fsync(target)
        except confine.ConfinedError as error:
            if str(error) == "no space" or self._free_bytes() < _KEEP_FREE_BYTES:
                raise DriverError("no-space", "the host has no space left for the image") from error
            raise DriverError("image-invalid", f"the image could not be converted: {error}") from error
        finally:
            os.close(target)

    def _free_bytes(self) -> int:
        about = os.statvfs(self.directory)
        return about.f_bavail * about.f_frsize

    def _need_space(self, size: int) -> None:
        if self._free_bytes() < size + _KEEP_FREE_BYTES:
            raise DriverError("no-space", f"the host has no space for an image of {size} bytes")


def _copy(file: int, part: Path) -> None:
    with part.open("wb") as target:
        offset = 0
        while sent := os.sendfile(target.fileno(), file, offset, 1 << 24):
            offset += sent
        os.fchmod(target.fileno(), 0o644)
        os.fsync(target.fileno())
