"""Gets an image's bytes and proves that they are those the control plane meant.

A path on the same host is opened where it lies; a URL is fetched into a file of ours. Either way the sha512 is taken
over what is then used: the open file. Fails with `DriverError` (``image-fetch``, ``image-gone``, ``image-invalid``,
``no-space``).
"""

import errno
import hashlib
import os
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cumulet.agent.contract import ImageSource
from cumulet.agent.errors import DriverError

_CHUNK = 1 << 20
_TIMEOUT_SECONDS = 60
_AS_THEY_ARE = ("raw", "ami", "aki", "ari", "iso")  # formats whose base has the bytes of the image


@contextmanager
def opened(
    source: ImageSource, scratch: Path, progress: Callable[[float], None], trust: ssl.SSLContext | None = None
) -> Iterator[int]:
    """An open, checked file with the image's bytes. ``scratch`` is where a download may be kept meanwhile. ``trust``:
    whom to believe of HTTPS; None: whom the system does."""
    if source.path is not None:
        try:
            file = os.open(source.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise DriverError("image-fetch", f"image {source.image_id}: {error.strerror}: {source.path}") from error
        try:
            _check(source, os.fstat(file).st_size, _hash_of(file, source, progress))
            yield file
        finally:
            os.close(file)
        return
    if source.url is None:
        raise DriverError("image-gone", f"image {source.image_id} was deleted, and this host does not have it")
    try:
        with scratch.open("w+b") as download:
            size, digest = _download(source, download.fileno(), progress, trust)
            _check(source, size, digest)
            yield download.fileno()
    finally:
        scratch.unlink(missing_ok=True)


def check_base(source: ImageSource, file: int, progress: Callable[[float], None]) -> None:
    """A base that was made elsewhere: where that was no conversion, the image's size and checksum tell."""
    if source.disk_format not in _AS_THEY_ARE:
        return
    size, sector = os.fstat(file).st_size, 1 if source.disk_format in ("aki", "ari") else 512
    whole = -(-source.size // sector) * sector  # a disk has whole sectors
    _check(source, source.size if size == whole else size, _hash_of(file, source, progress))


def _hash_of(file: int, source: ImageSource, progress: Callable[[float], None]) -> str | None:
    if source.sha512 is None:
        return None
    digest, offset = hashlib.sha512(), 0
    while chunk := os.pread(file, min(_CHUNK, source.size - offset), offset):
        digest.update(chunk)
        offset += len(chunk)
        progress(min(1.0, offset / max(1, source.size)))
    return digest.hexdigest()


def _download(
    source: ImageSource, file: int, progress: Callable[[float], None], trust: ssl.SSLContext | None
) -> tuple[int, str]:
    digest, size = hashlib.sha512(), 0
    try:
        with urllib.request.urlopen(source.url or "", timeout=_TIMEOUT_SECONDS, context=trust) as answer:
            while chunk := answer.read(_CHUNK):
                size += len(chunk)
                if size > source.size:
                    raise DriverError(
                        "image-invalid", f"image {source.image_id} is longer than its {source.size} bytes"
                    )
                digest.update(chunk)
                _write(file, chunk)
                progress(min(1.0, size / max(1, source.size)))
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        # the URL is signed: it is not shown
        reason = getattr(error, "reason", None) or error
        raise DriverError("image-fetch", f"image {source.image_id} could not be fetched: {reason}") from error
    return size, digest.hexdigest()


def _write(file: int, chunk: bytes) -> None:
    view = memoryview(chunk)
    try:
        while view:
            view = view[os.write(file, view) :]
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DriverError("no-space", "the host has no space left for the image") from error
        raise


def _check(source: ImageSource, size: int, digest: str | None) -> None:
    if size != source.size:
        raise DriverError("image-invalid", f"image {source.image_id} has {size} bytes instead of {source.size}")
    if source.sha512 is not None and digest != source.sha512:
        raise DriverError("image-invalid", f"image {source.image_id} does not have the checksum it was stored with")
