"""Which calls of another host's libvirtd are let through to ours."""

import struct
from typing import Any

import libvirt
import pytest

from cumulet.agent.compute.moving import rpcguard
from cumulet.agent.errors import DriverError

FLAGS = rpcguard.FLAGS & ~libvirt.VIR_MIGRATE_AUTO_CONVERGE
PREPARE, FINISH = 303, 306


def check_xml(xml: str) -> None:
    if xml != "<right/>":
        raise DriverError("refused", "not that one")


AGREED = rpcguard.Agreed(
    instance_name="instance-1", check_xml=check_xml, uri="unix:///m", disks_uri="unix:///d", disks={"vda", "vdb"}
)
RIGHT = {
    "destination_name": "instance-1",
    "destination_xml": "<right/>",
    "migrate_uri": "unix:///m",
    "disks_uri": "unix:///d",
}


def text(value: str) -> bytes:
    data = value.encode()
    return struct.pack(">I", len(data)) + data + bytes(-len(data) % 4)


def packet(procedure: int, body: bytes = b"", *, program: int = 0x20008086, kind: int = 0) -> bytes:
    return struct.pack(">6I", program, 1, procedure, kind, 7, 0) + body


def migration(procedure: int, parameters: dict[str, Any], flags: int = FLAGS, disks: tuple[str, ...] = ()) -> bytes:
    pairs = [*parameters.items(), *(("migrate_disks", disk) for disk in disks)]
    body = struct.pack(">I", len(pairs))
    for name, value in pairs:
        body += text(name)
        body += struct.pack(">IQ", 4, value) if isinstance(value, int) else struct.pack(">I", 7) + text(value)
    return packet(procedure, body + text("<a cookie/>") + struct.pack(">I", flags))


def passes(data: bytes) -> bool:
    try:
        rpcguard.judge(data, AGREED)
    except DriverError as error:
        return error.code != "refused"
    return True


def test_a_migration_as_agreed_passes() -> None:
    for procedure in (2, 60, 66, 360, 361):
        assert passes(packet(procedure))
    assert passes(packet(1, struct.pack(">I", 1) + text("qemu:///system") + bytes(4)))
    assert passes(packet(1, program=0x6B656570))
    assert passes(migration(PREPARE, RIGHT, disks=("vda", "vdb")))
    assert passes(migration(FINISH, RIGHT) + struct.pack(">I", 0))
    assert passes(migration(FINISH, {"destination_name": "instance-1"}) + struct.pack(">I", 1))


@pytest.mark.parametrize("procedure", [0, 3, 9, 10, 11, 12, 23, 55, 107, 148, 269, 302, 304, 305, 307, 350, 400])
def test_other_calls_do_not(procedure: int) -> None:
    assert not passes(packet(procedure))


def test_nothing_but_calls_of_libvirt_itself() -> None:
    for program in (0x20008087, 0x06900690, 0):  # QEMU's monitor, the administration, none
        assert not passes(packet(66, program=program))
    for kind in (1, 2, 3, 4, 5):
        assert not passes(packet(66, kind=kind))
    for short in (b"", b"\0" * 23, packet(1), packet(PREPARE, b"\0\0")):
        assert not passes(short)


@pytest.mark.parametrize("uri", ["", "qemu:///session", "test:///etc/passwd", "qemu+tcp://elsewhere/system"])
def test_no_other_connection(uri: str) -> None:
    assert not passes(packet(1, struct.pack(">I", 1) + text(uri) + bytes(4)))


@pytest.mark.parametrize(
    "change",
    [
        {"destination_name": "instance-2"},
        {"destination_xml": "<wrong/>"},
        {"migrate_uri": "tcp://0.0.0.0"},
        {"migrate_uri": "unix:///etc/x"},
        {"disks_uri": "unix:///run/x"},
        {"listen_address": "0.0.0.0"},
        {"persistent_xml": "<right/>"},
        {"graphics_uri": "vnc://x"},
        {"bandwidth": 1},
    ],
)
def test_no_other_arguments(change: dict[str, Any]) -> None:
    assert not passes(migration(PREPARE, RIGHT | change))


def test_no_other_disks_and_flags() -> None:
    assert not passes(migration(PREPARE, RIGHT, disks=("vdc",)))
    assert not passes(migration(PREPARE, {name: value for name, value in RIGHT.items() if name != "destination_xml"}))
    for flag in (libvirt.VIR_MIGRATE_PERSIST_DEST, libvirt.VIR_MIGRATE_TUNNELLED, libvirt.VIR_MIGRATE_OFFLINE,
                 libvirt.VIR_MIGRATE_NON_SHARED_DISK, libvirt.VIR_MIGRATE_POSTCOPY):  # fmt: skip
        assert not passes(migration(PREPARE, RIGHT, FLAGS | flag))
    running = FLAGS & ~libvirt.VIR_MIGRATE_PAUSED
    assert not passes(migration(PREPARE, RIGHT, running)), "who arrives waits until it is called"
    assert not passes(migration(FINISH, RIGHT, running))
