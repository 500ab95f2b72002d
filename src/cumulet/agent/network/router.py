"""Routers: documents of kind ``router``.

``qrouter-<id>`` holds a ``qr-<port>`` for each interface and a ``qg-<port>`` for the gateway, inner ends of veths
that are plugged as any port. Floating IPs are /32 addresses on ``qg`` and entries of nftables maps; one that goes
takes its connections along. A router that is administratively down has no namespace, as in Neutron.
"""

import ipaddress
import json
import shutil
from collections.abc import Sequence

from cumulet.agent.contract import RouterDoc, RouterPort
from cumulet.agent.network import announce, daemons, inside, names, nat, scratch
from cumulet.agent.network.shell import CommandError, in_namespace, nft, nft_json, run, write_atomically
from cumulet.agent.network.wanted import legs
from cumulet.agent.network.wiring import Wiring

_SYSCTLS = {
    "net/ipv4/ip_forward": "1",
    "net/ipv6/conf/all/forwarding": "1",
    "net/ipv6/conf/default/accept_ra": "0",
    "net/ipv4/conf/all/arp_ignore": "1",
    "net/ipv4/conf/all/arp_announce": "2",
    "net/ipv4/conf/all/rp_filter": "0",
    "net/ipv4/conf/default/rp_filter": "0",
}


class Routers:
    """Applier of ``router`` documents."""

    def __init__(self, wiring: Wiring) -> None:
        self._w = wiring
        self._dir = wiring.config.run_dir / "router"
        self._distrusted: set[str] = set()  # routers whose rules are written again, whatever they say of themselves

    def apply(self, doc: RouterDoc) -> None:
        with self._w.lock:
            held = self._w.store.get(RouterDoc, doc.id)
            if held is not None and held.generation > doc.generation:
                return
            if not doc.admin_state_up:
                self._take_down(doc.id, held)
                self._w.store.put(doc)
                self._w.refresh(_networks(held, doc))
                return
            self._route(doc, held)
            self._w.store.put(doc)
            self._w.refresh(_networks(held, doc))
        self._w.metadata.serve_router(doc)

    def remove(self, object_id: str, generation: int) -> None:
        with self._w.lock:
            held = self._w.store.get(RouterDoc, object_id)
            if held is not None and held.generation > generation:
                return
            self._take_down(object_id, held)
            self._w.store.drop(RouterDoc, object_id)
            self._w.refresh(_networks(held))

    def list(self) -> Sequence[str]:
        return [n.removeprefix(names.ROUTER_PREFIX) for n in self._w.namespaces.ours(names.ROUTER_PREFIX)]

    def take_down(self, router_id: str) -> None:
        """The namespace and what is in it, whether or not a document is known."""
        held = self._w.store.get(RouterDoc, router_id)
        self._take_down(router_id, held)
        self._w.refresh(_networks(held))

    # -- what an operator looks for ----------------------------------------------------------------------------------

    def astray(self, doc: RouterDoc) -> Sequence[str]:
        """What in the router's namespace is not as its document says, in words."""
        return inside.astray(names.router_namespace(doc.id), self._wanted(doc))

    def translation_astray(self, doc: RouterDoc) -> str | None:
        """How the kernel's rules differ from the document's; None: not at all."""

        def listing() -> scratch.Table:
            return scratch.parsed(nft_json("list", "table", "ip", names.ROUTER_TABLE) or [])

        held = in_namespace(names.router_namespace(doc.id), listing)
        wanted = scratch.table(nat.ruleset(doc), "ip", names.ROUTER_TABLE)
        words = [
            f"{kind} {name} has entries {differs}"
            for kind, ours, theirs in (("chain", wanted.chains, held.chains), ("map", wanted.sets, held.sets))
            for name in sorted(ours.keys() | theirs.keys())
            if (differs := scratch.differs(ours.get(name, []), theirs.get(name, [])))
        ]
        return ", ".join(words) or (None if wanted.hooks == held.hooks else "chains hook elsewhere")

    def advertises(self, doc: RouterDoc) -> bool:
        """False if the router is to have a radvd, and it does not run or is told something else."""
        text, directory = nat.radvd(doc), self._dir / doc.id
        if not text:
            return True
        config = directory / "radvd.conf"
        return daemons.runs("radvd", directory / "radvd.pid") and config.exists() and config.read_text() == text

    def distrust(self, router_id: str) -> None:
        self._distrusted.add(router_id)

    # -- inside ------------------------------------------------------------------------------------------------------

    def _route(self, doc: RouterDoc, held: RouterDoc | None) -> None:
        namespace = names.router_namespace(doc.id)
        fresh = self._w.namespaces.ensure(namespace, _SYSCTLS)
        if fresh:
            self._w.made_anew(namespace, [leg.port.id for leg in legs(doc)])
        for leg in legs(doc):
            self._w.mechanism.prepare(leg.port)
            self._w.plug_veth(leg.port, _device(doc, leg), namespace)
        if held is not None:
            wanted = {leg.port.id for leg in legs(doc)}
            for leg in legs(held):
                if leg.port.id not in wanted:
                    self._w.mechanism.unplug(leg.port.id, names.tap(leg.port.id))
        distrusted = fresh or doc.id in self._distrusted
        if distrusted or self._held_ruleset(namespace) != nat.ruleset_digest(doc):
            in_namespace(namespace, lambda: nft(nat.ruleset(doc)))
            self._distrusted.discard(doc.id)
        changed = inside.converge(namespace, self._wanted(doc), fresh)
        for device, addresses in changed.added.items():
            announce.announce(namespace, device, [a for a in addresses if a != names.METADATA_IP])
        if held is not None:
            self._cut(namespace, held, doc)
        self._radvd(doc, namespace)

    def _wanted(self, doc: RouterDoc) -> inside.Wanted:
        devices: list[inside.Device] = []
        routes: set[tuple[str, str, str]] = set()
        for leg in legs(doc):
            device = _device(doc, leg)
            addresses = list(_addresses(leg))
            if doc.gateway is not None and leg is doc.gateway:
                addresses += [f"{f.floating_ip_address}/32" for f in doc.floating_ips]
                for subnet in leg.subnets:
                    mine = [f for f in leg.port.fixed_ips if f.subnet_id == subnet.id]
                    if subnet.gateway_ip and mine:
                        kind = "default6" if subnet.ip_version == 6 else "default"
                        if ipaddress.ip_address(subnet.gateway_ip) not in ipaddress.ip_network(subnet.cidr):
                            length = 128 if subnet.ip_version == 6 else 32
                            routes.add((f"{subnet.gateway_ip}/{length}", "", device))
                        routes.add((kind, subnet.gateway_ip, device))
            devices.append(
                inside.Device(
                    device, leg.port.segment.mtu, leg.port.mac_address.lower(), tuple(dict.fromkeys(addresses))
                )
            )
        for route in doc.routes:
            towards = _on_link(doc, route.nexthop)
            if towards is None:  # unreachable next hop: the API admits it while the interface is being removed
                continue
            network = ipaddress.ip_network(route.destination, strict=False)
            if network.prefixlen:
                routes.add((str(network), route.nexthop, towards))
            else:  # a default route of the user's wins over the gateway's
                kind = "default6" if network.version == 6 else "default"
                routes = {r for r in routes if r[0] != kind}
                routes.add((kind, route.nexthop, towards))
        devices.append(inside.Device("lo", 65536, "00:00:00:00:00:00", (f"{names.METADATA_IP}/32",)))
        return inside.Wanted(
            devices=tuple(devices), prefixes=("qr-", "qg-"), routes=frozenset(routes), sysctls=_SYSCTLS
        )

    @staticmethod
    def _held_ruleset(namespace: str) -> str | None:
        def listing() -> str:
            return run(["nft", "-j", "list", "chain", "ip", names.ROUTER_TABLE, "about"])

        try:
            entries = json.loads(in_namespace(namespace, listing))["nftables"]
        except CommandError as error:
            if "No such file" in error.said:
                return None
            raise
        for entry in entries:
            comment = entry.get("rule", {}).get("comment", "")
            if comment.startswith(nat.COMMENT):
                return str(comment.removeprefix(nat.COMMENT))
        return None

    @staticmethod
    def _cut(namespace: str, before: RouterDoc, now: RouterDoc) -> None:
        """Connections through a floating IP that went or moved would live on with its old translation."""
        kept = {(f.floating_ip_address, f.fixed_ip_address) for f in now.floating_ips}
        gone = [(f.floating_ip_address, f.fixed_ip_address) for f in before.floating_ips]
        gone = [pair for pair in gone if pair not in kept]

        def flush() -> None:
            for floating, _ in gone:
                run(["conntrack", "-D", "-d", floating], ok=(0, 1))
                run(["conntrack", "-D", "-q", floating], ok=(0, 1))

        if gone:
            in_namespace(namespace, flush)

    def _radvd(self, doc: RouterDoc, namespace: str) -> None:
        text, directory = nat.radvd(doc), self._dir / doc.id
        pid_file = directory / "radvd.pid"
        if not text:
            if directory.exists():
                daemons.stop("radvd", pid_file)
                shutil.rmtree(directory, ignore_errors=True)
            return
        changed = write_atomically(directory / "radvd.conf", text)
        argv = ["radvd", "-C", str(directory / "radvd.conf"), "-p", str(pid_file), "-m", "syslog"]
        if not daemons.ensure(namespace, argv, pid_file) and changed:
            daemons.reload(argv, pid_file)

    def _take_down(self, router_id: str, held: RouterDoc | None) -> None:
        namespace = names.router_namespace(router_id)
        self._w.metadata.stop(namespace)
        daemons.stop("radvd", self._dir / router_id / "radvd.pid")
        for leg in legs(held) if held else ():
            self._w.mechanism.unplug(leg.port.id, names.tap(leg.port.id))
        self._w.unplug_all_of(namespace, "qr-", "qg-")
        self._w.namespaces.delete(namespace)
        shutil.rmtree(self._dir / router_id, ignore_errors=True)


def _networks(*docs: RouterDoc | None) -> set[str]:
    return {leg.port.network_id for doc in docs if doc is not None for leg in legs(doc)}


def _device(doc: RouterDoc, leg: RouterPort) -> str:
    return names.gateway_device(leg.port.id) if leg is doc.gateway else names.router_device(leg.port.id)


def _addresses(leg: RouterPort) -> list[str]:
    by_id = {s.id: ipaddress.ip_network(s.cidr).prefixlen for s in leg.subnets}
    return [f"{f.ip_address}/{by_id[f.subnet_id]}" for f in leg.port.fixed_ips if f.subnet_id in by_id]


def _on_link(doc: RouterDoc, nexthop: str) -> str | None:
    """The leg whose subnet the next hop is in."""
    address = ipaddress.ip_address(nexthop)
    for leg in legs(doc):
        if any(address in ipaddress.ip_network(s.cidr) for s in leg.subnets):
            return _device(doc, leg)
    return None
