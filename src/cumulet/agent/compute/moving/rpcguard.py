"""What another host's libvirtd may ask of ours while a guest comes from there: the handful of calls of a migration of
that one guest, with the arguments that were agreed on. Everything else ends the connection.

libvirt's protocol knows no such limits: whoever reaches the socket may do all that root may. Packets are a length, six
numbers (program, version, procedure, type, serial, status) and XDR; procedures are libvirt's, whose numbers never
change meaning. Fails with `DriverError` ``refused``.
"""

import struct
from collections.abc import Callable

import libvirt

from cumulet.agent.errors import DriverError

_REMOTE, _KEEPALIVE = 0x20008086, 0x6B656570
_CALL = 0
_OPEN, _CLOSE, _FEATURE, _AUTH_LIST, _WATCH_CLOSE, _UNWATCH_CLOSE = 1, 2, 60, 66, 360, 361
_PREPARE, _FINISH = 303, 306
_PLAIN = {_CLOSE, _FEATURE, _AUTH_LIST, _WATCH_CLOSE, _UNWATCH_CLOSE}
_HEADER = struct.Struct(">6I")
MAX_PACKET = 1 << 24
FLAGS = (
    libvirt.VIR_MIGRATE_LIVE
    | libvirt.VIR_MIGRATE_PEER2PEER
    | libvirt.VIR_MIGRATE_PAUSED
    | libvirt.VIR_MIGRATE_UNDEFINE_SOURCE
    | libvirt.VIR_MIGRATE_NON_SHARED_INC
    | libvirt.VIR_MIGRATE_ABORT_ON_ERROR
    | libvirt.VIR_MIGRATE_AUTO_CONVERGE
)


class Agreed:
    """``check_xml``: raises for a description that is not as agreed. ``disks``: device names that may be copied."""

    def __init__(
        self, *, instance_name: str, check_xml: Callable[[str], None], uri: str, disks_uri: str, disks: set[str]
    ) -> None:
        self.fixed = {"destination_name": instance_name, "migrate_uri": uri, "disks_uri": disks_uri}
        self.check_xml, self.disks = check_xml, disks


class _Xdr:
    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def number(self, size: int = 4) -> int:
        return int.from_bytes(self._take(size))

    def text(self) -> str:
        length = self.number()
        found = self._take(length)
        self._take(-length % 4)
        return found.decode(errors="replace")

    def _take(self, size: int) -> bytes:
        found = self._data[self._at : self._at + size]
        if len(found) < size:
            raise DriverError("refused", "a packet of libvirt ends too early")
        self._at += size
        return found

    def parameters(self) -> list[tuple[str, object]]:
        found: list[tuple[str, object]] = []
        for _ in range(self.number()):
            name, kind = self.text(), self.number()
            if kind not in (1, 2, 3, 4, 5, 6, 7):
                raise DriverError("refused", f"a parameter {name} of a type {kind} that there is not")
            found.append((name, self.text() if kind == 7 else self.number(8 if kind in (3, 4, 5) else 4)))
        return found


def judge(packet: bytes, agreed: Agreed) -> None:
    """``packet``: without its length. Returns if it may pass."""
    if len(packet) < _HEADER.size:
        raise DriverError("refused", "that is no packet of libvirt")
    program, _, procedure, kind, _, _ = _HEADER.unpack_from(packet)
    if program == _KEEPALIVE:
        return
    if program != _REMOTE or kind != _CALL:
        raise DriverError("refused", f"a packet of type {kind} of program {program:#x}")
    words = _Xdr(packet[_HEADER.size :])
    if procedure == _OPEN:
        name = words.text() if words.number() else ""
        if name != "qemu:///system":
            raise DriverError("refused", f"a connection to {name!r}")
    elif procedure in (_PREPARE, _FINISH):
        _migration(words, agreed, prepares=procedure == _PREPARE)
    elif procedure not in _PLAIN:
        raise DriverError("refused", f"libvirt's procedure {procedure}")


def _migration(words: _Xdr, agreed: Agreed, *, prepares: bool) -> None:
    described = False
    for name, value in words.parameters():
        if name == "destination_xml":
            agreed.check_xml(str(value))
            described = True
        elif name == "migrate_disks" and value in agreed.disks:
            continue
        elif name not in agreed.fixed or value != agreed.fixed[name]:
            raise DriverError("refused", f"a migration with {name} = {str(value)[:100]!r}")
    if prepares and not described:
        raise DriverError("refused", "a migration without a description of the guest")
    words.text()  # the cookie: what libvirt tells libvirt
    flags = words.number()
    if flags & ~FLAGS or not flags & libvirt.VIR_MIGRATE_PAUSED:
        raise DriverError("refused", f"a migration with the flags {flags:#x}")
