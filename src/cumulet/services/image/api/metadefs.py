"""Metadata definitions: namespaces and what stands in them."""

from collections.abc import Callable
from typing import Any

from cumulet.db import Tx
from cumulet.http import Call, Reply, Route
from cumulet.kernel.clock import iso
from cumulet.kernel.errors import BadInput, Conflict, Forbidden, NotFound
from cumulet.services.image import metadefs, schemas
from cumulet.services.image.api.access import json_body
from cumulet.services.image.api.images import parse_limit
from cumulet.services.image.metadefs import Item, NamespaceRow

_TIMES = ("created_at", "updated_at")
_LINKED = (*_TIMES, "self", "schema")
_SCHEMA = {"object": schemas.OBJECT, "property": schemas.PROPERTY, "tag": schemas.TAG,
           "resource_type": schemas.RESOURCE_TYPE}  # fmt: skip
_PLURAL = {"object": "objects", "property": "properties", "tag": "tags"}


def _allowed(call: Call, rule: str, row: NamespaceRow | None = None) -> None:
    seen = {
        "project_id": row.owner if row is not None else call.ctx.project_id,
        "visibility": row.visibility if row is not None else "private",
    }
    if not call.allowed(rule, seen):
        raise Forbidden(f"You are not authorized to complete {rule} action.")


def _in_namespace(call: Call, rule: str, work: Callable[[Tx, NamespaceRow], Any], *, write: bool = True) -> Any:
    def unit(tx: Tx) -> Any:
        row = metadefs.namespace(tx, call.ctx, call.params["namespace"])
        _allowed(call, rule, row)
        return work(tx, row)

    return call.service.db.write(unit) if write else call.service.db.read(unit)


# -- views -------------------------------------------------------------------------------------------------------


def _times(row: Any) -> dict[str, Any]:
    return {"created_at": iso(row.created_at), "updated_at": iso(row.updated_at)}


def _namespace_view(row: NamespaceRow) -> dict[str, Any]:
    found: dict[str, Any] = {
        "namespace": row.namespace,
        "visibility": row.visibility,
        "protected": row.protected,
        "owner": row.owner,
        "self": f"/v2/metadefs/namespaces/{row.namespace}",
        "schema": "/v2/schemas/metadefs/namespace",
        **_times(row),
    }
    for name in ("display_name", "description"):
        if getattr(row, name) is not None:
            found[name] = getattr(row, name)
    return found


def _object_view(one: Item) -> dict[str, Any]:
    links = {
        "self": f"/v2/metadefs/namespaces/{one.namespace}/objects/{one.name}",
        "schema": "/v2/schemas/metadefs/object",
    }
    return {"required": [], "properties": {}, **one.body, "name": one.name, **links, **_times(one)}


def _view(one: Item) -> dict[str, Any]:
    if one.kind == "object":
        return _object_view(one)
    if one.kind == "property":
        return {**one.body, "name": one.name}
    return {**one.body, "name": one.name, **_times(one)}


# -- namespaces --------------------------------------------------------------------------------------------------


def list_namespaces(call: Call) -> dict[str, Any]:
    _allowed(call, "get_metadef_namespaces")
    query = call.query
    limit = parse_limit(query.get("limit"), call.service.settings.page_default, call.service.settings.page_max)
    wanted = query.get("visibility")
    if wanted is not None and wanted not in ("public", "private"):
        raise BadInput(f"Invalid visibility value: {wanted}")
    if query.get("sort_dir", "desc") not in ("asc", "desc"):
        raise BadInput(f"Invalid sort direction: {query.get('sort_dir')}")
    types = {name for text in query.getlist("resource_types") for name in text.split(",")}

    def work(tx: Tx) -> list[dict[str, Any]]:
        found = []
        for row in metadefs.namespaces(tx, call.ctx):
            associated = [_view(one) for one in metadefs.items(tx, row.namespace, "resource_type")]
            if wanted not in (None, row.visibility) or (types and not types & {one["name"] for one in associated}):
                continue
            view = _namespace_view(row)
            if associated:
                view["resource_type_associations"] = associated
            found.append(view)
        return found

    rows = call.service.db.read(work)
    key = query.get("sort_key", "created_at")
    if key not in ("created_at", "updated_at", "namespace"):
        raise BadInput(f"Invalid sort key: {key}")
    rows.sort(key=lambda view: view[key], reverse=query.get("sort_dir", "desc") == "desc")
    marker = query.get("marker")
    if marker is not None:
        names = [view["namespace"] for view in rows]
        if marker not in names:
            raise NotFound(f"Namespace {marker} not found")
        rows = rows[names.index(marker) + 1 :]
    body = {"namespaces": rows[:limit], "first": "/v2/metadefs/namespaces", "schema": "/v2/schemas/metadefs/namespaces"}
    if limit and len(rows) > limit:
        body["next"] = f"/v2/metadefs/namespaces?marker={rows[limit - 1]['namespace']}&limit={limit}"
    return body


def _whole(tx: Tx, row: NamespaceRow) -> dict[str, Any]:
    view = _namespace_view(row)
    objects = [_view(one) for one in metadefs.items(tx, row.namespace, "object")]
    properties = {one.name: one.body for one in metadefs.items(tx, row.namespace, "property")}
    tags = [{"name": one.name} for one in metadefs.items(tx, row.namespace, "tag")]
    associations = [_view(one) for one in metadefs.items(tx, row.namespace, "resource_type")]
    parts = {
        "objects": objects,
        "properties": properties,
        "tags": tags,
        "resource_type_associations": associations,
    }
    return {**view, **{name: part for name, part in parts.items() if part}}


def show_namespace(call: Call) -> dict[str, Any]:
    def work(tx: Tx) -> dict[str, Any]:
        row = metadefs.namespace(tx, call.ctx, call.params["namespace"])
        if not call.allowed("get_metadef_namespace", {"project_id": row.owner, "visibility": row.visibility}):
            raise NotFound(f"Namespace {row.namespace} not found")
        return _whole(tx, row)

    return call.service.db.read(work)


def create_namespace(call: Call) -> Reply:
    body = metadefs.checked(schemas.NAMESPACE, json_body(call), read_only=_LINKED)
    _allowed(call, "add_metadef_namespace")

    def work(tx: Tx) -> dict[str, Any]:
        row = _row(call, tx, body, None)
        metadefs.insert_namespace(tx, row)
        for one in body.get("resource_type_associations", []):
            _insert(tx, row, "resource_type", one)
        for one in body.get("objects", []):
            _insert(tx, row, "object", one)
        for one in body.get("tags", []):
            _insert(tx, row, "tag", one)
        for name, one in body.get("properties", {}).items():
            _insert(tx, row, "property", {**one, "name": name} if isinstance(one, dict) else one)
        return _whole(tx, row)

    made = call.service.db.write(work)
    return Reply(made, status=201, headers={"location": made["self"]})


def _row(call: Call, tx: Tx, body: dict[str, Any], old: NamespaceRow | None) -> NamespaceRow:
    name = body["namespace"]
    if not name or "/" in name:
        raise BadInput("Provided object does not match schema 'namespace': the namespace's name is not valid")
    return NamespaceRow(
        namespace=name,
        display_name=body.get("display_name"),
        description=body.get("description"),
        visibility=body.get("visibility", "private"),
        protected=body.get("protected", False),
        owner=body.get("owner") or call.ctx.project_id,
        created_at=old.created_at if old is not None else tx.now,
        updated_at=tx.now,
    )


def update_namespace(call: Call) -> dict[str, Any]:
    body = metadefs.checked(schemas.NAMESPACE, json_body(call), read_only=_LINKED)

    def work(tx: Tx, row: NamespaceRow) -> dict[str, Any]:
        new = _row(call, tx, body, row)
        metadefs.change_namespace(tx, row, new)
        return _namespace_view(new)

    found: dict[str, Any] = _in_namespace(call, "modify_metadef_namespace", work)
    return found


def delete_namespace(call: Call) -> Reply:
    _in_namespace(call, "delete_metadef_namespace", metadefs.delete_namespace)
    return Reply(status=204)


# -- what stands in a namespace --------------------------------------------------------------------------------------


def _body(kind: str, given: Any) -> tuple[str, dict[str, Any]]:
    body = metadefs.checked(_SCHEMA[kind], given, read_only=_LINKED if kind == "object" else _TIMES)
    name = body["name"]
    if not name:
        raise BadInput(f"Provided object does not match schema '{kind}': the name is empty")
    for one in (body.get("properties") or {}).values():
        metadefs.checked({**schemas.PROPERTY, "required": []}, one)
    return name, {key: value for key, value in body.items() if key != "name"}


def _insert(tx: Tx, row: NamespaceRow, kind: str, given: Any) -> Item:
    name, body = _body(kind, given)
    return metadefs.insert_item(tx, row.namespace, kind, name, body)


def _list_of(kind: str, rule: str) -> Callable[[Call], dict[str, Any]]:
    def handler(call: Call) -> dict[str, Any]:
        def work(tx: Tx, row: NamespaceRow) -> list[Item]:
            return metadefs.items(tx, row.namespace, kind)

        rows = _in_namespace(call, rule, work, write=False)
        if kind == "property":
            return {"properties": {one.name: one.body for one in rows}}
        if kind == "resource_type":
            return {"resource_type_associations": [_view(one) for one in rows]}
        if kind == "tag":
            rows = list(reversed(rows))
        limit = parse_limit(call.query.get("limit"), 1000, 1000)
        path = f"/v2/metadefs/namespaces/{call.params['namespace']}/{_PLURAL[kind]}"
        schema = f"/v2/schemas/metadefs/{_PLURAL[kind]}"
        return {_PLURAL[kind]: [_view(one) for one in rows][:limit], "first": path, "schema": schema}

    return handler


def _create(kind: str, rule: str) -> Callable[[Call], Reply]:
    def handler(call: Call) -> Reply:
        given = {"name": call.params["name"]} if "name" in call.params else json_body(call)
        name, body = _body(kind, given)

        def work(tx: Tx, row: NamespaceRow) -> Item:
            return metadefs.insert_item(tx, row.namespace, kind, name, body)

        return Reply(_view(_in_namespace(call, rule, work)), status=201)

    return handler


def _show(kind: str, rule: str) -> Callable[[Call], dict[str, Any]]:
    def handler(call: Call) -> dict[str, Any]:
        def work(tx: Tx, row: NamespaceRow) -> Item:
            name = call.params["name"]
            resource_type = call.query.get("resource_type")
            if kind == "property" and resource_type:
                name = _without_prefix(tx, row, name, resource_type)
            return metadefs.item(tx, row.namespace, kind, name)

        return _view(_in_namespace(call, rule, work, write=False))

    return handler


def _without_prefix(tx: Tx, row: NamespaceRow, name: str, resource_type: str) -> str:
    """A property's own name, from the one that it has on resources of a type."""
    prefix = metadefs.item(tx, row.namespace, "resource_type", resource_type).body.get("prefix")
    if not prefix or not name.startswith(prefix):
        raise NotFound(f"Property {name} does not start with the prefix '{prefix}' of the resource type's association.")
    return name.removeprefix(prefix)


def _update(kind: str, rule: str) -> Callable[[Call], dict[str, Any]]:
    def handler(call: Call) -> dict[str, Any]:
        name, body = _body(kind, json_body(call))

        def work(tx: Tx, row: NamespaceRow) -> Item:
            return metadefs.change_item(tx, metadefs.item(tx, row.namespace, kind, call.params["name"]), name, body)

        return _view(_in_namespace(call, rule, work))

    return handler


def _delete(kind: str, rule: str) -> Callable[[Call], Reply]:
    """One, or all of the kind."""

    def handler(call: Call) -> Reply:
        name = call.params.get("name")

        def work(tx: Tx, row: NamespaceRow) -> None:
            if name is not None:
                metadefs.item(tx, row.namespace, kind, name)
            metadefs.remove_items(tx, row.namespace, kind, name)

        _in_namespace(call, rule, work)
        return Reply(status=204)

    return handler


def create_tags(call: Call) -> Reply:
    """Replaces the tags, or adds to them with the header X-Openstack-Append."""
    body = json_body(call)
    if not isinstance(body, dict) or not isinstance(body.get("tags"), list):
        raise BadInput("Provided object does not match schema 'tags': 'tags' is a required property")
    names = [_body("tag", one)[0] for one in body["tags"]]
    if len(set(names)) != len(names):
        raise Conflict("A metadata definition tag is named twice.")
    append = call.headers.get("x-openstack-append", "").lower() in ("true", "1", "yes")

    def work(tx: Tx, row: NamespaceRow) -> None:
        if not append:
            metadefs.remove_items(tx, row.namespace, "tag")
        for name in names:
            metadefs.insert_item(tx, row.namespace, "tag", name, {})

    _in_namespace(call, "add_metadef_tags", work)
    return Reply({"tags": [{"name": name} for name in names]}, status=201)


def list_resource_types(call: Call) -> dict[str, Any]:
    _allowed(call, "list_metadef_resource_types")

    def work(tx: Tx) -> list[dict[str, Any]]:
        when = iso(tx.now)
        names = metadefs.resource_types(tx)
        return [{"name": name, "created_at": when, "updated_at": when} for name in names]

    return {"resource_types": call.service.db.read(work)}


_NS = "/metadefs/namespaces"
_ONE = _NS + "/{namespace}"
ROUTES = [
    Route(method="GET", path="/metadefs/resource_types", handler=list_resource_types),
    Route(method="GET", path=_NS, handler=list_namespaces),
    Route(method="POST", path=_NS, handler=create_namespace, success=201),
    Route(method="GET", path=_ONE, handler=show_namespace),
    Route(method="PUT", path=_ONE, handler=update_namespace),
    Route(method="DELETE", path=_ONE, handler=delete_namespace, success=204),
    Route(
        method="GET", path=_ONE + "/resource_types", handler=_list_of("resource_type", "get_metadef_resource_type")
    ),
    Route(
        method="POST", path=_ONE + "/resource_types", success=201,
        handler=_create("resource_type", "add_metadef_resource_type_association"),
    ),
    Route(
        method="DELETE", path=_ONE + "/resource_types/{name}", success=204,
        handler=_delete("resource_type", "remove_metadef_resource_type_association"),
    ),
    Route(method="GET", path=_ONE + "/properties", handler=_list_of("property", "get_metadef_properties")),
    Route(method="POST", path=_ONE + "/properties", handler=_create("property", "add_metadef_property"), success=201),
    Route(
        method="DELETE", path=_ONE + "/properties", handler=_delete("property", "delete_metadef_namespace"),
        success=204,
    ),
    Route(method="GET", path=_ONE + "/properties/{name}", handler=_show("property", "get_metadef_property")),
    Route(method="PUT", path=_ONE + "/properties/{name}", handler=_update("property", "modify_metadef_property")),
    Route(
        method="DELETE", path=_ONE + "/properties/{name}", handler=_delete("property", "remove_metadef_property"),
        success=204,
    ),
    Route(method="GET", path=_ONE + "/objects", handler=_list_of("object", "get_metadef_objects")),
    Route(method="POST", path=_ONE + "/objects", handler=_create("object", "add_metadef_object"), success=201),
    Route(method="DELETE", path=_ONE + "/objects", handler=_delete("object", "delete_metadef_namespace"), success=204),
    Route(method="GET", path=_ONE + "/objects/{name}", handler=_show("object", "get_metadef_object")),
    Route(method="PUT", path=_ONE + "/objects/{name}", handler=_update("object", "modify_metadef_object")),
    Route(
        method="DELETE", path=_ONE + "/objects/{name}", handler=_delete("object", "delete_metadef_object"), success=204
    ),
    Route(method="GET", path=_ONE + "/tags", handler=_list_of("tag", "get_metadef_tags")),
    Route(method="POST", path=_ONE + "/tags", handler=create_tags, success=201),
    Route(method="DELETE", path=_ONE + "/tags", handler=_delete("tag", "delete_metadef_tags"), success=204),
    Route(method="GET", path=_ONE + "/tags/{name}", handler=_show("tag", "get_metadef_tag")),
    Route(method="POST", path=_ONE + "/tags/{name}", handler=_create("tag", "add_metadef_tag"), success=201),
    Route(method="PUT", path=_ONE + "/tags/{name}", handler=_update("tag", "modify_metadef_tag")),
    Route(method="DELETE", path=_ONE + "/tags/{name}", handler=_delete("tag", "delete_metadef_tag"), success=204),
]  # fmt: skip
