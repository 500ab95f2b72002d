"""What an image file's own headers say, read by a few struct lookups: nothing is decoded, no length is believed.

Owns: recognising a format, its virtual size, and refusing what would make QEMU open another file (a backing file, a
data file, an extent, a parent). Fails with `ImageRefused`, whose text is fit for the image's owner.
"""

import os
import re
import struct
import uuid
from collections.abc import Callable

MAX_DESCRIPTOR = 1 << 20


class ImageRefused(Exception):
    """The file is not what it is declared to be, or must not be given to a hypervisor. ``reason`` says why."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Reader:
    """Bytes of an open file at a place; short at the end of the file."""

    def __init__(self, file: int) -> None:
        self._file = file
        self.size = os.fstat(file).st_size

    def at(self, offset: int, length: int) -> bytes:
        if offset < 0 or offset >= self.size:
            return b""
        return os.pread(self._file, min(length, MAX_DESCRIPTOR), offset)

    def unpack(self, form: str, offset: int, what: str) -> tuple[int, ...]:
        data = self.at(offset, struct.calcsize(form))
        if len(data) < struct.calcsize(form):
            raise ImageRefused(f"The file ends within its {what}.")
        return struct.unpack(form, data)


def detect(image: Reader) -> str:
    """``raw`` unless the file bears another format's mark."""
    head, tail = image.at(0, 64), image.at(image.size - 512, 8)
    for mark, name in (
        (b"QFI\xfb", "qcow2"),
        (b"KDMV", "vmdk"),
        (b"COWD", "vmdk"),
        (b"# Disk Descriptor", "vmdk"),
        (b"QED\0", "qed"),
        (b"vhdxfile", "vhdx"),
        (b"conectix", "vhd"),
        (b"WithoutFreeSpace", "ploop"),
        (b"WithouFreSpacExt", "ploop"),
    ):
        if head.startswith(mark):
            return name
    if image.at(0x40, 4) == b"\x7f\x10\xda\xbe":
        return "vdi"
    if tail == b"conectix":
        return "vhd"
    if image.at(0x8001, 5) == b"CD001":
        return "iso"
    return "raw"


def virtual_size(image: Reader, name: str) -> int:
    """The size of the disk the file describes; raises `ImageRefused` for what is malformed or reaches outside."""
    return _PARSERS[name](image)


def _as_it_is(image: Reader) -> int:
    return image.size


def _unsupported(image: Reader) -> int:
    raise ImageRefused("The format of this file is not supported.")


def _qcow2(image: Reader) -> int:
    (_magic, version, backing_at, _backing_len, cluster_bits, size, crypt, l1_size, l1_at, refcounts_at,
     refcount_clusters, _snapshots, _snapshots_at) = image.unpack(">4sIQIIQIIQQIIQ", 0, "header")  # fmt: skip
    if version not in (2, 3):
        raise ImageRefused(f"Version {version} of qcow2 is not supported.")
    if backing_at:
        raise ImageRefused("A qcow2 image with a backing file is not accepted.")
    if crypt:
        raise ImageRefused("An encrypted qcow2 image is not accepted.")
    if not 9 <= cluster_bits <= 21:
        raise ImageRefused("The cluster size of this qcow2 image is impossible.")
    header_length = 72
    if version == 3:
        incompatible, _compatible, _auto, _order, header_length = image.unpack(">QQQII", 72, "header")
        if incompatible & 4:
            raise ImageRefused("A qcow2 image with an external data file is not accepted.")
        if incompatible & 2:
            raise ImageRefused("This qcow2 image is marked as corrupt.")
        if incompatible & ~0b11111:
            raise ImageRefused("This qcow2 image needs features that are not supported.")
        _qcow2_extensions(image, header_length, 1 << cluster_bits)
    covered = l1_size << (2 * cluster_bits - 3)
    if covered < size or l1_size * 8 > 32 << 20:
        raise ImageRefused("The virtual size of this qcow2 image does not fit its tables.")
    if (size and l1_at + l1_size * 8 > image.size) or not 0 < refcounts_at < image.size or not refcount_clusters:
        raise ImageRefused("The tables of this qcow2 image lie outside the file.")
    return size


def _qcow2_extensions(image: Reader, offset: int, end: int) -> None:
    for _ in range(64):
        if offset + 8 > end:
            return
        kind, length = image.unpack(">II", offset, "header extensions")
        if kind == 0:
            return
        if kind == 0x44415441:
            raise ImageRefused("A qcow2 image with an external data file is not accepted.")
        if kind == 0x0537BE77:
            raise ImageRefused("An encrypted qcow2 image is not accepted.")
        offset += 8 + (length + 7) // 8 * 8
    raise ImageRefused("This qcow2 image has too many header extensions.")


_EXTENT = re.compile(rb"^\s*(RW|RDONLY|NOACCESS)\s+(\d+)\s+(\w+)", re.M)


def _vmdk(image: Reader) -> int:
    """Only what lies whole in one file: monolithicSparse and streamOptimized."""
    if image.at(0, 4) != b"KDMV":
        raise ImageRefused("A VMDK whose extents are in other files is not accepted.")
    form = "<4sIIQQQQI"
    _magic, version, _flags, capacity, _grain, descriptor_at, descriptor_sectors, _per = image.unpack(form, 0, "header")
    if version not in (1, 2, 3):
        raise ImageRefused(f"Version {version} of VMDK is not supported.")
    length = descriptor_sectors * 512
    if not descriptor_at or not 0 < length <= MAX_DESCRIPTOR:
        raise ImageRefused("A VMDK without a description of its own extents is not accepted.")
    text = image.at(descriptor_at * 512, length).split(b"\0", 1)[0]
    created = re.search(rb'^\s*createType\s*=\s*"?([A-Za-z0-9]*)', text, re.M | re.I)
    if created is None or created[1] not in (b"monolithicSparse", b"streamOptimized"):
        raise ImageRefused("Only VMDK of the types monolithicSparse and streamOptimized is accepted.")
    if re.search(rb"^\s*parentFileNameHint", text, re.M | re.I):
        raise ImageRefused("A VMDK with a parent is not accepted.")
    parent = re.search(rb"^\s*parentCID\s*=\s*([0-9a-f]+)", text, re.M | re.I)
    if parent is not None and parent[1].lower() != b"ffffffff":
        raise ImageRefused("A VMDK with a parent is not accepted.")
    extents = _EXTENT.findall(text)
    if len(extents) != 1 or extents[0][2] != b"SPARSE":
        raise ImageRefused("A VMDK whose extents are in other files is not accepted.")
    if int(extents[0][1]) != capacity:
        raise ImageRefused("The sizes in the headers of this VMDK contradict each other.")
    return capacity * 512


def _vdi(image: Reader) -> int:
    (kind,) = image.unpack("<I", 0x4C, "header")
    (size,) = image.unpack("<Q", 0x170, "header")
    if kind not in (1, 2):
        raise ImageRefused("A VDI that depends on another image is not accepted.")
    if image.at(0x1A8, 32).strip(b"\0"):  # uuid_link, uuid_parent
        raise ImageRefused("A VDI with a parent is not accepted.")
    return size


def _vhd(image: Reader) -> int:
    """The footer, whose copy begins a dynamic disk's file."""
    footer = 0 if image.at(0, 8) == b"conectix" else image.size - 512
    (size,) = image.unpack(">Q", footer + 48, "footer")
    (kind,) = image.unpack(">I", footer + 60, "footer")
    if kind == 4:
        raise ImageRefused("A differencing VHD (one with a parent) is not accepted.")
    if kind not in (2, 3):
        raise ImageRefused("This type of VHD is not supported.")
    if kind == 2 and size > image.size:
        raise ImageRefused("This fixed VHD is shorter than the size it declares.")
    return size


_VHDX_METADATA = uuid.UUID("8b7ca206-4790-4b9a-b8fe-575f050f886e").bytes_le
_VHDX_PARAMETERS = uuid.UUID("caa16737-fa36-4d43-b3b6-33f0aa44e76b").bytes_le
_VHDX_SIZE = uuid.UUID("2fa54224-cd1b-4876-b211-5dbed83bf4b8").bytes_le
_VHDX_PARENT = uuid.UUID("a8d35f2d-b30b-454d-abf7-d3d84834ab0c").bytes_le


def _vhdx(image: Reader) -> int:
    regions = _vhdx_table(image, 192 << 10, b"regi", "<16sQ8x", 8, 16)
    metadata_at = next((offset for name, offset in regions if name == _VHDX_METADATA), 0)
    items = dict(_vhdx_table(image, metadata_at, b"metadata", "<16sI12x", 10, 32))
    if _VHDX_PARENT in items or _VHDX_SIZE not in items or _VHDX_PARAMETERS not in items:
        raise ImageRefused("A VHDX with a parent, or without a size of its own, is not accepted.")
    (flags,) = image.unpack("<I", metadata_at + items[_VHDX_PARAMETERS] + 4, "metadata")
    if flags & 2:
        raise ImageRefused("A VHDX with a parent is not accepted.")
    return image.unpack("<Q", metadata_at + items[_VHDX_SIZE], "metadata")[0]


def _vhdx_table(image: Reader, at: int, mark: bytes, form: str, count_at: int, first: int) -> list[tuple[bytes, int]]:
    """Entries of 32 bytes that begin with a GUID: (GUID, offset)."""
    if not at or image.at(at, len(mark)) != mark:
        raise ImageRefused("The tables of this VHDX are damaged.")
    (count,) = image.unpack("<H", at + count_at, "tables")
    if count > 2047:
        raise ImageRefused("The tables of this VHDX are damaged.")
    entries: list[tuple[bytes, int]] = []
    for n in range(count):
        entry = image.at(at + first + 32 * n, 32)
        if len(entry) < 32:
            raise ImageRefused("The file ends within its tables.")
        entries.append(struct.unpack(form, entry))
    return entries


_PARSERS: dict[str, Callable[[Reader], int]] = {
    "raw": _as_it_is,
    "iso": _as_it_is,
    "qcow2": _qcow2,
    "vmdk": _vmdk,
    "vdi": _vdi,
    "vhd": _vhd,
    "vhdx": _vhdx,
    "qed": _unsupported,
    "ploop": _unsupported,
}
