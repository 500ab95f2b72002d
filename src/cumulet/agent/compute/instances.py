"""The files of servers: one folder each, with root overlay, ephemeral disk, swap, config drive and console log.

Each file is made under another name and renamed, so that what has its final name is whole and making it again is
nothing; a folder that goes is renamed first, so that half of one is never found. What a base image is used by is
read from the overlays themselves. Fails with `DriverError` (``image-too-large``, ``no-space``, ``internal``).
"""

import os
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from xml.etree import ElementTree

from cumulet.agent import aside
from cumulet.agent.compute.configdrive import contents, write_iso
from cumulet.agent.compute.domain import ServerFiles
from cumulet.agent.contract import ImageSource, ServerSpec
from cumulet.agent.errors import DriverError
from cumulet.agent.image.cache import CachedImage, ImageCache
from cumulet.agent.image.inspect import ImageRefused, inspect
from cumulet.kernel.ids import is_uuid

_ASIDE = ".aside"
_RESIZED_FROM = "resized-from"
_CONSOLE_KEEP_BYTES = 1 << 20
_CONSOLE_TRIM_BYTES = 4 << 20


class Instances:
    def __init__(self, directory: Path, run: Path, cache: ImageCache) -> None:
        self.directory, self.sockets, self.cache = directory, run, cache

    def start(self) -> None:
        for path in (self.directory, self.sockets):
            path.mkdir(parents=True, exist_ok=True)
            path.chmod(0o755)  # QEMU's own user passes through
        for left in (*self.directory.glob(".gone-*"), *self.directory.glob("*/*.part")):
            shutil.rmtree(left) if left.is_dir() else left.unlink()

    # -- where things are ---------------------------------------------------------------------------------

    def folder(self, server_id: str) -> Path:
        if not is_uuid(server_id):
            raise DriverError("internal", f"{server_id!r} is not a server's id")
        return self.directory / server_id

    def ids(self) -> list[str]:
        return sorted(p.name for p in self.directory.iterdir() if is_uuid(p.name))

    def files(self, server_id: str) -> ServerFiles:
        folder = self.folder(server_id)

        def there(name: str) -> Path | None:
            return folder / name if os.path.lexists(folder / name) else None

        disc = there("disk.iso")
        return ServerFiles(
            console_log=self.console_log(server_id),
            serial_socket=self.sockets / f"{server_id}.serial",
            root=disc or there("disk"),
            root_format="raw" if disc else "qcow2",
            root_is_cdrom=disc is not None,
            ephemeral=there("disk.eph0"),
            swap=there("disk.swap"),
            config_drive=there("disk.config"),
            kernel=there("kernel"),
            ramdisk=there("ramdisk"),
        )

    def resized_from(self, server_id: str) -> Path:
        """Where the disks are as they were before a resize that is not confirmed."""
        return self.folder(server_id) / _RESIZED_FROM

    def console_log(self, server_id: str) -> Path:
        return self.folder(server_id) / "console.log"

    def set_aside(self) -> list[str]:
        """Servers whose files an operator had moved aside."""
        folder = self.directory / _ASIDE
        return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []

    def bases_in_use(self) -> Iterator[Path]:
        """Files of the image cache that servers stand on, and what was moved aside."""
        folders = [self.folder(server_id) for server_id in self.ids()]
        for folder in (*folders, *(self.directory / _ASIDE / name for name in self.set_aside())):
            for name in ("disk.iso", "kernel", "ramdisk"):
                if (folder / name).is_symlink():
                    yield Path(os.readlink(folder / name))
            for overlay in (folder / "disk", folder / _RESIZED_FROM / "disk"):
                backing = _backing_file(overlay)
                if backing is not None:
                    yield backing

    def missing_files(self, xml: str) -> list[Path]:
        """Files that a domain's disks are, or stand on, and that are not there."""
        named = [Path(source.get("file", "")) for source in ElementTree.fromstring(xml).iterfind("devices/disk/source")]
        found = [path for path in named if path.is_absolute()]
        found += [backing for path in found if (backing := _backing_file(path)) is not None]
        return [path for path in found if not path.exists()]

    # -- making and removing ------------------------------------------------------------------------------

    def create(self, spec: ServerSpec, progress: Callable[[], None]) -> None:
        folder = self.folder(spec.server_id)
        folder.mkdir(exist_ok=True)
        folder.chmod(0o755)

        def cached(source: ImageSource) -> CachedImage:
            return self.cache.get(source, lambda fraction: progress())

        if spec.image is not None:
            image = cached(spec.image)
            if image.iso:
                _link(image.path, folder / "disk.iso")
            else:
                self._root(spec, image, folder / "disk")
        for source, name in ((spec.kernel, "kernel"), (spec.ramdisk, "ramdisk")):
            if source is not None:
                _link(cached(source).path, folder / name)
        progress()
        if spec.ephemeral_gb:
            _make(folder / "disk.eph0", lambda part: _ephemeral(part, spec.ephemeral_gb << 30))
        if spec.swap_mb:
            _make(folder / "disk.swap", lambda part: _swap(part, spec.swap_mb << 20))
        progress()
        if spec.config_drive and spec.metadata is not None and not (folder / "disk.config").exists():
            write_iso(contents(spec.metadata, spec.admin_password), folder / "disk.config")

    def _root(self, spec: ServerSpec, image: CachedImage, target: Path) -> None:
        size = spec.root_gb << 30 or image.virtual_size_bytes
        if image.virtual_size_bytes > size:
            raise DriverError(
                "image-too-large",
                f"the image's disk of {image.virtual_size_bytes} bytes does not fit into {spec.root_gb} GiB",
            )
        overlay = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(image.path)]
        _make(target, lambda part: run_tool([*overlay, str(part), str(size)]))

    def delete(self, server_id: str) -> None:
        folder = self.folder(server_id)
        gone = self.directory / f".gone-{server_id}"
        try:
            os.rename(folder, gone)
        except FileNotFoundError:
            pass  # deleted already
        except OSError:
            shutil.rmtree(gone)  # an earlier delete of the same server was killed here
            os.rename(folder, gone)
        shutil.rmtree(gone, ignore_errors=True)
        (self.sockets / f"{server_id}.serial").unlink(missing_ok=True)

    def put_aside(self, server_id: str) -> Path:
        """Move a server's files where nobody uses them; nothing is deleted."""
        return aside.move(self.folder(server_id), self.directory / _ASIDE)

    def put_aside_resized(self, server_id: str) -> Path:
        """The same with its disks from before a resize."""
        kept, whose = self.resized_from(server_id), self.folder(server_id) / f"{server_id}.{_RESIZED_FROM}"
        if kept.exists():
            os.replace(kept, whose)
        return aside.move(whose, self.directory / _ASIDE)

    # -- the console log ------------------------------------------------------------------------------------

    def trim_console_logs(self) -> None:
        """A guest may write its console for ever: keep the end. QEMU appends, so it goes on at the new end."""
        for server_id in self.ids():
            log = self.console_log(server_id)
            try:
                if log.stat().st_size <= _CONSOLE_TRIM_BYTES:
                    continue
                with log.open("r+b") as file:
                    file.seek(-_CONSOLE_KEEP_BYTES, os.SEEK_END)
                    end = file.read()
                    file.truncate(0)
                    file.seek(0)
                    file.write(end)
            except FileNotFoundError:
                continue  # never started, or deleted meanwhile

    def end_of_console(self, server_id: str) -> bytes:
        try:
            with self.console_log(server_id).open("rb") as file:
                file.seek(0, os.SEEK_END)
                file.seek(max(0, file.tell() - _CONSOLE_KEEP_BYTES))
                return file.read()
        except FileNotFoundError:
            return b""

    def console(self, server_id: str, lines: int | None) -> str:
        text = self.end_of_console(server_id).decode(errors="replace").replace("\r\n", "\n")
        if lines is None:
            return text
        return "".join(text.splitlines(keepends=True)[-lines:] if lines > 0 else [])


def run_tool(command: list[str], seconds: float = 120) -> str:
    """A tool that works on files of ours; its last words become the error."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except FileNotFoundError as error:
        raise DriverError("internal", f"{command[0]} is missing on this host") from error
    except subprocess.TimeoutExpired as error:
        raise DriverError("timeout", f"{command[0]} {command[1]} did not end within {seconds:.0f} seconds") from error
    if done.returncode:
        code = "no-space" if "No space left" in done.stderr else "internal"
        raise DriverError(code, f"{command[0]} {command[1]}: {done.stderr.strip()[-300:]}")
    return done.stdout


def virtual_size(overlay: Path) -> int:
    """Bytes of the disk that a qcow2 is, from its header."""
    with overlay.open("rb") as file:
        file.seek(24)
        return int.from_bytes(file.read(8))


def grow_root(overlay: Path, spec: ServerSpec) -> None:
    """To what the server is to have; never smaller."""
    size = spec.root_gb << 30
    if overlay.exists() and virtual_size(overlay) < size:
        run_tool(["qemu-img", "resize", "-q", "-f", "qcow2", str(overlay), str(size)])


def on_own_base(overlay: Path, base: Path) -> None:
    """Put an overlay that another host made on this host's copy of the image. What it says itself that it stands on is
    never opened; DriverError ``image-invalid`` if it reaches outside in another way."""
    with overlay.open("r+b") as file:
        if file.read(4) != b"QFI\xfb":
            raise DriverError("image-invalid", "What the other host sent is no overlay.")
        file.seek(8)
        file.write(bytes(12))  # where the name of its base stands, and how long it is
    try:
        inspect(overlay, "qcow2")
    except ImageRefused as error:
        raise DriverError("image-invalid", f"The other host's disk is refused: {error.reason}") from error
    run_tool(["qemu-img", "rebase", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b", str(base), str(overlay)])


def _make(target: Path, make: Callable[[Path], object]) -> None:
    if target.exists():
        return
    part = target.with_name(target.name + ".part")
    part.unlink(missing_ok=True)
    make(part)
    part.chmod(0o600)
    os.replace(part, target)


def _link(to: Path, name: Path) -> None:
    part = name.with_name(name.name + ".part")
    part.unlink(missing_ok=True)
    part.symlink_to(to)
    os.replace(part, name)


def _ephemeral(part: Path, size: int) -> None:
    with part.open("wb") as file:
        file.truncate(size)
    run_tool(["mke2fs", "-q", "-F", "-t", "ext4", "-L", "ephemeral0", "-E", "lazy_itable_init=1,nodiscard", str(part)])


def _swap(part: Path, size: int) -> None:
    """A swap area's header: version 1, last page, label."""
    page = 4096
    with part.open("wb") as file:
        file.truncate(size)
        file.seek(1024)
        file.write(struct.pack("<III16s16s", 1, size // page - 1, 0, os.urandom(16), b"swap"))
        file.seek(page - 10)
        file.write(b"SWAPSPACE2")


def _backing_file(overlay: Path) -> Path | None:
    """What a qcow2 of ours stands on, from its header."""
    try:
        with overlay.open("rb") as file:
            magic, _version, offset, length = struct.unpack(">4sIQI", file.read(20))
            if magic != b"QFI\xfb" or not offset:
                return None
            file.seek(offset)
            return Path(file.read(length).decode())
    except (OSError, struct.error):
        return None
