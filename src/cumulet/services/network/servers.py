"""Ports as servers have them: what a server may ask for, its ports' life, addresses and groups.

The errors are those nova's API gives: no such network or port 400, in use 409, several networks to choose from 409.
"""

import ipaddress
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec
from sqlalchemy import bindparam, func, or_, select

from cumulet.db import Tx
from cumulet.kernel.context import RequestContext
from cumulet.kernel.errors import BadInput, Conflict, Forbidden, NotFound, QuotaExceeded
from cumulet.kernel.ids import is_uuid
from cumulet.services.network import state
from cumulet.services.network import tables as t
from cumulet.services.network.attributes import UNSET
from cumulet.services.network.faults import conflict, missing
from cumulet.services.network.intake import Given
from cumulet.services.network.noun import rows_in
from cumulet.services.network.resources import PORT

if TYPE_CHECKING:
    from cumulet.services.network.public import NetworkService
    from cumulet.services.network.work import Work

_OF_SERVERS = (
    select(t.PORTS)
    .where(t.PORTS.c.device_id.in_(bindparam("ids", expanding=True)), t.PORTS.c.device_owner.startswith("compute:"))
    .order_by(t.PORTS.c.created_at, t.PORTS.c.id)
)
_USABLE = (
    select(t.NETWORKS)
    .where(
        or_(t.NETWORKS.c.project_id == bindparam("project_id"), t.NETWORKS.c.shared.is_(True)),
    )
    .order_by(t.NETWORKS.c.created_at, t.NETWORKS.c.id)
)
_BY_NAME = select(t.SECURITY_GROUPS.c.id).where(
    t.SECURITY_GROUPS.c.name == bindparam("name"), t.SECURITY_GROUPS.c.project_id == bindparam("project_id")
)
_TAKEN = select(t.ADDRESSES.c.port_id).where(
    t.ADDRESSES.c.network_id == bindparam("network_id"), t.ADDRESSES.c.ip_address == bindparam("ip_address")
)
_UNWIRED = select(func.count()).where(
    t.PORTS.c.device_id == bindparam("server_id"),
    t.PORTS.c.device_owner.startswith("compute:"),
    t.PORTS.c.admin_state_up.is_(True),
    t.PORTS.c.wired.is_(False),
)
_GROUP_NAMES = (
    select(t.PORT_GROUPS.c.port_id, t.SECURITY_GROUPS.c.id, t.SECURITY_GROUPS.c.name)
    .join(t.SECURITY_GROUPS, t.SECURITY_GROUPS.c.id == t.PORT_GROUPS.c.security_group_id)
    .where(t.PORT_GROUPS.c.port_id.in_(bindparam("ids", expanding=True)))
    .order_by(t.SECURITY_GROUPS.c.name, t.SECURITY_GROUPS.c.id)
)


class NetworkChoice(msgspec.Struct, frozen=True, kw_only=True):
    """One NIC that a server is to get: on a network, perhaps with a given address, or a given port."""

    uuid: str | None = None
    port: str | None = None
    fixed_ip: str | None = None
    tag: str | None = None


class AddressInfo(msgspec.Struct, frozen=True, kw_only=True):
    """An address as a server's view shows it. ``network`` is the network's name."""

    network: str
    addr: str
    version: int
    type: str  # fixed or floating
    mac_addr: str
    port_id: str
    network_id: str


class GroupInfo(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    name: str


class ServerPorts:
    def __init__(self, service: "NetworkService") -> None:
        self.service = service

    # -- asking -----------------------------------------------------------------------------------------------------

    def validate(
        self, tx: Tx, ctx: RequestContext, requested: Any, count: int, *, external: bool
    ) -> list[NetworkChoice]:
        if requested == "none":
            return []
        if requested is None or requested == "auto":
            choices = self._only_network(tx, ctx, automatic=requested == "auto")
        else:
            choices = [self._checked(tx, ctx, item) for item in requested]
        self._check_networks(tx, choices, external=external)
        seen: set[str] = set()
        for choice in choices:
            if choice.port is not None:
                if choice.port in seen:
                    raise BadInput(f"Port {choice.port} is asked for more than once.", type_name="PortInUse")
                seen.add(choice.port)
        needed = sum(1 for choice in choices if choice.port is None) * count
        if needed and ctx.project_id:
            room = self.service.quotas.room(tx, "port", ctx.project_id)
            if room is not None and needed > room:
                raise QuotaExceeded(
                    "Maximum number of ports exceeded", type_name="PortLimitExceeded", needed=needed, room=room
                )
        return choices

    def _only_network(self, tx: Tx, ctx: RequestContext, *, automatic: bool) -> list[NetworkChoice]:
        rows = [t.NetworkRow(*row) for row in tx.rows(_USABLE, {"project_id": ctx.project_id or ""})]
        usable = [row for row in rows if not (row.external and row.project_id != ctx.project_id)]
        if automatic:
            usable = [row for row in usable if row.admin_state_up]
        if len(usable) > 1:
            raise Conflict(
                "There are several networks to choose from: name one.",
                type_name="NetworkAmbiguous",
                networks=[row.id for row in usable],
            )
        if not usable:
            if automatic:
                raise BadInput(
                    "Unable to automatically allocate a network: the project has none.",
                    type_name="UnableToAutoAllocateNetwork",
                )
            return []
        return [NetworkChoice(uuid=usable[0].id)]

    def _checked(self, tx: Tx, ctx: RequestContext, item: Any) -> NetworkChoice:
        port_id, network_id = getattr(item, "port", None), getattr(item, "uuid", None)
        choice = NetworkChoice(
            uuid=network_id, port=port_id, fixed_ip=getattr(item, "fixed_ip", None), tag=getattr(item, "tag", None)
        )
        if port_id is not None:
            port = self.service.ports.find(tx, port_id)
            if port is None or not (ctx.is_admin or port.project_id == ctx.project_id):
                raise NotFound(f"Port id {port_id} could not be found.", type_name="PortNotFound")
            self._check_free(port)
            if not self.service.ports.addresses_of(tx, [port_id]) and port.ip_allocation != "none":
                raise BadInput(
                    f"Port {port_id} requires a FixedIP in order to be used.", type_name="PortRequiresFixedIP"
                )
            return msgspec.structs.replace(choice, uuid=port.network_id)
        network = self.service.networks.find(tx, network_id or "")
        if network is None or not self._sees(ctx, network):
            raise NotFound(f"Network {network_id} could not be found.", type_name="NetworkNotFound")
        if choice.fixed_ip is not None:
            self._check_address(tx, network, choice.fixed_ip)
        return choice

    @staticmethod
    def _sees(ctx: RequestContext, network: t.NetworkRow) -> bool:
        return ctx.is_admin or network.shared or network.external or network.project_id == ctx.project_id

    @staticmethod
    def _check_free(port: t.PortRow) -> None:
        if port.device_id:
            raise Conflict(f"Port {port.id} is still in use.", type_name="PortInUse", device_id=port.device_id)

    def _check_address(self, tx: Tx, network: t.NetworkRow, address: str) -> None:
        try:
            text = str(ipaddress.ip_address(address))
        except ValueError:
            raise BadInput(f"Invalid fixed IP address {address}.", type_name="FixedIpInvalid") from None
        if tx.first(_TAKEN, {"network_id": network.id, "ip_address": text}) is not None:
            raise BadInput(f"Fixed IP address {text} is already in use.", type_name="FixedIpAlreadyInUse")

    def _check_networks(self, tx: Tx, choices: Sequence[NetworkChoice], *, external: bool) -> None:
        ids = {choice.uuid for choice in choices if choice.port is None and choice.uuid is not None}
        networks = self.service.networks.many(tx, ids)
        with_subnets = {subnet.network_id for subnet in self.service.subnets.of_networks(tx, sorted(ids))}
        for network in networks.values():
            if network.external and not network.shared and not external:
                raise Forbidden(
                    f"Servers of this project may not be attached to external network {network.id}",
                    type_name="ExternalNetworkAttachForbidden",
                )
            if network.id not in with_subnets and network.port_security_enabled:
                raise BadInput(
                    f"Network {network.id} requires a subnet in order to boot instances on.",
                    type_name="NetworkRequiresSubnet",
                )

    @staticmethod
    def no_network() -> Exception:
        return BadInput("There is no network to attach the server to.", type_name="InterfaceAttachFailedNoNetwork")

    # -- making and letting go ----------------------------------------------------------------------------------

    def create(
        self,
        work: "Work",
        server_id: str,
        choices: Sequence[NetworkChoice],
        hostname: str,
        az: str,
        groups: Sequence[str],
    ) -> list[str]:
        tx = work.tx
        owner = f"compute:{az}"
        group_ids = self._groups(work, groups)
        found: dict[int, str] = {}
        new: list[tuple[int, Given]] = []
        for at, choice in enumerate(choices):
            if choice.port is not None:
                found[at] = self._adopt(work, choice.port, server_id, owner, hostname)
            else:
                new.append((at, self._wanted(work, choice, server_id, owner, hostname, group_ids)))
        if new:
            rows = self.service.ports.create(work, [given for _, given in new])
            for (at, _), row in zip(new, rows, strict=True):
                row.made_for_server = True
                self.service.ports.save(tx, row, bump=False)
                found[at] = row.id
        return [found[at] for at in range(len(choices))]

    def _groups(self, work: "Work", groups: Sequence[str]) -> list[str]:
        project = work.ctx.project_id or ""
        if groups:
            self.service.groups.ensure_default(work, project)
        return [self._group(work, group, project) for group in dict.fromkeys(groups)]

    def _group(self, work: "Work", group: str, project: str) -> str:
        if is_uuid(group):
            row = self.service.groups.find(work.tx, group)
            if row is not None and (work.sees_all or row.project_id == project):
                return row.id
        rows = work.tx.rows(_BY_NAME, {"name": group, "project_id": project})
        if len(rows) > 1:
            raise conflict("NoUniqueMatch", f"Multiple security groups found matching '{group}'. Use an ID.")
        if not rows:
            raise missing("SecurityGroupNotFound", "Security group", group)
        return str(rows[0][0])

    def _wanted(
        self, work: "Work", choice: NetworkChoice, server_id: str, owner: str, hostname: str, groups: list[str]
    ) -> Given:
        given = Given({name: attr.default for name, attr in PORT.attributes.items() if attr.post})
        given["project_id"] = given["tenant_id"] = work.ctx.project_id or ""
        given["network_id"] = choice.uuid
        given["device_id"], given["device_owner"] = server_id, owner
        given["dns_name"] = hostname
        given["tags"] = []
        explicit = {"network_id", "device_id", "device_owner"}
        if choice.fixed_ip is not None:
            given["fixed_ips"] = [{"ip_address": str(ipaddress.ip_address(choice.fixed_ip))}]
        network = self.service.networks.get(work.tx, str(choice.uuid))
        if groups and network.port_security_enabled:
            given["security_groups"] = groups
            explicit.add("security_groups")
        given.explicit = frozenset(explicit)
        assert given["mac_address"] is UNSET
        return given

    def _adopt(self, work: "Work", port_id: str, server_id: str, owner: str, hostname: str) -> str:
        tx = work.tx
        tx.lock("port", port_id)
        port = self.service.ports.find(tx, port_id)
        if port is None:
            raise missing("PortNotFound", "Port", port_id)
        if port.device_id == server_id:
            return port.id
        self._check_free(port)
        port.device_id, port.device_owner = server_id, owner
        port.dns_name = port.dns_name or hostname
        self.service.ports.save(tx, port)
        work.port_changed(port)
        return port.id

    def bind(self, work: "Work", port_ids: Sequence[str], host: str) -> None:
        rows = self.service.ports.many(work.tx, port_ids)
        for row in rows.values():
            if row.host == host and row.vif_type not in (state.UNBOUND, state.FAILED):
                continue
            self.service.ports.set_host(work, row, host)
            row.status = state.port_status(row)
            self.service.ports.save(work.tx, row)
            work.port_changed(row)
            if host and row.vif_type == state.FAILED:
                raise conflict("PortBindingFailed", f"Binding failed for port {row.id}: no network agent on {host}.")

    def release(self, work: "Work", server_id: str, only: str | None = None) -> None:
        rows = [row for row in self.rows(work.tx, [server_id]).get(server_id, []) if only in (None, row.id)]
        made = [row for row in rows if row.made_for_server]
        groups = self.service.ports.groups_of(work.tx, [row.id for row in rows])
        work.members.update(group for found in groups.values() for group in found)
        self.service.ports.delete_rows(work, made)
        for row in rows:
            if row.made_for_server:
                continue
            self.service.ports.set_host(work, row, "")
            row.device_id = row.device_owner = row.dns_name = ""
            row.status = state.port_status(row)
            self.service.ports.save(work.tx, row)
            work.port_changed(row)

    # -- looking ------------------------------------------------------------------------------------------------

    def rows(self, tx: Tx, server_ids: Sequence[str]) -> dict[str, list[t.PortRow]]:
        found: dict[str, list[t.PortRow]] = {}
        for row in rows_in(tx, _OF_SERVERS, server_ids):
            port = t.PortRow(*row)
            found.setdefault(port.device_id, []).append(port)
        return found

    def active(self, tx: Tx, server_id: str) -> bool:
        return not tx.scalar(_UNWIRED, {"server_id": server_id})

    def addresses(self, tx: Tx, server_ids: Sequence[str]) -> dict[str, list[AddressInfo]]:
        ports = self.rows(tx, server_ids)
        all_rows = [row for rows in ports.values() for row in rows]
        if not all_rows:
            return {}
        networks = self.service.networks.many(tx, (row.network_id for row in all_rows))
        fixed = self.service.ports.addresses_of(tx, (row.id for row in all_rows))
        floating: dict[tuple[str, str], list[str]] = {}
        for item in self.service.floating_ips.of_ports(tx, [row.id for row in all_rows]):
            floating.setdefault((item.port_id or "", item.fixed_ip_address or ""), []).append(item.floating_ip_address)
        found: dict[str, list[AddressInfo]] = {}
        for server_id, rows in ports.items():
            mine = found.setdefault(server_id, [])
            for row in rows:
                network = networks[row.network_id]
                for address in fixed.get(row.id, []):
                    several = [(address.ip_address, "fixed")]
                    several += [(ip, "floating") for ip in floating.get((row.id, address.ip_address), [])]
                    mine.extend(
                        AddressInfo(
                            network=network.name or network.id,
                            addr=ip,
                            version=ipaddress.ip_address(ip).version,
                            type=kind,
                            mac_addr=row.mac_address,
                            port_id=row.id,
                            network_id=network.id,
                        )
                        for ip, kind in several
                    )
        return found

    def groups(self, tx: Tx, server_ids: Sequence[str]) -> dict[str, list[GroupInfo]]:
        ports = self.rows(tx, server_ids)
        owner = {row.id: server_id for server_id, rows in ports.items() for row in rows}
        found: dict[str, dict[str, GroupInfo]] = {}
        for port_id, id, name in rows_in(tx, _GROUP_NAMES, owner):
            found.setdefault(owner[port_id], {})[id] = GroupInfo(id=id, name=name)
        return {server_id: list(groups.values()) for server_id, groups in found.items()}

    def change_group(self, work: "Work", server_id: str, group: str, *, add: bool) -> None:
        tx = work.tx
        group_id = self._group(work, group, work.ctx.project_id or "")
        rows = self.rows(tx, [server_id]).get(server_id, [])
        have = self.service.ports.groups_of(tx, [row.id for row in rows])
        usable = [row for row in rows if row.port_security_enabled]
        if not usable:
            raise BadInput(
                f"Server {server_id} has no port that could be in a security group.",
                type_name="SecurityGroupCannotBeApplied",
            )
        changed = False
        for row in usable:
            before = have.get(row.id, [])
            if add is (group_id in before):
                continue
            after = [*before, group_id] if add else [g for g in before if g != group_id]
            self.service.ports.set_groups(tx, row.id, after)
            self.service.ports.save(tx, row)
            work.port_changed(row)
            changed = True
        if not changed and not add:
            raise missing("SecurityGroupNotFound", f"On server {server_id}, security group", group)
        work.members.add(group_id)
