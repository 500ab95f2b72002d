"""The image store: a directory of files.

``images/<id>`` is a whole image, ``staging/<id>`` data that waits for its import, ``partial/<id>.<upload>`` data on its
way. A file enters ``images`` or ``staging`` only by rename of a synced partial file, so what stands there is whole.
Nothing here knows the database; the reconciler compares the two.

Hashing is what bounds an upload: md5 and sha512 each get a thread (hashlib frees the interpreter lock), and the
writer syncs in the background of both.
"""

import hashlib
import os
import queue
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec

from cumulet.kernel.errors import TooLarge

BLOCK = 1 << 20
_SYNC_EVERY = 64 << 20
Place = Literal["images", "staging"]


class Received(msgspec.Struct, frozen=True):
    path: str
    size: int
    md5: str
    sha512: str


class _Hasher(threading.Thread):
    """One digest on one thread; a bounded queue keeps memory small."""

    def __init__(self, digest: Any) -> None:
        super().__init__(name="image-hash", daemon=True)
        self._digest = digest
        self._blocks: queue.Queue[bytes | bytearray | None] = queue.Queue(maxsize=8)
        self.start()

    def run(self) -> None:
        while (block := self._blocks.get()) is not None:
            self._digest.update(block)

    def update(self, block: bytes | bytearray) -> None:
        self._blocks.put(block)

    def finish(self) -> str:
        self._blocks.put(None)
        self.join()
        return self._digest.hexdigest()


def blocks(chunks: Iterable[bytes]) -> Iterator[bytes | bytearray]:
    """The same bytes in pieces of at least ``BLOCK`` (the last may be smaller)."""
    gathered = bytearray()
    for chunk in chunks:
        if not gathered and len(chunk) >= BLOCK:
            yield chunk
            continue
        gathered += chunk
        if len(gathered) >= BLOCK:
            yield gathered
            gathered = bytearray()
    if gathered:
        yield gathered


class ImageFiles:
    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("images", "staging", "partial"):
            (root / name).mkdir(parents=True, exist_ok=True)

    def path(self, image_id: str, place: Place = "images") -> Path:
        return self.root / place / image_id

    def partial(self, image_id: str, upload_id: str) -> Path:
        return self.root / "partial" / f"{image_id}.{upload_id}"

    def receive(
        self,
        image_id: str,
        upload_id: str,
        chunks: Iterable[bytes],
        limit: int,
        *,
        expected: int | None = None,
        alive: Any = None,
    ) -> Received:
        """Write the data to a partial file. ``alive()`` is called every 64 MiB. Raises TooLarge beyond ``limit`` or
        ``expected`` bytes; on any error the partial file is gone."""
        path = self.partial(image_id, upload_id)
        size = 0
        unsynced = 0
        hashers = (_Hasher(hashlib.md5(usedforsecurity=False)), _Hasher(hashlib.sha512()))
        try:
            with open(path, "wb", buffering=0) as out:
                for block in blocks(chunks):
                    size += len(block)
                    if size > limit:
                        raise TooLarge(f"Image storage: the image is larger than the {limit} bytes allowed.")
                    for hasher in hashers:
                        hasher.update(block)
                    view = memoryview(block)
                    while view:
                        view = view[out.write(view) :]
                    unsynced += len(block)
                    if unsynced >= _SYNC_EVERY:
                        unsynced = 0
                        os.fdatasync(out.fileno())
                        if alive is not None:
                            alive()
                os.fsync(out.fileno())
        except BaseException:
            for hasher in hashers:
                hasher.finish()
            path.unlink(missing_ok=True)
            raise
        md5, sha512 = (hasher.finish() for hasher in hashers)
        return Received(str(path), size, md5, sha512)

    def adopt(self, source: str | Path, image_id: str, place: Place = "images") -> None:
        """Make a finished file the image's (or staged) data, in one step."""
        os.replace(source, self.path(image_id, place))
        self._sync_directory(place)

    def discard(self, image_id: str) -> None:
        """Remove whole and staged data of an image; what is not there is no error."""
        for place in ("images", "staging"):
            (self.root / place / image_id).unlink(missing_ok=True)

    def read(self, image_id: str, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        """The bytes, in blocks. The file is opened before the first block is asked for, so that a delete meanwhile
        does not cut the reader off; raises FileNotFoundError at once."""
        handle = open(self.path(image_id), "rb", buffering=0)  # noqa: SIM115 - closed by the generator

        def stream() -> Iterator[bytes]:
            with handle:
                handle.seek(offset)
                left = length
                while left is None or left > 0:
                    block = handle.read(BLOCK if left is None else min(BLOCK, left))
                    if not block:
                        return
                    if left is not None:
                        left -= len(block)
                    yield block

        return stream()

    def listing(self) -> dict[str, list[str]]:
        """Names in each of the three places."""
        return {place: sorted(os.listdir(self.root / place)) for place in ("images", "staging", "partial")}

    def _sync_directory(self, place: str) -> None:
        handle = os.open(self.root / place, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
