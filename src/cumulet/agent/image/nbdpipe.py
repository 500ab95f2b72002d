"""Lends one open file to a confined process, read-only, over a socket pair that speaks NBD.

The process needs no permission on the file and no path to it: it can read this file and nothing else. The serving
thread moves bytes with ``sendfile`` and looks at none of them. It ends when the process closes its end.
"""

import contextlib
import os
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_MAGIC, _OPTION_MAGIC, _REPLY_MAGIC = b"NBDMAGIC", b"IHAVEOPT", 0x3E889045565A9
_REQUEST_MAGIC, _SIMPLE_REPLY = 0x25609513, 0x67446698
_FIXED_NEWSTYLE, _NO_ZEROES = 1, 2
_HAS_FLAGS, _READ_ONLY = 1, 2
_OPT_EXPORT_NAME, _OPT_ABORT, _OPT_INFO, _OPT_GO = 1, 2, 6, 7
_REP_ACK, _REP_INFO, _REP_UNSUPPORTED = 1, 3, 0x80000001
_READ, _DISCONNECT = 0, 2
_EINVAL = 22
_SECTOR = 512


@contextmanager
def lend(file: int) -> Iterator[int]:
    """A file descriptor to pass on to the process (``{"type": "fd", "str": "N"}``), good until the block ends."""
    ours, theirs = socket.socketpair()
    size = -(-os.fstat(file).st_size // _SECTOR) * _SECTOR  # QEMU's client hangs at a torn last sector
    thread = threading.Thread(target=_serve, args=(ours, file, size), name="nbd-lend", daemon=True)
    thread.start()
    try:
        yield theirs.fileno()
    finally:
        theirs.close()
        with contextlib.suppress(OSError):
            ours.shutdown(socket.SHUT_RDWR)
        thread.join()
        ours.close()


def _serve(peer: socket.socket, file: int, size: int) -> None:
    # the peer may vanish at any byte: it is killed when its time is up
    with contextlib.suppress(OSError, EOFError):
        if _handshake(peer, size):
            _answer_reads(peer, file, size)


def _take(peer: socket.socket, length: int) -> bytes:
    got = b""
    while len(got) < length:
        more = peer.recv(length - len(got))
        if not more:
            raise EOFError
        got += more
    return got


def _handshake(peer: socket.socket, size: int) -> bool:
    """Fixed newstyle negotiation; True when the transmission phase begins."""
    peer.sendall(_MAGIC + _OPTION_MAGIC + struct.pack(">H", _FIXED_NEWSTYLE | _NO_ZEROES))
    flags = struct.unpack(">I", _take(peer, 4))[0]
    about = struct.pack(">QH", size, _HAS_FLAGS | _READ_ONLY)
    while True:
        _magic, option, length = struct.unpack(">8sII", _take(peer, 16))
        if length > 65536:
            return False
        _take(peer, length)

        def reply(kind: int, data: bytes = b"", option: int = option) -> None:
            peer.sendall(struct.pack(">QIII", _REPLY_MAGIC, option, kind, len(data)) + data)

        if option == _OPT_EXPORT_NAME:
            peer.sendall(about + (b"" if flags & _NO_ZEROES else bytes(124)))
            return True
        if option in (_OPT_GO, _OPT_INFO):
            reply(_REP_INFO, struct.pack(">H", 0) + about)
            reply(_REP_ACK)
            if option == _OPT_GO:
                return True
        elif option == _OPT_ABORT:
            reply(_REP_ACK)
            return False
        else:
            reply(_REP_UNSUPPORTED)


def _answer_reads(peer: socket.socket, file: int, size: int) -> None:
    while True:
        magic, _flags, kind, handle, offset, length = struct.unpack(">IHHQQI", _take(peer, 28))
        if magic != _REQUEST_MAGIC or kind == _DISCONNECT:
            return
        good = kind == _READ and offset + length <= size
        peer.sendall(struct.pack(">IIQ", _SIMPLE_REPLY, 0 if good else _EINVAL, handle))
        while good and length:
            sent = os.sendfile(peer.fileno(), file, offset, length)
            if not sent:  # past the end of the file: zeros fill its last sector
                if length >= _SECTOR:
                    return  # the file was cut while we served it
                peer.sendall(bytes(length))
                break
            offset, length = offset + sent, length - sent
