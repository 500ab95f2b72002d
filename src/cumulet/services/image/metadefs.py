"""Metadata definitions: SQL and rules. A namespace holds objects, properties, tags and resource type associations,
each known by its name; renaming a namespace renames it everywhere."""

from typing import Any

import msgspec
from sqlalchemy import bindparam, delete, select, update

from cumulet.db import Tx
from cumulet.kernel.context import RequestContext
from cumulet.kernel.errors import BadInput, Conflict, Forbidden, NotFound
from cumulet.services.image.tables import DEFINITIONS, NAMESPACES

KINDS = ("object", "property", "tag", "resource_type")
# What clients find before anybody defined anything.
WELL_KNOWN_TYPES = ("OS::Glance::Image", "OS::Cinder::Volume", "OS::Nova::Flavor", "OS::Nova::Aggregate",
                    "OS::Nova::Server", "OS::Trove::Instance")  # fmt: skip


class NamespaceRow(msgspec.Struct, frozen=True):
    namespace: str
    display_name: str | None
    description: str | None
    visibility: str
    protected: bool
    owner: str | None
    created_at: int
    updated_at: int


class Item(msgspec.Struct, frozen=True):
    namespace: str
    kind: str
    name: str
    body: dict[str, Any]
    created_at: int
    updated_at: int


_ONE = select(NAMESPACES).where(NAMESPACES.c.namespace == bindparam("name"))
_ALL = select(NAMESPACES).order_by(NAMESPACES.c.created_at.desc(), NAMESPACES.c.namespace)
_ITEMS = (
    select(DEFINITIONS)
    .where(DEFINITIONS.c.namespace == bindparam("namespace"), DEFINITIONS.c.kind == bindparam("kind"))
    .order_by(DEFINITIONS.c.created_at, DEFINITIONS.c.name)
)
_ITEM = select(DEFINITIONS).where(
    DEFINITIONS.c.namespace == bindparam("namespace"),
    DEFINITIONS.c.kind == bindparam("kind"),
    DEFINITIONS.c.name == bindparam("name"),
)
_TYPES = select(DEFINITIONS.c.name).where(DEFINITIONS.c.kind == "resource_type").distinct()


def namespaces(tx: Tx, ctx: RequestContext) -> list[NamespaceRow]:
    found = [NamespaceRow(*row) for row in tx.rows(_ALL)]
    return [row for row in found if visible(ctx, row)]


def visible(ctx: RequestContext, row: NamespaceRow) -> bool:
    return ctx.is_admin or row.visibility == "public" or row.owner == ctx.project_id


def namespace(tx: Tx, ctx: RequestContext, name: str) -> NamespaceRow:
    row = tx.first(_ONE, {"name": name})
    found = NamespaceRow(*row) if row is not None else None
    if found is None or not visible(ctx, found):
        raise NotFound(f"Namespace {name} not found")
    return found


def insert_namespace(tx: Tx, row: NamespaceRow) -> None:
    if tx.first(_ONE, {"name": row.namespace}) is not None:
        raise Conflict(f"The metadata definition namespace={row.namespace} already exists.")
    tx.insert(NAMESPACES, msgspec.structs.asdict(row))


def change_namespace(tx: Tx, old: NamespaceRow, new: NamespaceRow) -> None:
    if new.namespace != old.namespace:
        if tx.first(_ONE, {"name": new.namespace}) is not None:
            raise Conflict(f"The metadata definition namespace={new.namespace} already exists.")
        moved = update(DEFINITIONS).where(DEFINITIONS.c.namespace == old.namespace)
        tx.run(moved.values(namespace=new.namespace))
    statement = update(NAMESPACES).where(NAMESPACES.c.namespace == old.namespace)
    tx.run(statement.values(**msgspec.structs.asdict(new)))


def delete_namespace(tx: Tx, row: NamespaceRow) -> None:
    if row.protected:
        raise Forbidden(f"Metadata definition namespace={row.namespace} is protected and cannot be deleted.")
    tx.run(delete(DEFINITIONS).where(DEFINITIONS.c.namespace == row.namespace))
    tx.run(delete(NAMESPACES).where(NAMESPACES.c.namespace == row.namespace))


def items(tx: Tx, namespace_name: str, kind: str) -> list[Item]:
    return [Item(*row) for row in tx.rows(_ITEMS, {"namespace": namespace_name, "kind": kind})]


def item(tx: Tx, namespace_name: str, kind: str, name: str) -> Item:
    row = tx.first(_ITEM, {"namespace": namespace_name, "kind": kind, "name": name})
    if row is None:
        raise NotFound(f"The metadata definition {kind} with name={name} was not found in namespace={namespace_name}.")
    return Item(*row)


def insert_item(tx: Tx, namespace_name: str, kind: str, name: str, body: dict[str, Any]) -> Item:
    if tx.first(_ITEM, {"namespace": namespace_name, "kind": kind, "name": name}) is not None:
        raise Conflict(f"A metadata definition {kind} with name={name} already exists in namespace={namespace_name}.")
    made = Item(namespace_name, kind, name, body, tx.now, tx.now)
    tx.insert(DEFINITIONS, msgspec.structs.asdict(made))
    return made


def change_item(tx: Tx, old: Item, name: str, body: dict[str, Any]) -> Item:
    remove_items(tx, old.namespace, old.kind, old.name)
    made = insert_item(tx, old.namespace, old.kind, name, body)
    return msgspec.structs.replace(made, created_at=old.created_at)


def remove_items(tx: Tx, namespace_name: str, kind: str, name: str | None = None) -> int:
    """One item, or all of a kind."""
    statement = delete(DEFINITIONS).where(DEFINITIONS.c.namespace == namespace_name, DEFINITIONS.c.kind == kind)
    if name is not None:
        statement = statement.where(DEFINITIONS.c.name == name)
    return tx.run(statement)


def resource_types(tx: Tx) -> list[str]:
    return sorted({*WELL_KNOWN_TYPES, *(row[0] for row in tx.rows(_TYPES))})


def checked(schema: dict[str, Any], body: Any, *, read_only: tuple[str, ...] = ()) -> dict[str, Any]:
    """A body against the few things a definition's schema asks for: known fields, their types, lengths, words."""
    if not isinstance(body, dict):
        raise BadInput("The request body must be a JSON object.")
    for name in read_only:
        if name in body:
            raise Forbidden(f"Attribute '{name}' is read-only.")
    for name in schema["required"]:
        if name not in body:
            raise BadInput(f"Provided object does not match schema '{schema['name']}': '{name}' is a required property")
    for name, value in body.items():
        about = schema["properties"].get(name)
        if about is None:
            raise BadInput(f"Provided object does not match schema '{schema['name']}': '{name}' was unexpected")
        _check(schema["name"], name, about, value)
    return body


_PYTHON: dict[str, Any] = {"string": str, "array": list, "object": dict, "boolean": bool, "integer": int}


def _check(schema: str, name: str, about: dict[str, Any], value: Any) -> None:
    kind = about.get("type") or {"#/definitions/stringArray": "array", "#/definitions/property": "object"}.get(
        about.get("$ref", ""), ""
    )
    wanted = _PYTHON.get(kind)
    bad = wanted is not None and not isinstance(value, wanted)
    if kind == "number" or "ositiveInteger" in about.get("$ref", ""):
        bad = not isinstance(value, int | float) or isinstance(value, bool)
    if kind == "string" and isinstance(value, str):
        bad = len(value) > about.get("maxLength", 65535) or ("enum" in about and value not in about["enum"])
    if bad:
        raise BadInput(f"Provided object does not match schema '{schema}': {value!r} does not fit '{name}'")
    if kind == "array" and isinstance(about.get("items"), dict):
        inner = about["items"].get("type")
        if not all(isinstance(one, _PYTHON.get(inner, object)) for one in value):
            raise BadInput(f"Provided object does not match schema '{schema}': {value!r} does not fit '{name}'")
