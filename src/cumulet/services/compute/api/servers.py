"""Servers: create, list, show, update, delete."""

from typing import Any

import msgspec
from msgspec import UNSET

from cumulet.db import Tx
from cumulet.http import Call, Page, Reply, Route
from cumulet.kernel.errors import BadInput
from cumulet.services.compute import rules
from cumulet.services.compute.api.common import load, load_unlocked, marker_missing, service_of, version_of, with_links
from cumulet.services.compute.api.filters import Nothing, query_of
from cumulet.services.compute.intake import Created, May
from cumulet.services.compute.schema import Hints, ServerCreateRequest, ServerUpdate, truth
from cumulet.services.compute.views import Links, ServerView, ServerViews, briefs

CREATE = "os_compute_api:servers:create"


def create(call: Call) -> Reply:
    body: ServerCreateRequest = call.body
    hints = body.hints if body.hints is not UNSET else body.old_hints
    server = body.server
    if version_of(call) >= (2, 37) and server.networks is UNSET:
        raise BadInput("Invalid input for field/attribute server. 'networks' is a required property")
    if version_of(call) < (2, 37) and isinstance(server.networks, str):
        raise BadInput(
            f"Invalid input for field/attribute networks. Value: {server.networks}. {server.networks!r} is not of type"
            " 'array'"
        )
    if server.block_device_mapping or server.block_device_mapping_v2:
        call.authorize("os_compute_api:servers:create:attach_volume")
    if server.networks is not UNSET and server.networks != "none":
        call.authorize("os_compute_api:servers:create:attach_network")
    if server.trusted_image_certificates is not UNSET and server.trusted_image_certificates:
        call.authorize("os_compute_api:servers:create:trusted_certs")
    may = May(
        zero_disk=call.allowed("os_compute_api:servers:create:zero_disk_flavor"),
        forced_host=call.allowed("os_compute_api:servers:create:forced_host"),
        requested_destination=call.allowed("compute:servers:create:requested_destination"),
        external_network=call.allowed("network:attach_external_network"),
    )
    made = service_of(call).create(call.ctx, server, hints if hints is not UNSET else Hints(), may)
    return _created(call, made, truth(server.return_reservation_id), server.disk_config)


def _created(call: Call, made: Created, reservation: bool, disk_config: Any) -> Reply:
    if reservation:
        return Reply({"reservation_id": made.reservation_id})
    first = made.server_ids[0]
    links = Links(call).of("servers", first)
    shown = {
        "id": first,
        "links": links,
        "OS-DCF:diskConfig": disk_config if disk_config is not UNSET else "MANUAL",
        "security_groups": [{"name": name} for name in made.security_groups],
        "adminPass": made.admin_password,
    }
    return Reply({"server": shown}, headers={"location": links[0].href})


def index(call: Call) -> dict[str, Any]:
    return _list(call, "index")


def detail(call: Call) -> dict[str, Any]:
    return _list(call, "detail")


def _list(call: Call, form: str) -> dict[str, Any]:
    def work(tx: Tx) -> tuple[list[Any], list[str], Page]:
        try:
            query, page = query_of(call, tx, form)
        except Nothing:
            return [], [], Page(None, None, ())
        rows = query.read(tx)
        if rows is None:
            raise marker_missing(str(query.marker))
        ids = [row.id for row in rows]
        if form == "index":
            return briefs(call, rows), ids, page
        return ServerViews(call, "detail").read(tx, rows), ids, page

    shown, ids, page = service_of(call).db.read(work)
    return with_links(call, "servers", "/servers" if form == "index" else "/servers/detail", shown, ids, page)


def show(call: Call) -> dict[str, ServerView]:
    def work(tx: Tx) -> ServerView:
        row = load(call, tx, "os_compute_api:servers:show")
        return ServerViews(call, "show").read(tx, [row])[0]

    return {"server": service_of(call).db.read(work)}


def update(call: Call) -> dict[str, ServerView]:
    body: ServerUpdate = call.body
    service = service_of(call)

    def work(tx: Tx) -> ServerView:
        row = load(call, tx, "os_compute_api:servers:update")
        values: dict[str, Any] = {}
        if body.name is not UNSET:
            values["name"] = body.name
        if body.description is not UNSET:
            values["description"] = body.description
        if body.hostname is not UNSET:
            values["hostname"] = body.hostname
        if body.disk_config is not UNSET:
            values["disk_config"] = body.disk_config
        if body.accessIPv4 is not UNSET:
            values["access_ip_v4"] = rules.ip_field("accessIPv4", body.accessIPv4, 4)
        if body.accessIPv6 is not UNSET:
            values["access_ip_v6"] = rules.ip_field("accessIPv6", body.accessIPv6, 6)
        if values:
            row = service.changed(tx, row, **values)
        return ServerViews(call, "update").read(tx, [row])[0]

    return {"server": service.db.write(work)}


def delete(call: Call) -> None:
    def work(tx: Tx) -> None:
        row = load_unlocked(call, tx, "os_compute_api:servers:delete")
        service_of(call).delete(tx, call.ctx, row)

    service_of(call).db.write(work)


ROUTES = [
    Route(
        method="POST",
        path="/servers",
        handler=create,
        policy=CREATE,
        body=ServerCreateRequest,
        strict=False,
        success=202,
        summary="Create one or more servers",
    ),
    Route(method="GET", path="/servers", handler=index, policy="os_compute_api:servers:index"),
    Route(method="GET", path="/servers/detail", handler=detail, policy="os_compute_api:servers:detail"),
    Route(method="GET", path="/servers/{server_id}", handler=show, response=dict[str, msgspec.Raw]),
    Route(
        method="PUT",
        path="/servers/{server_id}",
        handler=update,
        body=ServerUpdate,
        body_key="server",
        strict=False,
    ),
    Route(method="DELETE", path="/servers/{server_id}", handler=delete, success=204),
]
