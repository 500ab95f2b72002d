"""Checksum and segmentation offloads of a device off, without the ethtool program.

A datapath in user space reads frames where the kernel has not finished their checksums; the sender must.
"""

import ctypes
import errno
import fcntl
import socket
import struct

_SIOCETHTOOL = 0x8946
_GET = (0x16, 0x1E, 0x23)  # tx checksum, tso, gso
_SET = (0x17, 0x1F, 0x24)


def offloads_off(device: str) -> None:
    """In the namespace of the calling thread. Nothing is written if they are off."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        for get, put in zip(_GET, _SET, strict=True):
            if _ask(control, device, get):
                _ask(control, device, put)


def _ask(control: socket.socket, device: str, command: int) -> int:
    value = ctypes.create_string_buffer(struct.pack("II", command, 0))
    request = struct.pack("16sP", device.encode(), ctypes.addressof(value)) + b"\0" * 16
    try:
        fcntl.ioctl(control, _SIOCETHTOOL, request)
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            return 0
        raise
    return int(struct.unpack("II", value.raw[:8])[1])
