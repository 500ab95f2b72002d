"""Attaching the old way: reserve, attach, detach, and the connections of clients that name no attachment.

`os-initialize_connection` exports the volume to the connector's host and answers how to reach it; it makes
no attachment. It is kept as a row in the status ``exported``, seen by nobody, until that host's connection is ended.
"""

from typing import Any, Literal

import msgspec

from cumulet.db import Tx
from cumulet.http import Call, Reply
from cumulet.kernel.errors import BadInput, WrongState
from cumulet.services.volume import attachments, state, store
from cumulet.services.volume.api.actions import act, action, must_be
from cumulet.services.volume.api.attachments import host_of, settled
from cumulet.services.volume.api.common import Name, Text255, UuidText
from cumulet.services.volume.store import AttachmentRow, VolumeRow
from cumulet.services.volume.workflows.attachments import ConnectParams, DisconnectParams

_P = "volume_extension:volume_actions:"


class Attach(msgspec.Struct, forbid_unknown_fields=True):
    mountpoint: Name
    instance_uuid: UuidText | None = None
    host_name: Text255 | None = None
    mode: Literal["rw", "ro"] = "rw"


class Detach(msgspec.Struct, forbid_unknown_fields=True):
    attachment_id: UuidText | None = None


class ForceDetach(msgspec.Struct, forbid_unknown_fields=True):
    attachment_id: str | None = None
    connector: Any = None


class Connector(msgspec.Struct, forbid_unknown_fields=True):
    connector: dict[str, Any]


def reserve(call: Call) -> Reply:
    def work(tx: Tx, row: VolumeRow) -> None:
        must_be(row, *(("available", "in-use") if row.multiattach else ("available",)), verb="reserve")
        state.change(tx, row.id, legacy="attaching")

    return act(call, _P + "reserve", work)


def _back(call: Call, verb: str, legacy: str) -> Reply:
    def work(tx: Tx, row: VolumeRow) -> None:
        if row.legacy == legacy:
            state.change(tx, row.id, legacy=None)

    return act(call, _P + verb, work)


def unreserve(call: Call) -> Reply:
    return _back(call, "unreserve", "attaching")


def roll_detaching(call: Call) -> Reply:
    return _back(call, "roll_detaching", "detaching")


def attach(call: Call) -> Reply:
    body: Attach = call.body
    if body.instance_uuid is None and body.host_name is None:
        raise BadInput("Invalid request to attach volume to an invalid target")
    if body.instance_uuid is not None and body.host_name is not None:
        raise BadInput("Invalid request to attach volume to an instance and a host simultaneously")

    def work(tx: Tx, row: VolumeRow) -> None:
        must_be(row, "available", "attaching", *(("in-use",) if row.multiattach else ()), verb="attach")
        if row.admin_metadata.get("readonly") == "True" and body.mode == "rw":
            raise WrongState("Invalid volume: Invalid attaching mode 'rw' for a read-only volume.")
        state.change(tx, row.id, legacy=None)
        made = attachments.reserve(
            tx, call.ctx, store.VOLUMES.get(tx, row.id), body.instance_uuid, body.mountpoint, body.mode
        )
        attachments.connected(tx, made.id, body.host_name, body.mountpoint)

    return act(call, _P + "attach", work)


def begin_detaching(call: Call) -> Reply:
    def work(tx: Tx, row: VolumeRow) -> None:
        must_be(row, "in-use", verb="detach")
        state.change(tx, row.id, legacy="detaching")

    return act(call, _P + "begin_detaching", work)


def detach(call: Call) -> Reply:
    attachment_id = call.body.attachment_id if call.body is not None else None
    return _detach(call, _P + "detach", attachment_id)


def force_detach(call: Call) -> Reply:
    return _detach(call, "volume_extension:volume_admin_actions:force_detach", call.body.attachment_id)


def _detach(call: Call, rule: str, attachment_id: str | None) -> Reply:
    def work(tx: Tx, row: VolumeRow) -> None:
        found = attachments.of_volume(tx, row.id, attachment_id)
        if found is None:
            state.change(tx, row.id, legacy=None)
        else:
            call.service.refuse_used(tx, found)
            _end(call, tx, found)

    return act(call, rule, work)


def _end(call: Call, tx: Tx, row: AttachmentRow) -> None:
    """Without a connector nothing is exported for it."""
    if row.connector is None:
        attachments.drop(tx, row.id)
    else:
        attachments.begin_detaching(tx, row.id)
        workflows = call.service.attachment_workflows
        call.service.sagas.start(tx, workflows.disconnect, row.id, DisconnectParams(), call.ctx)


def initialize_connection(call: Call) -> dict[str, Any]:
    connector = call.body.connector
    host = host_of(connector)
    workflows = call.service.attachment_workflows

    def work(tx: Tx, row: VolumeRow) -> dict[str, Any]:
        state.refuse_moving(row)
        if row.status == "maintenance" or row.base != "ready" or row.host is None:
            raise WrongState(f"Invalid volume: Volume {row.id} cannot be connected: its status is {row.status}.")
        found = next((one for one in store.exports_of(tx, row.id) if one.host == host), None)
        if found is None:
            found = attachments.exported(tx, row, host, connector)
            call.service.sagas.start(tx, workflows.connect, found.id, ConnectParams(host=host), call.ctx)
        return {"id": found.id}

    export_id = act(call, _P + "initialize_connection", work, 200).body["id"]

    def look(tx: Tx, row: AttachmentRow) -> dict[str, Any]:
        told = attachments.connection_info(store.VOLUMES.get(tx, row.volume_id), row)
        return {"connection_info": {key: value for key, value in told.items() if key != "attachment_id"}}

    return settled(call, export_id, look, connecting=True)


def terminate_connection(call: Call) -> Reply:
    host = host_of(call.body.connector)
    workflows = call.service.attachment_workflows

    def work(tx: Tx, row: VolumeRow) -> None:
        state.refuse_moving(row)
        call.service.refuse_used(tx, *store.attachments_of(tx, row.id))
        for one in store.exports_of(tx, row.id):
            if one.host == host:
                call.service.sagas.start(tx, workflows.disconnect, one.id, DisconnectParams(), call.ctx)

    return act(call, _P + "terminate_connection", work)


ROUTES = [
    action("os-reserve", reserve),
    action("os-unreserve", unreserve),
    action("os-attach", attach, Attach),
    action("os-begin_detaching", begin_detaching),
    action("os-roll_detaching", roll_detaching),
    action("os-detach", detach, Detach | None),
    action("os-force_detach", force_detach, ForceDetach),
    action("os-initialize_connection", initialize_connection, Connector, success=200),
    action("os-terminate_connection", terminate_connection, Connector),
]
