"""A running domain's XML on its way to another host. Pure functions.

The source takes its own description, which knows addresses and models as the guest sees them, and puts in what the
target names otherwise: files, sockets, volumes' connections (`for_target`). The target takes nothing on trust: what
arrives may name no file, socket or program that the target's own description of the server does not name (`check`).
"""

from collections.abc import Iterator
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, tostring

from cumulet.agent.compute.domain import MARK, NOVA
from cumulet.agent.errors import DriverError

for _prefix, _space in (("cumulet", MARK), ("nova", NOVA)):
    ElementTree.register_namespace(_prefix, _space)

_WHOLE = ("./metadata", "./title")  # elements that are the target's as they are
_OS = ("kernel", "initrd")
# elements that say where something is: they must be as the target has them, word for word
_PLACES = {"source", "host", "reconnect", "log", "listen", "emulator", "kernel", "initrd", "loader", "nvram", "backend"}
_KINDS = {"disk", "interface", "serial", "console", "channel", "graphics", "rng", "input", "memballoon", "controller"}
# what libvirt adds of itself to what it was given, by place in the tree
_ADDED = {
    "domain/currentMemory", "domain/resource", "domain/resource/partition", "domain/iothreads",
    "domain/os/boot", "domain/os/bios", "domain/features/pae", "domain/features/gic", "domain/features/vmport",
    "domain/cpu/vendor", "domain/cpu/model", "domain/cpu/feature", "domain/cpu/topology", "domain/cpu/maxphysaddr",
    "domain/devices/controller", "domain/devices/controller/model", "domain/devices/controller/target",
    "domain/devices/input", "domain/devices/audio", "domain/devices/serial/target/model",
    "domain/devices/disk/mirror", "domain/devices/video/model/acceleration", "domain/devices/video/driver",
    "domain/devices/video/model/resolution", "domain/devices/watchdog", "domain/devices/graphics/gl",
    "domain/devices/disk/readonly", "domain/devices/disk/iotune", "domain/devices/memballoon/stats",
}  # fmt: skip
_HARMLESS = {"address", "alias", "target", "boot"}  # anywhere


def parsed(xml: str) -> Element:
    return ElementTree.fromstring(xml)


def disk_key(disk: Element) -> str:
    """What a disk is, on any host: the volume's id, or the name among the server's files."""
    serial = disk.findtext("serial")
    if serial:
        return serial
    source = disk.find("source")
    return (source.get("file", "") if source is not None else "").rpartition("/")[2]


def local_disks(domain: Element) -> dict[str, str]:
    """Device name -> name among the server's files, of the disks whose contents move with the guest."""
    found = {}
    for disk in domain.iterfind("./devices/disk[@device='disk']"):
        target = disk.find("target")
        if disk.get("type") == "file" and not disk.findtext("serial") and target is not None:
            found[target.get("dev", "")] = disk_key(disk)
    return found


def for_target(running: str, wanted: str) -> str:
    """``running``: the source's migratable XML. ``wanted``: the target's own of this server. ``unsupported`` if the
    running one has a device that the other has not."""
    domain, there = ElementTree.fromstring(running), ElementTree.fromstring(wanted)
    for path in _WHOLE:
        _replace(domain, domain.find(path), there.find(path))
    own_os, their_os = domain.find("os"), there.find("os")
    if own_os is not None and their_os is not None:
        for tag in _OS:
            _replace(own_os, own_os.find(tag), their_os.find(tag))
    devices, their_devices = domain.find("devices"), there.find("devices")
    assert devices is not None
    assert their_devices is not None
    _replace(devices, devices.find("emulator"), their_devices.find("emulator"))
    theirs = {disk_key(disk): disk for disk in their_devices.iterfind("disk")}
    for disk in devices.iterfind("disk"):
        key = disk_key(disk)
        if key not in theirs:
            raise DriverError("unsupported", f"the guest has a disk {key or '?'} that the target host does not have")
        _drop(disk, "backingStore")
        _replace(disk, disk.find("source"), theirs[key].find("source"))
        disk.set("type", theirs[key].get("type", "file"))
    for tag in ("serial", "console"):
        for one, other in zip(devices.iterfind(tag), their_devices.iterfind("serial"), strict=False):
            for part in ("source", "log"):
                _replace(one, one.find(part), other.find(part))
            one.attrib.pop("tty", None)
    for channel in devices.iterfind("channel"):
        _drop(channel, "source")  # libvirt makes it up
    for shown in devices.iterfind("graphics"):
        other_shown = their_devices.find(f"graphics[@type='{shown.get('type')}']")
        if other_shown is not None:
            _replace(shown, shown.find("listen"), other_shown.find("listen"))
            shown.attrib.pop("listen", None)
            for name in ("port", "websocket", "autoport"):
                if other_shown.get(name):
                    shown.set(name, other_shown.get(name, ""))
    for label in domain.findall("seclabel"):
        domain.remove(label)
    return tostring(domain, encoding="unicode")


def _replace(parent: Element, old: Element | None, new: Element | None) -> None:
    if old is not None and new is not None:
        at = list(parent).index(old)
        parent.remove(old)
        parent.insert(at, new)


def _drop(parent: Element, tag: str) -> None:
    for child in parent.findall(tag):
        parent.remove(child)


def check(arrived: str, wanted: str) -> None:
    """``refused`` unless what arrived is the server of ``wanted`` and reaches nothing on this host but what that
    reaches."""
    try:
        domain = ElementTree.fromstring(arrived)
    except ElementTree.ParseError as error:
        raise DriverError("refused", f"the description of the guest is no XML: {error}") from None
    own = ElementTree.fromstring(wanted)
    for name in ("name", "uuid"):
        if domain.findtext(name) != own.findtext(name):
            raise DriverError("refused", f"the guest's {name} is {domain.findtext(name)}")
    if domain.attrib.get("type") != own.attrib.get("type"):
        raise DriverError("unsupported", f"the guest runs in {domain.get('type')}, this host's in {own.get('type')}")
    allowed = {path for path, _ in _walk(own)} | _ADDED
    places = {_place(path, element) for path, element in _walk(own)}
    kinds = {(path, element.get("type")) for path, element in _walk(own)}
    for path, element in _walk(domain):
        if path not in allowed and element.tag not in _HARMLESS:
            raise DriverError("refused", f"the guest has <{path}>, which it is not to have here")
        if element.tag in _PLACES and _place(path, element) not in places:
            raise DriverError("refused", f"the guest's <{path}> is {dict(element.attrib)} {element.text or ''}")
        if element.tag in _KINDS and path not in _ADDED and (path, element.get("type")) not in kinds:
            raise DriverError("refused", f"the guest's <{path}> is of type {element.get('type')}")


def _walk(domain: Element) -> Iterator[tuple[str, Element]]:
    """Every element but those of the metadata, with its place in the tree; the console is the first serial port."""

    def below(path: str, parent: Element) -> Iterator[tuple[str, Element]]:
        for child in parent:
            if child.tag == "metadata":
                continue
            tag = "serial" if child.tag == "console" else child.tag
            yield f"{path}/{tag}", child
            yield from below(f"{path}/{tag}", child)

    yield from below("domain", domain)


def _place(path: str, element: Element) -> tuple[object, ...]:
    attributes = sorted((name, value) for name, value in element.attrib.items() if name != "index")
    return path, tuple(attributes), (element.text or "").strip()
