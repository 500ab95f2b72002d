"""Disks of a server that does not run, from host to host: offered at the source's door to one other host, fetched by
that host, on its own copy of the image.

What is sent is each file as it is, holes left out: of an overlay that is what the server wrote. The target looks at it
as at any image from a stranger and puts it on its own base. An offer is a note in the server's folder, so another life
of the agent goes on offering; a fetch that was cut off asks for what is missing.
Fails with `DriverError` (``guest-running``, ``no-space``, ``refused``, ``unreachable``, ``image-invalid``).
"""

import asyncio
import errno
import os
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from cumulet.agent.compute.instances import Instances, grow_root, on_own_base
from cumulet.agent.compute.moving.door import BLOCK, Caller, Hello, Reader, Writer, say
from cumulet.agent.compute.moving.marks import Incoming, Marks, Offer
from cumulet.agent.contract import DiskConnection, DiskOffer, FetchDisks, OfferDisks, OfferDisksResult
from cumulet.agent.driver import Progress
from cumulet.agent.errors import DriverError

FILES = {"disk": "qcow2", "disk.eph0": "raw", "disk.swap": "raw", "disk.config": "raw", "console.log": "raw"}
_SEGMENT = struct.Struct(">QI")  # offset, bytes; of no bytes: the end, and the file's size
_TRY_SECONDS = 120.0
_FREE_FLOOR = 64 << 20


class Cold:
    def __init__(
        self,
        instances: Instances,
        marks: Marks,
        open_door: Callable[[], str],
        caller: Callable[[str, str, str], Caller],
        runs: Callable[[str], bool],
        clear: Callable[[str], None],
    ) -> None:
        """``runs``: does a guest of this server run here? ``clear``: make way for what is to come."""
        self._instances, self._marks, self._open_door = instances, marks, open_door
        self._caller, self._runs, self._clear = caller, runs, clear

    # -- source ---------------------------------------------------------------------------------------------------

    def offer(self, op: OfferDisks) -> OfferDisksResult:
        folder = self._instances.folder(op.server_id)
        if self._runs(op.server_id):
            raise DriverError("guest-running", f"Server {op.server_id} runs: its disks are not at rest.")
        if not folder.exists():
            return OfferDisksResult(disks=[])  # it has none here: all it has are volumes
        self._marks.set(op.server_id, Offer(to_host=op.to_host))
        address = self._open_door()
        return OfferDisksResult(
            disks=[
                DiskOffer(
                    name=name,
                    connection=DiskConnection(driver="door", uri=f"door://{address}/{op.server_id}/{name}"),
                    format=form,
                    size_bytes=(folder / name).stat().st_blocks * 512,
                )
                for name, form in FILES.items()
                if (folder / name).is_file()
            ]
        )

    def withdraw(self, server_id: str) -> None:
        self._marks.drop(Offer, server_id)

    async def serve(self, hello: Hello, reader: Reader, writer: Writer) -> None:
        mark = self._marks.get(Offer, hello.server)
        if mark is None or mark.to_host != hello.host or hello.name not in FILES:
            raise DriverError("refused", f"{hello.name} of server {hello.server} is not offered to {hello.host}")
        with (self._instances.folder(hello.server) / hello.name).open("rb") as file:
            await say(writer)
            for offset, size in _data(file, hello.size):
                writer.write(_SEGMENT.pack(offset, size))
                block = await asyncio.to_thread(os.pread, file.fileno(), size, offset)
                writer.write(block.ljust(size, b"\0"))
                await writer.drain()
                if self._marks.get(Offer, hello.server) != mark:
                    raise DriverError("refused", "the disks were withdrawn")
            writer.write(_SEGMENT.pack(os.fstat(file.fileno()).st_size, 0))
            await writer.drain()

    # -- target ---------------------------------------------------------------------------------------------------

    def fetch(self, op: FetchDisks, progress: Progress) -> None:
        server_id, folder = op.server.server_id, self._instances.folder(op.server.server_id)
        mark = self._marks.get(Incoming, server_id)
        if mark is None or mark.how != "fetch" or mark.from_host != op.from_host:
            self._clear(server_id)
            folder.mkdir()
            self._marks.set(server_id, Incoming(from_host=op.from_host, how="fetch", server=op.server))
        total = sum(disk.size_bytes for disk in op.disks) or 1
        before = 0
        for disk in op.disks:
            if disk.name not in FILES or FILES[disk.name] != disk.format:
                raise DriverError("refused", f"a disk {disk.name} in the format {disk.format}")
            if not (folder / disk.name).exists():
                self._fetch_one(op, disk, folder, lambda done, base=before: progress((base + done) / total))  # type: ignore[misc]
            before += disk.size_bytes
        self._instances.create(op.server, progress)  # links into the image cache, and what was not to be fetched
        grow_root(folder / "disk", op.server)

    def _fetch_one(self, op: FetchDisks, disk: DiskOffer, folder: Path, progress: Callable[[int], None]) -> None:
        address, _, _ = (disk.connection.uri or "").removeprefix("door://").partition("/")
        caller = self._caller(op.from_host, address, op.server.server_id)
        part = folder / f"{disk.name}.fetch"
        space = os.statvfs(folder)
        there = part.stat().st_blocks * 512 if part.exists() else 0
        if space.f_bavail * space.f_frsize < disk.size_bytes - there + _FREE_FLOOR:
            raise DriverError("no-space", f"this host has no space for {disk.size_bytes} bytes of {disk.name}")
        end = time.monotonic() + _TRY_SECONDS
        while True:
            before = part.stat().st_size if part.exists() else 0
            try:
                caller.loop.run(self._copy(caller, disk.name, part, progress))
                break
            except OSError as error:
                code = "no-space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "internal"
                raise DriverError(code, f"{disk.name} cannot be written: {error.strerror}") from error
            except DriverError as error:
                now = part.stat().st_size if part.exists() else 0
                end = time.monotonic() + _TRY_SECONDS if now > before else end
                if error.code != "unreachable" or time.monotonic() > end:
                    raise
                progress(there)
                time.sleep(1)
        if disk.name == "disk" and op.server.image is not None:
            on_own_base(part, self._instances.cache.get(op.server.image, lambda *fraction: None).path)
        part.chmod(0o600)
        with part.open("rb") as whole:
            os.fsync(whole.fileno())
        os.replace(part, folder / disk.name)

    @staticmethod
    async def _copy(caller: Caller, name: str, part: Path, progress: Callable[[int], None]) -> None:
        """From where an earlier try was cut off."""
        with part.open("r+b" if part.exists() else "w+b") as file:
            at = file.seek(0, os.SEEK_END)
            reader, writer, _ = await caller.dial("disk", name=name, size=at)
            done = 0
            try:
                while True:
                    offset, size = _SEGMENT.unpack(await reader.readexactly(_SEGMENT.size))
                    if not size:
                        file.truncate(offset)
                        return
                    if size > BLOCK or offset < at:
                        raise DriverError("refused", f"host {caller.to_host} sent {size} bytes at {offset}")
                    block = await reader.readexactly(size)
                    await asyncio.to_thread(os.pwrite, file.fileno(), block, offset)
                    done, at = done + size, offset + size
                    progress(done)
            except (EOFError, ConnectionError) as error:
                raise DriverError("unreachable", f"host {caller.to_host} broke off: {error}") from error
            finally:
                writer.close()


def _data(file: BinaryIO, start: int) -> Iterator[tuple[int, int]]:
    """Offset and size of what is not a hole, in blocks."""
    number, at = file.fileno(), start
    while True:
        try:
            at = os.lseek(number, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return  # nothing but a hole from here on
            raise
        hole = os.lseek(number, at, os.SEEK_HOLE)
        while at < hole:
            size = min(BLOCK, hole - at)
            yield at, size
            at += size
