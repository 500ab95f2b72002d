"""Volumes and NICs of a domain that may be running: attach, detach, grow.

A domain has two descriptions, the running one and the one it will start from. Each is looked at and changed on its
own, so that an operation that was killed between them is completed by doing it again. Detaching from a running
guest is a request that the guest may refuse; it is repeated, and given up with ``detach-refused``.
"""

import contextlib
import json
import time
from collections.abc import Callable
from functools import partial
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import libvirt

from cumulet.agent.compute.devices import (
    NBD_RECONNECT_SECONDS,
    DeviceNames,
    find_port,
    find_volume,
    interface,
    targets_in,
    volume_disk,
)
from cumulet.agent.compute.hypervisor import Hypervisor
from cumulet.agent.contract import PortDoc, VolumeAttachment
from cumulet.agent.driver import Progress
from cumulet.agent.errors import DriverError, not_found

_CALL_SECONDS = 60
_POLL_SECONDS = 0.1
_ASK_AGAIN_SECONDS = 5.0
_RECONNECT_SECONDS = 15.0
DETACH_SECONDS = 40.0

Find = Callable[[Element], Element | None]
_LIVE = libvirt.VIR_DOMAIN_AFFECT_LIVE
_CONFIG = libvirt.VIR_DOMAIN_AFFECT_CONFIG
_GONE = {libvirt.VIR_ERR_OPERATION_FAILED, libvirt.VIR_ERR_DEVICE_MISSING, libvirt.VIR_ERR_INVALID_ARG}


def description(domain: Any, flag: int) -> Element:
    which = libvirt.VIR_DOMAIN_XML_INACTIVE if flag == _CONFIG else 0
    return ElementTree.fromstring(domain.XMLDesc(which | libvirt.VIR_DOMAIN_XML_SECURE))


class Hotplug:
    def __init__(self, hypervisor: Hypervisor, detach_seconds: float = DETACH_SECONDS) -> None:
        self._hv = hypervisor
        self._detach_seconds = detach_seconds

    # -- attach -----------------------------------------------------------------------------------------------

    def attach_volume(self, server_id: str, volume: VolumeAttachment) -> None:
        def attach(connection: Any) -> None:
            domain = self._hv.domain(connection, server_id)
            flags = _flags(domain)
            trees = {flag: description(domain, flag) for flag in flags}
            found = {flag: find_volume(tree, volume.volume_id) for flag, tree in trees.items()}
            known = next((disk for disk in found.values() if disk is not None), None)
            target = None if known is None else known.find("target")
            if target is not None:
                name = target.get("dev", "")
            else:
                used = set().union(*(targets_in(tree) for tree in trees.values()))
                name = DeviceNames(used).take(volume.bus, volume.device)
            xml = ElementTree.tostring(volume_disk(volume, name), encoding="unicode")
            for flag in flags:
                if found[flag] is None:
                    domain.attachDeviceFlags(xml, flag)

        self._hv.call(f"attach volume {volume.volume_id}", attach, _CALL_SECONDS)

    def attach_port(self, server_id: str, port: PortDoc) -> None:
        def attach(connection: Any) -> None:
            domain = self._hv.domain(connection, server_id)
            for flag in _flags(domain):
                tree = description(domain, flag)
                if find_port(tree, port.id, port.mac_address) is None:
                    nic = interface(port, _model_of(tree))
                    domain.attachDeviceFlags(ElementTree.tostring(nic, encoding="unicode"), flag)

        self._hv.call(f"attach port {port.id}", attach, _CALL_SECONDS)

    # -- detach -----------------------------------------------------------------------------------------------

    def detach_volume(self, server_id: str, volume_id: str, progress: Progress) -> None:
        self._detach(server_id, f"volume {volume_id}", lambda tree: find_volume(tree, volume_id), progress)

    def detach_port(self, server_id: str, port_id: str, mac_address: str, progress: Progress) -> None:
        self._detach(server_id, f"port {port_id}", lambda tree: find_port(tree, port_id, mac_address), progress)

    def _detach(self, server_id: str, what: str, find: Find, progress: Progress) -> None:
        end = time.monotonic() + self._detach_seconds
        ask_at = 0.0
        while True:
            ask = time.monotonic() >= ask_at
            look = partial(self._live_gone, server_id=server_id, find=find, ask=ask)
            if self._hv.call(f"detach {what}", look):
                break
            if ask:
                ask_at = time.monotonic() + _ASK_AGAIN_SECONDS
            if time.monotonic() >= end:
                raise DriverError("detach-refused", f"the guest does not let go of {what}")
            progress()
            time.sleep(_POLL_SECONDS)
        self._hv.call(f"detach {what}", lambda c: self._forget(c, server_id, find))

    def _live_gone(self, connection: Any, server_id: str, find: Find, ask: bool) -> bool:
        """True if the running domain does not have the device; ``ask``: ask the guest to let it go."""
        domain = self._lookup(connection, server_id)
        if domain is None or not domain.isActive():
            return True
        device = find(description(domain, _LIVE))
        if device is None:
            return True
        if ask:
            try:
                domain.detachDeviceFlags(ElementTree.tostring(device, encoding="unicode"), _LIVE)
            except libvirt.libvirtError as error:
                # asked already and still under way, or gone this moment: the next look tells
                if error.get_error_code() not in _GONE and domain.isActive():
                    raise
            return find(description(domain, _LIVE)) is None if domain.isActive() else True
        return False

    def _forget(self, connection: Any, server_id: str, find: Find) -> None:
        domain = self._lookup(connection, server_id)
        if domain is None or not domain.isPersistent():
            return
        device = find(description(domain, _CONFIG))
        if device is not None:
            domain.detachDeviceFlags(ElementTree.tostring(device, encoding="unicode"), _CONFIG)

    def _lookup(self, connection: Any, server_id: str) -> Any:
        """The domain, or None: what is not there has nothing attached."""
        try:
            return self._hv.domain(connection, server_id)
        except DriverError as error:
            if error.code == "not-found":
                return None
            raise

    # -- grow -----------------------------------------------------------------------------------------------

    def grow_volume(self, server_id: str, volume_id: str, size_bytes: int) -> None:
        """Let a running guest see the new size of a volume that its storage has grown. QEMU 7 cannot grow an NBD node:
        the guest is paused while its disk stands on an empty node of the old size and the node is made anew."""

        def grow(connection: Any) -> None:
            domain = self._hv.domain(connection, server_id)
            if not domain.isActive():
                return  # it will see the new size when it starts
            disk = find_volume(description(domain, _LIVE), volume_id)
            if disk is None:
                raise not_found(f"volume {volume_id} at this server")
            target = disk.find("target")
            name = target.get("dev", "") if target is not None else ""
            capacity = domain.blockInfo(name)[0]
            if capacity >= size_bytes:
                return
            source = disk.find("source")
            if source is not None and source.get("protocol") == "nbd":
                _NbdNode(domain, disk).renew(capacity)
            domain.blockResize(name, size_bytes, libvirt.VIR_DOMAIN_BLOCK_RESIZE_BYTES)

        self._hv.call(f"grow volume {volume_id}", grow, _CALL_SECONDS)


def _flags(domain: Any) -> list[int]:
    return [flag for flag, wanted in ((_LIVE, domain.isActive()), (_CONFIG, domain.isPersistent())) if wanted]


def _model_of(tree: Element) -> dict[str, str]:
    """A further NIC is of the model of the first."""
    model = tree.find("./devices/interface/model")
    return {} if model is None else {"hw_vif_model": model.get("type", "virtio")}


class _NbdNode:
    """The block nodes of one NBD disk of a running domain, by QEMU's monitor."""

    def __init__(self, domain: Any, disk: Element) -> None:
        import libvirt_qemu

        self._domain, self._command = domain, libvirt_qemu.qemuMonitorCommand
        source = disk.find("source")
        host = source.find("host") if source is not None else None
        if source is None or host is None:
            raise DriverError("unsupported", "the disk has no NBD server")
        self._export = source.get("name", "")
        self._tls = source.get("tls") == "yes"
        self._server: dict[str, str]
        if host.get("transport") == "unix":
            self._server = {"type": "unix", "path": host.get("socket", "")}
        else:
            self._server = {"type": "inet", "host": host.get("name", ""), "port": host.get("port", "10809")}

    def _ask(self, execute: str, **arguments: Any) -> Any:
        said = json.loads(self._command(self._domain, json.dumps({"execute": execute, "arguments": arguments}), 0))
        if "error" in said:
            raise DriverError("hypervisor", f"{execute}: {said['error'].get('desc', said['error'])}")
        return said["return"]

    def renew(self, old_bytes: int) -> None:
        nodes = {node["node-name"]: node for node in self._ask("query-named-block-nodes", flat=True)}
        storage = next(
            name
            for name, node in nodes.items()
            if node["drv"] == "nbd" and name.endswith("-storage") and self._is_ours(node)
        )
        form = storage.removesuffix("-storage") + "-format"
        cache = {"direct": True, "no-flush": False}
        holder = "grow-" + storage
        base = {"driver": "raw", "node-name": form, "read-only": False, "discard": "unmap", "cache": cache}
        running = self._domain.state()[0] == libvirt.VIR_DOMAIN_RUNNING
        if running:
            self._domain.suspend()
        try:
            if holder not in nodes:
                self._ask(
                    "blockdev-add",
                    **{"driver": "null-co", "size": old_bytes, "node-name": holder, "read-only": False, "cache": cache},
                )
            self._stand_on(holder, base)
            try:
                self._ask("blockdev-del", **{"node-name": storage})
            finally:
                # whatever happened, the guest's disk must stand on its volume again
                with contextlib.suppress(DriverError):
                    self._ask(
                        "blockdev-add",
                        **{
                            "driver": "nbd",
                            "node-name": storage,
                            "server": self._server,
                            "export": self._export,
                            "read-only": False,
                            "cache": cache,
                            "auto-read-only": True,
                            "discard": "unmap",
                            "reconnect-delay": NBD_RECONNECT_SECONDS,
                            **({"tls-creds": f"obj{storage}_tls0"} if self._tls else {}),  # as libvirt named it
                        },
                    )
                self._ask("blockdev-reopen", options=[{**base, "file": storage}])
            self._ask("blockdev-del", **{"node-name": holder})
        finally:
            if running:
                self._domain.resume()

    def _stand_on(self, node: str, base: dict[str, Any]) -> None:
        """Reopening flushes first, over a connection that the grown export has cut. Where libvirt gave the node no
        ``reconnect-delay`` (9.0 cannot), each failed request only begins the next try to connect."""
        end = time.monotonic() + _RECONNECT_SECONDS
        while True:
            try:
                self._ask("blockdev-reopen", options=[{**base, "file": node}])
                return
            except DriverError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.1)

    def _is_ours(self, node: dict[str, Any]) -> bool:
        """The node's file name carries the export's name."""
        return self._export in json.dumps(node.get("file", "")) or self._export in json.dumps(node.get("image", {}))
