"""A server's libvirt domain as a pure function of its specification, this host and its files.

Reads the image properties ``hw_*``/``os_*`` and the flavor's extra specs that this host knows; refuses with
``unsupported`` those it knows and cannot honour (`guestcpu.refuse_unsupported`); ignores the rest, as Nova does.
"""

from pathlib import Path
from xml.etree.ElementTree import Element, indent, tostring

import msgspec

from cumulet.agent.compute import guestcpu
from cumulet.agent.compute.devices import DeviceNames, consoles, el, file_disk, graphics, interface, volume_disk
from cumulet.agent.contract import ServerSpec
from cumulet.agent.errors import DriverError

MARK = "urn:cumulet:server:1"  # namespace of the metadata element by which our domains are known
NOVA = "http://openstack.org/xmlns/libvirt/nova/1.1"
_ROOT_PORTS = 12  # q35 plugs only into ports made at start
_WATCHDOG_ACTIONS = {"poweroff", "reset", "pause", "none"}


class HostProfile(msgspec.Struct, frozen=True, kw_only=True):
    """What the XML needs to know of the host."""

    virt_type: str  # kvm or qemu
    arch: str = "x86_64"
    emulator: str = "/usr/bin/qemu-system-x86_64"
    console_listen: str = "127.0.0.1"
    spice: bool = False
    tb_cache_mb: int = 32


class ServerFiles(msgspec.Struct, frozen=True, kw_only=True):
    """Where a server's local files are; None: it has none."""

    console_log: Path
    serial_socket: Path
    root: Path | None = None
    root_format: str = "qcow2"
    root_is_cdrom: bool = False
    ephemeral: Path | None = None
    swap: Path | None = None
    config_drive: Path | None = None
    kernel: Path | None = None
    ramdisk: Path | None = None


def build_domain(spec: ServerSpec, host: HostProfile, files: ServerFiles) -> str:
    guestcpu.refuse_unsupported(spec)
    properties = spec.image_properties
    machine = properties.get("hw_machine_type") or ("virt" if host.arch == "aarch64" else "pc")
    domain = Element("domain", type=host.virt_type)
    el(domain, "name", spec.instance_name)
    el(domain, "uuid", spec.server_id)
    el(domain, "title", _printable(spec.name))
    _metadata(domain, spec)
    el(domain, "memory", spec.memory_mb, unit="MiB")
    el(domain, "vcpu", spec.vcpus)
    _tuning(domain, spec)
    _sysinfo(domain, spec)
    _os(domain, spec, host, files, machine)
    _features(domain, spec, host)
    guestcpu.cpu(domain, spec, host.virt_type)
    _clock(domain, spec, host)
    for event, action in (("on_poweroff", "destroy"), ("on_reboot", "restart"), ("on_crash", "destroy")):
        el(domain, event, action)
    _devices(el(domain, "devices"), spec, host, files, machine)
    indent(domain)
    return tostring(domain, encoding="unicode")


def _printable(text: str) -> str:
    """XML cannot carry control characters; a title cannot carry line ends."""
    return "".join(c for c in text if c.isprintable()) or "-"


def _metadata(domain: Element, spec: ServerSpec) -> None:
    metadata = el(domain, "metadata")
    el(metadata, f"{{{MARK}}}server", generation=spec.generation)
    instance = el(metadata, f"{{{NOVA}}}instance")
    el(instance, f"{{{NOVA}}}name", _printable(spec.name))
    flavor = el(instance, f"{{{NOVA}}}flavor", name=spec.flavor_name)
    sizes = {"memory": spec.memory_mb, "disk": spec.root_gb, "swap": spec.swap_mb}
    for name, value in {**sizes, "ephemeral": spec.ephemeral_gb, "vcpus": spec.vcpus}.items():
        el(flavor, f"{{{NOVA}}}{name}", value)
    owner = el(instance, f"{{{NOVA}}}owner")
    el(owner, f"{{{NOVA}}}user", uuid=spec.user_id)
    el(owner, f"{{{NOVA}}}project", uuid=spec.project_id)
    if spec.image is not None:
        el(instance, f"{{{NOVA}}}root", type="image", uuid=spec.image.image_id)
    ports = el(instance, f"{{{NOVA}}}ports")
    for port in spec.ports:
        entry = el(ports, f"{{{NOVA}}}port", uuid=port.id)
        for ip in port.fixed_ips:
            version = 6 if ":" in ip.ip_address else 4
            el(entry, f"{{{NOVA}}}ip", type="fixed", address=ip.ip_address, ipVersion=version)


def _tuning(domain: Element, spec: ServerSpec) -> None:
    tune = {name: spec.extra_specs.get(f"quota:cpu_{name}") for name in ("shares", "period", "quota")}
    if any(tune.values()):
        cputune = el(domain, "cputune")
        for name, value in tune.items():
            if value is not None:
                if not value.lstrip("-").isdigit():
                    raise DriverError("unsupported", f"quota:cpu_{name} must be a whole number, not {value!r}")
                el(cputune, name, value)


def _sysinfo(domain: Element, spec: ServerSpec) -> None:
    """What guests look at to know that they are in an OpenStack cloud."""
    system = el(el(domain, "sysinfo", type="smbios"), "system")
    for name, value in (
        ("manufacturer", "OpenStack Foundation"),
        ("product", "OpenStack Nova"),
        ("version", "1"),
        ("serial", spec.server_id),
        ("uuid", spec.server_id),
        ("family", "Virtual Machine"),
    ):
        el(system, "entry", value, name=name)


def _os(domain: Element, spec: ServerSpec, host: HostProfile, files: ServerFiles, machine: str) -> None:
    properties = spec.image_properties
    firmware = properties.get("hw_firmware_type", "bios")
    if firmware not in ("bios", "uefi"):
        raise DriverError("unsupported", f"there is no firmware {firmware}; there are bios and uefi")
    os = el(domain, "os", firmware="efi" if firmware == "uefi" else None)
    el(os, "type", "hvm", arch=host.arch, machine=machine)
    if files.kernel is not None:
        el(os, "kernel", files.kernel)
        if files.ramdisk is not None:
            el(os, "initrd", files.ramdisk)
        default = f"root={spec.root_device_name} console=tty0 console=ttyS0"
        default += " no_timer_check" if host.virt_type == "qemu" else ""
        el(os, "cmdline", properties.get("os_command_line") or default)
    if (spec.extra_specs.get("hw:boot_menu") or properties.get("hw_boot_menu", "")).lower() in ("true", "yes", "1"):
        el(os, "bootmenu", enable="yes")
    el(os, "smbios", mode="sysinfo")


def _features(domain: Element, spec: ServerSpec, host: HostProfile) -> None:
    features = el(domain, "features")
    el(features, "acpi")
    if host.arch == "x86_64":
        el(features, "apic")
    if host.virt_type == "qemu":
        el(el(features, "tcg"), "tb-cache", host.tb_cache_mb, unit="MiB")
        return
    hide = spec.extra_specs.get("hide_hypervisor_id") or spec.image_properties.get("img_hide_hypervisor_id", "")
    if hide.lower() in ("true", "yes", "1"):
        el(el(features, "kvm"), "hidden", state="on")
    if spec.image_properties.get("os_type") == "windows":
        hyperv = el(features, "hyperv")
        for name in ("relaxed", "vapic", "vpindex", "synic", "stimer"):
            el(hyperv, name, state="on")


def _clock(domain: Element, spec: ServerSpec, host: HostProfile) -> None:
    windows = spec.image_properties.get("os_type") == "windows"
    clock = el(domain, "clock", offset="localtime" if windows else "utc")
    if host.virt_type == "kvm":
        el(clock, "timer", name="pit", tickpolicy="delay")
        el(clock, "timer", name="rtc", tickpolicy="catchup")
        if windows:
            el(clock, "timer", name="hypervclock", present="yes")
    if host.arch == "x86_64":
        present = spec.image_properties.get("hw_time_hpet", "").lower() in ("true", "yes", "1")
        el(clock, "timer", name="hpet", present="yes" if present else "no")


def _devices(devices: Element, spec: ServerSpec, host: HostProfile, files: ServerFiles, machine: str) -> None:
    properties = spec.image_properties
    el(devices, "emulator", host.emulator)
    _disks(devices, spec, files, machine)
    _controllers(devices, spec, machine)
    for port in spec.ports:
        devices.append(interface(port, properties))
    serial_ports = spec.extra_specs.get("hw:serial_port_count") or properties.get("hw_serial_port_count") or "1"
    if serial_ports not in ("1", "2", "3", "4"):
        raise DriverError("unsupported", f"a server has 1 to 4 serial ports, not {serial_ports}")
    consoles(devices, log=files.console_log, socket=files.serial_socket, ports=int(serial_ports))
    if properties.get("hw_qemu_guest_agent", "yes").lower() not in ("no", "false", "0"):
        el(el(devices, "channel", type="unix"), "target", type="virtio", name="org.qemu.guest_agent.0")
    if properties.get("hw_pointer_model") == "usbtablet" or properties.get("hw_input_bus") == "usb":
        el(devices, "input", type="tablet", bus="usb")
    elif properties.get("hw_input_bus") == "virtio":
        el(devices, "input", type="tablet", bus="virtio")
    graphics(devices, listen=host.console_listen, spice=host.spice)
    model = properties.get("hw_video_model") or ("virtio" if host.arch == "aarch64" else "vga")
    video_mb = properties.get("hw_video_ram", "")
    vram = int(video_mb) * 1024 if video_mb.isdigit() else (16384 if model == "vga" else None)
    el(el(devices, "video"), "model", type=model, vram=None if model in ("virtio", "none") else vram)
    action = spec.extra_specs.get("hw:watchdog_action") or properties.get("hw_watchdog_action") or "disabled"
    if action in _WATCHDOG_ACTIONS:
        el(devices, "watchdog", model="i6300esb", action=action)
    el(el(devices, "memballoon", model="virtio"), "stats", period=10)
    if spec.extra_specs.get("hw_rng:allowed", "true").lower() not in ("false", "no", "0"):
        el(el(devices, "rng", model="virtio"), "backend", "/dev/urandom", model="random")


def _controllers(devices: Element, spec: ServerSpec, machine: str) -> None:
    properties = spec.image_properties
    usb = properties.get("hw_pointer_model") == "usbtablet" or "usb" in (
        properties.get("hw_input_bus"), properties.get("hw_disk_bus"), properties.get("hw_cdrom_bus")
    )  # fmt: skip
    if not usb:
        el(devices, "controller", type="usb", index=0, model="none")
    if "scsi" in (properties.get("hw_disk_bus"), properties.get("hw_cdrom_bus")) or any(
        volume.bus == "scsi" for volume in spec.volumes
    ):
        el(devices, "controller", type="scsi", index=0, model=properties.get("hw_scsi_model") or "virtio-scsi")
    if _pcie(machine):
        for n in range(_ROOT_PORTS):
            el(devices, "controller", type="pci", model="pcie-root-port", index=n + 1)


def _pcie(machine: str) -> bool:
    return "q35" in machine or machine.startswith("virt")


def _disks(devices: Element, spec: ServerSpec, files: ServerFiles, machine: str) -> None:
    """Root first, then ephemeral, swap, volumes by their device, config drive as the last CD-ROM."""
    properties, names = spec.image_properties, DeviceNames()
    bus = properties.get("hw_disk_bus", "virtio")
    cdrom_bus = properties.get("hw_cdrom_bus") or ("sata" if "q35" in machine else "scsi" if _pcie(machine) else "ide")
    if files.root is not None:
        root_bus, device = (cdrom_bus, "cdrom") if files.root_is_cdrom else (bus, "disk")
        devices.append(
            file_disk(
                files.root,
                format=files.root_format,
                target=names.take(root_bus),
                bus=root_bus,
                device=device,
                boot_order=None if files.kernel else 1,
                extra_specs=spec.extra_specs,
            )
        )
    boots = [v for v in spec.volumes if v.boot_index == 0] if files.root is None else []
    for volume in boots:
        devices.append(volume_disk(volume, names.take(volume.bus), boot_order=1))
    for path, form in ((files.ephemeral, "raw"), (files.swap, "raw")):
        if path is not None:
            devices.append(file_disk(path, format=form, target=names.take(bus), bus=bus, extra_specs=spec.extra_specs))
    for volume in spec.volumes:
        if volume not in boots:
            devices.append(volume_disk(volume, names.take(volume.bus, volume.device)))
    if files.config_drive is not None:
        target = names.take(cdrom_bus)
        devices.append(file_disk(files.config_drive, format="raw", target=target, bus=cdrom_bus, device="cdrom"))
