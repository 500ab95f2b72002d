"""Old calls about security groups and floating IPs, which the network API took over: thin routes to the network
service. Up to 2.35 the resources, up to 2.43 the actions on servers."""

from typing import Any

import msgspec

from cumulet.db import Tx
from cumulet.http import Call, Reply, Route
from cumulet.kernel.errors import BadInput
from cumulet.services.compute.api.common import load, service_of

_GROUPS = "os_compute_api:os-security-groups"
_FLOATING = "os_compute_api:os-floating-ips"


class Group(msgspec.Struct):
    name: str
    description: str


class Pool(msgspec.Struct):
    pool: str | None = None


class AddFloatingIp(msgspec.Struct, forbid_unknown_fields=True):
    address: str
    fixed_address: str | None = None


class RemoveFloatingIp(msgspec.Struct, forbid_unknown_fields=True):
    address: str


def legacy(call: Call) -> Any:
    return service_of(call).parts.network.legacy


def _write(call: Call, method: str, *arguments: Any) -> Any:
    return service_of(call).db.write(lambda tx: getattr(legacy(call), method)(tx, call.ctx, *arguments))


def _read(call: Call, method: str, *arguments: Any) -> Any:
    return service_of(call).db.read(lambda tx: getattr(legacy(call), method)(tx, call.ctx, *arguments))


def list_groups(call: Call) -> Any:
    _write(call, "ensure_default")
    everybody = call.query.get("all_tenants") in ("1", "true", "True") and call.ctx.is_admin

    def work(tx: Tx) -> Any:
        return legacy(call).groups(tx, call.ctx, all_projects=everybody)

    found = service_of(call).db.read(work)
    try:
        offset, limit = int(call.query.get("offset") or 0), int(call.query.get("limit") or 1000)
    except ValueError:
        raise BadInput("limit and offset must be integers.") from None
    if offset < 0 or limit < 0:
        raise BadInput("limit and offset must not be negative.")
    return {"security_groups": found[offset : offset + limit]}


def show_group(call: Call) -> Any:
    return {"security_group": _read(call, "group", call.params["id"])}


def _names(body: Group) -> tuple[str, str]:
    for what, value in (("name", body.name), ("description", body.description)):
        if len(value) > 255 or (what == "name" and not value.strip()):
            raise BadInput(f"Invalid input for security group {what}: 1 to 255 characters.")
    return body.name.strip(), body.description.strip()


def create_group(call: Call) -> Any:
    return {"security_group": _write(call, "create_group", *_names(call.body))}


def update_group(call: Call) -> Any:
    return {"security_group": _write(call, "update_group", call.params["id"], *_names(call.body))}


def delete_group(call: Call) -> Any:
    _write(call, "delete_group", call.params["id"])
    return Reply(status=202)


def create_rule(call: Call) -> Any:
    if "parent_group_id" not in call.body:
        raise BadInput("The rule lacks parent_group_id.")
    return {"security_group_rule": _write(call, "create_rule", call.body)}


def delete_rule(call: Call) -> Any:
    _write(call, "delete_rule", call.params["id"])
    return Reply(status=202)


def list_pools(call: Call) -> Any:
    return {"floating_ip_pools": service_of(call).db.read(legacy(call).pools)}


def list_floating_ips(call: Call) -> Any:
    return {"floating_ips": _read(call, "floating_ips")}


def show_floating_ip(call: Call) -> Any:
    return {"floating_ip": _read(call, "floating_ip", call.params["id"])}


def create_floating_ip(call: Call) -> Any:
    pool = call.body.pool if call.body is not None else None
    return {"floating_ip": _write(call, "create_floating_ip", pool)}


def delete_floating_ip(call: Call) -> Any:
    _write(call, "delete_floating_ip", call.params["id"])
    return Reply(status=202)


def add_floating_ip(call: Call) -> Any:
    def work(tx: Tx) -> None:
        server = load(call, tx, f"{_FLOATING}:add")
        legacy(call).associate(tx, call.ctx, server.id, call.body.address, call.body.fixed_address)

    service_of(call).db.write(work)


def remove_floating_ip(call: Call) -> Any:
    def work(tx: Tx) -> None:
        server = load(call, tx, f"{_FLOATING}:remove")
        legacy(call).disassociate(tx, call.ctx, server.id, call.body.address)

    service_of(call).db.write(work)


def _routes() -> list[Route]:
    groups, rules, floating = "/os-security-groups", "/os-security-group-rules", "/os-floating-ips"
    named: dict[str, Any] = {"body": Group, "body_key": "security_group"}
    rule: dict[str, Any] = {"body": dict[str, Any], "body_key": "security_group_rule"}
    table: list[tuple[str, str, Any, str, int, dict[str, Any]]] = [
        ("GET", groups, list_groups, f"{_GROUPS}:get", 200, {}),
        ("POST", groups, create_group, f"{_GROUPS}:create", 200, named),
        ("GET", groups + "/{id}", show_group, f"{_GROUPS}:show", 200, {}),
        ("PUT", groups + "/{id}", update_group, f"{_GROUPS}:update", 200, named),
        ("DELETE", groups + "/{id}", delete_group, f"{_GROUPS}:delete", 202, {}),
        ("POST", rules, create_rule, f"{_GROUPS}:rule:create", 200, rule),
        ("DELETE", rules + "/{id}", delete_rule, f"{_GROUPS}:rule:delete", 202, {}),
        ("GET", "/os-floating-ip-pools", list_pools, f"{_FLOATING}:list", 200, {}),
        ("GET", floating, list_floating_ips, f"{_FLOATING}:list", 200, {}),
        ("POST", floating, create_floating_ip, f"{_FLOATING}:create", 200, {"body": Pool, "body_required": False}),
        ("GET", floating + "/{id}", show_floating_ip, f"{_FLOATING}:show", 200, {}),
        ("DELETE", floating + "/{id}", delete_floating_ip, f"{_FLOATING}:delete", 202, {}),
    ]
    found = [
        Route(method=method, path=path, handler=handler, policy=policy, success=success, max_version="2.35", **more)  # type: ignore[arg-type]
        for method, path, handler, policy, success, more in table
    ]
    for action, handler, body in (
        ("addFloatingIp", add_floating_ip, AddFloatingIp),
        ("removeFloatingIp", remove_floating_ip, RemoveFloatingIp),
    ):
        found.append(
            Route(
                method="POST",
                path="/servers/{server_id}/action",
                action=action,
                handler=handler,
                body=body,
                success=202,
                max_version="2.43",
            )
        )
    return found


ROUTES = _routes()
