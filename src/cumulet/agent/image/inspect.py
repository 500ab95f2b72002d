"""Decides whether an untrusted image file may be used: by the image service at upload, by hosts before conversion.

Two opinions must agree: our own reading of the headers (`formats`), which refuses whatever reaches outside the file,
and ``qemu-img info`` of the declared format, confined (`confine`) and reading the file through a lent descriptor
(`nbdpipe`). Fails with `ImageRefused`; changes nothing. A machine without ``qemu-img`` (a control plane that runs no
guests) goes by the headers alone, and hosts look again before they use a file.
"""

import json
import os
import shutil
from pathlib import Path

import msgspec

from cumulet.agent.image import confine
from cumulet.agent.image.formats import ImageRefused, Reader, detect, virtual_size
from cumulet.agent.image.nbdpipe import lend

__all__ = ["MAX_VIRTUAL_SIZE", "ImageInfo", "ImageRefused", "inspect"]

MAX_VIRTUAL_SIZE = 8 << 40
# disk_format of the API -> what the file must look like
_ACCEPTED = {
    "raw": ("raw", "iso"),
    "ami": ("raw",),
    "aki": ("raw",),
    "ari": ("raw",),
    "iso": ("iso",),
    "qcow2": ("qcow2",),
    "vmdk": ("vmdk",),
    "vdi": ("vdi",),
    "vhd": ("vhd",),
    "vhdx": ("vhdx",),
}
_QEMU_NAMES = {"vhd": "vpc", "iso": "raw"}


class ImageInfo(msgspec.Struct, frozen=True):
    """``format``: raw, iso, qcow2, vmdk, vdi, vhd or vhdx. ``qemu_format``: QEMU's name of it (explicit, so that
    nothing is probed later)."""

    format: str
    virtual_size_bytes: int
    qemu_format: str


def inspect(path: Path | str, declared_format: str, *, max_virtual_size: int = MAX_VIRTUAL_SIZE) -> ImageInfo:
    """What the file is; raises `ImageRefused`. OSError if it cannot be read."""
    if declared_format not in _ACCEPTED:
        raise ImageRefused(f"Images of the format {declared_format} are not supported.")
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return inspect_open(file, declared_format, max_virtual_size=max_virtual_size)
    finally:
        os.close(file)


def inspect_open(file: int, declared_format: str, *, max_virtual_size: int = MAX_VIRTUAL_SIZE) -> ImageInfo:
    """The same for an open file: nobody can swap it between the look and the use."""
    image = Reader(file)
    found = detect(image)
    if found not in _ACCEPTED[declared_format]:
        raise ImageRefused(f"The file is declared as {declared_format} and looks like {found}.")
    size = virtual_size(image, found)
    if size > max_virtual_size:
        raise ImageRefused(f"The image's virtual size of {size} bytes is above the limit of {max_virtual_size}.")
    if size == 0 and declared_format not in ("raw", "ami", "aki", "ari"):
        raise ImageRefused("The image has a virtual size of zero.")
    info = ImageInfo(found, size, _QEMU_NAMES.get(found, found))
    if info.qemu_format != "raw":
        _second_opinion(file, info)
    return info


def source_argument(fd: int, qemu_format: str) -> str:
    """How a QEMU tool names an image that it reads through a lent descriptor."""
    server = {"type": "fd", "str": str(fd)}
    return "json:" + json.dumps({"driver": qemu_format, "file": {"driver": "nbd", "server": server}})


def _second_opinion(file: int, info: ImageInfo) -> None:
    if shutil.which("qemu-img") is None:
        return
    try:
        with lend(file) as fd:
            told = json.loads(
                confine.run(
                    ["qemu-img", "info", "--output=json", source_argument(fd, info.qemu_format)],
                    lent=[fd],
                    memory_bytes=1 << 30,
                )
            )
    except (confine.ConfinedError, json.JSONDecodeError) as error:
        raise ImageRefused(f"The file is not a sound {info.format} image.") from error
    if told.get("backing-filename") or told.get("full-backing-filename"):
        raise ImageRefused(f"A {info.format} image with a backing file is not accepted.")
    if told["format"] != info.qemu_format or told["virtual-size"] != info.virtual_size_bytes:
        raise ImageRefused("The headers of the image contradict each other about its size.")
