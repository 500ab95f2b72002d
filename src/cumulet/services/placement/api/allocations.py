"""Allocations, usages of projects, and the reshaper."""

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, UnsetType

from cumulet.db import Tx
from cumulet.http import Call, Reply, Route
from cumulet.http.microversion import Since
from cumulet.kernel.errors import BadInput
from cumulet.kernel.ids import is_uuid
from cumulet.services.placement import claims, editing, store
from cumulet.services.placement.api import common
from cumulet.services.placement.api.common import Amount, ClassName, Name, Uuid, body, since
from cumulet.services.placement.api.inventories import InventoryBody
from cumulet.services.placement.claims import ConsumerClaim

Resources = Annotated[dict[ClassName, Amount], msgspec.Meta(min_length=1)]
TypeName = Annotated[str, msgspec.Meta(min_length=1, max_length=255, pattern=r"^[A-Z0-9_]+$")]
Mappings = dict[Annotated[str, msgspec.Meta(pattern=r"^([a-zA-Z0-9_-]{1,64})?$")], list[Uuid]]


class ProviderRef(msgspec.Struct, forbid_unknown_fields=True):
    uuid: Uuid


class OldPart(msgspec.Struct, forbid_unknown_fields=True):
    resource_provider: ProviderRef
    resources: Resources


class OldBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Up to 1.11."""

    allocations: Annotated[list[OldPart], msgspec.Meta(min_length=1)]
    project_id: Annotated[Name | UnsetType, Since("1.8")] = UNSET
    user_id: Annotated[Name | UnsetType, Since("1.8")] = UNSET


class Part(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    resources: Resources
    generation: int | UnsetType = UNSET


class ConsumerBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    allocations: dict[Uuid, Part]
    project_id: Name
    user_id: Name
    consumer_generation: Annotated[int | UnsetType | None, Since("1.28")] = UNSET
    mappings: Annotated[Mappings | UnsetType, Since("1.34")] = UNSET
    consumer_type: Annotated[TypeName | UnsetType, Since("1.38")] = UNSET


class ProviderInventories(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    resource_provider_generation: int
    inventories: dict[ClassName, InventoryBody]


class ReshapeBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    inventories: dict[Uuid, ProviderInventories]
    allocations: dict[Uuid, ConsumerBody]


def _claim(call: Call, consumer: str, given: ConsumerBody, *, may_be_empty: bool) -> ConsumerClaim:
    generations = since(call, 28)
    if generations and given.consumer_generation is UNSET:
        raise BadInput("JSON does not validate: 'consumer_generation' is a required property.")
    if since(call, 38) and given.consumer_type is UNSET:
        raise BadInput("JSON does not validate: 'consumer_type' is a required property.")
    if not given.allocations and not may_be_empty:
        raise BadInput("JSON does not validate: 'allocations' does not have enough properties.")
    return ConsumerClaim(
        consumer=consumer,
        allocations={uuid: part.resources for uuid, part in given.allocations.items()},
        project_id=given.project_id,
        user_id=given.user_id,
        consumer_type=common.present(given.consumer_type),
        keep_type=not since(call, 38),
        generation=common.present(given.consumer_generation),
        check_generation=generations,
    )


def _consumer_uuid(call: Call) -> str:
    value = call.params["consumer_uuid"]
    if not is_uuid(value):
        raise BadInput(f"Malformed consumer_uuid: {value}.")
    return value


def of_provider(call: Call) -> Reply:
    def work(tx: Tx) -> tuple[Any, list[Any], dict[str, Any]]:
        provider = editing.provider(tx, common.path_uuid(call))
        rows = store.allocations_on(tx, provider.uuid)
        return provider, rows, store.consumers(tx, sorted({row.consumer_uuid for row in rows}))

    provider, rows, consumers = call.service.db.read(work)
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        one = found.setdefault(row.consumer_uuid, {"resources": {}})
        one["resources"][row.resource_class] = row.used
        if since(call, 28) and row.consumer_uuid in consumers:
            one["consumer_generation"] = consumers[row.consumer_uuid].generation
    changed = max((row.updated_at for row in rows), default=provider.updated_at)
    return body(call, {"allocations": found, "resource_provider_generation": provider.generation}, changed)


def show(call: Call) -> Reply:
    uuid = _consumer_uuid(call)

    def work(tx: Tx) -> tuple[list[Any], Any, dict[str, int]]:
        rows = store.allocations_of(tx, uuid)
        generations: dict[str, int] = {}
        for name in {row.provider_uuid for row in rows}:
            provider = store.provider(tx, name)
            if provider is not None:
                generations[name] = provider.generation
        return rows, store.consumer(tx, uuid), generations

    rows, consumer, generations = call.service.db.read(work)
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        one = found.setdefault(row.provider_uuid, {"generation": generations.get(row.provider_uuid), "resources": {}})
        one["resources"][row.resource_class] = row.used
    result: dict[str, Any] = {"allocations": found}
    if found and consumer is not None:
        if since(call, 12):
            result["project_id"], result["user_id"] = consumer.project_id, consumer.user_id
        if since(call, 28):
            result["consumer_generation"] = consumer.generation
        if since(call, 38):
            result["consumer_type"] = consumer.consumer_type or "unknown"
    return body(call, result, max((row.updated_at for row in rows), default=None))


def put_old(call: Call) -> Reply:
    given: OldBody = call.body
    uuid = _consumer_uuid(call)
    if since(call, 8) and (given.project_id is UNSET or given.user_id is UNSET):
        raise BadInput("JSON does not validate: 'project_id' and 'user_id' are required properties.")
    wanted: dict[str, Mapping[str, int]] = {part.resource_provider.uuid: part.resources for part in given.allocations}
    claim = ConsumerClaim(
        consumer=uuid,
        allocations=wanted,
        project_id=common.present(given.project_id) or claims.NOBODY,
        user_id=common.present(given.user_id) or claims.NOBODY,
    )
    service = call.service
    service.db.write(lambda tx: claims.write(tx, service, [claim]))
    return common.plain(call)


def put(call: Call) -> Reply:
    claim = _claim(call, _consumer_uuid(call), call.body, may_be_empty=since(call, 28))
    service = call.service
    service.db.write(lambda tx: claims.write(tx, service, [claim]))
    return common.plain(call)


def post(call: Call) -> Reply:
    given: dict[str, ConsumerBody] = call.body
    wanted = [_claim(call, uuid, one, may_be_empty=True) for uuid, one in given.items()]
    service = call.service
    service.db.write(lambda tx: claims.write(tx, service, wanted))
    return common.plain(call)


def delete(call: Call) -> Reply:
    service, uuid = call.service, _consumer_uuid(call)
    service.db.write(lambda tx: claims.remove(tx, service, uuid))
    return common.plain(call)


def usages(call: Call) -> Reply:
    common.check_query(call, {"project_id", "user_id"} | ({"consumer_type"} if since(call, 38) else set()))
    project, user, kind = common.one(call, "project_id"), common.one(call, "user_id"), common.one(call, "consumer_type")
    if project is None:
        raise BadInput("Invalid query string parameters: 'project_id' is a required property.", code=common.MISSING)
    for value in (project, user, kind):
        if value is not None and not 1 <= len(value) <= 255:
            raise BadInput("Invalid query string parameters: a value is empty or too long.", code=common.BAD_VALUE)
    call.authorize("placement:usages", {"project_id": project, "user_id": user})

    def work(tx: Tx) -> tuple[list[Any], dict[str | None, int]]:
        return store.project_usage(tx, project, user), store.project_consumers(tx, project, user)

    rows, counts = call.service.db.read(work)
    if not since(call, 38):
        total: dict[str, int] = {}
        for _, name, used, _ in rows:
            total[name] = total.get(name, 0) + used
        return body(call, {"usages": total})
    grouped: dict[str, dict[str, int]] = {}
    for type_name, name, used, _ in rows:
        group = "all" if kind == "all" else type_name or "unknown"
        if kind not in (None, "all", group):
            continue
        one = grouped.setdefault(group, {})
        one[name] = one.get(name, 0) + used
    for type_name, count in counts.items():
        group = "all" if kind == "all" else type_name or "unknown"
        if group in grouped:
            grouped[group]["consumer_count"] = grouped[group].get("consumer_count", 0) + count
    return body(call, {"usages": grouped})


def reshape(call: Call) -> Reply:
    given: ReshapeBody = call.body
    wanted = [_claim(call, uuid, one, may_be_empty=True) for uuid, one in given.allocations.items()]
    service = call.service

    def work(tx: Tx) -> None:
        for uuid, one in sorted(given.inventories.items()):
            if store.provider(tx, uuid) is None:
                raise BadInput(f"Resource provider {uuid} in the request does not exist.")
            rows = {name: inventory.row(tx, uuid, name) for name, inventory in one.inventories.items()}
            have = store.inventories(tx, uuid)
            editing.check_inventories(tx, rows.values(), full_reserve=True)
            # what goes away stays until the allocations have moved off
            editing.set_inventories(tx, uuid, one.resource_provider_generation, {**have, **rows}, in_use_matters=False)
        claims.write(tx, service, wanted)
        for uuid, one in sorted(given.inventories.items()):
            rows = {name: inventory.row(tx, uuid, name) for name, inventory in one.inventories.items()}
            editing.set_inventories(tx, uuid, None, rows)

    service.db.write(work)
    return common.plain(call)


_A = "placement:allocations:"
_ONE = "/allocations/{consumer_uuid}"
ROUTES = [
    Route(
        method="GET", path="/resource_providers/{uuid}/allocations", handler=of_provider,
        policy="placement:resource_providers:allocations:list",
    ),
    Route(method="GET", path=_ONE, handler=show, policy=_A + "list"),
    Route(
        method="PUT", path=_ONE, handler=put_old, policy=_A + "update", body=OldBody, success=204, max_version="1.11",
    ),
    Route(
        method="PUT", path=_ONE, handler=put, policy=_A + "update", body=ConsumerBody, success=204, min_version="1.12",
    ),
    Route(method="DELETE", path=_ONE, handler=delete, policy=_A + "delete", success=204),
    Route(
        method="POST", path="/allocations", handler=post, policy=_A + "manage", success=204, min_version="1.13",
        body=Annotated[dict[Uuid, ConsumerBody], msgspec.Meta(min_length=1)],
    ),
    Route(method="GET", path="/usages", handler=usages, min_version="1.9"),
    Route(
        method="POST", path="/reshaper", handler=reshape, policy="placement:reshaper:reshape", body=ReshapeBody,
        success=204, min_version="1.30",
    ),
]  # fmt: skip
