"""Key pairs. They belong to a user, not to a project."""

from typing import Any

from cumulet.db import Tx
from cumulet.http import Call, Reply, Route
from cumulet.kernel.clock import iso
from cumulet.kernel.errors import BadInput, Conflict, NotFound
from cumulet.services.compute import catalogue
from cumulet.services.compute.api.common import (
    cut,
    marker_missing,
    only_query,
    page_of,
    service_of,
    version_of,
    with_links,
)
from cumulet.services.compute.rows import KeypairRow
from cumulet.services.compute.schema import KeypairCreate

_RULE = "os_compute_api:os-keypairs:"
_SAFE = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_- ")


def _user(call: Call, rule: str, named: str | None) -> str:
    """Whose key pairs are meant: from 2.10 on administrators may name another user."""
    user_id = named if named and version_of(call) >= (2, 10) else call.ctx.user_id or ""
    call.authorize(_RULE + rule, {"user_id": user_id, "project_id": call.ctx.project_id})
    return user_id


def _view(call: Call, row: KeypairRow, *, full: bool = False) -> dict[str, Any]:
    shown: dict[str, Any] = {"name": row.name, "public_key": row.public_key, "fingerprint": row.fingerprint}
    if version_of(call) >= (2, 2):
        shown["type"] = row.type
    if full:
        shown.update(
            {
                "user_id": row.user_id,
                "id": row.number,
                "created_at": iso(row.created_at, zone="", micros=True),
                "deleted": False,
                "deleted_at": None,
                "updated_at": None,
            }
        )
    return shown


def _missing(name: str, user_id: str) -> NotFound:
    return NotFound(f"Keypair {name} not found for user {user_id}")


def index(call: Call) -> dict[str, Any]:
    only_query(call, ["user_id", "limit", "marker"], (2, 75))
    user_id = _user(call, "index", call.query.get("user_id"))
    rows = service_of(call).db.read(lambda tx: catalogue.keypairs(tx, user_id))
    shown = [{"keypair": _view(call, row)} for row in rows]
    if version_of(call) < (2, 35):
        return {"keypairs": shown}
    page = page_of(call)
    found = cut(rows, page, lambda row: row.name, marker_missing)
    shown = [{"keypair": _view(call, row)} for row in found]
    return with_links(call, "keypairs", "/os-keypairs", shown, [row.name for row in found], page)


def create(call: Call) -> Reply:
    body: KeypairCreate = call.body
    version = version_of(call)
    user_id = _user(call, "create", body.user_id)
    name = body.name
    allowed = _SAFE | set("@.") if version >= (2, 92) else _SAFE
    if set(name) - allowed:
        extra = "@._- " if version >= (2, 92) else "_- "
        raise BadInput(
            f"Keypair data is invalid: Keypair name contains unsafe characters (allowed: letters, digits and {extra!r})"
        )
    if name != name.strip():
        raise BadInput(f"Invalid input for field/attribute name. Value: {name}. Can not start or end with whitespace.")
    if version >= (2, 92) and body.public_key is None:
        raise BadInput("Invalid input for field/attribute keypair. 'public_key' is a required property")
    from cumulet.services.compute import keys  # what reads keys and certificates is big: not at every start

    if body.public_key is not None:
        made = keys.import_key(body.type, body.public_key)
    else:
        made = keys.generate(body.type, name, user_id)

    def work(tx: Tx) -> KeypairRow:
        service_of(call).quotas.admit_keypair(tx, call.ctx.project_id, user_id)
        if catalogue.keypair(tx, user_id, name) is not None:
            raise Conflict(f"Key pair '{name}' already exists.")
        catalogue.insert_keypair(
            tx,
            {
                "user_id": user_id,
                "name": name,
                "type": body.type,
                "fingerprint": made.fingerprint,
                "public_key": made.public_key,
            },
        )
        row = catalogue.keypair(tx, user_id, name)
        assert row is not None
        return row

    shown = {**_view(call, service_of(call).db.write(work)), "user_id": user_id}
    if made.private_key is not None:
        shown["private_key"] = made.private_key
    return Reply({"keypair": shown}, status=201 if version >= (2, 2) else 200)


def show(call: Call) -> dict[str, Any]:
    only_query(call, ["user_id"], (2, 75))
    user_id, name = _user(call, "show", call.query.get("user_id")), call.params["name"]
    row = service_of(call).db.read(lambda tx: catalogue.keypair(tx, user_id, name))
    if row is None:
        raise _missing(name, user_id)
    return {"keypair": _view(call, row, full=True)}


def delete(call: Call) -> Reply:
    only_query(call, ["user_id"], (2, 75))
    user_id, name = _user(call, "delete", call.query.get("user_id")), call.params["name"]
    if not service_of(call).db.write(lambda tx: catalogue.delete_keypair(tx, user_id, name)):
        raise _missing(name, user_id)
    return Reply(status=204 if version_of(call) >= (2, 2) else 202)


ROUTES = [
    Route(method="GET", path="/os-keypairs", handler=index),
    Route(
        method="POST",
        path="/os-keypairs",
        handler=create,
        body=KeypairCreate,
        body_key="keypair",
        success=201,
        statuses=(200,),
    ),
    Route(method="GET", path="/os-keypairs/{name}", handler=show),
    Route(method="DELETE", path="/os-keypairs/{name}", handler=delete, success=204, statuses=(202,)),
]
