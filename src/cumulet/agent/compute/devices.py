"""The XML of one disk, one NIC, one console: the same at define and at hot-plug. Pure functions."""

import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.etree.ElementTree import Element, SubElement

from cumulet.agent.contract import DiskConnection, PortDoc, VolumeAttachment
from cumulet.agent.errors import DriverError

_PREFIX = {"virtio": "vd", "scsi": "sd", "sata": "sd", "usb": "sd", "ide": "hd", "fdc": "fd"}
_VIF_MODELS = {"virtio", "e1000", "e1000e", "ne2k_pci", "pcnet", "rtl8139", "vmxnet3", "igb"}
_WANTED = re.compile(r"(?:/dev/)?(?:xvd|[vsh]d)([a-z]{1,2})")
NBD_RECONNECT_SECONDS = 30
_IOTUNE = (
    "total_bytes_sec", "read_bytes_sec", "write_bytes_sec", "total_iops_sec", "read_iops_sec", "write_iops_sec",
    "total_bytes_sec_max", "read_bytes_sec_max", "write_bytes_sec_max", "total_iops_sec_max", "read_iops_sec_max",
    "write_iops_sec_max", "size_iops_sec",
)  # fmt: skip


def el(parent: Element, tag: str, text: object = None, /, **attributes: object) -> Element:
    """A child element; attributes that are None are left out."""
    child = SubElement(parent, tag, {k.rstrip("_"): str(v) for k, v in attributes.items() if v is not None})
    if text is not None:
        child.text = str(text)
    return child


def alias_of(object_id: str) -> str:
    """The name under which QEMU and libvirt's events know the device of a volume or a port."""
    return f"ua-{object_id}"


class DeviceNames:
    """Hands out ``vda``, ``sdb``, …: the wanted one if it is free and fits the bus, else the first free one."""

    def __init__(self, used: set[str] | None = None) -> None:
        self.used = used if used is not None else set()

    def take(self, bus: str, wanted: str | None = None) -> str:
        prefix = _prefix(bus)
        names = [prefix + _letters(n) for n in range(702)]
        letters = _WANTED.fullmatch(wanted or "")
        if letters is not None and prefix + letters[1] not in self.used:
            name = prefix + letters[1]
            self.used.add(name)
            return name
        name = next(n for n in names if n not in self.used)
        self.used.add(name)
        return name


def _prefix(bus: str) -> str:
    try:
        return _PREFIX[bus]
    except KeyError:
        raise DriverError(
            "unsupported", f"there is no disk bus {bus}; there are {', '.join(sorted(_PREFIX))}"
        ) from None


def _letters(n: int) -> str:
    return chr(97 + n) if n < 26 else chr(96 + n // 26) + chr(97 + n % 26)


def file_disk(
    path: Path,
    *,
    format: str,
    target: str,
    bus: str,
    device: str = "disk",
    boot_order: int | None = None,
    extra_specs: Mapping[str, str] | None = None,
) -> Element:
    """A local disk: bypassing the page cache, giving back freed blocks."""
    disk = Element("disk", type="file", device=device)
    if device == "cdrom":
        el(disk, "driver", name="qemu", type=format)
    else:
        el(disk, "driver", name="qemu", type=format, cache="none", discard="unmap")
    el(disk, "source", file=path)
    _rest_of_disk(disk, target, bus, boot_order, device == "cdrom", extra_specs or {})
    return disk


def volume_disk(volume: VolumeAttachment, target: str, *, boot_order: int | None = None) -> Element:
    connection = volume.connection
    kind = "file" if connection.driver == "file" else "network"
    disk = Element("disk", type=kind, device="disk")
    el(disk, "driver", name="qemu", type=connection.format, cache="none", discard="unmap")
    disk.append(_source(connection))
    _rest_of_disk(disk, target, volume.bus, boot_order, volume.read_only, {})
    el(disk, "serial", volume.volume_id)
    el(disk, "alias", name=alias_of(volume.volume_id))
    return disk


def _rest_of_disk(
    disk: Element, target: str, bus: str, boot_order: int | None, read_only: bool, extra_specs: Mapping[str, str]
) -> None:
    el(disk, "target", dev=target, bus=bus)
    tune = {name: extra_specs[f"quota:disk_{name}"] for name in _IOTUNE if f"quota:disk_{name}" in extra_specs}
    if tune and disk.get("device") != "cdrom":
        iotune = el(disk, "iotune")
        for name, value in tune.items():
            el(iotune, name, _whole_number(f"quota:disk_{name}", value))
    if boot_order is not None:
        el(disk, "boot", order=boot_order)
    if read_only:
        el(disk, "readonly")


def _whole_number(name: str, value: str) -> int:
    if not value.isdigit():
        raise DriverError("unsupported", f"{name} must be a whole number, not {value!r}")
    return int(value)


def _source(connection: DiskConnection) -> Element:
    source = Element("source")
    if connection.driver == "file":
        source.set("file", connection.path or "")
        return source
    if connection.secret:
        raise DriverError("unsupported", f"{connection.driver} volumes with a secret are not supported on this host")
    uri = urlsplit(connection.uri or "")
    source.set("protocol", connection.driver)
    if uri.scheme == "nbd+unix":
        source.set("name", unquote(uri.path.removeprefix("/")))
        socket = parse_qs(uri.query).get("socket", [""])[0]
        el(source, "host", transport="unix", socket=socket)
    elif uri.scheme in ("nbd", "iscsi", "rbd") and uri.hostname:
        source.set("name", unquote(uri.path.removeprefix("/")))
        el(source, "host", name=uri.hostname, port=uri.port)
        if connection.tls:
            source.set("tls", "yes")
    elif uri.scheme == "rbd":
        source.set("name", unquote(uri.path.removeprefix("/")))
    else:
        raise DriverError("unsupported", f"this host cannot connect a volume by {connection.driver} {uri.scheme!r}")
    if connection.driver == "nbd":
        el(source, "reconnect", delay=NBD_RECONNECT_SECONDS)  # a storage daemon that restarts is no disk error
    return source


def interface(port: PortDoc, image_properties: Mapping[str, str]) -> Element:
    """A NIC on the tap that the network driver made (`ports.PortPlugger`); libvirt leaves the tap alone."""
    model = image_properties.get("hw_vif_model", "virtio")
    if model not in _VIF_MODELS:
        raise DriverError("unsupported", f"there is no NIC model {model}; there are {', '.join(sorted(_VIF_MODELS))}")
    nic = Element("interface", type="ethernet")
    el(nic, "mac", address=port.mac_address)
    el(nic, "target", dev=port.tap, managed="no")
    el(nic, "model", type=model)
    el(nic, "mtu", size=port.segment.mtu)
    el(nic, "rom", enabled="no")
    el(nic, "alias", name=alias_of(port.id))
    return nic


def consoles(devices: Element, *, log: Path, socket: Path, ports: int = 1) -> None:
    """Serial console: to a log file that grows over restarts of QEMU (the driver trims it) and to a unix socket."""
    for n in range(ports):
        serial = el(devices, "serial", type="unix" if n == 0 else "pty")
        if n == 0:
            el(serial, "source", mode="bind", path=socket)
            el(serial, "log", file=log, append="on")
        el(serial, "target", port=n)


def graphics(devices: Element, *, listen: str, spice: bool) -> None:
    vnc = el(devices, "graphics", type="vnc", port="-1", autoport="yes", websocket="-1")
    el(vnc, "listen", type="address", address=listen)
    if spice:
        display = el(devices, "graphics", type="spice", port="-1", autoport="yes")
        el(display, "listen", type="address", address=listen)


def targets_in(domain: Element) -> set[str]:
    """The device names that a domain's XML uses."""
    return {target.get("dev", "") for target in domain.iterfind("./devices/disk/target")}


def find_volume(domain: Element, volume_id: str) -> Element | None:
    found = _with_alias(domain, "disk", volume_id)
    if found is not None:
        return found
    return next((disk for disk in domain.iterfind("./devices/disk") if disk.findtext("serial") == volume_id), None)


def find_port(domain: Element, port_id: str, mac_address: str) -> Element | None:
    found = _with_alias(domain, "interface", port_id)
    if found is not None:
        return found
    for nic in domain.iterfind("./devices/interface"):
        mac = nic.find("mac")
        if mac is not None and mac.get("address", "").lower() == mac_address.lower():
            return nic
    return None


def _with_alias(domain: Element, tag: str, object_id: str) -> Element | None:
    for device in domain.iterfind(f"./devices/{tag}"):
        alias = device.find("alias")
        if alias is not None and alias.get("name") == alias_of(object_id):
            return device
    return None
