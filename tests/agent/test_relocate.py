"""A domain's XML on its way to another host: what is put in for it, and what the other host lets in."""

from pathlib import Path

import pytest

from cumulet.agent import contract as c
from cumulet.agent.compute.domain import HostProfile, ServerFiles, build_domain
from cumulet.agent.compute.moving import relocate
from cumulet.agent.errors import DriverError

VOLUME = "11111111-2222-3333-4444-555555555555"


def domain(place: str, *, generation: int = 1, listen: str = "10.0.0.1") -> str:
    """This server's XML, as a host builds it whose files are under ``place``."""
    root = Path(place)
    spec = c.ServerSpec(
        server_id="0f0f0f0f-0000-4000-8000-000000000001", name="s", instance_name="instance-1", generation=generation,
        project_id="p", user_id="u", vcpus=1, memory_mb=64, root_gb=1,
        volumes=[
            c.VolumeAttachment(
                attachment_id=place, volume_id=VOLUME, device="/dev/vdc",
                connection=c.DiskConnection(driver="nbd", uri=f"nbd://10.9.9.9:10809{place}.1", tls=True),
            )
        ],
    )  # fmt: skip
    files = ServerFiles(
        console_log=root / "console.log", serial_socket=root / "x.serial", root=root / "disk", swap=root / "disk.swap",
        config_drive=root / "disk.config", kernel=root / "kernel",
    )  # fmt: skip
    return build_domain(spec, HostProfile(virt_type="qemu", console_listen=listen), files)


HERE, THERE = domain("/here"), domain("/there", generation=2, listen="10.0.0.2")


def refused(arrived: str) -> str:
    with pytest.raises(DriverError) as caught:
        relocate.check(arrived, THERE)
    return caught.value.code


def test_everything_that_names_the_source_is_replaced() -> None:
    moved = relocate.for_target(HERE, THERE)
    assert "/here" not in moved
    assert "10.0.0.1" not in moved
    for part in ("/there/disk", "/there/disk.swap", "/there/disk.config", "/there/kernel", "there.1", "/there/x.serial",
                 "/there/console.log", 'generation="2"', "10.0.0.2"):  # fmt: skip
        assert part in moved, part
    relocate.check(moved, THERE)


def test_what_the_guest_sees_stays_the_sources() -> None:
    running = HERE.replace('<target dev="vda" bus="virtio" />', '<target dev="vda" bus="virtio" /><address slot="7" />')
    assert running != HERE
    assert '<address slot="7"' in relocate.for_target(running, THERE)


def test_the_disks_that_are_copied() -> None:
    assert relocate.local_disks(relocate.parsed(HERE)) == {"vda": "disk", "vdb": "disk.swap"}


def test_a_disk_that_the_target_does_not_have() -> None:
    more = HERE.replace("</devices>", "<disk type='file' device='disk'><source file='/x/y'/></disk></devices>")
    with pytest.raises(DriverError, match="does not have"):
        relocate.for_target(more, THERE)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("/there/disk.swap", "/etc/shadow"),
        ("/there/kernel", "/dev/sda"),
        ("/there/console.log", "/etc/cron.d/x"),
        ("/there/x.serial", "/run/libvirt/libvirt-sock"),
        ("/usr/bin/qemu-system-x86_64", "/tmp/own"),
        ("10.9.9.9", "10.9.9.8"),
        ("10.0.0.2", "0.0.0.0"),
        ("/dev/urandom", "/dev/kmsg"),
        ("instance-1", "instance-2"),
        ("0f0f0f0f-0000-4000-8000-000000000001", "0f0f0f0f-0000-4000-8000-000000000002"),
        ("</devices>", "<hostdev mode='subsystem' type='usb'><source/></hostdev></devices>"),
        ("</devices>", "<filesystem type='mount'><source dir='/'/><target dir='x'/></filesystem></devices>"),
        ("</devices>", "<serial type='file'><source path='/etc/x'/></serial></devices>"),
        ("</devices>", "<disk type='block' device='disk'><source dev='/dev/sda'/></disk></devices>"),
        ("</domain>", "<commandline xmlns='http://libvirt.org/schemas/domain/qemu/1.0'><arg/></commandline></domain>"),
        ("</domain>", "<seclabel type='none'/></domain>"),
        ("</os>", "<loader>/tmp/firmware</loader></os>"),
        ("</os>", "<nvram>/etc/passwd</nvram></os>"),
        ("</domain>", ""),
    ],
)
def test_nothing_but_what_is_the_targets_own_gets_in(old: str, new: str) -> None:
    assert old in THERE
    assert refused(THERE.replace(old, new)) == "refused"


def test_an_emulated_guest_does_not_become_a_kvm_one() -> None:
    assert refused(THERE.replace(' type="qemu">', ' type="kvm">')) == "unsupported"


def test_what_libvirt_adds_is_let_in() -> None:
    added = THERE.replace("</devices>", "<controller type='pci' index='0' model='pci-root'/><audio id='1'/></devices>")
    added = added.replace("</domain>", "<resource><partition>/machine</partition></resource></domain>")
    relocate.check(added, THERE)
