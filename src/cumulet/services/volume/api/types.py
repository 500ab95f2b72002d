"""Volume types: types, extra specs, access, encryption, default types."""

from typing import Any, Literal

import msgspec
from sqlalchemy import delete as sql_delete
from sqlalchemy import select

from cumulet.db import Tx
from cumulet.http import Call, Reply, Route, page_of, paged_in_memory
from cumulet.kernel.errors import BadInput, Conflict, NotFound
from cumulet.kernel.ids import new_uuid
from cumulet.services.volume import store, types
from cumulet.services.volume.api.common import Name, Text255, boolean
from cumulet.services.volume.store import TypeRow
from cumulet.services.volume.tables import DEFAULT_TYPES, TYPE_ACCESS

_VISIBLE_SPECS = ("RESKEY:availability_zones", "multiattach", "replication_enabled")


class TypeCreate(msgspec.Struct, forbid_unknown_fields=True):
    name: Name
    description: Text255 | None = None
    extra_specs: dict[str, Text255 | None] = {}
    is_public: bool = msgspec.field(default=True, name="os-volume-type-access:is_public")


class TypeUpdate(msgspec.Struct, forbid_unknown_fields=True):
    name: Name | None = None
    description: Text255 | None = None
    is_public: bool | None = None


class Project(msgspec.Struct, forbid_unknown_fields=True):
    project: Name


class ExtraSpecs(msgspec.Struct, forbid_unknown_fields=True):
    extra_specs: dict[Name, Text255 | None]


class Encryption(msgspec.Struct, forbid_unknown_fields=True):
    provider: Text255
    control_location: Literal["front-end", "back-end"] = "front-end"
    cipher: Text255 | None = None
    key_size: int | None = None


class EncryptionUpdate(msgspec.Struct, forbid_unknown_fields=True):
    provider: Text255 | msgspec.UnsetType = msgspec.UNSET
    control_location: Literal["front-end", "back-end"] | msgspec.UnsetType = msgspec.UNSET
    cipher: Text255 | msgspec.UnsetType | None = msgspec.UNSET
    key_size: int | msgspec.UnsetType | None = msgspec.UNSET


class DefaultType(msgspec.Struct):
    volume_type: Name


def view(call: Call, row: TypeRow, *, made: bool = False, changed: bool = False) -> dict[str, Any]:
    """Upstream's answers to create (``made``) and update (``changed``) lack what extensions add to the others."""
    found: dict[str, Any] = {
        "id": row.id,
        "name": row.name,
        "is_public": row.is_public,
        "description": row.description,
    }
    if call.allowed("volume_extension:access_types_extra_specs"):
        specs = row.extra_specs
        if not call.allowed("volume_extension:types_extra_specs:read_sensitive"):
            specs = {key: specs[key] for key in _VISIBLE_SPECS if key in specs}
        found["extra_specs"] = specs
    if not made and call.allowed("volume_extension:access_types_qos_specs_id"):
        found["qos_specs_id"] = row.qos_specs_id
    if not changed and call.allowed("volume_extension:volume_type_access"):
        found["os-volume-type-access:is_public"] = row.is_public
    return found


def _type(tx: Tx, call: Call, key: str = "type_id") -> TypeRow:
    row = store.TYPES.find(tx, call.params[key], change=True)
    if row is None or not types.usable(tx, call.ctx, row):
        raise NotFound(f"Volume type {call.params[key]} could not be found.")
    return row


# -- types -------------------------------------------------------------------------------------------------------


def index(call: Call) -> dict[str, Any]:
    page = page_of(call.query, sort_keys=("id", "name", "created_at", "updated_at"))
    public = call.query.get("is_public")

    def work(tx: Tx) -> list[TypeRow]:
        rows = store.TYPES.where(tx)
        if not call.ctx.is_admin or public is None:
            rows = [row for row in rows if types.usable(tx, call.ctx, row)]
        elif public.lower() != "none":
            rows = [row for row in rows if row.is_public == boolean(public, "is_public")]
        return rows

    rows = call.service.db.read(work)
    name = call.query.get("name")
    if name is not None:
        rows = [row for row in rows if row.name == name]
    missing = NotFound(f"Volume type {page.marker} could not be found.")
    rows = paged_in_memory(rows, page, key=lambda row, field: getattr(row, field), marker_missing=missing)
    return {"volume_types": [view(call, row) for row in rows]}


def show(call: Call) -> dict[str, Any]:
    def work(tx: Tx) -> TypeRow:
        if call.params["type_id"] == "default":
            return types.default_for(tx, call.ctx.project_id)
        return _type(tx, call)

    return {"volume_type": view(call, call.service.db.read(work))}


def create(call: Call) -> dict[str, Any]:
    body: TypeCreate = call.body
    name = body.name.strip()
    if not name:
        raise BadInput("Invalid input for field 'name': it is blank.")

    def work(tx: Tx) -> TypeRow:
        tx.lock("volume-type", name)
        if store.type_named(tx, name) is not None:
            raise Conflict(f"Volume Type {name} already exists.")
        specs = {key: value if value is not None else "" for key, value in body.extra_specs.items()}
        return store.TYPES.insert(
            tx, TypeRow(new_uuid(), name, body.description, body.is_public, specs, None, None, tx.now, tx.now)
        )

    return {"volume_type": view(call, call.service.db.write(work), made=True)}


def update(call: Call) -> dict[str, Any]:
    body: TypeUpdate = call.body
    values = {key: getattr(body, key) for key in ("name", "description", "is_public") if getattr(body, key) is not None}
    if not values:
        raise BadInput("Specify volume type name, description, is_public or a combination thereof.")

    def work(tx: Tx) -> TypeRow:
        row = _type(tx, call)
        if "name" in values:
            values["name"] = values["name"].strip()
            tx.lock("volume-type", values["name"])
            other = store.type_named(tx, values["name"])
            if not values["name"]:
                raise BadInput("Volume type name can not be empty.")
            if other is not None and other.id != row.id:
                raise Conflict(f"Volume Type {values['name']} already exists.")
        store.TYPES.change(tx, row.id, **values)
        return store.TYPES.get(tx, row.id)

    return {"volume_type": view(call, call.service.db.write(work), made=True, changed=True)}


def delete(call: Call) -> Reply:
    def work(tx: Tx) -> None:
        row = _type(tx, call)
        if store.type_in_use(tx, row.id):
            raise BadInput("Target volume type is still in use.")
        if row.name == types.DEFAULT_NAME:
            raise BadInput(f"The volume type {row.id} is a default volume type and cannot be deleted.")
        tx.run(sql_delete(TYPE_ACCESS).where(TYPE_ACCESS.c.volume_type_id == row.id))
        tx.run(sql_delete(DEFAULT_TYPES).where(DEFAULT_TYPES.c.volume_type_id == row.id))
        store.TYPES.remove(tx, row.id)

    call.service.db.write(work)
    return Reply(status=202)


# -- access ------------------------------------------------------------------------------------------------------


def list_access(call: Call) -> dict[str, Any]:
    def work(tx: Tx) -> list[dict[str, str]]:
        row = _type(tx, call)
        if row.is_public:
            raise NotFound("Access list not available for public volume types.")
        return [{"volume_type_id": row.id, "project_id": project} for project in store.type_projects(tx, row.id)]

    return {"volume_type_access": call.service.db.read(work)}


def add_access(call: Call) -> Reply:
    def work(tx: Tx) -> None:
        row = _type(tx, call)
        if row.is_public:
            raise Conflict("Type access modification is not applicable to public volume type.")
        if call.body.project in store.type_projects(tx, row.id):
            raise Conflict(f"Volume type access for {row.id} / {call.body.project} combination already exists.")
        tx.insert(TYPE_ACCESS, {"volume_type_id": row.id, "project_id": call.body.project})

    call.service.db.write(work)
    return Reply(status=202)


def remove_access(call: Call) -> Reply:
    def work(tx: Tx) -> None:
        row = _type(tx, call)
        if row.is_public:
            raise Conflict("Type access modification is not applicable to public volume type.")
        statement = sql_delete(TYPE_ACCESS).where(
            TYPE_ACCESS.c.volume_type_id == row.id, TYPE_ACCESS.c.project_id == call.body.project
        )
        if tx.run(statement) == 0:
            raise NotFound(f"Volume type access not found for {row.id} / {call.body.project} combination.")

    call.service.db.write(work)
    return Reply(status=202)


# -- extra specs -------------------------------------------------------------------------------------------------


def list_specs(call: Call) -> dict[str, Any]:
    return {"extra_specs": view(call, call.service.db.read(lambda tx: _type(tx, call))).get("extra_specs", {})}


def create_specs(call: Call) -> dict[str, Any]:
    given = {key: value if value is not None else "" for key, value in call.body.extra_specs.items()}

    def work(tx: Tx) -> None:
        row = _type(tx, call)
        store.TYPES.change(tx, row.id, extra_specs={**row.extra_specs, **given})

    call.service.db.write(work)
    return {"extra_specs": given}


def _spec(call: Call, specs: dict[str, str]) -> str:
    key = call.params["key"]
    if key not in specs:
        raise NotFound(f"Volume Type {call.params['type_id']} has no extra specs with key {key}.")
    return key


def show_spec(call: Call) -> dict[str, Any]:
    specs = list_specs(call)["extra_specs"]
    key = _spec(call, specs)
    return {key: specs[key]}


def update_spec(call: Call) -> dict[str, Any]:
    given: dict[str, Any] = call.body
    key = call.params["key"]
    if key not in given:
        raise BadInput("Request body and URI mismatch")
    if len(given) != 1:
        raise BadInput("Request body contains too many items")

    def work(tx: Tx) -> None:
        row = _type(tx, call)
        store.TYPES.change(tx, row.id, extra_specs={**row.extra_specs, key: given[key] or ""})

    call.service.db.write(work)
    return given


def delete_spec(call: Call) -> Reply:
    def work(tx: Tx) -> None:
        row = _type(tx, call)
        key = _spec(call, row.extra_specs)
        store.TYPES.change(tx, row.id, extra_specs={k: v for k, v in row.extra_specs.items() if k != key})

    call.service.db.write(work)
    return Reply(status=202)


# -- encryption of a type (kept and shown; volumes of an encrypted type are refused) -----------------------


def show_encryption(call: Call) -> dict[str, Any]:
    row = call.service.db.read(lambda tx: _type(tx, call))
    found = row.encryption or {}
    key = call.params.get("key")
    if key is None:
        return found
    if key not in found:
        raise NotFound(f"Volume type encryption for type {row.id} has no {key}.")
    return {key: found[key]}


def create_encryption(call: Call) -> dict[str, Any]:
    body: Encryption = call.body

    def work(tx: Tx) -> dict[str, Any]:
        row = _type(tx, call)
        if row.encryption is not None:
            raise BadInput(f"Volume type encryption for type {row.id} already exists.")
        if store.type_in_use(tx, row.id):
            raise BadInput("Cannot create encryption specs. Volume type in use.")
        made = {**msgspec.to_builtins(body), "volume_type_id": row.id, "encryption_id": new_uuid()}
        store.TYPES.change(tx, row.id, encryption=made)
        return {key: value for key, value in made.items() if key != "deleted"}

    return {"encryption": call.service.db.write(work)}


def _encryption(tx: Tx, call: Call) -> TypeRow:
    row = _type(tx, call)
    if row.encryption is None or row.encryption.get("encryption_id") != call.params["key"]:
        raise NotFound(f"Volume type encryption for type {row.id} does not exist.")
    if store.type_in_use(tx, row.id):
        raise BadInput("Cannot change encryption specs. Volume type in use.")
    return row


def update_encryption(call: Call) -> dict[str, Any]:
    given = msgspec.to_builtins(call.body)

    def work(tx: Tx) -> None:
        row = _encryption(tx, call)
        store.TYPES.change(tx, row.id, encryption={**(row.encryption or {}), **given})

    call.service.db.write(work)
    return {"encryption": given}


def delete_encryption(call: Call) -> Reply:
    call.service.db.write(lambda tx: store.TYPES.change(tx, _encryption(tx, call).id, encryption=None))
    return Reply(status=202)


# -- default types (3.62) ----------------------------------------------------------------------------------------------


def list_defaults(call: Call) -> dict[str, Any]:
    rows = call.service.db.read(lambda tx: tx.rows(select(DEFAULT_TYPES)))
    return {"default_types": [{"project_id": row[0], "volume_type_id": row[1]} for row in rows]}


def show_default(call: Call) -> dict[str, Any]:
    project = call.params["project"]
    statement = select(DEFAULT_TYPES.c.volume_type_id).where(DEFAULT_TYPES.c.project_id == project)
    found = call.service.db.read(lambda tx: tx.scalar(statement))
    if found is None:
        raise NotFound(f"Default volume type for project {project} not found.")
    return {"default_type": {"project_id": project, "volume_type_id": found}}


def set_default(call: Call) -> dict[str, Any]:
    project = call.params["project"]

    def work(tx: Tx) -> str:
        try:
            row = types.find(tx, call.ctx, call.body.volume_type)
        except NotFound as error:
            raise BadInput(error.message) from None
        tx.run(sql_delete(DEFAULT_TYPES).where(DEFAULT_TYPES.c.project_id == project))
        tx.insert(DEFAULT_TYPES, {"project_id": project, "volume_type_id": row.id})
        return row.id

    return {"default_type": {"project_id": project, "volume_type_id": call.service.db.write(work)}}


def unset_default(call: Call) -> Reply:
    statement = sql_delete(DEFAULT_TYPES).where(DEFAULT_TYPES.c.project_id == call.params["project"])
    call.service.db.write(lambda tx: tx.run(statement))
    return Reply(status=204)


_ONE = "/types/{type_id}"
_SPECS = _ONE + "/extra_specs"
_CRYPT = _ONE + "/encryption"
_P = "volume_extension:"
ROUTES = [
    Route(method="GET", path="/types", handler=index, policy=_P + "type_get_all"),
    Route(
        method="POST",
        path="/types",
        handler=create,
        policy=_P + "type_create",
        body=TypeCreate,
        body_key="volume_type",
        strict=False,
    ),
    Route(method="GET", path=_ONE, handler=show, policy=_P + "type_get"),
    Route(
        method="PUT",
        path=_ONE,
        handler=update,
        policy=_P + "type_update",
        body=TypeUpdate,
        body_key="volume_type",
        strict=False,
    ),
    Route(method="DELETE", path=_ONE, handler=delete, policy=_P + "type_delete", success=202),
    Route(
        method="GET",
        path=_ONE + "/os-volume-type-access",
        handler=list_access,
        policy=_P + "volume_type_access:get_all_for_type",
    ),
    Route(
        method="POST",
        path=_ONE + "/action",
        action="addProjectAccess",
        handler=add_access,
        body=Project,
        success=202,
        policy=_P + "volume_type_access:addProjectAccess",
    ),
    Route(
        method="POST",
        path=_ONE + "/action",
        action="removeProjectAccess",
        handler=remove_access,
        body=Project,
        success=202,
        policy=_P + "volume_type_access:removeProjectAccess",
    ),
    Route(method="GET", path=_SPECS, handler=list_specs, policy=_P + "types_extra_specs:index"),
    Route(method="POST", path=_SPECS, handler=create_specs, policy=_P + "types_extra_specs:create", body=ExtraSpecs),
    Route(method="GET", path=_SPECS + "/{key}", handler=show_spec, policy=_P + "types_extra_specs:show"),
    Route(
        method="PUT",
        path=_SPECS + "/{key}",
        handler=update_spec,
        policy=_P + "types_extra_specs:update",
        body=dict[Name, Text255 | None],
    ),
    Route(
        method="DELETE",
        path=_SPECS + "/{key}",
        handler=delete_spec,
        policy=_P + "types_extra_specs:delete",
        success=202,
    ),
    Route(method="GET", path=_CRYPT, handler=show_encryption, policy=_P + "volume_type_encryption:get"),
    Route(
        method="POST",
        path=_CRYPT,
        handler=create_encryption,
        policy=_P + "volume_type_encryption:create",
        body=Encryption,
        body_key="encryption",
        strict=False,
    ),
    Route(method="GET", path=_CRYPT + "/{key}", handler=show_encryption, policy=_P + "volume_type_encryption:get"),
    Route(
        method="PUT",
        path=_CRYPT + "/{key}",
        handler=update_encryption,
        policy=_P + "volume_type_encryption:update",
        body=EncryptionUpdate,
        body_key="encryption",
        strict=False,
    ),
    Route(
        method="DELETE",
        path=_CRYPT + "/{key}",
        handler=delete_encryption,
        policy=_P + "volume_type_encryption:delete",
        success=202,
    ),
    Route(
        method="GET", path="/default-types", handler=list_defaults, policy=_P + "default_get_all", min_version="3.62"
    ),
    Route(
        method="GET",
        path="/default-types/{project}",
        handler=show_default,
        policy=_P + "default_get",
        min_version="3.62",
    ),
    Route(
        method="PUT",
        path="/default-types/{project}",
        handler=set_default,
        policy=_P + "default_set_or_update",
        body=DefaultType,
        body_key="default_type",
        min_version="3.62",
    ),
    Route(
        method="DELETE",
        path="/default-types/{project}",
        handler=unset_default,
        policy=_P + "default_unset",
        success=204,
        min_version="3.62",
    ),
]
