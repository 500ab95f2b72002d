"""A file from host to host, through the door, holes left out; it goes on where a try was cut off.

Each block comes behind its offset and size; one of no bytes is the end, and says the size of the file.
Fails with `DriverError` (``no-space``, ``refused``, ``unreachable``, ``internal``).
"""

import asyncio
import errno
import os
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from cumulet.agent.compute.moving.door import BLOCK, Caller, Writer, say
from cumulet.agent.contract import DiskConnection, DiskOffer
from cumulet.agent.errors import DriverError

_SEGMENT = struct.Struct(">QI")  # offset, bytes
_TRY_SECONDS = 120.0
_FREE_FLOOR = 64 << 20


def offered(path: Path, *, name: str, form: str, address: str, server_id: str) -> DiskOffer:
    """``address``: of the door. ``name``: under which it is asked for there."""
    connection = DiskConnection(driver="door", uri=f"door://{address}/{server_id}/{name}")
    return DiskOffer(name=name, connection=connection, format=form, size_bytes=path.stat().st_blocks * 512)


def address_of(offer: DiskOffer) -> str:
    return (offer.connection.uri or "").removeprefix("door://").partition("/")[0]


async def send(path: Path, start: int, writer: Writer, stands: Callable[[], bool]) -> None:
    """From ``start`` on, as long as the offer ``stands``."""
    with path.open("rb") as file:
        await say(writer)
        for offset, size in _data(file, start):
            writer.write(_SEGMENT.pack(offset, size))
            block = await asyncio.to_thread(os.pread, file.fileno(), size, offset)
            writer.write(block.ljust(size, b"\0"))
            await writer.drain()
            if not stands():
                raise DriverError("refused", f"{path.name} was withdrawn")
        writer.write(_SEGMENT.pack(os.fstat(file.fileno()).st_size, 0))
        await writer.drain()


def fetch(caller: Caller, offer: DiskOffer, part: Path, progress: Callable[[int], None]) -> None:
    """Until ``part`` is whole, over breaks of the connection. ``progress``: is told the bytes that came."""
    space = os.statvfs(part.parent)
    there = part.stat().st_blocks * 512 if part.exists() else 0
    if space.f_bavail * space.f_frsize < offer.size_bytes - there + _FREE_FLOOR:
        raise DriverError("no-space", f"this host has no space for {offer.size_bytes} bytes of {offer.name}")
    end = time.monotonic() + _TRY_SECONDS
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            return caller.loop.run(_copy(caller, offer.name, part, progress))
        except OSError as error:
            code = "no-space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "internal"
            raise DriverError(code, f"{offer.name} cannot be written: {error.strerror}") from error
        except DriverError as error:
            now = part.stat().st_size if part.exists() else 0
            end = time.monotonic() + _TRY_SECONDS if now > before else end
            if error.code != "unreachable" or time.monotonic() > end:
                raise
            progress(there)
            time.sleep(1)


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
