"""What may be asked of a server on this host: console log, XML, diagnostics, where its consoles listen."""

import contextlib
from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import libvirt

from cumulet.agent.compute.hypervisor import Hypervisor
from cumulet.agent.compute.instances import Instances
from cumulet.agent.contract import ConsoleEndpoint, ConsoleLog, Diagnostics, DomainXml
from cumulet.agent.errors import DriverError, not_found

_STATE_NAMES = {
    libvirt.VIR_DOMAIN_NOSTATE: "pending",
    libvirt.VIR_DOMAIN_RUNNING: "running",
    libvirt.VIR_DOMAIN_BLOCKED: "running",
    libvirt.VIR_DOMAIN_PAUSED: "paused",
    libvirt.VIR_DOMAIN_SHUTDOWN: "running",
    libvirt.VIR_DOMAIN_SHUTOFF: "shutdown",
    libvirt.VIR_DOMAIN_CRASHED: "crashed",
    libvirt.VIR_DOMAIN_PMSUSPENDED: "suspended",
}


class Queries:
    def __init__(self, hypervisor: Hypervisor, instances: Instances) -> None:
        self._hv, self._instances = hypervisor, instances

    def console_log(self, query: ConsoleLog) -> str:
        if not self._instances.folder(query.server_id).exists():
            raise not_found(f"console of server {query.server_id}")
        return self._instances.console(query.server_id, query.length)

    def xml(self, query: DomainXml) -> str:
        return self._hv.call("xml", lambda c: self._hv.domain(c, query.server_id).XMLDesc(0))

    def console_endpoint(self, query: ConsoleEndpoint) -> dict[str, Any]:
        tree = ElementTree.fromstring(self._hv.call("console", lambda c: self._running(c, query.server_id).XMLDesc(0)))
        if query.type == "serial":
            return {"socket": str(self._instances.files(query.server_id).serial_socket)}
        display = tree.find(f"./devices/graphics[@type='{query.type}']")
        if display is None:
            raise DriverError("unsupported", f"the server has no {query.type} console")
        listen = display.find("listen")
        host = (listen.get("address") if listen is not None else None) or display.get("listen") or "127.0.0.1"
        found: dict[str, Any] = {"host": host, "port": int(display.get("port", "-1"))}
        if display.get("websocket"):
            found["websocket_port"] = int(display.get("websocket", "-1"))
        return found

    def diagnostics(self, query: Diagnostics) -> dict[str, Any]:
        return self._hv.call("diagnostics", lambda c: self._diagnostics(self._running(c, query.server_id)))

    def _running(self, connection: Any, server_id: str) -> Any:
        domain = self._hv.domain(connection, server_id)
        if not domain.isActive():
            raise DriverError("not-running", "The server is not running.")
        return domain

    @staticmethod
    def _diagnostics(domain: Any) -> dict[str, Any]:
        tree = ElementTree.fromstring(domain.XMLDesc(0))
        state, memory_kib, _, vcpus, cpu_ns = domain.info()
        memory: Mapping[str, int] = {}
        with contextlib.suppress(libvirt.libvirtError):  # a guest without a balloon driver
            memory = domain.memoryStats()
        unused = memory.get("unused")
        disks = [d for d in tree.iterfind("./devices/disk") if d.get("device") == "disk"]
        nics = list(tree.iterfind("./devices/interface"))
        return {
            "state": _STATE_NAMES.get(state, "pending"),
            "driver": "libvirt",
            "hypervisor": tree.get("type"),
            "hypervisor_os": "linux",
            "uptime": None,
            "config_drive": any(
                (source := d.find("source")) is not None and source.get("file", "").endswith("/disk.config")
                for d in tree.iterfind("./devices/disk")
            ),
            "num_cpus": vcpus,
            "num_nics": len(nics),
            "num_disks": len(disks),
            "memory_details": {
                "maximum": memory_kib // 1024,
                "used": (memory["available"] - unused) // 1024
                if unused is not None and "available" in memory
                else None,
            },
            "cpu_details": _cpus(domain, vcpus, cpu_ns),
            "disk_details": [_disk(domain, disk) for disk in disks],
            "nic_details": [_nic(domain, nic) for nic in nics],
        }


def _cpus(domain: Any, vcpus: int, cpu_ns: int) -> list[dict[str, Any]]:
    try:
        times = [entry[2] for entry in domain.vcpus()[0]]
    except libvirt.libvirtError:
        times = [cpu_ns // vcpus] * vcpus
    return [{"id": n, "time": time, "utilisation": None} for n, time in enumerate(times)]


def _name(device: Element) -> str:
    target = device.find("target")
    return target.get("dev", "") if target is not None else ""


def _disk(domain: Any, disk: Element) -> dict[str, Any]:
    read_requests, read_bytes, write_requests, write_bytes, errors = domain.blockStats(_name(disk))
    return {
        "read_bytes": read_bytes,
        "read_requests": read_requests,
        "write_bytes": write_bytes,
        "write_requests": write_requests,
        "errors_count": errors,
    }


def _nic(domain: Any, nic: Element) -> dict[str, Any]:
    mac = nic.find("mac")
    numbers = domain.interfaceStats(_name(nic))
    names = ("rx_octets", "rx_packets", "rx_errors", "rx_drop", "tx_octets", "tx_packets", "tx_errors", "tx_drop")
    details: dict[str, Any] = dict(zip(names, numbers, strict=True))
    return {"mac_address": mac.get("address") if mac is not None else None, **details, "rx_rate": None, "tx_rate": None}
