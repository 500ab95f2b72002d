"""Group types and their specs (3.11). Groups themselves are not offered."""

from typing import Any

import msgspec

from cumulet.db import Tx
from cumulet.http import Call, Reply, Route, page_of, paged_in_memory
from cumulet.kernel.errors import BadInput, Conflict, NotFound
from cumulet.kernel.ids import new_uuid
from cumulet.services.volume import store
from cumulet.services.volume.api.common import Name, Text255, boolean
from cumulet.services.volume.store import GroupTypeRow
from cumulet.services.volume.tables import GROUP_TYPES


class GroupTypeCreate(msgspec.Struct, forbid_unknown_fields=True):
    name: Name
    description: Text255 | None = None
    is_public: bool = True
    group_specs: dict[Name, Text255] | None = None


class GroupTypeUpdate(msgspec.Struct, forbid_unknown_fields=True):
    name: Text255 | None = None
    description: Text255 | None = None
    is_public: bool | None = None


def view(call: Call, row: GroupTypeRow) -> dict[str, Any]:
    found: dict[str, Any] = {
        "id": row.id,
        "name": row.name,
        "description": row.description,
        "is_public": row.is_public,
    }
    if call.allowed("group:access_group_types_specs"):
        found["group_specs"] = row.group_specs
    return found


def _get(tx: Tx, call: Call) -> GroupTypeRow:
    row = store.GROUP_TYPES.find(tx, call.params["id"], change=True)
    if row is None or not (row.is_public or call.ctx.is_admin):
        raise NotFound(f"Group type {call.params['id']} could not be found.")
    return row


def _free_name(tx: Tx, name: str, own_id: str | None = None) -> None:
    tx.lock("group-type", name)
    if any(row.id != own_id for row in store.GROUP_TYPES.where(tx, GROUP_TYPES.c.name == name)):
        raise Conflict(f"Group Type {name} already exists.")


def index(call: Call) -> dict[str, Any]:
    page = page_of(call.query, sort_keys=("id", "name", "created_at"))
    public = call.query.get("is_public")
    rows = call.service.db.read(lambda tx: store.GROUP_TYPES.where(tx))
    if not call.ctx.is_admin or public is None:
        rows = [row for row in rows if row.is_public or call.ctx.is_admin]
    elif public.lower() != "none":
        rows = [row for row in rows if row.is_public == boolean(public, "is_public")]
    missing = NotFound(f"Group type {page.marker} could not be found.")
    rows = paged_in_memory(rows, page, key=lambda row, field: getattr(row, field), marker_missing=missing)
    return {"group_types": [view(call, row) for row in rows]}


def create(call: Call) -> dict[str, Any]:
    body: GroupTypeCreate = call.body
    name = body.name.strip()
    if not name:
        raise BadInput("Invalid input for field 'name': it is blank.")

    def work(tx: Tx) -> GroupTypeRow:
        _free_name(tx, name)
        row = GroupTypeRow(
            new_uuid(), name, body.description, body.is_public, dict(body.group_specs or {}), tx.now, tx.now
        )
        return store.GROUP_TYPES.insert(tx, row)

    return {"group_type": view(call, call.service.db.write(work))}


def show(call: Call) -> dict[str, Any]:
    return {"group_type": view(call, call.service.db.read(lambda tx: _get(tx, call)))}


def update(call: Call) -> dict[str, Any]:
    body: GroupTypeUpdate = call.body
    values = {key: getattr(body, key) for key in ("name", "description", "is_public") if getattr(body, key) is not None}
    if not values:
        raise BadInput("Specify group type name, description or a combination thereof.")
    if "name" in values and not values["name"].strip():
        raise BadInput("Group type name can not be empty.")

    def work(tx: Tx) -> GroupTypeRow:
        row = _get(tx, call)
        if "name" in values:
            values["name"] = values["name"].strip()
            _free_name(tx, values["name"], row.id)
        store.GROUP_TYPES.change(tx, row.id, **values)
        return store.GROUP_TYPES.get(tx, row.id)

    return {"group_type": view(call, call.service.db.write(work))}


def delete(call: Call) -> Reply:
    call.service.db.write(lambda tx: store.GROUP_TYPES.remove(tx, _get(tx, call).id))
    return Reply(status=202)


# -- specs -------------------------------------------------------------------------------------------------------


def list_specs(call: Call) -> dict[str, Any]:
    return {"group_specs": call.service.db.read(lambda tx: _get(tx, call)).group_specs}


def _key(call: Call, specs: dict[str, str]) -> str:
    key = call.params["key"]
    if key not in specs:
        raise NotFound(f"Group Type {call.params['id']} has no specs with key {key}.")
    return key


def show_spec(call: Call) -> dict[str, Any]:
    specs = list_specs(call)["group_specs"]
    key = _key(call, specs)
    return {key: specs[key]}


def _merge(call: Call, given: dict[str, Any]) -> None:
    def work(tx: Tx) -> None:
        row = _get(tx, call)
        merged = {**row.group_specs, **{key: value or "" for key, value in given.items()}}
        store.GROUP_TYPES.change(tx, row.id, group_specs=merged)

    call.service.db.write(work)


def create_specs(call: Call) -> dict[str, Any]:
    _merge(call, call.body)
    return {"group_specs": call.body}


def update_spec(call: Call) -> dict[str, Any]:
    given: dict[str, Any] = call.body
    if call.params["key"] not in given:
        raise BadInput("Request body and URI mismatch")
    if len(given) != 1:
        raise BadInput("Request body contains too many items")
    _merge(call, given)
    return given


def delete_spec(call: Call) -> Reply:
    def work(tx: Tx) -> None:
        row = _get(tx, call)
        gone = _key(call, row.group_specs)
        kept = {key: value for key, value in row.group_specs.items() if key != gone}
        store.GROUP_TYPES.change(tx, row.id, group_specs=kept)

    call.service.db.write(work)
    return Reply(status=202)


_ONE = "/group_types/{id}"
_SPECS = _ONE + "/group_specs"
_RULE = "group:group_types_specs:"
_SINCE = "3.11"
ROUTES = [
    Route(method="GET", path="/group_types", handler=index, min_version=_SINCE),
    Route(
        method="POST", path="/group_types", handler=create, policy="group:group_types:create", body=GroupTypeCreate,
        body_key="group_type", strict=False, success=202, min_version=_SINCE,
    ),
    Route(method="GET", path=_ONE, handler=show, min_version=_SINCE),
    Route(
        method="PUT", path=_ONE, handler=update, policy="group:group_types:update", body=GroupTypeUpdate,
        body_key="group_type", strict=False, min_version=_SINCE,
    ),
    Route(
        method="DELETE", path=_ONE, handler=delete, policy="group:group_types:delete", success=202, min_version=_SINCE
    ),
    Route(method="GET", path=_SPECS, handler=list_specs, policy=_RULE + "get_all", min_version=_SINCE),
    Route(
        method="POST", path=_SPECS, handler=create_specs, policy=_RULE + "create", body=dict[Name, Text255 | None],
        body_key="group_specs", success=202, min_version=_SINCE,
    ),
    Route(method="GET", path=_SPECS + "/{key}", handler=show_spec, policy=_RULE + "get", min_version=_SINCE),
    Route(
        method="PUT", path=_SPECS + "/{key}", handler=update_spec, policy=_RULE + "update",
        body=dict[Name, Text255 | None], min_version=_SINCE,
    ),
    Route(
        method="DELETE", path=_SPECS + "/{key}", handler=delete_spec, policy=_RULE + "delete", success=202,
        min_version=_SINCE,
    ),
]  # fmt: skip
