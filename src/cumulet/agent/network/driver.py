"""The network side of a host, as the runtime and the compute driver see it.

`NetworkDriver` builds the parts, takes over what exists at start, and answers for ports, networks, routers and
metadata. Everything works from documents; an agent that starts again compares and changes nothing.
"""

import logging
import shutil
import threading
import time
from collections.abc import Mapping
from typing import Any

from cumulet.agent.contract import Absent, Audited, MendItem
from cumulet.agent.driver import DocumentApplier, Driver, Facts, Found, Hooks
from cumulet.agent.errors import DriverError
from cumulet.agent.network import daemons, external
from cumulet.agent.network.audit import NetworkAudit
from cumulet.agent.network.config import NetworkConfig
from cumulet.agent.network.dhcp import DhcpServers
from cumulet.agent.network.external import ExternalBridge
from cumulet.agent.network.firewall import Firewall, foreign_forward_drops, forward_cure
from cumulet.agent.network.inside import Namespaces
from cumulet.agent.network.metadata_server import MetadataDocs, MetadataServer
from cumulet.agent.network.ports import Groups, Ports
from cumulet.agent.network.router import Routers
from cumulet.agent.network.select import choose
from cumulet.agent.network.shell import sweep_unfinished
from cumulet.agent.network.store import DocumentStore
from cumulet.agent.network.wiring import Wiring

_log = logging.getLogger(__name__)
_WATCH_SECONDS = 0.2
_LOOK_SECONDS = 60


class NetworkDriver(Driver):
    """``role`` is "" on a host that only plugs guests' ports (compute without DHCP servers and routers). The compute
    driver does the operations PlugPorts and UnplugPorts with `ports`."""

    def __init__(self, config: NetworkConfig, role: str = "network") -> None:
        self.config = config
        self.role = role
        for directory in (config.state_dir, config.run_dir):
            directory.mkdir(parents=True, exist_ok=True)
        for directory in (config.documents_dir, config.run_dir):
            sweep_unfinished(directory)
        store = DocumentStore(config.documents_dir)
        mechanism, self.why = choose(config, store)
        self._wiring = Wiring(
            config,
            store,
            mechanism,
            Firewall(config.run_dir),
            Namespaces(config.run_dir),
            MetadataServer(store, config.metadata_port),
        )
        self.ports = Ports(self._wiring)  # the PortPlugger of this host
        self._networks = DhcpServers(self._wiring)
        self._routers = Routers(self._wiring)
        self._metadata = MetadataDocs(store)
        self._audit = NetworkAudit(self._wiring, self._networks, self._routers)
        self._external: tuple[str, ...] = ()  # bridges of the single machine
        self._warnings: list[dict[str, str]] = []
        self._silent: set[str] = set()  # networks without their dnsmasq, at the last look
        self._looked = -float(_LOOK_SECONDS) - 1
        self._stopping = threading.Event()
        self._hooks: Hooks | None = None

    @property
    def mechanism(self) -> str:
        return self._wiring.mechanism.name

    # -- Driver -------------------------------------------------------------------------------------------------------

    def start(self, hooks: Hooks) -> None:
        self._hooks = hooks
        self._wiring.namespaces.forget_gone()
        with self._wiring.lock:
            self._wiring.sync_guard()
        self._wiring.metadata.start(hooks.password_posted)
        if self.mechanism == "openvswitch":
            threading.Thread(target=self._watch, name="ovs-watch", daemon=True).start()

    def stop(self) -> None:
        self._stopping.set()
        self._wiring.metadata.close()

    def documents(self) -> dict[str, DocumentApplier]:
        return {
            "port": self.ports,
            "group": Groups(self._wiring),
            "network": self._networks,
            "router": self._routers,
            "metadata": self._metadata,
        }

    def inventory(self) -> Found:
        return Found(ports=self.ports.plugged())

    def facts(self) -> Facts:
        return Facts(
            mechanism=self.mechanism,
            tunnel_ip=self.config.tunnel_ip,
            bridge_mappings=self.config.bridge_mappings,
            warnings=self._warnings_now(),
        )

    def audit(self, documents: Mapping[str, Mapping[str, Any]]) -> Audited:
        return Audited(drift=self._audit.look(documents))

    def mend(self, item: MendItem) -> str | None:
        return self._audit.rid(item)

    def distrust(self, item: MendItem) -> None:
        self._audit.distrust(item)

    def remove_absent(self, absent: Absent) -> None:
        for port_id in absent.ports:
            self.ports.unplug(port_id)

    # -- the single machine -------------------------------------------------------------------------------------------

    def ensure_external_bridge(self, name: str, gateway_cidrs: list[str], masquerade: bool = True) -> ExternalBridge:
        self._external = (name,)
        return external.ensure_external_bridge(
            self.config.state_dir, name, gateway_cidrs, masquerade, ovs=self._wiring.mechanism.ovs_datapath
        )

    def remove_host_changes(self) -> list[str]:
        return external.remove_host_changes(self.config.state_dir)

    def cleanup_all(self) -> None:
        """Remove every port, network and router of ours from the host, with their daemons; what others made stays."""
        w = self._wiring
        with w.lock:
            w.metadata.close()
            for directory in sorted((self.config.run_dir / "dhcp").glob("*")):
                daemons.stop("dnsmasq", directory / "pid")
            for directory in sorted((self.config.run_dir / "router").glob("*")):
                daemons.stop("radvd", directory / "radvd.pid")
            w.mechanism.cleanup()
            w.namespaces.delete_all()
            w.firewall.cleanup()
            w.store.clear()
            for name in ("dhcp", "router", "namespaces"):
                shutil.rmtree(self.config.run_dir / name, ignore_errors=True)

    def _warnings_now(self) -> list[dict[str, str]]:
        """Firewalls come after us: they are looked at now and then. A daemon is missed, and found again, at once."""
        if time.monotonic() - self._looked > _LOOK_SECONDS:
            self._looked = time.monotonic()
            self._warnings = self._look_around()
        return self._warnings + self._missing_daemons()

    def _missing_daemons(self) -> list[dict[str, str]]:
        """Started again at first sight, told at the second: a document may be being applied now."""
        before, self._silent = self._silent, set(self._networks.silent())
        if self._silent and self._hooks is not None:
            _log.warning("dnsmasq does not run for network %s: it is started", ", ".join(sorted(self._silent)))
            self._hooks.reapply("network", sorted(self._silent))
        still = ", ".join(sorted(before & self._silent))
        if not still:
            return []
        message = f"dnsmasq does not run for network {still}: it is started again"
        cure = "if it comes back: see the kernel's log for out-of-memory kills"
        return [{"code": "dnsmasq-down", "message": message, "cure": cure}]

    def _watch(self) -> None:
        """A restarted ovs-vswitchd has no flows, and one that outlived us may have too many: set it right at once."""
        again = False
        while not self._stopping.wait(_WATCH_SECONDS):
            try:
                if self._wiring.mechanism.lost():
                    with self._wiring.lock:
                        self._wiring.mechanism.recover()
                    if again:
                        _log.warning("ovs-vswitchd restarted: flows installed again")
                    again = True
            except DriverError as error:
                _log.warning("flows of Open vSwitch could not be installed: %s", error.message)

    def _look_around(self) -> list[dict[str, str]]:
        found = []
        for chain in foreign_forward_drops():
            found.append(
                {
                    "code": "forward-policy-drop",
                    "message": f"{chain} drops what this host forwards, bridged packets of guests among it",
                    "cure": forward_cure(chain, *self._wiring.mechanism.bridge_patterns, *self._external),
                }
            )
        return found
