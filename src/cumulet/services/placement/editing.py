"""Changes that operators make to providers, inventories, traits and aggregates, each in the caller's transaction.

A change that names a generation fails with 409 when the provider is at another one by now.
"""

from collections.abc import Iterable, Mapping

from sqlalchemy.exc import IntegrityError

from cumulet.db import Tx
from cumulet.kernel.errors import BadInput, Conflict, NotFound
from cumulet.kernel.ids import new_uuid
from cumulet.services.placement import names, store
from cumulet.services.placement.store import InventoryRow, ProviderRow

CONCURRENT = "placement.concurrent_update"


def provider(tx: Tx, uuid: str) -> ProviderRow:
    found = store.provider(tx, uuid)
    if found is None:
        raise NotFound(f"No resource provider with uuid {uuid} found.", code="placement.resource_provider.not_found")
    return found


def at_generation(tx: Tx, uuid: str, generation: int | None) -> ProviderRow:
    """The provider, locked; Conflict unless it is at this generation."""
    tx.lock("resource_provider", uuid)
    found = provider(tx, uuid)
    if generation is not None and found.generation != generation:
        raise Conflict("The resource provider's generation is another one by now.", code=CONCURRENT)
    return found


def create(tx: Tx, name: str, uuid: str | None, parent: str | None) -> ProviderRow:
    uuid = uuid or new_uuid()
    tx.lock("resource_provider_name", name)
    if store.provider_named(tx, name) is not None:
        raise Conflict(f"A resource provider with the name {name} exists.", code="placement.duplicate_name")
    if store.provider(tx, uuid) is not None:
        raise Conflict(f"A resource provider with the uuid {uuid} exists.", code="placement.duplicate_name")
    root = uuid
    if parent is not None:
        _hold_parent(tx, parent)
        above = store.provider(tx, parent)
        if above is None:
            raise BadInput(f"The parent provider {parent} does not exist.")
        root = above.root_uuid
    row = ProviderRow(uuid, name, 0, parent, root, tx.now, tx.now)
    try:
        store.insert_provider(tx, row)
    except IntegrityError as error:
        raise Conflict(f"A resource provider {name} exists.", code="placement.duplicate_name") from error
    return row


def change(tx: Tx, uuid: str, name: str, parent: str | None, *, keep_parent: bool, may_move: bool) -> ProviderRow:
    found = provider(tx, uuid)
    tx.lock("resource_provider_name", name)
    other = store.provider_named(tx, name)
    if other is not None and other.uuid != uuid:
        raise Conflict(f"A resource provider with the name {name} exists.", code="placement.duplicate_name")
    if name != found.name:
        store.rename_provider(tx, uuid, name)
    if not keep_parent and parent != found.parent_uuid:
        if found.parent_uuid is not None and not may_move:
            raise BadInput("A resource provider that has a parent cannot be given another one.")
        _move(tx, found, parent)
    return provider(tx, uuid)


def _hold_parent(tx: Tx, parent: str | None) -> None:
    """It is not deleted, and the tree it is in stays as it is."""
    tx.lock("resource_provider_tree", "")
    if parent is not None:
        tx.lock("resource_provider", parent)


def _move(tx: Tx, moved: ProviderRow, parent: str | None) -> None:
    _hold_parent(tx, parent)
    everything = {row.uuid: row for row in store.providers(tx)}
    below = {moved.uuid}
    while True:
        more = {row.uuid for row in everything.values() if row.parent_uuid in below} - below
        if not more:
            break
        below |= more
    root = moved.uuid
    if parent is not None:
        if parent not in everything:
            raise BadInput(f"The parent provider {parent} does not exist.")
        if parent in below:
            raise BadInput("A resource provider cannot be below itself.")
        root = everything[parent].root_uuid
    store.adopt(tx, moved.uuid, parent, root)
    for uuid in sorted(below - {moved.uuid}):
        store.reroot(tx, uuid, root)


def remove(tx: Tx, uuid: str) -> None:
    at_generation(tx, uuid, None)
    if store.has_children(tx, uuid):
        raise Conflict(
            f"Resource provider {uuid} has children.", code="placement.resource_provider.cannot_delete_parent"
        )
    if store.allocations_on(tx, uuid):
        raise Conflict(f"Resource provider {uuid} has allocations.", code="placement.resource_provider.inuse")
    store.drop_provider(tx, uuid)


# -- inventories ------------------------------------------------------------------------------------------------------


def check_inventories(tx: Tx, rows: Iterable[InventoryRow], *, full_reserve: bool) -> None:
    rows = list(rows)
    names.check_classes(tx, {row.resource_class for row in rows})
    for row in rows:
        if row.reserved > row.total or (row.reserved == row.total and not full_reserve):
            raise BadInput(f"The reserved value of {row.resource_class} leaves no capacity.")


def set_inventories(
    tx: Tx, uuid: str, generation: int | None, rows: Mapping[str, InventoryRow], *, in_use_matters: bool = True
) -> ProviderRow:
    at_generation(tx, uuid, generation)
    if in_use_matters:
        used = {name for name, amount in store.usage(tx, uuid).items() if amount}
        gone = store.inventories(tx, uuid).keys() - rows.keys()
        if gone & used:
            listed = ", ".join(sorted(gone & used))
            raise Conflict(f"Inventory of {listed} is in use.", code="placement.inventory.inuse")
    store.replace_inventories(tx, uuid, rows.values())
    store.bump(tx, uuid)
    return provider(tx, uuid)


def set_inventory(tx: Tx, uuid: str, generation: int | None, row: InventoryRow, *, new: bool) -> ProviderRow:
    at_generation(tx, uuid, generation)
    have = store.inventories(tx, uuid)
    if new and row.resource_class in have:
        raise Conflict(f"There is inventory of {row.resource_class} already.")
    if not new and row.resource_class not in have:
        raise BadInput(f"There is no inventory of {row.resource_class} to update.")
    return set_inventories(tx, uuid, None, {**have, row.resource_class: row})


def drop_inventory(tx: Tx, uuid: str, name: str) -> None:
    at_generation(tx, uuid, None)
    if store.usage(tx, uuid).get(name):
        raise Conflict(f"Inventory of {name} is in use.", code="placement.inventory.inuse")
    if not store.drop_inventory(tx, uuid, name):
        raise NotFound(f"No inventory of class {name} found for delete.")
    store.bump(tx, uuid)


# -- traits and aggregates -----------------------------------------------------------------------------------------


def set_traits(tx: Tx, uuid: str, generation: int | None, traits: set[str]) -> ProviderRow:
    at_generation(tx, uuid, generation)
    names.check_traits(tx, traits)
    if set(store.traits_of(tx, uuid)) != traits:
        store.replace_traits(tx, uuid, traits)
        store.bump(tx, uuid)
    return provider(tx, uuid)


def set_aggregates(tx: Tx, uuid: str, generation: int | None, aggregates: list[str], *, bump: bool) -> ProviderRow:
    at_generation(tx, uuid, generation)
    store.replace_aggregates(tx, uuid, aggregates)
    if bump:
        store.bump(tx, uuid)
    return provider(tx, uuid)


# -- names ----------------------------------------------------------------------------------------------------------


def make_trait(tx: Tx, name: str) -> bool:
    """True if it is new."""
    if name in names.standard_traits():
        raise BadInput(f"Trait {name} is a standard one.")
    names.check_custom(name)
    tx.lock("trait", name)
    if name in store.custom_traits(tx):
        return False
    store.insert_trait(tx, name)
    return True


def remove_trait(tx: Tx, name: str) -> None:
    if name in names.standard_traits():
        raise BadInput(f"Trait {name} is a standard one and cannot be deleted.")
    tx.lock("trait", name)
    if name not in store.custom_traits(tx):
        raise NotFound(f"No such trait: {name}.")
    if store.trait_used(tx, name):
        raise Conflict(f"Trait {name} is in use.")
    store.drop_trait(tx, name)


def make_class(tx: Tx, name: str) -> bool:
    names.check_custom(name)
    tx.lock("resource_class", name)
    if name in store.custom_classes(tx):
        return False
    store.insert_class(tx, name)
    return True


def rename_class(tx: Tx, old: str, new: str) -> None:
    names.check_custom(new)
    if old in names.standard_classes():
        raise BadInput(f"Resource class {old} is a standard one and cannot be updated.")
    for name in sorted({old, new}):
        tx.lock("resource_class", name)
    custom = store.custom_classes(tx)
    if old not in custom:
        raise NotFound(f"No such resource class: {old}.")
    if new in custom and new != old:
        raise Conflict(f"Resource class {new} exists.")
    store.rename_class(tx, old, new)


def remove_class(tx: Tx, name: str) -> None:
    if name in names.standard_classes():
        raise BadInput(f"Resource class {name} is a standard one and cannot be deleted.")
    tx.lock("resource_class", name)
    if name not in store.custom_classes(tx):
        raise NotFound(f"No such resource class: {name}.")
    if store.class_used(tx, name):
        raise Conflict(f"Resource class {name} is in use.")
    store.drop_class(tx, name)
