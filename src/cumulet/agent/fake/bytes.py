"""The few real bytes a fake host moves: image files are read and checked, snapshots and uploads are written."""

import hashlib
import struct
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from cumulet.agent.contract import CacheImageResult, ImageSource, SnapshotServerResult, Upload
from cumulet.agent.errors import DriverError

_CHUNK = 1 << 20


def _read(source: ImageSource) -> Iterator[bytes]:
    try:
        if source.path is not None:
            with Path(source.path).open("rb") as file:
                while chunk := file.read(_CHUNK):
                    yield chunk
        elif source.url is not None:
            with urllib.request.urlopen(source.url, timeout=30) as answer:
                while chunk := answer.read(_CHUNK):
                    yield chunk
        else:
            raise DriverError("image-gone", f"Image {source.image_id} was deleted, and this host does not have it.")
    except (OSError, urllib.error.URLError) as error:
        raise DriverError("image-unreachable", f"Image {source.image_id} cannot be read: {error}.") from error


def check_image(source: ImageSource) -> CacheImageResult:
    """Read it whole; DriverError ``image-invalid`` if size or checksum differ from what was announced."""
    digest, size, head = hashlib.sha512(), 0, b""
    for chunk in _read(source):
        head = head or chunk[:512]
        digest.update(chunk)
        size += len(chunk)
    if size != source.size:
        raise DriverError("image-invalid", f"Image {source.image_id} has {size} bytes, not {source.size}.")
    if source.sha512 is not None and digest.hexdigest() != source.sha512:
        raise DriverError("image-invalid", f"Image {source.image_id} is not what its checksum says.")
    virtual = size
    if source.disk_format == "qcow2":
        if len(head) < 32 or head[:4] != b"QFI\xfb":
            raise DriverError("image-invalid", f"Image {source.image_id} is no qcow2 file.")
        (virtual,) = struct.unpack(">Q", head[24:32])
    return CacheImageResult(hit=False, bytes=size, virtual_size_bytes=virtual)


def write_upload(upload: Upload, what: str, size_gb: int) -> SnapshotServerResult:
    """Write a small recognisable image of the wanted format to where it shall go."""
    virtual = max(size_gb, 1) << 30
    if upload.disk_format == "qcow2":
        # a valid header of an empty version 2 image
        data = struct.pack(">4sIQIIQIIQQIIQ", b"QFI\xfb", 2, 0, 0, 16, virtual, 0, 1, 0, 0, 0, 0, 0).ljust(65536, b"\0")
    else:
        data = f"fake image of {what}\n".encode().ljust(4096, b"\0")
        virtual = len(data)
    try:
        if upload.path is not None:
            path = Path(upload.path)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        elif upload.url is not None:
            put = urllib.request.Request(upload.url, data=data, method="PUT")
            put.add_header("Content-Type", "application/octet-stream")
            urllib.request.urlopen(put, timeout=30).close()
        else:
            raise DriverError("internal", "The upload has neither path nor address.")
    except (OSError, urllib.error.URLError) as error:
        raise DriverError("upload-failed", f"The image of {what} cannot be stored: {error}.") from error
    return SnapshotServerResult(
        size=len(data),
        sha512=hashlib.sha512(data).hexdigest(),
        md5=hashlib.md5(data, usedforsecurity=False).hexdigest(),
        virtual_size_bytes=virtual,
    )
