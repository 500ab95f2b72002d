"""SQL of placement; rows as structs."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
from sqlalchemy import bindparam, delete, distinct, func, select, update

from cumulet.db import Tx
from cumulet.services.placement.tables import (
    ALLOCATIONS,
    CONSUMERS,
    INVENTORIES,
    PROVIDER_AGGREGATES,
    PROVIDER_TRAITS,
    PROVIDERS,
    RESOURCE_CLASSES,
    TRAITS,
)


class ProviderRow(msgspec.Struct):
    uuid: str
    name: str
    generation: int
    parent_uuid: str | None
    root_uuid: str
    created_at: int
    updated_at: int


class InventoryRow(msgspec.Struct):
    provider_uuid: str
    resource_class: str
    total: int
    reserved: int
    min_unit: int
    max_unit: int
    step_size: int
    allocation_ratio: float
    updated_at: int

    @property
    def capacity(self) -> int:
        return min(int((self.total - self.reserved) * self.allocation_ratio), 2**63 - 1)

    def why_not(self, amount: int, used: int) -> str | None:
        """Why ``amount`` more cannot be had; None if it can."""
        if amount < self.min_unit:
            return f"{self.resource_class}: {amount} is less than the least unit {self.min_unit}"
        if amount > self.max_unit:
            return f"{self.resource_class}: {amount} is more than the greatest unit {self.max_unit}"
        if amount % self.step_size:
            return f"{self.resource_class}: {amount} is no multiple of {self.step_size}"
        if used + amount > self.capacity:
            return f"{self.resource_class}: {amount} wanted, {max(self.capacity - used, 0)} of {self.capacity} free"
        return None


class AllocationRow(msgspec.Struct):
    consumer_uuid: str
    provider_uuid: str
    resource_class: str
    used: int
    updated_at: int


class ConsumerRow(msgspec.Struct):
    uuid: str
    project_id: str
    user_id: str
    consumer_type: str | None
    generation: int
    updated_at: int


_P, _I, _A, _C = PROVIDERS.c, INVENTORIES.c, ALLOCATIONS.c, CONSUMERS.c
_uuids: Any = bindparam("uuids", expanding=True)

_PROVIDERS = select(*_P).order_by(_P.created_at, _P.uuid)
_PROVIDER = select(*_P).where(_P.uuid == bindparam("uuid"))
_PROVIDER_NAMED = select(*_P).where(_P.name == bindparam("name"))
_CHILDREN = select(_P.uuid).where(_P.parent_uuid == bindparam("uuid"))
_BUMP = (
    update(PROVIDERS)
    .where(_P.uuid == bindparam("the_uuid"), _P.generation == bindparam("the_generation"))
    .values(generation=_P.generation + 1, updated_at=bindparam("now"))
)
_BUMP_ANY = (
    update(PROVIDERS)
    .where(_P.uuid == bindparam("the_uuid"))
    .values(generation=_P.generation + 1, updated_at=bindparam("now"))
)
_BUMP_ALL = (
    update(PROVIDERS).where(_P.uuid.in_(_uuids)).values(generation=_P.generation + 1, updated_at=bindparam("now"))
)
_RENAME = (
    update(PROVIDERS)
    .where(_P.uuid == bindparam("the_uuid"))
    .values(name=bindparam("name"), updated_at=bindparam("now"))
)
_ADOPT = (
    update(PROVIDERS)
    .where(_P.uuid == bindparam("the_uuid"))
    .values(parent_uuid=bindparam("parent"), root_uuid=bindparam("root"), updated_at=bindparam("now"))
)
_REROOT = update(PROVIDERS).where(_P.uuid == bindparam("the_uuid")).values(root_uuid=bindparam("root"))
_DROP_PROVIDER = delete(PROVIDERS).where(_P.uuid == bindparam("uuid"))

_ALL_INVENTORIES = select(*_I).order_by(_I.provider_uuid, _I.resource_class)
_INVENTORIES = _ALL_INVENTORIES.where(_I.provider_uuid == bindparam("uuid"))
_DROP_INVENTORIES = delete(INVENTORIES).where(_I.provider_uuid == bindparam("uuid"))
_DROP_INVENTORY = _DROP_INVENTORIES.where(_I.resource_class == bindparam("name"))
_CLASS_IN_INVENTORY = select(_I.provider_uuid).where(_I.resource_class == bindparam("name")).limit(1)

_USAGE = (
    select(_A.resource_class, func.sum(_A.used))
    .where(_A.provider_uuid == bindparam("uuid"))
    .group_by(_A.resource_class)
)
_ALL_USAGE = select(_A.provider_uuid, _A.resource_class, func.sum(_A.used)).group_by(
    _A.provider_uuid, _A.resource_class
)
_STOCK = select(
    *_I,
    func.coalesce(
        select(func.sum(_A.used))
        .where(_A.provider_uuid == _I.provider_uuid, _A.resource_class == _I.resource_class)
        .scalar_subquery(),
        0,
    ),
)
_STOCK_OF = _STOCK.where(_I.provider_uuid.in_(bindparam("ids", expanding=True)))
_GENERATIONS = select(_P.uuid, _P.generation)
_ALLOCATIONS_OF = select(*_A).where(_A.consumer_uuid == bindparam("uuid")).order_by(_A.provider_uuid, _A.resource_class)
_ALLOCATIONS_ON = select(*_A).where(_A.provider_uuid == bindparam("uuid")).order_by(_A.consumer_uuid, _A.resource_class)
_DROP_ALLOCATIONS = delete(ALLOCATIONS).where(_A.consumer_uuid == bindparam("uuid"))
_PROJECT_USAGE = (
    select(_C.consumer_type, _A.resource_class, func.sum(_A.used), func.count(distinct(_C.uuid)))
    .join(CONSUMERS, _C.uuid == _A.consumer_uuid)
    .where(_C.project_id == bindparam("project_id"))
    .group_by(_C.consumer_type, _A.resource_class)
)
_PROJECT_CONSUMERS = (
    select(_C.consumer_type, func.count(distinct(_C.uuid)))
    .join(ALLOCATIONS, _C.uuid == _A.consumer_uuid)
    .where(_C.project_id == bindparam("project_id"))
    .group_by(_C.consumer_type)
)

_CONSUMER = select(*_C).where(_C.uuid == bindparam("uuid"))
_CONSUMERS = select(*_C).where(_C.uuid.in_(_uuids))
_DROP_CONSUMER = delete(CONSUMERS).where(_C.uuid == bindparam("uuid"))
_UPDATE_CONSUMER = (
    update(CONSUMERS)
    .where(_C.uuid == bindparam("the_uuid"), _C.generation == bindparam("the_generation"))
    .values(
        project_id=bindparam("project_id"),
        user_id=bindparam("user_id"),
        consumer_type=bindparam("consumer_type"),
        generation=_C.generation + 1,
        updated_at=bindparam("now"),
    )
)

_ALL_TRAITS_OF = select(PROVIDER_TRAITS.c.provider_uuid, PROVIDER_TRAITS.c.trait)
_TRAITS_OF = select(PROVIDER_TRAITS.c.trait).where(PROVIDER_TRAITS.c.provider_uuid == bindparam("uuid"))
_DROP_TRAITS_OF = delete(PROVIDER_TRAITS).where(PROVIDER_TRAITS.c.provider_uuid == bindparam("uuid"))
_TRAIT_USED = select(PROVIDER_TRAITS.c.provider_uuid).where(PROVIDER_TRAITS.c.trait == bindparam("name")).limit(1)
_TRAITS_USED = select(PROVIDER_TRAITS.c.trait).distinct()
_ALL_AGGREGATES_OF = select(PROVIDER_AGGREGATES.c.provider_uuid, PROVIDER_AGGREGATES.c.aggregate_uuid)
_AGGREGATES_OF = (
    select(PROVIDER_AGGREGATES.c.aggregate_uuid)
    .where(PROVIDER_AGGREGATES.c.provider_uuid == bindparam("uuid"))
    .order_by(PROVIDER_AGGREGATES.c.aggregate_uuid)
)
_DROP_AGGREGATES_OF = delete(PROVIDER_AGGREGATES).where(PROVIDER_AGGREGATES.c.provider_uuid == bindparam("uuid"))

_CUSTOM_TRAITS = select(TRAITS.c.name, TRAITS.c.updated_at).order_by(TRAITS.c.name)
_DROP_TRAIT = delete(TRAITS).where(TRAITS.c.name == bindparam("name"))
_CUSTOM_CLASSES = select(RESOURCE_CLASSES.c.name, RESOURCE_CLASSES.c.updated_at).order_by(RESOURCE_CLASSES.c.name)
_DROP_CLASS = delete(RESOURCE_CLASSES).where(RESOURCE_CLASSES.c.name == bindparam("name"))
_RENAME_CLASS = (
    update(RESOURCE_CLASSES)
    .where(RESOURCE_CLASSES.c.name == bindparam("old"))
    .values(name=bindparam("new"), updated_at=bindparam("now"))
)
_RENAME_CLASS_IN_INVENTORIES = (
    update(INVENTORIES).where(_I.resource_class == bindparam("old")).values(resource_class=bindparam("new"))
)
_RENAME_CLASS_IN_ALLOCATIONS = (
    update(ALLOCATIONS).where(_A.resource_class == bindparam("old")).values(resource_class=bindparam("new"))
)


# -- providers ------------------------------------------------------------------------------------------------------


def providers(tx: Tx) -> list[ProviderRow]:
    return [ProviderRow(*row) for row in tx.rows(_PROVIDERS)]


def provider(tx: Tx, uuid: str) -> ProviderRow | None:
    row = tx.first(_PROVIDER, {"uuid": uuid})
    return None if row is None else ProviderRow(*row)


def provider_named(tx: Tx, name: str) -> ProviderRow | None:
    row = tx.first(_PROVIDER_NAMED, {"name": name})
    return None if row is None else ProviderRow(*row)


def has_children(tx: Tx, uuid: str) -> bool:
    return tx.first(_CHILDREN, {"uuid": uuid}) is not None


def insert_provider(tx: Tx, row: ProviderRow) -> None:
    tx.insert(PROVIDERS, msgspec.structs.asdict(row))


def bump(tx: Tx, uuid: str, generation: int | None = None) -> bool:
    """Raise a provider's generation, if it is still ``generation``."""
    if generation is None:
        return tx.run(_BUMP_ANY, {"the_uuid": uuid, "now": tx.now}) == 1
    return tx.run(_BUMP, {"the_uuid": uuid, "the_generation": generation, "now": tx.now}) == 1


def bump_all(tx: Tx, uuids: Sequence[str]) -> None:
    tx.run(_BUMP_ALL, {"uuids": list(uuids), "now": tx.now})


def rename_provider(tx: Tx, uuid: str, name: str) -> None:
    tx.run(_RENAME, {"the_uuid": uuid, "name": name, "now": tx.now})


def adopt(tx: Tx, uuid: str, parent: str | None, root: str) -> None:
    tx.run(_ADOPT, {"the_uuid": uuid, "parent": parent, "root": root, "now": tx.now})


def reroot(tx: Tx, uuid: str, root: str) -> None:
    tx.run(_REROOT, {"the_uuid": uuid, "root": root})


def drop_provider(tx: Tx, uuid: str) -> None:
    for statement in (_DROP_INVENTORIES, _DROP_TRAITS_OF, _DROP_AGGREGATES_OF, _DROP_PROVIDER):
        tx.run(statement, {"uuid": uuid})


# -- inventories and usage -----------------------------------------------------------------------------------------


def inventories(tx: Tx, uuid: str) -> dict[str, InventoryRow]:
    return {row[1]: InventoryRow(*row) for row in tx.rows(_INVENTORIES, {"uuid": uuid})}


def all_inventories(tx: Tx) -> dict[str, dict[str, InventoryRow]]:
    found: dict[str, dict[str, InventoryRow]] = {}
    for row in tx.rows(_ALL_INVENTORIES):
        found.setdefault(row[0], {})[row[1]] = InventoryRow(*row)
    return found


def replace_inventories(tx: Tx, uuid: str, rows: Iterable[InventoryRow]) -> None:
    tx.run(_DROP_INVENTORIES, {"uuid": uuid})
    tx.insert(INVENTORIES, [msgspec.structs.asdict(row) for row in rows])


def drop_inventory(tx: Tx, uuid: str, name: str) -> bool:
    return tx.run(_DROP_INVENTORY, {"uuid": uuid, "name": name}) == 1


def usage(tx: Tx, uuid: str) -> dict[str, int]:
    return {row[0]: int(row[1]) for row in tx.rows(_USAGE, {"uuid": uuid})}


def all_usage(tx: Tx) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for uuid, name, used in tx.rows(_ALL_USAGE):
        found.setdefault(uuid, {})[name] = int(used)
    return found


def generations(tx: Tx) -> dict[str, int]:
    return {row[0]: row[1] for row in tx.rows(_GENERATIONS)}


def stock(tx: Tx, uuids: Sequence[str] | None = None) -> dict[str, tuple[dict[str, InventoryRow], dict[str, int]]]:
    """Provider -> (inventories, what of them is used), in one statement."""
    found: dict[str, tuple[dict[str, InventoryRow], dict[str, int]]] = {}
    rows = tx.rows(_STOCK) if uuids is None else tx.rows(_STOCK_OF, {"ids": list(uuids)})
    for *inventory, used in rows:
        inventories, uses = found.setdefault(inventory[0], ({}, {}))
        inventories[inventory[1]], uses[inventory[1]] = InventoryRow(*inventory), int(used)
    return found


def project_usage(tx: Tx, project_id: str, user_id: str | None) -> list[tuple[str | None, str, int, int]]:
    """(consumer type, resource class, used, consumers of that type that use that class)"""
    statement, params = _PROJECT_USAGE, {"project_id": project_id}
    if user_id is not None:
        statement, params = _PROJECT_USER_USAGE, {"project_id": project_id, "user_id": user_id}
    return [(row[0], row[1], int(row[2]), int(row[3])) for row in tx.rows(statement, params)]


def project_consumers(tx: Tx, project_id: str, user_id: str | None) -> dict[str | None, int]:
    statement, params = _PROJECT_CONSUMERS, {"project_id": project_id}
    if user_id is not None:
        statement, params = _PROJECT_USER_CONSUMERS, {"project_id": project_id, "user_id": user_id}
    return {row[0]: int(row[1]) for row in tx.rows(statement, params)}


_PROJECT_USER_USAGE = _PROJECT_USAGE.where(_C.user_id == bindparam("user_id"))
_PROJECT_USER_CONSUMERS = _PROJECT_CONSUMERS.where(_C.user_id == bindparam("user_id"))


# -- consumers and allocations -----------------------------------------------------------------------------------------


def consumer(tx: Tx, uuid: str) -> ConsumerRow | None:
    row = tx.first(_CONSUMER, {"uuid": uuid})
    return None if row is None else ConsumerRow(*row)


def consumers(tx: Tx, uuids: Sequence[str]) -> dict[str, ConsumerRow]:
    if not uuids:
        return {}
    return {row[0]: ConsumerRow(*row) for row in tx.rows(_CONSUMERS, {"uuids": list(uuids)})}


def insert_consumer(tx: Tx, row: ConsumerRow) -> None:
    insert_consumers(tx, [row])


def insert_consumers(tx: Tx, rows: Sequence[ConsumerRow]) -> None:
    tx.insert(CONSUMERS, [msgspec.structs.asdict(row) for row in rows])


def update_consumer(tx: Tx, row: ConsumerRow, generation: int) -> bool:
    values = {
        "the_uuid": row.uuid, "the_generation": generation, "project_id": row.project_id, "user_id": row.user_id,
        "consumer_type": row.consumer_type, "now": tx.now,
    }  # fmt: skip
    return tx.run(_UPDATE_CONSUMER, values) == 1


def drop_consumer(tx: Tx, uuid: str) -> None:
    tx.run(_DROP_CONSUMER, {"uuid": uuid})


def allocations_of(tx: Tx, consumer_uuid: str) -> list[AllocationRow]:
    return [AllocationRow(*row) for row in tx.rows(_ALLOCATIONS_OF, {"uuid": consumer_uuid})]


def allocations_on(tx: Tx, provider_uuid: str) -> list[AllocationRow]:
    return [AllocationRow(*row) for row in tx.rows(_ALLOCATIONS_ON, {"uuid": provider_uuid})]


def insert_allocations(tx: Tx, consumer_uuid: str, wanted: Mapping[str, Mapping[str, int]]) -> None:
    insert_allocations_of(tx, {consumer_uuid: wanted})


def insert_allocations_of(tx: Tx, wanted: Mapping[str, Mapping[str, Mapping[str, int]]]) -> None:
    """Consumer -> provider -> resource class -> amount."""
    rows: list[dict[str, Any]] = [
        {
            "consumer_uuid": consumer, "provider_uuid": uuid, "resource_class": name, "used": amount,
            "updated_at": tx.now,
        }
        for consumer, providers in wanted.items()
        for uuid, resources in providers.items()
        for name, amount in resources.items()
    ]  # fmt: skip
    tx.insert(ALLOCATIONS, rows)


def drop_allocations(tx: Tx, consumer_uuid: str) -> int:
    return tx.run(_DROP_ALLOCATIONS, {"uuid": consumer_uuid})


# -- traits, classes, aggregates ------------------------------------------------------------------------------------


def traits_of(tx: Tx, uuid: str) -> list[str]:
    return sorted(row[0] for row in tx.rows(_TRAITS_OF, {"uuid": uuid}))


def all_traits_of(tx: Tx) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for uuid, trait in tx.rows(_ALL_TRAITS_OF):
        found.setdefault(uuid, set()).add(trait)
    return found


def replace_traits(tx: Tx, uuid: str, traits: Iterable[str]) -> None:
    tx.run(_DROP_TRAITS_OF, {"uuid": uuid})
    tx.insert(PROVIDER_TRAITS, [{"provider_uuid": uuid, "trait": trait} for trait in sorted(set(traits))])


def trait_used(tx: Tx, name: str) -> bool:
    return tx.first(_TRAIT_USED, {"name": name}) is not None


def traits_used(tx: Tx) -> set[str]:
    return {row[0] for row in tx.rows(_TRAITS_USED)}


def custom_traits(tx: Tx) -> dict[str, int]:
    return {row[0]: row[1] for row in tx.rows(_CUSTOM_TRAITS)}


def insert_trait(tx: Tx, name: str) -> None:
    tx.insert(TRAITS, {"name": name, "updated_at": tx.now})


def drop_trait(tx: Tx, name: str) -> bool:
    return tx.run(_DROP_TRAIT, {"name": name}) == 1


def custom_classes(tx: Tx) -> dict[str, int]:
    return {row[0]: row[1] for row in tx.rows(_CUSTOM_CLASSES)}


def insert_class(tx: Tx, name: str) -> None:
    tx.insert(RESOURCE_CLASSES, {"name": name, "updated_at": tx.now})


def drop_class(tx: Tx, name: str) -> bool:
    return tx.run(_DROP_CLASS, {"name": name}) == 1


def class_used(tx: Tx, name: str) -> bool:
    return tx.first(_CLASS_IN_INVENTORY, {"name": name}) is not None


def rename_class(tx: Tx, old: str, new: str) -> None:
    tx.run(_RENAME_CLASS, {"old": old, "new": new, "now": tx.now})
    tx.run(_RENAME_CLASS_IN_INVENTORIES, {"old": old, "new": new})
    tx.run(_RENAME_CLASS_IN_ALLOCATIONS, {"old": old, "new": new})


def aggregates_of(tx: Tx, uuid: str) -> list[str]:
    return [row[0] for row in tx.rows(_AGGREGATES_OF, {"uuid": uuid})]


def all_aggregates_of(tx: Tx) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for uuid, aggregate in tx.rows(_ALL_AGGREGATES_OF):
        found.setdefault(uuid, set()).add(aggregate)
    return found


def replace_aggregates(tx: Tx, uuid: str, aggregates: Iterable[str]) -> None:
    tx.run(_DROP_AGGREGATES_OF, {"uuid": uuid})
    tx.insert(PROVIDER_AGGREGATES, [{"provider_uuid": uuid, "aggregate_uuid": one} for one in sorted(set(aggregates))])
