"""DHCP and the metadata address of one network: documents of kind ``network``.

``qdhcp-<network>`` holds ``ns-<port>``, the inner end of a veth whose outer end ``tap<port>`` is plugged as any port,
and a dnsmasq that outlives us. Applying again compares; dnsmasq is told by SIGHUP, and restarted only if its command
line changed (subnets, MTU, resolvers) or a lease stands in the way of an address's new owner.
"""

import ipaddress
import shutil
from collections.abc import Sequence
from pathlib import Path

from cumulet.agent.contract import NetworkDoc, PortDoc
from cumulet.agent.network import daemons, dhcp_files, inside, names
from cumulet.agent.network.offload import offloads_off
from cumulet.agent.network.shell import in_namespace, write_atomically
from cumulet.agent.network.wiring import Wiring

_SYSCTLS = {"net/ipv6/conf/default/accept_ra": "0", "net/ipv6/conf/all/accept_ra": "0"}


class DhcpServers:
    """Applier of ``network`` documents."""

    def __init__(self, wiring: Wiring) -> None:
        self._w = wiring
        self._dir = wiring.config.run_dir / "dhcp"

    def apply(self, doc: NetworkDoc) -> None:
        with self._w.lock:
            held = self._w.store.get(NetworkDoc, doc.id)
            if held is not None and held.generation > doc.generation:
                return
            if doc.dhcp_port is None or not doc.subnets:
                self._remove_server(doc.id)
                self._w.store.put(doc)
                return
            self._serve(doc, doc.dhcp_port)
            self._w.store.put(doc)
            self._w.refresh([doc.id])
        self._w.metadata.serve_network(doc)

    def remove(self, object_id: str, generation: int) -> None:
        with self._w.lock:
            held = self._w.store.get(NetworkDoc, object_id)
            if held is not None and held.generation > generation:
                return
            self._remove_server(object_id)
            self._w.store.drop(NetworkDoc, object_id)
            self._w.refresh([object_id])

    def list(self) -> Sequence[str]:
        return [n.removeprefix(names.DHCP_PREFIX) for n in self._w.namespaces.ours(names.DHCP_PREFIX)]

    def files_that_differ(self, doc: NetworkDoc) -> Sequence[str]:
        """Which of dnsmasq's files are not as the document says."""
        directory = self._dir / doc.id
        return [name for name, text in _named(self._files(doc)) if _content(directory / name) != text]

    def otherwise_started(self, doc: NetworkDoc) -> bool:
        """True if the network's dnsmasq runs with other words than its document says, or elsewhere."""
        argv = self._files(doc).argv
        pid = daemons.pid_of(argv, self._dir / doc.id / "pid")
        return pid is not None and not daemons.as_wanted(pid, argv, names.dhcp_namespace(doc.id))

    def astray(self, doc: NetworkDoc) -> Sequence[str]:
        """What in the network's namespace is not as its document says, in words."""
        assert doc.dhcp_port is not None
        return inside.astray(names.dhcp_namespace(doc.id), self._wanted(doc, doc.dhcp_port))

    def take_down(self, network_id: str) -> None:
        """The namespace and what is in it, whether or not a document is known."""
        self._remove_server(network_id)
        self._w.refresh([network_id])

    def forget_lease(self, network_id: str, mac: str) -> None:
        """dnsmasq keeps leases in memory: it is ended, and started again by the network's document."""
        path = self._dir / network_id / "leases"
        kept = [line for line in _lines(path) if mac not in line.lower().split()[1:2]]
        if len(kept) == len(_lines(path)):
            return
        daemons.stop("dnsmasq", self._dir / network_id / "pid")
        path.write_text("".join(line + "\n" for line in kept))  # in place: it belongs to dnsmasq's user
        held = self._w.store.get(NetworkDoc, network_id)
        if held is not None and held.dhcp_port is not None:
            self._serve(held, held.dhcp_port)

    def silent(self) -> Sequence[str]:
        """Networks that are to have a dnsmasq and have none: it was killed, or ran out of memory."""
        return [
            doc.id
            for doc in self._w.store.all(NetworkDoc)
            if doc.dhcp_port is not None
            and doc.subnets
            and dhcp_files.served(doc)
            and not daemons.runs("dnsmasq", self._dir / doc.id / "pid")
        ]

    # -- inside ------------------------------------------------------------------------------------------------------

    def _serve(self, doc: NetworkDoc, port: PortDoc) -> None:
        namespace, device = names.dhcp_namespace(doc.id), names.dhcp_device(port.id)
        self._w.mechanism.prepare(port)
        fresh = self._w.namespaces.ensure(namespace, _SYSCTLS)
        if fresh:
            self._w.made_anew(namespace, [port.id])
        self._w.plug_veth(port, device, namespace)
        # some DHCP clients check the checksum that the kernel leaves to the device
        in_namespace(namespace, lambda: offloads_off(device))
        inside.converge(namespace, self._wanted(doc, port), fresh)
        for stale in self._stale_taps(doc.id, port.id):
            self._w.mechanism.unplug(stale, names.tap(stale))
        if dhcp_files.served(doc):
            self._dnsmasq(doc, namespace)
        else:
            daemons.stop("dnsmasq", self._dir / doc.id / "pid")

    @staticmethod
    def _wanted(doc: NetworkDoc, port: PortDoc) -> inside.Wanted:
        device = names.dhcp_device(port.id)
        by_id = {s.id: s for s in doc.subnets}
        addresses = [
            f"{f.ip_address}/{ipaddress.ip_network(by_id[f.subnet_id].cidr).prefixlen}"
            for f in port.fixed_ips
            if f.subnet_id in by_id
        ]
        routes: set[tuple[str, str, str]] = set()
        for subnet in doc.subnets:  # the resolver asks the world through the first gateway
            if subnet.ip_version == 4 and subnet.gateway_ip and subnet.dhcp_ip and not routes:
                routes.add(("default", subnet.gateway_ip, device))
        all_addresses = (*addresses, f"{names.METADATA_IP}/32")
        served = inside.Device(device, doc.segment.mtu, port.mac_address.lower(), all_addresses)
        return inside.Wanted(devices=(served,), prefixes=("ns-",), routes=frozenset(routes), sysctls=_SYSCTLS)

    def _dnsmasq(self, doc: NetworkDoc, namespace: str) -> None:
        directory = self._dir / doc.id
        if not directory.is_dir():
            directory.mkdir(parents=True)
            for path in (self._dir, directory):
                path.chmod(0o755)  # dnsmasq reads its files as its own user
        wanted = self._files(doc)
        pid_file = directory / "pid"
        changed = [write_atomically(directory / name, text) for name, text in _named(wanted)]
        if self._leases_in_the_way(directory / "leases", dhcp_files.reservations(doc)):
            daemons.stop("dnsmasq", pid_file)
            self._drop_leases(directory / "leases", dhcp_files.reservations(doc))
        if not daemons.ensure(namespace, wanted.argv, pid_file) and any(changed):
            daemons.reload(wanted.argv, pid_file)

    def _files(self, doc: NetworkDoc) -> dhcp_files.Files:
        assert doc.dhcp_port is not None
        config, device = self._w.config, names.dhcp_device(doc.dhcp_port.id)
        return dhcp_files.build(doc, device, self._dir / doc.id, config.resolvers(), config.dhcp_lease_seconds)

    @staticmethod
    def _leases_in_the_way(path: Path, reserved: dict[str, str]) -> bool:
        return any(
            reserved.get(fields[2], fields[1]) != fields[1]
            for fields in map(str.split, _lines(path))
            if len(fields) > 2
        )

    @staticmethod
    def _drop_leases(path: Path, reserved: dict[str, str]) -> None:
        kept = [line for line in _lines(path) if len(f := line.split()) < 3 or reserved.get(f[2], f[1]) == f[1]]
        path.write_text("".join(line + "\n" for line in kept))  # in place: it belongs to dnsmasq's user

    def _stale_taps(self, network_id: str, port_id: str) -> Sequence[str]:
        held = self._w.store.get(NetworkDoc, network_id)
        if held is not None and held.dhcp_port is not None and held.dhcp_port.id != port_id:
            return [held.dhcp_port.id]
        return []

    def _remove_server(self, network_id: str) -> None:
        namespace = names.dhcp_namespace(network_id)
        self._w.metadata.stop(namespace)
        daemons.stop("dnsmasq", self._dir / network_id / "pid")
        held = self._w.store.get(NetworkDoc, network_id)
        if held is not None and held.dhcp_port is not None:
            self._w.mechanism.unplug(held.dhcp_port.id, names.tap(held.dhcp_port.id))
        else:
            self._w.unplug_all_of(namespace, "ns-")
        self._w.namespaces.delete(namespace)
        shutil.rmtree(self._dir / network_id, ignore_errors=True)


def _named(wanted: dhcp_files.Files) -> tuple[tuple[str, str], ...]:
    return (("host", wanted.hosts), ("opts", wanted.options), ("addn_hosts", wanted.names))


def _content(path: Path) -> str | None:
    try:
        return path.read_text()
    except FileNotFoundError:
        return None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except FileNotFoundError:
        return []
