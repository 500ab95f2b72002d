"""Ports as servers have them: what a server may ask for, its ports' life, addresses and groups.

The errors are those nova's API gives: no such network or port 400, in use 409, several networks to choose from 409.
"""

import ipaddress
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
from sqlalchemy import and_, bindparam, func, or_, select

from cumulet.db import Tx, to_change
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
_OF_SERVERS_TO_CHANGE = to_change(_OF_SERVERS)
_USABLE = (
    select(t.NETWORKS)
    .where(
        or_(t.NETWORKS.c.project_id == bindparam("project_id"), t.NETWORKS.c.shared.is_(True)),
    )
    .order_by(t.NETWORKS.c.created_at, t.NETWORKS.c.id)
)
_G = t.SECURITY_GROUPS.c
_NAMED_OR_DEFAULT = select(_G.id, _G.name, _G.project_id, _G.default_for).where(
    or_(
        _G.id.in_(bindparam("names", expanding=True)),
        and_(_G.project_id == bindparam("project_id"), _G.name.in_(bindparam("names", expanding=True))),
        _G.default_for == bindparam("project_id"),
    )
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
_OF_SERVER = (t.PORTS.c.device_id.in_(bindparam("ids", expanding=True)), t.PORTS.c.device_owner.startswith("compute:"))
_FIXED = (
    select(
        t.PORTS.c.device_id,
        t.PORTS.c.id,
        t.PORTS.c.mac_address,
        t.NETWORKS.c.id,
        t.NETWORKS.c.name,
        t.ADDRESSES.c.ip_address,
    )
    .join(t.NETWORKS, t.NETWORKS.c.id == t.PORTS.c.network_id)
    .join(t.ADDRESSES, t.ADDRESSES.c.port_id == t.PORTS.c.id)
    .where(*_OF_SERVER)
    .order_by(t.PORTS.c.created_at, t.PORTS.c.id)
)
_FLOATING = (
    select(t.FLOATING_IPS.c.port_id, t.FLOATING_IPS.c.fixed_ip_address, t.FLOATING_IPS.c.floating_ip_address)
    .join(t.PORTS, t.PORTS.c.id == t.FLOATING_IPS.c.port_id)
    .where(*_OF_SERVER)
)
_GROUP_NAMES = (
    select(t.PORTS.c.device_id, t.SECURITY_GROUPS.c.id, t.SECURITY_GROUPS.c.name)
    .join(t.PORT_GROUPS, t.PORT_GROUPS.c.port_id == t.PORTS.c.id)
    .join(t.SECURITY_GROUPS, t.SECURITY_GROUPS.c.id == t.PORT_GROUPS.c.security_group_id)
    .where(*_OF_SERVER)
)


class Nic(msgspec.Struct, frozen=True, kw_only=True):
    """What a guest is told of one of its ports."""

    id: str
    mac_address: str
    network_id: str
    mtu: int
    addresses: list[str]


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

    def validate(self, work: "Work", requested: Any, count: int, *, external: bool) -> list[NetworkChoice]:
        """In a writing unit of work, what it finds holds until its end: networks, addresses and room for the ports."""
        if requested == "none":
            return []
        if work.tx.writing and work.ctx.project_id:
            work.tx.lock("quota", work.ctx.project_id)  # before the networks' locks, as everywhere
        if requested is None or requested == "auto":
            choices = self._only_network(work.tx, work.ctx, automatic=requested == "auto")
        else:
            work.networks_with_subnets(
                uuid for item in requested if getattr(item, "port", None) is None and (uuid := item.uuid) is not None
            )
            choices = [self._checked(work, item) for item in requested]
        self._check_networks(work, choices, external=external)
        seen: set[str] = set()
        for choice in choices:
            if choice.port is not None:
                if choice.port in seen:
                    raise BadInput(f"Port {choice.port} is asked for more than once.", type_name="PortInUse")
                seen.add(choice.port)
        needed = sum(1 for choice in choices if choice.port is None) * count
        if needed and work.ctx.project_id:
            room = self.service.quotas.room(work.tx, "port", work.ctx.project_id)
            if room is not None and needed > room:
                raise QuotaExceeded(
                    "Maximum number of ports exceeded", type_name="PortLimitExceeded", needed=needed, room=room
                )
            work.ports_reserved = needed
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

    def _checked(self, work: "Work", item: Any) -> NetworkChoice:
        tx, ctx = work.tx, work.ctx
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
        network, _ = work.networks_with_subnets([network_id or ""]).get(network_id or "", (None, ()))
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

    def _check_networks(self, work: "Work", choices: Sequence[NetworkChoice], *, external: bool) -> None:
        ids = {choice.uuid for choice in choices if choice.port is None and choice.uuid is not None}
        found = work.networks_with_subnets(ids)
        for network, subnets in (found[id] for id in sorted(ids)):
            if network.external and not network.shared and not external:
                raise Forbidden(
                    f"Servers of this project may not be attached to external network {network.id}",
                    type_name="ExternalNetworkAttachForbidden",
                )
            if not subnets and network.port_security_enabled:
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
        servers: Mapping[str, str],
        choices: Sequence[NetworkChoice],
        az: str,
        groups: Sequence[str],
    ) -> dict[str, list[str]]:
        """For each server (id -> host name) its ports, in the order of the choices."""
        owner = f"compute:{az}"
        group_ids = self._groups(work, groups) if groups and any(choice.port is None for choice in choices) else []
        found: dict[tuple[str, int], str] = {}
        new: dict[tuple[str, int], Given] = {}
        for server_id, hostname in servers.items():
            for at, choice in enumerate(choices):
                if choice.port is not None:
                    found[server_id, at] = self._adopt(work, choice.port, server_id, owner, hostname)
                else:
                    new[server_id, at] = self._wanted(work, choice, server_id, owner, hostname, group_ids)
        if new:
            rows = self.service.ports.create(work, list(new.values()))
            found.update((key, row.id) for key, row in zip(new, rows, strict=True))
        return {server_id: [found[server_id, at] for at in range(len(choices))] for server_id in servers}

    def _groups(self, work: "Work", groups: Sequence[str]) -> list[str]:
        """Ids of the groups, which are given by id or by name in the project."""
        project, names = work.ctx.project_id or "", list(dict.fromkeys(groups))
        known = work.tx.rows(_NAMED_OR_DEFAULT, {"names": names, "project_id": project})
        default = next((row[0] for row in known if row[3] == project and project), None)
        if default is not None:
            work.default_groups[project] = default
        elif project:
            self.service.groups.ensure_default(work, project)
            known = work.tx.rows(_NAMED_OR_DEFAULT, {"names": names, "project_id": project})
        found = [self._group(work, name, project, known) for name in names]
        work.usable_groups.update((group, project) for group in found)
        return found

    def _group(self, work: "Work", group: str, project: str, known: Sequence[Any]) -> str:
        if is_uuid(group):
            for row in known:
                if row[0] == group and (work.sees_all or row[2] == project):
                    return group
        ids = [row[0] for row in known if row[1] == group and row[2] == project]
        if len(ids) > 1:
            raise conflict("NoUniqueMatch", f"Multiple security groups found matching '{group}'. Use an ID.")
        if not ids:
            raise missing("SecurityGroupNotFound", "Security group", group)
        return str(ids[0])

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
        network, _ = work.networks_with_subnets([str(choice.uuid)])[str(choice.uuid)]
        if groups and network.port_security_enabled:
            given["security_groups"] = groups
            explicit.add("security_groups")
        given.explicit = frozenset(explicit)
        given.for_server = True
        assert given["mac_address"] is UNSET
        return given

    def _adopt(self, work: "Work", port_id: str, server_id: str, owner: str, hostname: str) -> str:
        tx = work.tx
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

    # -- moving live ------------------------------------------------------------------------------------------------

    def begin_move(self, work: "Work", port_ids: Sequence[str], host: str) -> None:
        """The ports are to be on this host, too."""
        for row in self.service.ports.many(work.tx, port_ids).values():
            if row.moving == host:
                continue
            if self.service.agents.vif(work, host)[0] == state.FAILED:
                raise conflict("PortBindingFailed", f"Binding failed for port {row.id}: no network agent on {host}.")
            row.moving = host
            self._moved(work, row, host)

    def switch(self, work: "Work", port_ids: Sequence[str]) -> None:
        """The guest is on the other host, which has made the ports."""
        for row in self.service.ports.many(work.tx, port_ids).values():
            if row.moving:
                row.host, row.moving = row.moving, row.host
                row.vif_type, row.vif_details = self.service.agents.vif(work, row.host)
                row.wired = row.powered = True
                self._moved(work, row, row.host)

    def end_move(self, work: "Work", port_ids: Sequence[str]) -> None:
        """They are to be on their host alone."""
        for row in self.service.ports.many(work.tx, port_ids).values():
            if row.moving:
                other, row.moving = row.moving, ""
                work.gone.add((other, "port", row.id))
                self._moved(work, row, other)

    def _moved(self, work: "Work", row: t.PortRow, host: str) -> None:
        row.status = state.port_status(row)
        self.service.ports.save(work.tx, row)
        work.port_changed(row)
        work.comes_or_goes(row, host)

    def release(self, work: "Work", server_id: str, only: str | None = None) -> None:
        mine = self.rows(work.tx, [server_id], change=True).get(server_id, [])
        rows = [row for row in mine if only in (None, row.id)]
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

    def rows(self, tx: Tx, server_ids: Sequence[str], *, change: bool = False) -> dict[str, list[t.PortRow]]:
        found: dict[str, list[t.PortRow]] = {}
        for row in rows_in(tx, _OF_SERVERS_TO_CHANGE if change else _OF_SERVERS, server_ids):
            port = t.PortRow(*row)
            found.setdefault(port.device_id, []).append(port)
        return found

    def active(self, tx: Tx, server_id: str) -> bool:
        return not tx.scalar(_UNWIRED, {"server_id": server_id})

    def nics(self, tx: Tx, server_id: str) -> list[Nic]:
        rows = self.rows(tx, [server_id]).get(server_id, [])
        addresses = self.service.ports.addresses_of(tx, [row.id for row in rows])
        networks = self.service.networks.many(tx, {row.network_id for row in rows})
        return [
            Nic(
                id=row.id,
                mac_address=row.mac_address,
                network_id=row.network_id,
                mtu=networks[row.network_id].mtu,
                addresses=[address.ip_address for address in addresses.get(row.id, ())],
            )
            for row in rows
        ]

    def addresses(self, tx: Tx, server_ids: Sequence[str]) -> dict[str, list[AddressInfo]]:
        floating: dict[tuple[str, str], list[str]] = {}
        for port_id, fixed, address in rows_in(tx, _FLOATING, server_ids):
            floating.setdefault((port_id, fixed), []).append(address)
        found: dict[str, list[AddressInfo]] = {}
        for server_id, port_id, mac, network_id, name, address in rows_in(tx, _FIXED, server_ids):
            mine = found.setdefault(server_id, [])
            mine.append(_address(address, "fixed", mac, port_id, network_id, name))
            for other in floating.get((port_id, address), ()):
                mine.append(_address(other, "floating", mac, port_id, network_id, name))
        return found

    def groups(self, tx: Tx, server_ids: Sequence[str]) -> dict[str, list[GroupInfo]]:
        found: dict[str, dict[str, GroupInfo]] = {}  # a group of several ports once
        for server_id, id, name in rows_in(tx, _GROUP_NAMES, server_ids):
            found.setdefault(server_id, {})[id] = GroupInfo(id=id, name=name)
        return {server_id: sorted(groups.values(), key=_by_name) for server_id, groups in found.items()}

    def change_group(self, work: "Work", server_id: str, group: str, *, add: bool) -> None:
        tx = work.tx
        project = work.ctx.project_id or ""
        known = tx.rows(_NAMED_OR_DEFAULT, {"names": [group], "project_id": project})
        group_id = self._group(work, group, project, known)
        rows = self.rows(tx, [server_id], change=True).get(server_id, [])
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


def _by_name(group: GroupInfo) -> tuple[str, str]:
    return group.name, group.id


def _address(address: str, kind: str, mac: str, port_id: str, network_id: str, network: str) -> AddressInfo:
    return AddressInfo(
        network=network or network_id,
        addr=address,
        version=6 if ":" in address else 4,
        type=kind,
        mac_addr=mac,
        port_id=port_id,
        network_id=network_id,
    )
