"""Members: the projects that a shared image is shared with, and whether they accepted."""

from typing import Any

from cumulet.db import Tx
from cumulet.http import Call, Reply, Route
from cumulet.kernel.errors import BadInput, Forbidden, NotFound
from cumulet.services.image import store, views
from cumulet.services.image.api.access import json_body, require, target
from cumulet.services.image.public import ImageService
from cumulet.services.image.store import ImageRow, MemberRow

_STATUSES = ("pending", "accepted", "rejected")


def _shared(tx: Tx, call: Call) -> ImageRow:
    service: ImageService = call.service
    row = service.get(tx, call.ctx, call.params["image_id"], change=True)
    if row.visibility != "shared":
        raise Forbidden("Only shared images have members.")
    return row


def _sees_all(call: Call, row: ImageRow) -> bool:
    return call.ctx.is_admin or row.owner == call.ctx.project_id


def _member(tx: Tx, call: Call, row: ImageRow) -> MemberRow:
    member_id = call.params["member_id"]
    found = store.member(tx, row.id, member_id)
    if found is None or not (_sees_all(call, row) or member_id == call.ctx.project_id):
        raise NotFound(f"{member_id} not found in the member list of the image {row.id}.")
    return found


def create(call: Call) -> dict[str, Any]:
    service: ImageService = call.service
    body = json_body(call)
    if not isinstance(body, dict):
        raise BadInput('Expected a member in the form: {"member": "image_id"}')
    if "member" not in body:
        raise BadInput("Member to be added not specified")
    member_id = body["member"]
    if not member_id or not isinstance(member_id, str):
        raise BadInput("Member can't be empty")
    if len(member_id) > 255:
        raise BadInput("Member is too long")

    def work(tx: Tx) -> dict[str, Any]:
        row = _shared(tx, call)
        require(tx, call, row, "add_member")
        return views.member(service.add_member(tx, row, member_id))

    return service.db.write(work)


def index(call: Call) -> dict[str, Any]:
    def work(tx: Tx) -> list[MemberRow]:
        row = _shared(tx, call)
        seen = target(tx, call, row)
        if not call.allowed("get_members", seen):
            raise Forbidden(f"Not allowed to list members for image {row.id}")
        found = store.members(tx, row.id)
        return [one for one in found if _sees_all(call, row) or one.member_id == call.ctx.project_id]

    rows = call.service.db.read(work)
    return {"members": [views.member(row) for row in rows], "schema": "/v2/schemas/members"}


def show(call: Call) -> dict[str, Any]:
    def work(tx: Tx) -> dict[str, Any]:
        try:
            row = _shared(tx, call)
        except Forbidden as error:
            raise NotFound(error.message) from None
        if not call.allowed("get_member", target(tx, call, row)):
            raise NotFound(f"{call.params['member_id']} not found in the member list of the image {row.id}.")
        return views.member(_member(tx, call, row))

    return call.service.db.read(work)


def update(call: Call) -> dict[str, Any]:
    body = json_body(call)
    if not isinstance(body, dict):
        raise BadInput('Expected a status in the form: {"status": "status"}')
    if "status" not in body:
        raise BadInput("Status not specified")
    status = body["status"]

    def work(tx: Tx) -> dict[str, Any]:
        row = _shared(tx, call)
        found = _member(tx, call, row)
        seen = {**target(tx, call, row), "member_id": found.member_id}
        if not call.allowed("modify_member", seen):
            raise Forbidden(f"Not allowed to update members for image {row.id}.")
        if status not in _STATUSES:
            raise BadInput(f"Incorrect request: Invalid status {status!r} for member: {', '.join(_STATUSES)}")
        store.set_member_status(tx, row.id, found.member_id, status)
        changed = store.member(tx, row.id, found.member_id)
        assert changed is not None
        return views.member(changed)

    return call.service.db.write(work)


def delete(call: Call) -> Reply:
    def work(tx: Tx) -> None:
        row = _shared(tx, call)
        if not call.allowed("delete_member", target(tx, call, row)):
            raise Forbidden(f"Not allowed to delete members for image {row.id}.")
        store.remove_member(tx, row.id, _member(tx, call, row).member_id)

    call.service.db.write(work)
    return Reply(status=204)


_ONE = "/images/{image_id}/members/{member_id}"
ROUTES = [
    Route(method="GET", path="/images/{image_id}/members", handler=index, summary="List members"),
    Route(method="POST", path="/images/{image_id}/members", handler=create, summary="Share with a project"),
    Route(method="GET", path=_ONE, handler=show, summary="Show a member"),
    Route(method="PUT", path=_ONE, handler=update, summary="Accept or reject a shared image"),
    Route(method="DELETE", path=_ONE, handler=delete, success=204, summary="Stop sharing with a project"),
]
