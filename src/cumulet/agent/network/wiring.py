"""What the appliers of this host share: one lock, the store, the mechanism, filters, namespaces, metadata."""

import threading
from collections.abc import Iterable

from cumulet.agent.contract import PortDoc
from cumulet.agent.network import links, names
from cumulet.agent.network.config import NetworkConfig
from cumulet.agent.network.firewall import Firewall
from cumulet.agent.network.inside import Namespaces
from cumulet.agent.network.mechanism import Mechanism
from cumulet.agent.network.metadata_server import MetadataServer
from cumulet.agent.network.offload import offloads_off
from cumulet.agent.network.shell import devices, in_namespace, ip_json
from cumulet.agent.network.store import DocumentStore


class Wiring:
    def __init__(
        self,
        config: NetworkConfig,
        store: DocumentStore,
        mechanism: Mechanism,
        firewall: Firewall,
        namespaces: Namespaces,
        metadata: MetadataServer,
    ) -> None:
        self.config = config
        self.store = store
        self.mechanism = mechanism
        self.firewall = firewall
        self.namespaces = namespaces
        self.metadata = metadata
        self.lock = threading.RLock()  # kernel changes of ports, networks and routers, one at a time: 10-50 ms each

    def made_anew(self, namespace: str, port_ids: Iterable[str]) -> None:
        """The namespace is new. Had there been one of its name (somebody deleted it), what hung in it leads nowhere:
        its listener and the outer ends of its devices, which would pass for wired."""
        self.metadata.stop(namespace)
        for port_id in port_ids:
            links.delete(names.tap(port_id))

    def plug_veth(self, port: PortDoc, inner: str, namespace: str) -> None:
        """``tap<port>`` on the port's network, ``inner`` in the namespace. The network must be prepared."""
        outer = names.tap(port.id)
        if links.exists(outer) and inner not in in_namespace(namespace, devices):
            links.delete(outer)  # it leads elsewhere: somebody made the namespace anew
        plan = links.Plan()
        plan.veth(outer, port.segment.mtu, inner, namespace, port.mac_address.lower())
        plan.mark(outer, "port", port.id)
        plan.run()
        if self.mechanism.whole_checksums:
            in_namespace(namespace, lambda: offloads_off(inner))
        self.mechanism.plug(port, outer)
        self.sync_guard()

    def refresh(self, network_ids: Iterable[str]) -> None:
        """Documents of these networks changed or went."""
        self.mechanism.refresh(network_ids)
        self.sync_guard()  # bridges may be gone

    def sync_guard(self) -> None:
        self.firewall.sync_bridges(self.mechanism.guarded())

    def unplug_all_of(self, namespace: str, *prefixes: str) -> None:
        """Without a document: the inner devices' names say which ports hang in a namespace."""
        if not self.namespaces.ours(namespace):
            return
        for link in ip_json("link", "show", namespace=namespace):
            for prefix in prefixes:
                if link["ifname"].startswith(prefix):
                    start = link["ifname"].removeprefix(prefix)
                    self.mechanism.unplug(start, "tap" + start)
