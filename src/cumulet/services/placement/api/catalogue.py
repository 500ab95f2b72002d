"""Resource classes, traits, and the version document."""

from typing import Annotated, Any

import msgspec

from cumulet.http import Call, Reply, Route
from cumulet.kernel.errors import BadInput, Conflict, NotFound
from cumulet.services.placement import editing, names, store
from cumulet.services.placement.api import common
from cumulet.services.placement.api.common import body


class ClassBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    name: Annotated[str, msgspec.Meta(min_length=1, max_length=255)]


def _class_view(name: str) -> dict[str, Any]:
    return {"name": name, "links": [{"rel": "self", "href": f"{common.PREFIX}/resource_classes/{name}"}]}


def classes(call: Call) -> Reply:
    found = call.service.db.read(store.custom_classes)
    listed = [*sorted(names.standard_classes()), *found]
    return body(call, {"resource_classes": [_class_view(name) for name in listed]}, max(found.values(), default=None))


def create_class(call: Call) -> Reply:
    given: ClassBody = call.body
    if not call.service.db.write(lambda tx: editing.make_class(tx, given.name)):
        raise Conflict(f"Conflicting resource class already exists: {given.name}.")
    return common.plain(call, 201, location=common.location(call, f"/resource_classes/{given.name}"))


def show_class(call: Call) -> Reply:
    name = call.params["name"]
    custom = call.service.db.read(store.custom_classes)
    if name not in names.standard_classes() and name not in custom:
        raise NotFound(f"No such resource class: {name}.")
    return body(call, _class_view(name), custom.get(name))


def rename_class(call: Call) -> Reply:
    given: ClassBody = call.body
    call.service.db.write(lambda tx: editing.rename_class(tx, call.params["name"], given.name))
    return body(call, _class_view(given.name))


def ensure_class(call: Call) -> Reply:
    name = call.params["name"]
    new = call.service.db.write(lambda tx: editing.make_class(tx, name))
    return common.plain(call, 201 if new else 204, location=common.location(call, f"/resource_classes/{name}"))


def delete_class(call: Call) -> Reply:
    call.service.db.write(lambda tx: editing.remove_class(tx, call.params["name"]))
    return common.plain(call)


def traits(call: Call) -> Reply:
    common.check_query(call, {"name", "associated"})
    wanted, associated = common.one(call, "name"), common.one(call, "associated")
    custom = call.service.db.read(store.custom_traits)
    found = names.standard_traits() | custom.keys()
    if wanted is not None:
        kind, _, text = wanted.partition(":")
        if kind == "in":
            found &= set(text.split(","))
        elif kind == "startswith":
            found = frozenset(name for name in found if name.startswith(text))
        else:
            raise BadInput("Badly formatted name parameter: in:A,B or startswith:PREFIX.", code=common.BAD_VALUE)
    if associated is not None:
        if associated.lower() not in ("true", "false"):
            raise BadInput("The query parameter associated must be true or false.", code=common.BAD_VALUE)
        used = call.service.db.read(store.traits_used)
        found = frozenset(name for name in found if (name in used) == (associated.lower() == "true"))
    return body(call, {"traits": sorted(found)}, max(custom.values(), default=None))


def show_trait(call: Call) -> Reply:
    name = call.params["name"]
    custom = call.service.db.read(store.custom_traits)
    if name not in names.standard_traits() and name not in custom:
        raise NotFound(f"No such trait: {name}.")
    return common.empty(call, 204, custom.get(name))


def ensure_trait(call: Call) -> Reply:
    name = call.params["name"]
    new = call.service.db.write(lambda tx: editing.make_trait(tx, name))
    return common.empty(call, 201 if new else 204, location=common.location(call, f"/traits/{name}"))


def delete_trait(call: Call) -> Reply:
    call.service.db.write(lambda tx: editing.remove_trait(tx, call.params["name"]))
    return common.plain(call)


def root(call: Call) -> Reply:
    low, high = call.api.microversions.range if call.api.microversions else ("1.0", "1.0")
    return body(
        call,
        {
            "versions": [
                {
                    "id": "v1.0", "min_version": low, "max_version": high, "status": "CURRENT",
                    "links": [{"rel": "self", "href": ""}],
                }
            ]
        },
    )  # fmt: skip


_C = "placement:resource_classes:"
_T = "placement:traits:"
ROOT_ROUTES = [Route(method="GET", path="/", handler=root, auth=False)]
ROUTES = [
    Route(method="GET", path="/resource_classes", handler=classes, policy=_C + "list", min_version="1.2"),
    Route(
        method="POST", path="/resource_classes", handler=create_class, policy=_C + "create", body=ClassBody,
        success=201, min_version="1.2",
    ),
    Route(method="GET", path="/resource_classes/{name}", handler=show_class, policy=_C + "show", min_version="1.2"),
    Route(
        method="PUT", path="/resource_classes/{name}", handler=rename_class, policy=_C + "update", body=ClassBody,
        min_version="1.2", max_version="1.6",
    ),
    Route(
        method="PUT", path="/resource_classes/{name}", handler=ensure_class, policy=_C + "update", success=201,
        statuses=(204,), min_version="1.7", media_types=(),
    ),
    Route(
        method="DELETE", path="/resource_classes/{name}", handler=delete_class, policy=_C + "delete", success=204,
        min_version="1.2",
    ),
    Route(method="GET", path="/traits", handler=traits, policy=_T + "list", min_version="1.6"),
    Route(method="GET", path="/traits/{name}", handler=show_trait, policy=_T + "show", success=204, min_version="1.6"),
    Route(
        method="PUT", path="/traits/{name}", handler=ensure_trait, policy=_T + "update", success=201, statuses=(204,),
        min_version="1.6", media_types=(),
    ),
    Route(
        method="DELETE", path="/traits/{name}", handler=delete_trait, policy=_T + "delete", success=204,
        min_version="1.6",
    ),
]  # fmt: skip
