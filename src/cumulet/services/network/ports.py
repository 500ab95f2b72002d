"""Ports: creation (also a thousand at once), change, deletion, and how they look."""

import ipaddress
import os
from collections import ChainMap
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy import and_, bindparam, delete, or_, select

from cumulet.db import Tx
from cumulet.kernel.context import RequestContext
from cumulet.kernel.ids import new_uuid
from cumulet.services.network import ipam, portrules, state
from cumulet.services.network import tables as t
from cumulet.services.network.allocation import Allocation
from cumulet.services.network.dhcp import DhcpPorts
from cumulet.services.network.faults import bad, conflict
from cumulet.services.network.intake import Given
from cumulet.services.network.noun import apply, grouped, plain, rows_in
from cumulet.services.network.query import Condition
from cumulet.services.network.resources import PORT

if TYPE_CHECKING:
    from cumulet.services.network.work import Work

_ADDRESSES_OF = select(t.ADDRESSES).where(t.ADDRESSES.c.port_id.in_(bindparam("ids", expanding=True)))
_GROUPS_OF = (
    select(t.PORT_GROUPS.c.port_id, t.PORT_GROUPS.c.security_group_id)
    .where(t.PORT_GROUPS.c.port_id.in_(bindparam("ids", expanding=True)))
    .order_by(t.PORT_GROUPS.c.security_group_id)
)
_MACS = select(t.PORTS.c.mac_address).where(
    t.PORTS.c.network_id == bindparam("network_id"), t.PORTS.c.mac_address.in_(bindparam("macs", expanding=True))
)
_DROP_ADDRESSES = (
    delete(t.ADDRESSES)
    .where(t.ADDRESSES.c.port_id.in_(bindparam("ids", expanding=True)))
    .returning(t.ADDRESSES.c.subnet_id, t.ADDRESSES.c.position)
)
_DROP_ADDRESS = delete(t.ADDRESSES).where(
    t.ADDRESSES.c.subnet_id == bindparam("_subnet"), t.ADDRESSES.c.ip_address == bindparam("_address")
)
_DROP_GROUPS = delete(t.PORT_GROUPS).where(t.PORT_GROUPS.c.port_id.in_(bindparam("ids", expanding=True)))
OPTION = dict[str, Any]


class Ports(DhcpPorts):
    resource = PORT
    row = t.PortRow
    found_to_change = True

    # -- reading ---------------------------------------------------------------------------------------------

    def addresses_of(self, tx: Tx, port_ids: Iterable[str]) -> dict[str, list[t.AddressRow]]:
        found: dict[str, list[t.AddressRow]] = {}
        for row in rows_in(tx, _ADDRESSES_OF, port_ids):
            found.setdefault(row[3], []).append(t.AddressRow(*row))
        return found

    def groups_of(self, tx: Tx, port_ids: Iterable[str]) -> dict[str, list[str]]:
        rows = rows_in(tx, _GROUPS_OF, port_ids)
        return {port: [row[1] for row in found] for port, found in grouped(rows).items()}

    def scope(self, tx: Tx, ctx: RequestContext) -> list[Condition]:
        mine = ctx.project_id or ""
        own_networks = select(t.NETWORKS.c.id).where(t.NETWORKS.c.project_id == mine)
        within = t.PORTS.c.network_id.in_(own_networks)
        others = (t.PORTS.c.project_id < mine, t.PORTS.c.project_id > mine)  # ranges, where != is none
        return [t.PORTS.c.project_id == mine, *(and_(within, one) for one in others)]

    def special_filter(self, tx: Tx, name: str, values: list[str]) -> Condition | None:
        if name == "fixed_ips":
            return _by_address(values)
        if name == "security_groups":
            members = select(t.PORT_GROUPS.c.port_id).where(t.PORT_GROUPS.c.security_group_id.in_(values))
            return t.PORTS.c.id.in_(members)
        if name == "mac_address":
            return t.PORTS.c.mac_address.in_([value.lower().replace("-", ":") for value in values])
        return None

    def views(self, tx: Tx, rows: Sequence[t.PortRow]) -> list[dict[str, Any]]:
        ids = [row.id for row in rows]
        addresses = self.addresses_of(tx, ids)
        groups = self.groups_of(tx, ids)
        tags = self.tags(tx, rows)
        domain = self.service.dns_domain
        found = []
        for row in rows:
            mine = addresses.get(row.id, [])
            found.append(
                {
                    **self.standard(row),
                    "name": row.name,
                    "network_id": row.network_id,
                    "mac_address": row.mac_address,
                    "admin_state_up": row.admin_state_up,
                    "status": row.status,
                    "device_id": row.device_id,
                    "device_owner": row.device_owner,
                    "fixed_ips": [{"subnet_id": a.subnet_id, "ip_address": a.ip_address} for a in mine],
                    "security_groups": groups.get(row.id, []),
                    "port_security_enabled": row.port_security_enabled,
                    "allowed_address_pairs": row.allowed_address_pairs,
                    "extra_dhcp_opts": row.extra_dhcp_opts,
                    "binding:host_id": row.host,
                    "binding:vnic_type": row.vnic_type,
                    "binding:profile": row.profile,
                    "binding:vif_type": row.vif_type,
                    "binding:vif_details": row.vif_details,
                    "dns_name": row.dns_name,
                    "dns_assignment": portrules.dns_assignment(row.dns_name, mine, domain),
                    "ip_allocation": row.ip_allocation,
                    "tags": tags.get(row.id, []),
                }
            )
        return found

    def targets(self, tx: Tx, views: Sequence[dict[str, Any]]) -> Sequence[Mapping[str, Any]]:
        networks = self.service.networks.many(tx, (view["network_id"] for view in views))
        parents = {id: _parent(network) for id, network in networks.items()}
        return [ChainMap(view, parents[view["network_id"]]) for view in views]

    def create_targets(self, tx: Tx, items: Sequence[Given]) -> Sequence[Mapping[str, Any]]:
        self.service.networks.hold(tx, items)
        found = {id: self.service.networks.get(tx, id) for id in {given["network_id"] for given in items}}
        return [ChainMap(given, _parent(found[given["network_id"]])) for given in items]

    # -- create --------------------------------------------------------------------------------------------------

    def create(self, work: "Work", items: list[Given]) -> list[t.PortRow]:
        tx = work.tx
        if work.ports_reserved >= len(items):
            work.ports_reserved -= len(items)
        else:
            self.service.quotas.reserve(tx, "port", [g["project_id"] for g in items])
        network_ids = sorted({g["network_id"] for g in items})
        networks = work.networks_with_subnets(network_ids)
        for id in network_ids:
            if id not in networks:
                raise self.service.networks.not_found(id)
        bulk = len(items) > 3 or any(g.has("fixed_ips") and len(g["fixed_ips"] or ()) > 1 for g in items)
        spaces = {
            id: Allocation(tx, id, networks[id][1], bulk=bulk, frontiers=self.service.frontiers) for id in network_ids
        }
        macs = self._macs(tx, items)
        rows: list[t.PortRow] = []
        addresses: list[dict[str, Any]] = []
        members: list[dict[str, Any]] = []
        tags: list[dict[str, Any]] = []
        for given, mac in zip(items, macs, strict=True):
            network, _ = networks[given["network_id"]]
            row, groups = self._new(work, given, network, mac)
            mine = spaces[network.id].choose(given["fixed_ips"], mac, row.device_owner)
            if given.has("fixed_ips") and given["fixed_ips"] == []:
                row.ip_allocation = "none"
            rows.append(row)
            addresses.extend({**values, "port_id": row.id} for values in mine)
            members.extend({"port_id": row.id, "security_group_id": group} for group in groups)
            if row.host or not row.made_for_server:  # a server's port is told of when it is bound
                work.members.update(groups)
            tags.extend({"resource_id": row.id, "tag": tag} for tag in given["tags"])
        tx.insert(t.PORTS, [row.values() for row in rows])
        tx.insert(t.ADDRESSES, addresses)
        tx.insert(t.PORT_GROUPS, members)
        tx.insert(t.TAGS, tags)
        for row in rows:
            work.port_changed(row)
        return rows

    def _macs(self, tx: Tx, items: list[Given]) -> list[str]:
        """Given or made addresses, none of them in use on its network."""
        found: list[str] = [""] * len(items)
        by_network: dict[str, list[int]] = {}
        for at, given in enumerate(items):
            by_network.setdefault(given["network_id"], []).append(at)
        for network_id, places in by_network.items():
            used: set[str] = set()
            given_places = [at for at in places if items[at].has("mac_address") and items[at]["mac_address"]]
            wanted = [items[at]["mac_address"] for at in given_places]
            for mac in wanted:
                if mac in used or self.macs_taken(tx, network_id, [mac]):
                    raise conflict("MacAddressInUse", f"MAC address {mac} is in use on network {network_id}.")
                used.add(mac)
            for at, mac in zip(given_places, wanted, strict=True):
                found[at] = mac
            rest = [at for at in places if not found[at]]
            while rest:
                made = {at: new_mac() for at in rest}
                taken = self.macs_taken(tx, network_id, list(made.values())) | used
                for at, mac in made.items():
                    if mac not in taken:
                        found[at] = mac
                        taken.add(mac)
                        used.add(mac)
                rest = [at for at in rest if not found[at]]
        return found

    def macs_taken(self, tx: Tx, network_id: str, macs: list[str]) -> set[str]:
        return {row[0] for row in tx.rows(_MACS, {"network_id": network_id, "macs": macs})}

    def _new(self, work: "Work", given: Given, network: t.NetworkRow, mac: str) -> tuple[t.PortRow, list[str]]:
        owner = given["device_owner"] or ""
        trusted = owner.startswith(("network:", "neutron:"))
        secure = given["port_security_enabled"] if given.has("port_security_enabled") else None
        if secure is None:
            secure = network.port_security_enabled and not trusted
        groups: list[str] = []
        if given.has("security_groups") and "security_groups" in given.explicit and given["security_groups"]:
            groups = given["security_groups"]
            if not secure:
                raise bad(
                    "Security groups need port security and an address.", "PortSecurityAndIPRequiredForSecurityGroups"
                )
            work.check_groups(groups, given["project_id"])
        elif secure and not trusted and not given.has("security_groups"):
            default = self.service.groups.ensure_default(work, given["project_id"])
            groups = [default] if default else []
        pairs = given["allowed_address_pairs"] if given.has("allowed_address_pairs") else []
        if pairs and not secure:
            raise conflict("AddressPairAndPortSecurityRequired", "Allowed address pairs need port security.")
        row = t.PortRow(
            id=new_uuid(),
            mac_address=mac,
            status="DOWN",
            device_id=given["device_id"] or "",
            device_owner=owner,
            port_security_enabled=secure,
            allowed_address_pairs=portrules.with_mac(pairs, mac),
            extra_dhcp_opts=[o for o in given["extra_dhcp_opts"] or [] if o["opt_value"] is not None],
            ip_allocation="immediate",
            host="",
            vnic_type=given["binding:vnic_type"],
            profile=given["binding:profile"] if given.has("binding:profile") else {},
            vif_type=state.UNBOUND,
            vif_details={},
            wired=False,
            powered=True,
            made_for_server=given.for_server,
            **plain(given, "project_id", "network_id", "name", "description", "admin_state_up", "dns_name"),
            **self.stamps(work.tx),
        )
        if given.has("binding:host_id") and given["binding:host_id"]:
            self.set_host(work, row, given["binding:host_id"])
        row.status = state.port_status(row)
        return row, groups

    def set_host(self, work: "Work", row: t.PortRow, host: str) -> None:
        """Bind to a host, or to none. Nothing is made there yet."""
        if row.host and row.host != host:
            work.port_leaves(row)
        row.host, row.moving = host, ""
        row.wired = False
        row.powered = True
        row.vif_type, row.vif_details = self.service.agents.vif(work, host) if host else (state.UNBOUND, {})

    # -- update ---------------------------------------------------------------------------------------------------

    def update(self, work: "Work", row: t.PortRow, given: Given) -> t.PortRow:
        tx = work.tx
        old_groups = self.groups_of(tx, [row.id]).get(row.id, [])
        if "mac_address" in given and given["mac_address"] != row.mac_address:
            self._change_mac(tx, row, given["mac_address"])
        apply(row, given, "name", "description", "admin_state_up", "dns_name")
        for name in ("device_id", "device_owner"):
            if name in given:
                setattr(row, name, given[name] or "")
        if "binding:vnic_type" in given:
            row.vnic_type = given["binding:vnic_type"]
        if "binding:profile" in given:
            row.profile = given["binding:profile"]
        if "extra_dhcp_opts" in given and given["extra_dhcp_opts"] is not None:
            row.extra_dhcp_opts = _merged(row.extra_dhcp_opts, given["extra_dhcp_opts"])
        if given.get("port_security_enabled") is not None:
            row.port_security_enabled = given["port_security_enabled"]
        if given.has("allowed_address_pairs"):
            row.allowed_address_pairs = portrules.with_mac(given["allowed_address_pairs"], row.mac_address)
        groups = self._changed_groups(work, row, given, old_groups)
        portrules.check_security(row, groups, explicit="security_groups" in given)
        if given.has("fixed_ips"):
            self._change_addresses(work, row, given["fixed_ips"] or [])
        if "binding:host_id" in given and (given["binding:host_id"] or "") != row.host:
            self.set_host(work, row, given["binding:host_id"] or "")
        row.status = state.port_status(row)
        self.save(tx, row)
        work.port_changed(row)
        work.members.update([*old_groups, *groups])
        return row

    def _change_mac(self, tx: Tx, row: t.PortRow, mac: str) -> None:
        if row.host and row.vif_type not in (state.UNBOUND, state.FAILED):
            raise conflict("PortBound", f"Port {row.id} is bound: its MAC address cannot change.")
        if self.macs_taken(tx, row.network_id, [mac]):
            raise conflict("MacAddressInUse", f"MAC address {mac} is in use on network {row.network_id}.")
        for pair in row.allowed_address_pairs:
            if pair["mac_address"] == row.mac_address:
                pair["mac_address"] = mac
        row.mac_address = mac

    def _changed_groups(self, work: "Work", row: t.PortRow, given: Given, old: list[str]) -> list[str]:
        if "security_groups" not in given:
            return old
        new = given["security_groups"] or []
        added = [group for group in new if group not in old]
        work.check_groups(added, row.project_id)
        self.set_groups(work.tx, row.id, new)
        return list(new)

    def set_groups(self, tx: Tx, port_id: str, groups: list[str]) -> None:
        tx.run(_DROP_GROUPS, {"ids": [port_id]})
        tx.insert(t.PORT_GROUPS, [{"port_id": port_id, "security_group_id": group} for group in groups])

    def _change_addresses(self, work: "Work", row: t.PortRow, wanted: list[dict[str, str]]) -> None:
        """Addresses that are kept stay as they are; the others go before new ones are chosen."""
        tx = work.tx
        tx.lock("subnet-addresses", row.network_id)
        subnets = self.service.subnets.of_networks(tx, [row.network_id])
        have = self.addresses_of(tx, [row.id]).get(row.id, [])
        kept, rest = portrules.match_addresses(have, wanted)
        auto = {s.id for s in subnets if ipam.is_auto_address(s)}
        if wanted:
            kept.extend(a for a in have if a not in kept and a.subnet_id in auto)
        gone = [a for a in have if a not in kept]
        for address in gone:
            tx.run(_DROP_ADDRESS, {"_subnet": address.subnet_id, "_address": address.ip_address})
        covered = {a.subnet_id for a in kept} & auto
        open_ = [s for s in subnets if s.id not in covered]
        space = Allocation(tx, row.network_id, open_, bulk=len(rest) > 1, frontiers=self.service.frontiers)
        new = space.choose(rest, row.mac_address, row.device_owner) if rest or not kept else []
        tx.insert(t.ADDRESSES, [{**values, "port_id": row.id} for values in new])
        row.ip_allocation = "immediate" if kept or new else "none"
        self.service.floating_ips.addresses_gone(work, row.id, [a.ip_address for a in gone])

    # -- delete ---------------------------------------------------------------------------------------------------

    def delete(self, work: "Work", row: t.PortRow) -> None:
        self.refuse_router_port(work.tx, row)
        self.delete_rows(work, [row])

    def refuse_router_port(self, tx: Tx, row: t.PortRow) -> None:
        if row.device_owner in ("network:router_interface", "network:router_gateway"):
            used = self.service.routers.find(tx, row.device_id) is not None
        elif row.device_owner == "network:floatingip":
            used = self.service.floating_ips.find(tx, row.device_id) is not None
        else:
            used = False
        if used:
            raise conflict(
                "ServicePortInUse",
                f"Port {row.id} is not deleted by itself: it belongs to a {row.device_owner}.",
            )

    def delete_rows(self, work: "Work", rows: Sequence[t.PortRow]) -> None:
        """Remove ports with all that hangs on them; the caller has checked that they may go."""
        tx = work.tx
        ids = [row.id for row in rows]
        if not ids:
            return
        for groups in self.groups_of(tx, ids).values():
            work.members.update(groups)
        self.service.floating_ips.ports_gone(work, ids)
        for row in rows:
            work.port_leaves(row)
        places = [(row[0], row[1]) for row in tx.rows(_DROP_ADDRESSES, {"ids": ids})]
        tx.after_commit(lambda: self.service.frontiers.given_back(places))
        tx.run(_DROP_GROUPS, {"ids": ids})
        self.remove(tx, ids)


def new_mac() -> str:
    tail = os.urandom(3)
    return f"fa:16:3e:{tail[0]:02x}:{tail[1]:02x}:{tail[2]:02x}"


def _merged(old: list[OPTION], changes: list[OPTION]) -> list[OPTION]:
    found = {(o["opt_name"], o["ip_version"]): o for o in old}
    for option in changes:
        key = (option["opt_name"], option["ip_version"])
        if option["opt_value"] is None:
            found.pop(key, None)
        else:
            found[key] = option
    return list(found.values())


def _parent(network: t.NetworkRow) -> dict[str, Any]:
    return {
        "network:project_id": network.project_id,
        "network:tenant_id": network.project_id,
        "shared": network.shared,
        "router:external": network.external,
    }


def _by_address(values: list[str]) -> Condition:
    """``fixed_ips=ip_address=…``, ``subnet_id=…`` and ``ip_address_substr=…``; several of one kind are alternatives."""
    kinds: dict[str, list[str]] = {}
    for value in values:
        name, found, text = value.partition("=")
        if not found or name not in ("ip_address", "subnet_id", "ip_address_substr"):
            raise bad(f"Invalid input for fixed_ips. Reason: {value!r} is not a filter of addresses.")
        kinds.setdefault(name, []).append(_canonical(text) if name == "ip_address" else text)
    parts: list[Any] = []
    if "ip_address" in kinds:
        parts.append(t.ADDRESSES.c.ip_address.in_(kinds["ip_address"]))
    if "subnet_id" in kinds:
        parts.append(t.ADDRESSES.c.subnet_id.in_(kinds["subnet_id"]))
    if "ip_address_substr" in kinds:
        parts.append(or_(*(t.ADDRESSES.c.ip_address.contains(s, autoescape=True) for s in kinds["ip_address_substr"])))
    return t.PORTS.c.id.in_(select(t.ADDRESSES.c.port_id).where(and_(*parts)))


def _canonical(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return text
