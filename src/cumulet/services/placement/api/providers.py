"""Resource providers, their traits and aggregates."""

from typing import Annotated, Any

import msgspec
from msgspec import UNSET, UnsetType

from cumulet.db import Tx
from cumulet.http import Call, Reply, Route
from cumulet.http.microversion import Since
from cumulet.kernel.errors import BadInput
from cumulet.services.placement import editing, names, query, store
from cumulet.services.placement.api import common
from cumulet.services.placement.api.common import Name, Uuid, body, since
from cumulet.services.placement.store import ProviderRow

ProviderName = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]


class ProviderCreate(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    name: ProviderName
    uuid: Uuid | UnsetType = UNSET
    parent_provider_uuid: Annotated[Uuid | UnsetType | None, Since("1.14")] = UNSET


class ProviderUpdate(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    name: ProviderName
    parent_provider_uuid: Annotated[Uuid | UnsetType | None, Since("1.14")] = UNSET


class TraitsBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    traits: list[Name]
    resource_provider_generation: int


class AggregatesBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    aggregates: list[Uuid]
    resource_provider_generation: int


def view(call: Call, row: ProviderRow) -> dict[str, Any]:
    here = f"{common.PREFIX}/resource_providers/{row.uuid}"
    rels = ["inventories", "usages"]
    rels += [name for minor, name in ((1, "aggregates"), (6, "traits"), (11, "allocations")) if since(call, minor)]
    links = [{"rel": "self", "href": here}, *({"rel": rel, "href": f"{here}/{rel}"} for rel in rels)]
    result: dict[str, Any] = {"uuid": row.uuid, "name": row.name, "generation": row.generation, "links": links}
    if since(call, 14):
        result["parent_provider_uuid"] = row.parent_uuid
        result["root_provider_uuid"] = row.root_uuid
    return result


def listing(call: Call) -> Reply:
    allowed = {"name", "uuid"}
    for minor, key in ((3, "member_of"), (4, "resources"), (14, "in_tree"), (18, "required")):
        if since(call, minor):
            allowed.add(key)
    common.check_query(call, allowed)
    name, uuid, tree = (
        common.one(call, "name"),
        common.uuid_parameter(call, "uuid"),
        common.uuid_parameter(call, "in_tree"),
    )
    wanted = common.one(call, "resources")
    amounts = query.resources(wanted) if wanted is not None else {}
    member_values = call.query.getlist("member_of")
    if len(member_values) > 1 and not since(call, 24):
        raise BadInput("Query parameter member_of is given more than once.", code=common.DUPLICATE)
    members = query.member_of(member_values, forbid=since(call, 32))
    required_values = call.query.getlist("required")
    if len(required_values) > 1 and not since(call, 39):
        raise BadInput("Query parameter required is given more than once.", code=common.DUPLICATE)
    required = query.traits(required_values, forbid=since(call, 22), any_of=since(call, 39))

    def work(tx: Tx) -> list[ProviderRow]:
        names.check_classes(tx, set(amounts))
        names.check_traits(tx, required.all_names())
        rows = store.providers(tx)
        if name is not None:
            rows = [row for row in rows if row.name == name]
        if uuid is not None:
            rows = [row for row in rows if row.uuid == uuid]
        if tree is not None:
            above = store.provider(tx, tree)
            rows = [row for row in rows if above is not None and row.root_uuid == above.root_uuid]
        if member_values:
            of = store.all_aggregates_of(tx)
            rows = [row for row in rows if members.met_by(of.get(row.uuid, set()))]
        if not required.empty:
            traits = store.all_traits_of(tx)
            rows = [row for row in rows if required.met_by(traits.get(row.uuid, set()))]
        if amounts:
            inventories, used = store.all_inventories(tx), store.all_usage(tx)
            rows = [
                row
                for row in rows
                if all(
                    (inventory := inventories.get(row.uuid, {}).get(kind)) is not None
                    and inventory.why_not(amount, used.get(row.uuid, {}).get(kind, 0)) is None
                    for kind, amount in amounts.items()
                )
            ]
        return rows

    rows = call.service.db.read(work)
    changed = max((row.updated_at for row in rows), default=None)
    return body(call, {"resource_providers": [view(call, row) for row in rows]}, changed)


def create(call: Call) -> Reply:
    given: ProviderCreate = call.body
    uuid, parent = common.present(given.uuid), common.present(given.parent_provider_uuid)
    row = call.service.db.write(lambda tx: editing.create(tx, given.name, uuid, parent))
    where = common.location(call, f"/resource_providers/{row.uuid}")
    if since(call, 20):
        return body(call, view(call, row), row.updated_at, status=200, location=where)
    return common.plain(call, 201, location=where)


def show(call: Call) -> Reply:
    row = call.service.db.read(lambda tx: editing.provider(tx, common.path_uuid(call)))
    return body(call, view(call, row), row.updated_at)


def update(call: Call) -> Reply:
    given: ProviderUpdate = call.body
    keep = given.parent_provider_uuid is UNSET
    parent = common.present(given.parent_provider_uuid)
    uuid = common.path_uuid(call)
    move = since(call, 37)
    row = call.service.db.write(
        lambda tx: editing.change(tx, uuid, given.name, parent, keep_parent=keep, may_move=move)
    )
    return body(call, view(call, row), row.updated_at)


def delete(call: Call) -> Reply:
    call.service.db.write(lambda tx: editing.remove(tx, common.path_uuid(call)))
    return common.plain(call)


# -- traits ---------------------------------------------------------------------------------------------------------


def traits(call: Call) -> Reply:
    def work(tx: Tx) -> tuple[ProviderRow, list[str]]:
        row = editing.provider(tx, common.path_uuid(call))
        return row, store.traits_of(tx, row.uuid)

    row, found = call.service.db.read(work)
    return body(call, {"traits": found, "resource_provider_generation": row.generation}, row.updated_at)


def set_traits(call: Call) -> Reply:
    given: TraitsBody = call.body

    def work(tx: Tx) -> ProviderRow:
        return editing.set_traits(tx, common.path_uuid(call), given.resource_provider_generation, set(given.traits))

    row = call.service.db.write(work)
    result = {"traits": sorted(set(given.traits)), "resource_provider_generation": row.generation}
    return body(call, result, row.updated_at)


def delete_traits(call: Call) -> Reply:
    call.service.db.write(lambda tx: editing.set_traits(tx, common.path_uuid(call), None, set()))
    return common.plain(call)


# -- aggregates -----------------------------------------------------------------------------------------------------


def _aggregates_view(call: Call, row: ProviderRow, aggregates: list[str]) -> Reply:
    result: dict[str, Any] = {"aggregates": aggregates}
    if since(call, 19):
        result["resource_provider_generation"] = row.generation
    return body(call, result, row.updated_at)


def aggregates(call: Call) -> Reply:
    def work(tx: Tx) -> tuple[ProviderRow, list[str]]:
        row = editing.provider(tx, common.path_uuid(call))
        return row, store.aggregates_of(tx, row.uuid)

    return _aggregates_view(call, *call.service.db.read(work))


def set_aggregates_list(call: Call) -> Reply:
    given: list[str] = call.body
    return _set_aggregates(call, given, None)


def set_aggregates(call: Call) -> Reply:
    given: AggregatesBody = call.body
    return _set_aggregates(call, given.aggregates, given.resource_provider_generation)


def _set_aggregates(call: Call, wanted: list[str], generation: int | None) -> Reply:
    if len(set(wanted)) != len(wanted):
        raise BadInput("JSON does not validate: aggregates has non-unique elements.")

    def work(tx: Tx) -> ProviderRow:
        return editing.set_aggregates(tx, common.path_uuid(call), generation, wanted, bump=generation is not None)

    return _aggregates_view(call, call.service.db.write(work), sorted(wanted))


_P = "placement:resource_providers:"
_ONE = "/resource_providers/{uuid}"
ROUTES = [
    Route(method="GET", path="/resource_providers", handler=listing, policy=_P + "list"),
    Route(
        method="POST", path="/resource_providers", handler=create, policy=_P + "create", body=ProviderCreate,
        success=201, statuses=(200,),
    ),
    Route(method="GET", path=_ONE, handler=show, policy=_P + "show"),
    Route(method="PUT", path=_ONE, handler=update, policy=_P + "update", body=ProviderUpdate),
    Route(method="DELETE", path=_ONE, handler=delete, policy=_P + "delete", success=204),
    Route(method="GET", path=_ONE + "/traits", handler=traits, policy=_P + "traits:list", min_version="1.6"),
    Route(
        method="PUT", path=_ONE + "/traits", handler=set_traits, policy=_P + "traits:update", body=TraitsBody,
        min_version="1.6",
    ),
    Route(
        method="DELETE", path=_ONE + "/traits", handler=delete_traits, policy=_P + "traits:delete", success=204,
        min_version="1.6",
    ),
    Route(
        method="GET", path=_ONE + "/aggregates", handler=aggregates, policy=_P + "aggregates:list", min_version="1.1",
    ),
    Route(
        method="PUT", path=_ONE + "/aggregates", handler=set_aggregates_list, policy=_P + "aggregates:update",
        body=list[Uuid], min_version="1.1", max_version="1.18",
    ),
    Route(
        method="PUT", path=_ONE + "/aggregates", handler=set_aggregates, policy=_P + "aggregates:update",
        body=AggregatesBody, min_version="1.19",
    ),
]  # fmt: skip
