"""The attachments API (3.27): reserve, connect, complete, delete."""

import time
from collections.abc import Callable
from typing import Annotated, Any, Literal

import msgspec

from cumulet.db import Tx
from cumulet.http import Call, Reply, Route, Since
from cumulet.kernel.errors import BadInput, Conflict, Unavailable
from cumulet.services.volume import attachments, state, store
from cumulet.services.volume.api.common import UuidText, equals, listed, listing, load, moment
from cumulet.services.volume.store import AttachmentRow
from cumulet.services.volume.tables import ATTACHMENTS, EXPORTED
from cumulet.services.volume.workflows.attachments import ConnectParams, DisconnectParams

_CONNECT_SECONDS = 20


class AttachmentCreate(msgspec.Struct, forbid_unknown_fields=True):
    volume_uuid: UuidText
    instance_uuid: UuidText | None = None
    connector: dict[str, Any] | None = None
    mode: Annotated[Literal["rw", "ro"] | None, Since("3.54")] = None


class AttachmentUpdate(msgspec.Struct, forbid_unknown_fields=True):
    connector: dict[str, Any]


def view(call: Call, tx: Tx, row: AttachmentRow, *, full: bool = True) -> dict[str, Any]:
    found: dict[str, Any] = {
        "id": row.id,
        "status": row.status,
        "instance": row.server_id,
        "volume_id": row.volume_id,
    }
    if full:
        volume = store.VOLUMES.find(tx, row.volume_id)
        found["attached_at"] = moment(row.attached_at) or ""
        found["detached_at"] = ""
        found["attach_mode"] = row.mode or "null"
        found["connection_info"] = attachments.connection_info(volume, row) if volume is not None else {}
    return found


def create(call: Call) -> dict[str, Any]:
    body: AttachmentCreate = call.body

    def work(tx: Tx) -> str:
        volume = load(tx, call, store.VOLUMES, body.volume_uuid, "volume:attachment_create")
        row = attachments.reserve(tx, call.ctx, volume, body.instance_uuid, None, body.mode)
        if body.connector:
            _connect(call, tx, row, body.connector)
        return row.id

    attachment_id = call.service.db.write(work)
    return _answer(call, attachment_id, bool(body.connector))


def host_of(connector: dict[str, Any]) -> str:
    host = connector.get("host")
    if not isinstance(host, str) or not host or len(host) > 255:
        raise BadInput("Invalid input received: the connector names no host.")
    return host


def _connect(call: Call, tx: Tx, row: AttachmentRow, connector: dict[str, Any]) -> None:
    host = host_of(connector)
    device = connector.get("mountpoint")
    mode = connector.get("mode")
    store.ATTACHMENTS.change(
        tx,
        row.id,
        connector=connector,
        status="attaching",
        device=device if isinstance(device, str) else row.device,
        mode=mode if mode in ("ro", "rw") else row.mode,
    )
    state.settle(tx, row.volume_id)
    call.service.sagas.start(tx, call.service.attachment_workflows.connect, row.id, ConnectParams(host=host), call.ctx)


def _answer(call: Call, attachment_id: str, connecting: bool) -> dict[str, Any]:
    return settled(call, attachment_id, lambda tx, row: {"attachment": view(call, tx, row)}, connecting=connecting)


def settled(
    call: Call, attachment_id: str, shown: Callable[[Tx, AttachmentRow], dict[str, Any]], *, connecting: bool
) -> dict[str, Any]:
    """This call is synchronous upstream: the answer holds the connection, so it waits for the export, not for long."""
    service = call.service
    end = time.monotonic() + _CONNECT_SECONDS
    pause = 0.005

    def look(tx: Tx) -> tuple[bool, dict[str, Any]]:
        # in this order: what the saga's end committed between two reads is then seen by the second
        running = service.sagas.owner(tx, "volume_attachment", attachment_id) is not None
        row = store.ATTACHMENTS.get(tx, attachment_id)
        if connecting and not running and row.connection is None:
            raise Unavailable("The volume could not be exported to the host of the connector.")
        return running, shown(tx, row)

    while True:
        running, found = service.db.read(look)
        if not running:
            return found
        if time.monotonic() > end:
            raise Unavailable("The volume is not exported yet; ask for the attachment again.")
        time.sleep(pause)
        pause = min(0.1, pause * 2)


def update(call: Call) -> dict[str, Any]:
    def work(tx: Tx) -> str:
        row = load(tx, call, store.ATTACHMENTS, call.params["id"], "volume:attachment_update")
        volume = store.VOLUMES.get(tx, row.volume_id)
        if "error" in volume.status:
            raise Conflict(f"Volume attachments can not be updated if the volume is in an error state: {volume.status}")
        _connect(call, tx, row, call.body.connector)
        return str(row.id)

    return _answer(call, call.service.db.write(work), True)


def complete(call: Call) -> Reply:
    def work(tx: Tx) -> None:
        row = load(tx, call, store.ATTACHMENTS, call.params["id"], "volume:attachment_complete")
        attachments.connected(tx, row.id, row.host, row.device)

    call.service.db.write(work)
    return Reply(status=204)


def delete(call: Call) -> dict[str, Any]:
    service = call.service

    def work(tx: Tx) -> list[dict[str, Any]]:
        row = load(tx, call, store.ATTACHMENTS, call.params["id"], "volume:attachment_delete")
        service.refuse_used(tx, row)
        if row.connector is None:
            attachments.drop(tx, row.id)
        else:
            store.ATTACHMENTS.change(tx, row.id, status="detaching")
            state.settle(tx, row.volume_id)
            service.sagas.start(tx, service.attachment_workflows.disconnect, row.id, DisconnectParams(), call.ctx)
        others = [one for one in store.attachments_of(tx, row.volume_id) if one.id != row.id]
        return [view(call, tx, one, full=False) for one in others]

    return {"attachments": service.db.write(work)}


_FILTERS = {
    "volume_id": equals(ATTACHMENTS.c.volume_id),
    "status": equals(ATTACHMENTS.c.status),
    "attach_status": equals(ATTACHMENTS.c.status),
    "instance_id": equals(ATTACHMENTS.c.server_id),
    "instance_uuid": equals(ATTACHMENTS.c.server_id),
}
_SORTS = {"id": "id", "created_at": "created_at", "status": "status", "volume_id": "volume_id"}


def _index(call: Call, full: bool) -> dict[str, Any]:
    def work(tx: Tx) -> dict[str, Any]:
        rows, _, more = listing(
            call, tx, store.ATTACHMENTS, _FILTERS, sort_keys=_SORTS, like=(), extra=[ATTACHMENTS.c.status != EXPORTED]
        )
        views = [view(call, tx, row, full=full) for row in rows]
        path = "attachments/detail" if full else "attachments"
        return listed(call, "attachments", path, views, rows, None, more)

    return call.service.db.read(work)


def index(call: Call) -> dict[str, Any]:
    return _index(call, False)


def detail(call: Call) -> dict[str, Any]:
    return _index(call, True)


def show(call: Call) -> dict[str, Any]:
    def work(tx: Tx) -> dict[str, Any]:
        return {"attachment": view(call, tx, load(tx, call, store.ATTACHMENTS, call.params["id"], None))}

    return call.service.db.read(work)


_ONE = "/attachments/{id}"
ROUTES = [
    Route(method="GET", path="/attachments", handler=index, min_version="3.27"),
    Route(
        method="POST",
        path="/attachments",
        handler=create,
        body=AttachmentCreate,
        body_key="attachment",
        min_version="3.27",
    ),
    Route(method="GET", path="/attachments/detail", handler=detail, min_version="3.27"),
    Route(method="GET", path=_ONE, handler=show, min_version="3.27"),
    Route(method="PUT", path=_ONE, handler=update, body=AttachmentUpdate, body_key="attachment", min_version="3.27"),
    Route(method="DELETE", path=_ONE, handler=delete, min_version="3.27"),
    Route(
        method="POST", path=_ONE + "/action", action="os-complete", handler=complete, success=204, min_version="3.44"
    ),
]
