"""Security group rules: their checks, duplicates, and the rules a new group begins with."""

import ipaddress
from collections import ChainMap
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy import bindparam, select

from cumulet.db import Tx
from cumulet.kernel.ids import new_uuid
from cumulet.services.network import tables as t
from cumulet.services.network.faults import bad, conflict, missing
from cumulet.services.network.intake import Given
from cumulet.services.network.noun import Noun
from cumulet.services.network.query import Condition
from cumulet.services.network.resources import SECURITY_GROUP_RULE

if TYPE_CHECKING:
    from cumulet.services.network.work import Work

PROTOCOLS = {
    "ah": 51, "dccp": 33, "egp": 8, "esp": 50, "gre": 47, "hopopt": 0, "icmp": 1, "igmp": 2, "ip": 0, "ipip": 4,
    "ipv6-encap": 41, "ipv6-frag": 44, "ipv6-icmp": 58, "ipv6-nonxt": 59, "ipv6-opts": 60, "ipv6-route": 43, "ospf": 89,
    "pgm": 113, "rsvp": 46, "sctp": 132, "tcp": 6, "udp": 17, "udplite": 136, "vrrp": 112, "icmpv6": 58,
}  # fmt: skip
_V6_ONLY = {"ipv6-encap", "ipv6-frag", "ipv6-icmp", "ipv6-nonxt", "ipv6-opts", "ipv6-route", "icmpv6"}
_WITH_PORTS = {"dccp", "sctp", "tcp", "udp", "udplite"}
_ICMP = {"icmp", "ipv6-icmp", "icmpv6", "1", "58"}
_NUMBERS = {str(number): name for name, number in PROTOCOLS.items() if name not in ("ip", "icmpv6")}
_OF_GROUP = select(t.SECURITY_GROUP_RULES).where(t.SECURITY_GROUP_RULES.c.security_group_id == bindparam("group_id"))


class SecurityGroupRules(Noun[t.SecurityGroupRuleRow]):
    resource = SECURITY_GROUP_RULE
    row = t.SecurityGroupRuleRow

    def special_filter(self, tx: Tx, name: str, values: list[str]) -> Condition | None:
        if name == "belongs_to_default_sg":
            from cumulet.services.network.attributes import boolean

            groups = select(t.SECURITY_GROUPS.c.id).where(t.SECURITY_GROUPS.c.default_for.isnot(None))
            inside = t.SECURITY_GROUP_RULES.c.security_group_id.in_(groups)
            return inside if boolean(name, values[-1]) else ~inside
        return None

    def views(self, tx: Tx, rows: Sequence[t.SecurityGroupRuleRow]) -> list[dict[str, Any]]:
        groups = self.service.groups.many(tx, (row.security_group_id for row in rows))
        return self.views_with(rows, {id: group.default_for is not None for id, group in groups.items()})

    def views_with(
        self, rows: Iterable[t.SecurityGroupRuleRow], is_default: Mapping[str, bool]
    ) -> list[dict[str, Any]]:
        return [
            {
                **self.standard(row),
                "security_group_id": row.security_group_id,
                "direction": row.direction,
                "ethertype": row.ethertype,
                "protocol": row.protocol,
                "port_range_min": row.port_range_min,
                "port_range_max": row.port_range_max,
                "remote_group_id": row.remote_group_id,
                "remote_address_group_id": None,
                "remote_ip_prefix": row.remote_ip_prefix,
                "normalized_cidr": _normal(row.remote_ip_prefix),
                "belongs_to_default_sg": is_default[row.security_group_id],
            }
            for row in rows
        ]

    def targets(self, tx: Tx, views: Sequence[dict[str, Any]]) -> Sequence[Mapping[str, Any]]:
        groups = self.service.groups.many(tx, (view["security_group_id"] for view in views))
        return [{**view, **_parent(groups[view["security_group_id"]])} for view in views]

    def create_targets(self, tx: Tx, items: Sequence[Given]) -> Sequence[Mapping[str, Any]]:
        found = {id: self.service.groups.get(tx, id) for id in {given["security_group_id"] for given in items}}
        return [ChainMap(given, _parent(found[given["security_group_id"]])) for given in items]

    # -- rules that a group begins with ---------------------------------------------------------------------------

    def _rule(self, tx: Tx, group: t.SecurityGroupRow, direction: str, ethertype: str, remote: str | None) -> Any:
        return t.SecurityGroupRuleRow(
            id=new_uuid(),
            project_id=group.project_id,
            description="",
            security_group_id=group.id,
            direction=direction,
            ethertype=ethertype,
            protocol=None,
            port_range_min=None,
            port_range_max=None,
            remote_group_id=remote,
            remote_ip_prefix=None,
            **self.stamps(tx),
        )

    def outbound(self, tx: Tx, group: t.SecurityGroupRow) -> list[t.SecurityGroupRuleRow]:
        return [self._rule(tx, group, "egress", kind, None) for kind in ("IPv4", "IPv6")]

    def from_itself(self, tx: Tx, group: t.SecurityGroupRow) -> list[t.SecurityGroupRuleRow]:
        return [self._rule(tx, group, "ingress", kind, group.id) for kind in ("IPv4", "IPv6")]

    # -- create and delete ------------------------------------------------------------------------------------------

    def create(self, work: "Work", items: list[Given]) -> list[t.SecurityGroupRuleRow]:
        tx = work.tx
        self.service.quotas.reserve(tx, "security_group_rule", [g["project_id"] for g in items])
        known: dict[str, dict[tuple[Any, ...], str]] = {}
        rows = []
        for given in items:
            row = self._checked(work, given)
            others = known.get(row.security_group_id)
            if others is None:
                found = tx.rows(_OF_GROUP, {"group_id": row.security_group_id})
                others = {_identity(t.SecurityGroupRuleRow(*r)): r[0] for r in found}
                known[row.security_group_id] = others
            same = others.get(_identity(row))
            if same is not None:
                raise conflict("SecurityGroupRuleExists", f"Security group rule already exists. Rule id is {same}.")
            others[_identity(row)] = row.id
            rows.append(row)
            work.groups.add(row.security_group_id)
        tx.insert(t.SECURITY_GROUP_RULES, [row.values() for row in rows])
        work.touch_revision(t.SECURITY_GROUPS, {row.security_group_id for row in rows})
        return rows

    def _checked(self, work: "Work", given: Given) -> t.SecurityGroupRuleRow:
        group = self.service.groups.get(work.tx, given["security_group_id"])
        ethertype = _ethertype(given["ethertype"])
        protocol = _protocol(given["protocol"])
        low, high = _ports(given, protocol)
        prefix = _prefix(given["remote_ip_prefix"], ethertype)
        remote = given["remote_group_id"]
        if remote is not None and prefix is not None:
            raise bad(
                "remote_ip_prefix and remote_group_id cannot both be given.", "SecurityGroupMultipleRemoteEntites"
            )
        if remote is not None:
            other = self.service.groups.find(work.tx, remote)
            if other is None or not (work.sees_all or other.project_id in (group.project_id, work.ctx.project_id)):
                raise missing("SecurityGroupNotFound", "Security group", remote)
        if protocol in _V6_ONLY and ethertype == "IPv4":
            raise bad(
                f"Ethertype IPv4 and protocol {protocol} do not go together.",
                "SecurityGroupEthertypeConflictWithProtocol",
            )
        return t.SecurityGroupRuleRow(
            id=new_uuid(),
            project_id=given["project_id"],
            description=given["description"],
            security_group_id=group.id,
            direction=given["direction"],
            ethertype=ethertype,
            protocol=protocol,
            port_range_min=low,
            port_range_max=high,
            remote_group_id=remote,
            remote_ip_prefix=prefix,
            **self.stamps(work.tx),
        )

    def delete(self, work: "Work", row: t.SecurityGroupRuleRow) -> None:
        self.remove(work.tx, [row.id])
        work.groups.add(row.security_group_id)
        work.touch_revision(t.SECURITY_GROUPS, {row.security_group_id})


def _parent(group: t.SecurityGroupRow) -> dict[str, Any]:
    return {"security_group:project_id": group.project_id, "security_group:tenant_id": group.project_id}


def _identity(row: t.SecurityGroupRuleRow) -> tuple[Any, ...]:
    protocol = _NUMBERS.get(row.protocol or "", row.protocol)
    prefix = _normal(row.remote_ip_prefix)
    if prefix in ("0.0.0.0/0", "::/0"):
        prefix = None
    return (
        row.direction, row.ethertype, protocol, row.port_range_min, row.port_range_max, row.remote_group_id, prefix,
    )  # fmt: skip


def _normal(prefix: str | None) -> str | None:
    return None if prefix is None else str(ipaddress.ip_network(prefix, strict=False))


def _ethertype(value: Any) -> str:
    found = {"ipv4": "IPv4", "ipv6": "IPv6"}.get(value.lower()) if isinstance(value, str) else None
    if found is None:
        raise bad(f"Security group rule for ethertype {value!r} is not supported.", "SecurityGroupRuleInvalidEtherType")
    return found


def _protocol(value: Any) -> str | None:
    if value is None:
        return None
    if isinstance(value, str | int) and not isinstance(value, bool):
        text = str(value).lower()
        if text in ("", "any"):
            return None
        if text in PROTOCOLS or (text.isascii() and text.isdigit() and len(text) < 4 and int(text) <= 255):
            return "ipv6-icmp" if text == "icmpv6" else text
    raise bad(f"Security group rule protocol {value!r} is not supported.", "SecurityGroupRuleInvalidProtocol")


def _number(name: str, value: Any) -> int | None:
    if value is None or value == "":
        return None
    try:
        if isinstance(value, bool | float):
            raise ValueError
        return int(value)
    except (TypeError, ValueError):
        raise bad(f"Invalid value for port {value!r}.", "SecurityGroupInvalidPortValue") from None


def _ports(given: Given, protocol: str | None) -> tuple[int | None, int | None]:
    low, high = (_number(name, given[name]) for name in ("port_range_min", "port_range_max"))
    if low is None and high is None:
        return None, None
    if protocol in _ICMP:
        for what, value in (("type", low), ("code", high)):
            if value is not None and not 0 <= value <= 255:
                raise bad(
                    f"Invalid value for ICMP {what}: {value} is not between 0 and 255.", "SecurityGroupInvalidIcmpValue"
                )
        if low is None:
            raise bad(
                "There is an ICMP code, and the ICMP type (port-range-min) is missing.", "SecurityGroupMissingIcmpType"
            )
        return low, high
    if protocol is None:
        raise bad("A port range needs a protocol.", "SecurityGroupProtocolRequiredWithPorts")
    for value in (low, high):
        if value is not None and not 0 <= value <= 65535:
            raise bad(f"Invalid value for port {value}.", "SecurityGroupInvalidPortValue")
    if protocol not in _WITH_PORTS and _NUMBERS.get(protocol) not in _WITH_PORTS:
        raise bad(f"Protocol {protocol} has no ports.", "SecurityGroupInvalidProtocolForPort")
    if low is None or high is None or low > high:
        raise bad(
            "The port range needs both ends, port_range_min must be <= port_range_max", "SecurityGroupInvalidPortRange"
        )
    if low == 0 and (protocol in ("tcp", "udp", "6", "17")):
        raise bad("Invalid value for port 0.", "SecurityGroupInvalidPortValue")
    return low, high


def _prefix(value: Any, ethertype: str) -> str | None:
    if value is None or value == "":
        return None
    try:
        if not isinstance(value, str):
            raise ValueError
        network = ipaddress.ip_network(value, strict=False)
    except ValueError:
        raise bad(f"Invalid CIDR {value!r} given as IP prefix.", "InvalidCIDR") from None
    if f"IPv{network.version}" != ethertype:
        raise bad(f"Conflicting value ethertype {ethertype} for CIDR {value}.", "SecurityGroupRuleParameterConflict")
    return value if "/" in value else f"{value}/{network.prefixlen}"
