"""Old calls about floating IPs, which the network API took over: thin routes to the network service. Up to 2.35 the
resources, up to 2.43 the actions on servers."""

from typing import Any

import msgspec

from cumulet.db import Tx
from cumulet.http import Call, Reply, Route
from cumulet.services.compute.api.common import load, service_of

_FLOATING = "os_compute_api:os-floating-ips"


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
    floating = "/os-floating-ips"
    table: list[tuple[str, str, Any, str, int, dict[str, Any]]] = [
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
