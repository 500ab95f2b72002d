"""The network service as other services use it. Every method takes the caller's transaction first.

Compute asks for ports with a server (`validate_requests`, `create_server_ports`), binds them to a host
(`bind_ports`), hands their documents to the agent (`port_docs`), and lets them go (`release_server_ports`). Ports that
existed before their server survive it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import bindparam, select, union

from cumulet.agent.contract import PortDoc
from cumulet.db import Database, Tx
from cumulet.kernel.context import RequestContext, system_context
from cumulet.services.network import state
from cumulet.services.network import tables as t
from cumulet.services.network.agents import Agents
from cumulet.services.network.documents import Documents
from cumulet.services.network.floatingips import FloatingIps
from cumulet.services.network.groups import SecurityGroups
from cumulet.services.network.ipam import Frontiers
from cumulet.services.network.legacy import Legacy
from cumulet.services.network.networks import Networks
from cumulet.services.network.ports import Ports
from cumulet.services.network.quotas import Quotas
from cumulet.services.network.reconcilers.documents import document_differences
from cumulet.services.network.routers import Routers
from cumulet.services.network.rules import SecurityGroupRules
from cumulet.services.network.segments import TypeDrivers
from cumulet.services.network.servers import AddressInfo, GroupInfo, NetworkChoice, Nic, ServerPorts
from cumulet.services.network.subnetpools import SubnetPools
from cumulet.services.network.subnets import Subnets
from cumulet.services.network.work import Work
from cumulet.settings import Network as NetworkSettings
from cumulet.settings import Quota

_MINE = t.PORTS.alias("mine")
_NETWORKS_OF_SERVER = select(_MINE.c.network_id).where(
    _MINE.c.device_id == bindparam("server_id"), _MINE.c.device_owner.startswith("compute:")
)
_METADATA_HOSTS = union(
    select(t.DHCP_HOSTS.c.host).where(t.DHCP_HOSTS.c.network_id.in_(_NETWORKS_OF_SERVER)),
    select(t.PORTS.c.host).where(
        t.PORTS.c.network_id.in_(_NETWORKS_OF_SERVER),
        t.PORTS.c.device_owner == "network:router_interface",
        t.PORTS.c.host != "",
    ),
)

__all__ = ["AddressInfo", "GroupInfo", "NetworkChoice", "NetworkService", "Nic", "PortPlan"]


@dataclass
class PortPlan:
    """What new servers get, checked, within one unit of work."""

    work: Work
    choices: list[NetworkChoice]


class NetworkService:
    """``hosts`` is the registry of hosts, ``desired`` the index of documents (`cumulet.conductor`)."""

    dns_domain = "openstacklocal."

    def __init__(
        self,
        db: Database,
        *,
        hosts: Any,
        desired: Any,
        settings: NetworkSettings | None = None,
        quota: Quota | None = None,
        availability_zone: str = "nova",
    ) -> None:
        self.db = db
        self.hosts = hosts
        self.desired = desired
        self.settings = settings or NetworkSettings()
        self.drivers = TypeDrivers(self.settings)
        self.frontiers = Frontiers()
        self.quotas = Quotas(quota or Quota())
        self._zone = availability_zone
        self.networks = Networks(self)
        self.subnets = Subnets(self)
        self.subnetpools = SubnetPools(self)
        self.ports = Ports(self)
        self.routers = Routers(self)
        self.floating_ips = FloatingIps(self)
        self.groups = SecurityGroups(self)
        self.rules = SecurityGroupRules(self)
        self.agents = Agents(self)
        self.documents = Documents(self)
        self.servers = ServerPorts(self)
        self.legacy = Legacy(self)
        self.server_wired: Callable[[Tx, str], object] | None = None  # a port of this server works now
        self.documents.register(desired)
        desired.on_applied(self.applied)
        desired.before_applied(state.hold_applied)

    def zone_of(self, host: str) -> str:
        del host  # one zone for all network hosts
        return self._zone

    def work(self, tx: Tx, ctx: RequestContext | None = None) -> Work:
        """A unit of change; end it with ``flush``. Without a context it is the cloud's own."""
        return Work(self, tx, ctx or system_context("network"))

    # -- what servers need ------------------------------------------------------------------------------------------

    def validate_requests(
        self, tx: Tx, ctx: RequestContext, requested: Any, count: int = 1, *, external: bool = False
    ) -> list[NetworkChoice]:
        """Check what a server create asks for (None, "auto", "none" or items with ``uuid``, ``port``, ``fixed_ip``,
        ``tag``); the result goes to `create_server_ports`. ``external``: the caller may use external networks."""
        return self.servers.validate(self.work(tx, ctx), requested, count, external=external)

    def plan_server_ports(
        self, tx: Tx, ctx: RequestContext, requested: Any, count: int = 1, *, external: bool = False
    ) -> PortPlan:
        """As `validate_requests`, for `make_server_ports` in the same transaction: nothing is read twice."""
        work = self.work(tx, ctx)
        return PortPlan(work, self.servers.validate(work, requested, count, external=external))

    def make_server_ports(
        self, plan: PortPlan, servers: Mapping[str, str], az: str, *, security_groups: Sequence[str] = ()
    ) -> dict[str, list[str]]:
        """Make or adopt the ports of new servers (id -> host name), in the order of the choices."""
        found = self.servers.create(plan.work, servers, plan.choices, az, security_groups)
        plan.work.flush()
        return found

    def create_server_ports(
        self,
        tx: Tx,
        ctx: RequestContext,
        server_id: str,
        requested: Sequence[NetworkChoice],
        hostname: str,
        az: str,
        *,
        security_groups: Sequence[str] = (),
    ) -> list[str]:
        """Make or adopt the ports of a new server, in order; their ids. ``security_groups``: names or ids."""
        plan = PortPlan(self.work(tx, ctx), list(requested))
        return self.make_server_ports(plan, {server_id: hostname}, az, security_groups=security_groups)[server_id]

    def metadata_hosts(self, tx: Tx, server_id: str) -> set[str]:
        """The hosts that answer metadata requests on the server's networks: their DHCP servers' and routers'."""
        return {row[0] for row in tx.rows(_METADATA_HOSTS, {"server_id": server_id})}

    def bind_ports(self, tx: Tx, port_ids: Sequence[str], host: str, *, plugged_next: bool = False) -> None:
        """The ports are to be made on this host (binding:host_id), and unmade on another they were bound to.
        ``plugged_next``: an operation follows that carries their documents, the host need not fetch them."""
        work = self.work(tx)
        work.carried = plugged_next
        self.servers.bind(work, port_ids, host)
        work.flush()

    def unbind_ports(self, tx: Tx, port_ids: Sequence[str]) -> None:
        self.bind_ports(tx, port_ids, "")

    def begin_move(self, tx: Tx, port_ids: Sequence[str], host: str) -> None:
        """The ports are to be on this host besides theirs, while their server moves there live. An operation that
        carries their documents follows."""
        work = self.work(tx)
        work.carried = True
        self.servers.begin_move(work, port_ids, host)
        work.flush()

    def switch_move(self, tx: Tx, port_ids: Sequence[str]) -> None:
        """The server runs on the other host now: the ports are bound there, and still on the one before."""
        work = self.work(tx)
        self.servers.switch(work, port_ids)
        work.flush()

    def end_move(self, tx: Tx, port_ids: Sequence[str]) -> None:
        """The ports are only on the host they are bound to. Idempotent."""
        work = self.work(tx)
        self.servers.end_move(work, port_ids)
        work.flush()

    def port_docs(self, tx: Tx, host: str, port_ids: Sequence[str]) -> list[PortDoc]:
        """Documents of the ports that are bound to this host, in the order asked for."""
        return self.documents.ports(tx, host, port_ids)

    def ports_wired(self, tx: Tx, host: str, port_ids: Sequence[str], *, wired: bool = True) -> None:
        """The host said it made (or unmade) these ports. Applied documents say the same; the first to come counts."""
        state.wired(tx, host, list(port_ids), is_wired=wired)

    def ports_active(self, tx: Tx, server_id: str) -> bool:
        """Every port of the server that is to work has been made on its host."""
        return self.servers.active(tx, server_id)

    def server_power(self, tx: Tx, server_id: str, running: bool) -> None:
        """A server's VMM has come or gone: its ports are DOWN without one."""
        state.powered(tx, server_id, running)

    def release_server_ports(self, tx: Tx, server_id: str) -> None:
        """The server goes: its own ports are deleted, the others are free again. Idempotent."""
        work = self.work(tx)
        self.servers.release(work, server_id)
        work.flush()

    def server_ports(self, tx: Tx, server_id: str, *, change: bool = False) -> list[t.PortRow]:
        return self.servers.rows(tx, [server_id], change=change).get(server_id, [])

    def nics(self, tx: Tx, server_id: str) -> list[Nic]:
        """The server's ports as its guest is told of them."""
        return self.servers.nics(tx, server_id)

    def addresses(self, tx: Tx, server_ids: Iterable[str]) -> dict[str, list[AddressInfo]]:
        return self.servers.addresses(tx, list(server_ids))

    def security_groups_of(self, tx: Tx, server_ids: Iterable[str]) -> dict[str, list[GroupInfo]]:
        return self.servers.groups(tx, list(server_ids))

    def add_security_group(self, tx: Tx, ctx: RequestContext, server_id: str, group: str) -> None:
        """Add a group (name or id) to all ports of a server that have port security."""
        work = self.work(tx, ctx)
        self.servers.change_group(work, server_id, group, add=True)
        work.flush()

    def remove_security_group(self, tx: Tx, ctx: RequestContext, server_id: str, group: str) -> None:
        work = self.work(tx, ctx)
        self.servers.change_group(work, server_id, group, add=False)
        work.flush()

    def set_port_security_group(self, tx: Tx, ctx: RequestContext, server_id: str, group: str, *, add: bool) -> None:
        (self.add_security_group if add else self.remove_security_group)(tx, ctx, server_id, group)

    def attach_interface(
        self, tx: Tx, ctx: RequestContext, server_id: str, requested: Any, hostname: str, az: str, host: str = ""
    ) -> str:
        """One more port for a server: ``requested`` has ``uuid`` or ``port``, or is None (the only network there is).
        The port's id; it is bound to ``host`` if given."""
        work = self.work(tx, ctx)
        choices = self.servers.validate(work, None if requested is None else [requested], 1, external=False)
        found = self.servers.create(work, {server_id: hostname}, choices, az, ())[server_id]
        if not found:
            raise self.servers.no_network()
        if host:
            self.servers.bind(work, found[:1], host)
        work.flush()
        return found[0]

    def detach_interface(self, tx: Tx, server_id: str, port_id: str) -> None:
        """One port less. Idempotent."""
        work = self.work(tx)
        self.servers.release(work, server_id, only=port_id)
        work.flush()

    # -- hosts ------------------------------------------------------------------------------------------------------

    def on_host(self, tx: Tx, host: str) -> list[tuple[str, str, str]]:
        return self.agents.on_host(tx, host)

    def leave_host(self, tx: Tx, host: str) -> None:
        """Routers and DHCP servers go to other network hosts, as far as there are any that are up."""
        work = self.work(tx)
        self.agents.leave(work, host)
        work.flush()

    def return_to_host(self, tx: Tx, host: str) -> None:
        self.agents.allow(tx, host, allowed=True)

    def forget_host(self, tx: Tx, host: Any) -> None:
        """What the reconciler of scheduling finds of it, it gives to others."""
        self.agents.forget(tx, host.name)

    # -- for audits -----------------------------------------------------------------------------------------------

    def document_differences(self, tx: Tx) -> tuple[set[tuple[str, str, str]], set[tuple[str, str, str]]]:
        """(missing, without a reason): what the index of documents says otherwise than the rows: (host, kind, id)."""
        return document_differences(self, tx)

    def let_floating_ip_go(self, tx: Tx, floating_ip_id: str) -> None:
        """Disassociate it, whatever it is associated with. Not there is no error."""
        work = self.work(tx)
        self.floating_ips.let_go(work, floating_ip_id)
        work.flush()

    # -- what hosts report -------------------------------------------------------------------------------------------

    def applied(self, tx: Tx, host: str, kind: str, object_id: str, generation: int, error: str | None) -> None:
        """A host reported a document."""
        if error is not None:
            return
        if kind == "port":
            if state.wired(tx, host, [object_id]) and self.server_wired is not None:
                server_id = state.server_of(tx, object_id)
                if server_id:
                    self.server_wired(tx, server_id)
        elif kind == "network":
            state.wired(tx, host, [p.id for p in self.ports.dhcp_ports(tx, object_id) if p.host == host])
        elif kind == "router" and self.agents.router_host(tx, object_id) == host:
            state.wired(tx, host, [leg.id for leg in self.routers.legs(tx, object_id)])
            state.router_applied(tx, object_id, generation)
