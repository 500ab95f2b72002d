"""The domain XML as a pure function: what each property and extra spec changes, and what is refused."""

from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import msgspec
import pytest

from cumulet.agent import contract as c
from cumulet.agent.compute.devices import DeviceNames
from cumulet.agent.compute.domain import MARK, NOVA, HostProfile, ServerFiles, build_domain
from cumulet.agent.errors import DriverError

ID = "5ca1ab1e-1111-4222-8333-444455556666"
SOFTWARE = HostProfile(virt_type="qemu")
HARDWARE = HostProfile(virt_type="kvm")
FILES = ServerFiles(console_log=Path("/s/console.log"), serial_socket=Path("/r/x.serial"), root=Path("/s/disk"))
PORT = c.PortDoc(
    id="0123456789abcdef",
    generation=1,
    network_id="n",
    segment=c.Segment(network_type="vxlan", mtu=1450),
    mac_address="fa:16:3e:00:00:01",
    fixed_ips=[c.FixedIp(subnet_id="s", ip_address="10.0.0.5"), c.FixedIp(subnet_id="t", ip_address="fd00::5")],
)


def spec(**changes: Any) -> c.ServerSpec:
    base = c.ServerSpec(
        server_id=ID,
        name="web-1",
        instance_name="instance-00000001",
        generation=3,
        project_id="project",
        user_id="user",
        vcpus=2,
        memory_mb=256,
        root_gb=1,
        flavor_name="m1.tiny",
        image=c.ImageSource(image_id="img", disk_format="qcow2", size=1),
        ports=[PORT],
    )
    return msgspec.structs.replace(base, **changes)


def built(host: HostProfile = SOFTWARE, files: ServerFiles = FILES, **changes: Any) -> Element:
    return ElementTree.fromstring(build_domain(spec(**changes), host, files))


def with_image(**properties: str) -> Element:
    return built(image_properties=properties)


def with_flavor(**extra: str) -> Element:
    return built(extra_specs={name.replace("__", ":"): value for name, value in extra.items()})


def attributes(tree: Element, path: str) -> dict[str, str]:
    found = tree.find(path)
    assert found is not None, path
    return dict(found.attrib)


def refused(**changes: Any) -> str:
    with pytest.raises(DriverError) as caught:
        built(**changes)
    assert caught.value.code == "unsupported"
    return caught.value.message


def volume(**changes: Any) -> c.VolumeAttachment:
    fields: dict[str, Any] = {
        "attachment_id": "a",
        "volume_id": "v" * 36,
        "device": "/dev/vdb",
        "connection": c.DiskConnection(driver="nbd", uri="nbd+unix:///my%20vol?socket=/run/nbd.sock"),
    }
    return c.VolumeAttachment(**(fields | changes))


def test_what_every_domain_has() -> None:
    tree = built()
    assert tree.get("type") == "qemu"
    assert (tree.findtext("name"), tree.findtext("uuid")) == ("instance-00000001", ID)
    assert (tree.findtext("memory"), tree.findtext("vcpu")) == ("256", "2")
    assert attributes(tree, "os/type")["machine"] == "pc"
    assert tree.find(f"metadata/{{{MARK}}}server") is not None
    assert tree.findtext(f"metadata/{{{NOVA}}}instance/{{{NOVA}}}name") == "web-1"
    products = {entry.get("name"): entry.text for entry in tree.iterfind("sysinfo/system/entry")}
    assert products["product"] == "OpenStack Nova", "cloud-init looks for it"
    assert products["uuid"] == ID
    assert tree.find("features/acpi") is not None
    assert attributes(tree, "devices/channel/target")["name"] == "org.qemu.guest_agent.0"
    assert attributes(tree, "devices/memballoon/stats")["period"] == "10"
    assert tree.findtext("devices/rng/backend") == "/dev/urandom"


def test_software_emulation_and_hardware() -> None:
    software, hardware = built(SOFTWARE), built(HARDWARE)
    assert software.findtext("cpu/model") == "qemu64"
    assert attributes(software, "cpu/feature") == {"policy": "require", "name": "rdrand"}
    assert software.findtext("features/tcg/tb-cache") == "32"
    assert hardware.get("type") == "kvm"
    assert attributes(hardware, "cpu")["mode"] == "host-model"
    assert hardware.find("features/tcg") is None
    for tree in (software, hardware):
        assert attributes(tree, "clock/timer[@name='hpet']")["present"] == "no"


def test_consoles() -> None:
    tree = built()
    assert attributes(tree, "devices/serial/source") == {"mode": "bind", "path": "/r/x.serial"}
    assert attributes(tree, "devices/serial/log") == {"file": "/s/console.log", "append": "on"}
    assert attributes(tree, "devices/graphics")["websocket"] == "-1"
    assert attributes(tree, "devices/graphics/listen")["address"] == "127.0.0.1"
    assert tree.find("devices/graphics[@type='spice']") is None
    both = built(HostProfile(virt_type="kvm", spice=True, console_listen="192.0.2.1"))
    assert [g.get("type") for g in both.iterfind("devices/graphics")] == ["vnc", "spice"]
    assert attributes(both, "devices/graphics[@type='spice']/listen")["address"] == "192.0.2.1"
    assert len(list(with_flavor(hw__serial_port_count="3").iterfind("devices/serial"))) == 3
    assert "serial ports" in refused(extra_specs={"hw:serial_port_count": "9"})


def test_nic_on_an_existing_tap() -> None:
    tree = built()
    assert attributes(tree, "devices/interface") == {"type": "ethernet"}
    assert attributes(tree, "devices/interface/target") == {"dev": "tap0123456789a", "managed": "no"}
    assert attributes(tree, "devices/interface/mac")["address"] == "fa:16:3e:00:00:01"
    assert attributes(tree, "devices/interface/mtu")["size"] == "1450"
    assert attributes(tree, "devices/interface/model")["type"] == "virtio"
    assert attributes(with_image(hw_vif_model="e1000"), "devices/interface/model")["type"] == "e1000"
    assert "no NIC model" in refused(image_properties={"hw_vif_model": "carrier-pigeon"})


def disks(tree: Element) -> list[tuple[str, str, str]]:
    """(device, target, bus) of each."""
    return [
        (disk.get("device", ""), attributes(disk, "target")["dev"], attributes(disk, "target")["bus"])
        for disk in tree.iterfind("devices/disk")
    ]


FULL = msgspec.structs.replace(
    FILES, ephemeral=Path("/s/disk.eph0"), swap=Path("/s/disk.swap"), config_drive=Path("/s/disk.config")
)


def test_disks_in_their_order() -> None:
    tree = built(files=FULL, volumes=[volume(device="/dev/vdf"), volume(volume_id="w" * 36, device="/dev/vdb")])
    assert disks(tree) == [
        ("disk", "vda", "virtio"),
        ("disk", "vdb", "virtio"),
        ("disk", "vdc", "virtio"),
        ("disk", "vdf", "virtio"),
        ("disk", "vdd", "virtio"),  # the ephemeral disk has the name it wanted
        ("cdrom", "hda", "ide"),
    ]
    root = tree.find("devices/disk")
    assert root is not None
    assert attributes(root, "driver") == {"name": "qemu", "type": "qcow2", "cache": "none", "discard": "unmap"}
    assert attributes(root, "boot") == {"order": "1"}


def test_disk_buses() -> None:
    scsi = built(files=FULL, image_properties={"hw_disk_bus": "scsi", "hw_cdrom_bus": "sata"})
    assert [d[1] for d in disks(scsi)] == ["sda", "sdb", "sdc", "sdd"]
    assert attributes(scsi, "devices/controller[@type='scsi']")["model"] == "virtio-scsi"
    q35 = built(files=FULL, image_properties={"hw_machine_type": "q35"})
    assert disks(q35)[-1] == ("cdrom", "sda", "sata")
    assert len(list(q35.iterfind("devices/controller[@model='pcie-root-port']"))) >= 8, "room for hot-plug"
    assert attributes(with_image(hw_disk_bus="ide"), "devices/disk/target") == {"dev": "hda", "bus": "ide"}
    assert "no disk bus" in refused(image_properties={"hw_disk_bus": "punched-tape"})


def test_iso_image_is_a_cdrom() -> None:
    tree = built(files=msgspec.structs.replace(FILES, root_format="raw", root_is_cdrom=True))
    assert disks(tree) == [("cdrom", "hda", "ide")]
    assert tree.find("devices/disk/readonly") is not None


def test_volumes() -> None:
    tree = built(volumes=[volume()])
    disk = tree.findall("devices/disk")[1]
    assert disk.get("type") == "network"
    assert disk.findtext("serial") == "v" * 36
    assert attributes(disk, "alias") == {"name": "ua-" + "v" * 36}
    assert attributes(disk, "source") == {"protocol": "nbd", "name": "my vol"}
    assert attributes(disk, "source/host") == {"transport": "unix", "socket": "/run/nbd.sock"}
    remote = volume(connection=c.DiskConnection(driver="nbd", uri="nbd://192.0.2.7:10810/vol"), read_only=True)
    disk = built(volumes=[remote]).findall("devices/disk")[1]
    assert attributes(disk, "source/host") == {"name": "192.0.2.7", "port": "10810"}
    assert disk.find("readonly") is not None
    local = volume(connection=c.DiskConnection(driver="file", format="qcow2", path="/v/1"))
    disk = built(volumes=[local]).findall("devices/disk")[1]
    assert (disk.get("type"), attributes(disk, "source")["file"]) == ("file", "/v/1")
    assert attributes(disk, "driver")["type"] == "qcow2"
    secret = volume(connection=c.DiskConnection(driver="rbd", uri="rbd:///pool/v", secret={"key": "k"}))
    assert "secret" in refused(volumes=[secret])


def test_boot_from_volume() -> None:
    files = msgspec.structs.replace(FILES, root=None)
    tree = built(files=files, image=None, volumes=[volume(device="/dev/vdb"), volume(volume_id="r" * 36, boot_index=0)])
    first = tree.find("devices/disk")
    assert first is not None
    assert first.findtext("serial") == "r" * 36
    assert attributes(first, "boot") == {"order": "1"}
    assert [d[1] for d in disks(tree)] == ["vda", "vdb"]


def test_kernel_and_ramdisk() -> None:
    files = msgspec.structs.replace(FILES, kernel=Path("/s/kernel"), ramdisk=Path("/s/ramdisk"))
    tree = built(files=files)
    assert (tree.findtext("os/kernel"), tree.findtext("os/initrd")) == ("/s/kernel", "/s/ramdisk")
    assert tree.findtext("os/cmdline") == "root=/dev/vda console=tty0 console=ttyS0 no_timer_check"
    given = built(files=files, image_properties={"os_command_line": "root=/dev/sda1"})
    assert given.findtext("os/cmdline") == "root=/dev/sda1"


def test_machine_firmware_video_watchdog_input() -> None:
    assert attributes(with_image(hw_firmware_type="uefi"), "os")["firmware"] == "efi"
    assert "no firmware" in refused(image_properties={"hw_firmware_type": "coreboot"})
    assert attributes(built(), "devices/video/model") == {"type": "vga", "vram": "16384"}
    assert attributes(with_image(hw_video_model="virtio"), "devices/video/model") == {"type": "virtio"}
    assert attributes(with_image(hw_watchdog_action="reset"), "devices/watchdog")["action"] == "reset"
    assert attributes(with_flavor(hw__watchdog_action="poweroff"), "devices/watchdog")["action"] == "poweroff"
    assert built().find("devices/watchdog") is None
    assert attributes(built(), "devices/controller[@type='usb']")["model"] == "none"
    tablet = with_image(hw_pointer_model="usbtablet")
    assert attributes(tablet, "devices/input") == {"type": "tablet", "bus": "usb"}
    assert tablet.find("devices/controller[@type='usb']") is None
    assert with_image(hw_qemu_guest_agent="no").find("devices/channel") is None
    assert built(extra_specs={"hw_rng:allowed": "False"}).find("devices/rng") is None


def test_windows_and_hidden_hypervisor() -> None:
    tree = built(HARDWARE, image_properties={"os_type": "windows", "img_hide_hypervisor_id": "true"})
    assert attributes(tree, "clock")["offset"] == "localtime"
    assert attributes(tree, "features/kvm/hidden") == {"state": "on"}
    assert tree.find("features/hyperv/relaxed") is not None


@pytest.mark.parametrize(
    "extra,expected",
    [
        ({}, ("4", "1", "1")),
        ({"hw:cpu_sockets": "2"}, ("2", "2", "1")),
        ({"hw:cpu_cores": "2"}, ("2", "2", "1")),
        ({"hw:cpu_threads": "2"}, ("2", "1", "2")),
        ({"hw:cpu_max_sockets": "1"}, ("1", "4", "1")),
        ({"hw:cpu_sockets": "1", "hw:cpu_cores": "2", "hw:cpu_threads": "2"}, ("1", "2", "2")),
    ],
)
def test_topology(extra: dict[str, str], expected: tuple[str, ...]) -> None:
    found = attributes(built(vcpus=4, extra_specs=extra), "cpu/topology")
    assert (found["sockets"], found["cores"], found["threads"]) == expected
    by_image = {name.replace("hw:", "hw_"): value for name, value in extra.items()}
    found = attributes(built(vcpus=4, image_properties=by_image), "cpu/topology")
    assert (found["sockets"], found["cores"], found["threads"]) == expected


def test_numa() -> None:
    cells = built(vcpus=4, memory_mb=512, extra_specs={"hw:numa_nodes": "2"}).findall("cpu/numa/cell")
    assert [(cell.get("cpus"), cell.get("memory")) for cell in cells] == [("0-1", "262144"), ("2-3", "262144")]
    assert "divide" in refused(vcpus=3, extra_specs={"hw:numa_nodes": "2"})


@pytest.mark.parametrize(
    "extra",
    [
        {"hw:cpu_policy": "dedicated"},
        {"hw:cpu_policy": "mixed"},
        {"hw:cpu_thread_policy": "isolate"},
        {"hw:mem_page_size": "large"},
        {"hw:mem_page_size": "1GB"},
        {"hw:cpu_realtime": "yes"},
        {"hw:mem_encryption": "true"},
        {"hw:cpu_sockets": "3"},
        {"hw:cpu_cores": "none"},
        {"hw:numa_nodes": "0"},
        {"pci_passthrough:alias": "gpu:1"},
        {"quota:cpu_shares": "many"},
        {"quota:disk_read_bytes_sec": "fast"},
    ],
)
def test_promises_this_host_cannot_keep(extra: dict[str, str]) -> None:
    assert refused(extra_specs=extra)


def test_image_may_ask_too() -> None:
    assert "shared" in refused(image_properties={"hw_cpu_policy": "dedicated"})
    # the flavor's word counts more
    assert built(image_properties={"hw_cpu_policy": "dedicated"}, extra_specs={"hw:cpu_policy": "shared"}) is not None


def test_quota() -> None:
    extra = {"quota:cpu_shares": "512", "quota:cpu_quota": "-1", "quota:disk_read_bytes_sec": "1000000"}
    tree = built(files=FULL, extra_specs=extra)
    assert tree.findtext("cputune/shares") == "512"
    tuned = [disk.findtext("iotune/read_bytes_sec") for disk in tree.iterfind("devices/disk")]
    assert tuned == ["1000000", "1000000", "1000000", None]


def test_names_cannot_break_the_xml() -> None:
    tree = built(name="<a>&\"'\n\x00\x1b ]]> ü", flavor_name="<&>")
    assert tree.findtext("title") == "<a>&\"' ]]> ü"
    assert built(name="\n").findtext("title") == "-"


def test_device_names() -> None:
    names = DeviceNames({"vda"})
    assert names.take("virtio", "/dev/vda") == "vdb"
    assert names.take("virtio", "/dev/sdd") == "vdd"
    assert names.take("scsi", "vdc") == "sdc"
    assert [names.take("virtio") for _ in range(3)] == ["vdc", "vde", "vdf"]
    names = DeviceNames({"vd" + chr(97 + n) for n in range(26)})
    assert names.take("virtio") == "vdaa"
