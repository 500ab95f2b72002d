"""Calls that ended long ago (2.35 and 2.43) and that clients of the base version still make: security groups by way
of compute, and further fixed addresses."""

from typing import Any

from cumulet.db import Tx
from cumulet.http import Call, Route
from cumulet.kernel.errors import BadInput, Conflict
from cumulet.kernel.ids import is_uuid
from cumulet.services.compute import schema
from cumulet.services.compute.api.common import load_unlocked, service_of
from cumulet.services.network.forcompute import ForCompute

_RULE = "os_compute_api:os-security-groups:"
_PROTOCOLS = ("tcp", "udp", "icmp")


def _network(call: Call) -> ForCompute:
    return ForCompute(service_of(call).parts.network)


def _rule_view(rule: dict[str, Any], names: dict[str, tuple[str, str]]) -> dict[str, Any]:
    remote = rule["remote_group_id"]
    name, project = names.get(remote, (remote, "")) if remote else ("", "")
    low, high = rule["port_range_min"], rule["port_range_max"]
    if low is None and rule["protocol"] == "icmp":
        low = high = -1
    cidr = rule["remote_ip_prefix"] or ("0.0.0.0/0" if rule["ethertype"] == "IPv4" else "::/0")
    return {
        "id": rule["id"],
        "parent_group_id": rule["security_group_id"],
        "ip_protocol": rule["protocol"],
        "from_port": low,
        "to_port": high,
        "group": {"name": name, "tenant_id": project} if remote else {},
        "ip_range": {} if remote else {"cidr": cidr},
    }


def _view(group: dict[str, Any], names: dict[str, tuple[str, str]]) -> dict[str, Any]:
    return {
        "id": group["id"],
        "name": group["name"],
        "description": group["description"],
        "tenant_id": group["project_id"],
        "rules": [_rule_view(r, names) for r in group["security_group_rules"] if r["direction"] == "ingress"],
    }


def _names(groups: list[dict[str, Any]]) -> dict[str, tuple[str, str]]:
    return {group["id"]: (group["name"], group["project_id"]) for group in groups}


def index(call: Call) -> dict[str, Any]:
    everyone = call.ctx.is_admin and bool(call.query.get("all_tenants"))
    groups = service_of(call).db.read(lambda tx: _network(call).groups(tx, call.ctx, everyone=everyone))
    return {"security_groups": [_view(group, _names(groups)) for group in groups]}


def _id(call: Call) -> str:
    group_id = call.params["group_id"]
    if not is_uuid(group_id):
        raise BadInput(f"Security group id {group_id} should be uuid")
    return group_id


def show(call: Call) -> dict[str, Any]:
    group_id = _id(call)

    def work(tx: Tx) -> dict[str, Any]:
        return _view(_network(call).group(tx, call.ctx, group_id), _names(_network(call).groups(tx, call.ctx)))

    return {"security_group": service_of(call).db.read(work)}


def create(call: Call) -> dict[str, Any]:
    body: schema.SecurityGroupCreate = call.body
    made = service_of(call).db.write(
        lambda tx: _network(call).create_group(tx, call.ctx, body.name, body.description or "")
    )
    return {"security_group": _view(made, {})}


def update(call: Call) -> dict[str, Any]:
    body: schema.SecurityGroupCreate = call.body
    group_id = _id(call)
    made = service_of(call).db.write(
        lambda tx: _network(call).update_group(tx, call.ctx, group_id, body.name, body.description or "")
    )
    return {"security_group": _view(made, {})}


def delete(call: Call) -> None:
    group_id = _id(call)

    def work(tx: Tx) -> None:
        found = _network(call).group(tx, call.ctx, group_id)
        if found["name"] == "default":
            raise BadInput("The default security group cannot be deleted.")
        try:
            _network(call).delete_group(tx, call.ctx, group_id)
        except Conflict as error:
            raise BadInput(error.message) from None

    service_of(call).db.write(work)


def rule_create(call: Call) -> dict[str, Any]:
    body: schema.SecurityGroupRuleCreate = call.body
    if not is_uuid(body.parent_group_id):
        raise BadInput(f"Security group id {body.parent_group_id} should be uuid")
    if body.ip_protocol is None and body.group_id is None:
        raise BadInput("Not enough parameters to build a valid rule.")
    protocol = body.ip_protocol.lower() if body.ip_protocol else None
    if protocol is not None and protocol not in _PROTOCOLS:
        raise BadInput(f"Invalid IP protocol {body.ip_protocol}.")
    values: dict[str, Any] = {
        "security_group_id": body.parent_group_id,
        "direction": "ingress",
        "ethertype": "IPv6" if body.cidr and ":" in body.cidr else "IPv4",
        "protocol": protocol,
    }
    if body.from_port is not None and body.from_port != -1:
        values["port_range_min"] = body.from_port
    if body.to_port is not None and body.to_port != -1:
        values["port_range_max"] = body.to_port
    if body.group_id is not None:
        values["remote_group_id"] = body.group_id
    else:
        values["remote_ip_prefix"] = body.cidr or "0.0.0.0/0"

    def work(tx: Tx) -> dict[str, Any]:
        try:
            made = _network(call).create_rule(tx, call.ctx, values)
        except Conflict as error:
            raise BadInput(error.message) from None
        return _rule_view(made, _names(_network(call).groups(tx, call.ctx)))

    return {"security_group_rule": service_of(call).db.write(work)}


def rule_delete(call: Call) -> None:
    rule_id = call.params["rule_id"]
    if not is_uuid(rule_id):
        raise BadInput(f"Security group rule id {rule_id} should be uuid")
    service_of(call).db.write(lambda tx: _network(call).delete_rule(tx, call.ctx, rule_id))


def add_fixed_ip(call: Call) -> None:
    body: schema.AddFixedIp = call.body

    def work(tx: Tx) -> None:
        row = load_unlocked(call, tx, "os_compute_api:os-multinic:add")
        _network(call).add_fixed_ip(tx, call.ctx, row.id, str(body.networkId))
        service_of(call).changed(tx, row)

    service_of(call).db.write(work)


def remove_fixed_ip(call: Call) -> None:
    body: schema.RemoveFixedIp = call.body

    def work(tx: Tx) -> None:
        row = load_unlocked(call, tx, "os_compute_api:os-multinic:remove")
        _network(call).remove_fixed_ip(tx, call.ctx, row.id, body.address)
        service_of(call).changed(tx, row)

    service_of(call).db.write(work)


_G, _R, _LAST = "/os-security-groups", "/os-security-group-rules", "2.35"
ROUTES = [
    Route(method="GET", path=_G, handler=index, policy=_RULE + "get", max_version=_LAST),
    Route(
        method="POST", path=_G, handler=create, policy=_RULE + "create", body=schema.SecurityGroupCreate,
        body_key="security_group", max_version=_LAST,
    ),
    Route(method="GET", path=_G + "/{group_id}", handler=show, policy=_RULE + "show", max_version=_LAST),
    Route(
        method="PUT", path=_G + "/{group_id}", handler=update, policy=_RULE + "update",
        body=schema.SecurityGroupCreate, body_key="security_group", max_version=_LAST,
    ),
    Route(
        method="DELETE", path=_G + "/{group_id}", handler=delete, policy=_RULE + "delete", max_version=_LAST,
        success=202,
    ),
    Route(
        method="POST", path=_R, handler=rule_create, policy=_RULE + "rule:create",
        body=schema.SecurityGroupRuleCreate, body_key="security_group_rule", strict=False, max_version=_LAST,
    ),
    Route(
        method="DELETE", path=_R + "/{rule_id}", handler=rule_delete, policy=_RULE + "rule:delete",
        max_version=_LAST, success=202,
    ),
    Route(
        method="POST", path="/servers/{server_id}/action", action="addFixedIp", handler=add_fixed_ip,
        body=schema.AddFixedIp, max_version="2.43", success=202,
    ),
    Route(
        method="POST", path="/servers/{server_id}/action", action="removeFixedIp", handler=remove_fixed_ip,
        body=schema.RemoveFixedIp, max_version="2.43", success=202,
    ),
]  # fmt: skip
