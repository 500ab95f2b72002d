"""`PlacementService`: what other services call, always in their own transaction.

Everything that changes who uses what of a provider holds the lock of that provider and raises its generation, so that
two claims cannot both take the last free part, on either database.
Fails: with `NoCapacity` when a claim does not fit, saying what is missing.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from cumulet.db import Database, Tx
from cumulet.kernel.errors import Conflict, NotFound
from cumulet.services.placement import store
from cumulet.services.placement.stock import Shelf, Stock
from cumulet.services.placement.store import ConsumerRow, InventoryRow, ProviderRow

MAX_UNIT = 2_147_483_647


class NoCapacity(Conflict):
    """A provider has not (any more) what is wanted; ``details["missing"]`` says what."""


class PlacementService:
    """The ratios and reservations are those of compute hosts' providers."""

    def __init__(
        self,
        db: Database,
        *,
        cpu_allocation_ratio: float = 16.0,
        ram_allocation_ratio: float = 1.5,
        disk_allocation_ratio: float = 1.0,
        reserved_memory_mb: int = 512,
    ) -> None:
        self.db = db
        self._stock = Stock()
        self._cpu_ratio = cpu_allocation_ratio
        self._ram_ratio = ram_allocation_ratio
        self._disk_ratio = disk_allocation_ratio
        self._reserved_memory_mb = reserved_memory_mb

    # -- hosts ----------------------------------------------------------------------------------------------------

    def sync_host(self, tx: Tx, host: Any) -> None:
        """Listener of the host registry: a compute host's provider follows what the host offers."""
        if "compute" not in host.roles:
            return
        resources = host.resources
        reserved = min(self._reserved_memory_mb, max(resources.memory_mb - 1, 0))
        inventories: dict[str, dict[str, Any]] = {}
        if resources.vcpus > 0:
            inventories["VCPU"] = {
                "total": resources.vcpus, "max_unit": resources.vcpus, "allocation_ratio": self._cpu_ratio,
            }  # fmt: skip
        if resources.memory_mb > 0:
            inventories["MEMORY_MB"] = {
                "total": resources.memory_mb, "max_unit": resources.memory_mb, "reserved": reserved,
                "allocation_ratio": self._ram_ratio,
            }  # fmt: skip
        if resources.local_gb > 0:
            inventories["DISK_GB"] = {
                "total": resources.local_gb, "max_unit": resources.local_gb, "allocation_ratio": self._disk_ratio,
            }  # fmt: skip
        self.sync_provider(tx, host.name, host.uuid, inventories)

    def sync_provider(
        self, tx: Tx, host_name: str, uuid: str, inventories: Mapping[str, Mapping[str, Any]]
    ) -> ProviderRow:
        """Make the provider of a host, or bring its inventories up to date. What operators set themselves by the API of
        other resource classes stays."""
        tx.lock("resource_provider", uuid)
        found = store.provider(tx, uuid)
        if found is None:
            found = ProviderRow(uuid, host_name, 0, None, uuid, tx.now, tx.now)
            store.insert_provider(tx, found)
        elif found.name != host_name:
            store.rename_provider(tx, uuid, host_name)
        have = store.inventories(tx, uuid)
        want = {name: self._inventory(tx, uuid, name, values) for name, values in inventories.items()}
        merged = {**have, **want}
        if {k: _facts(v) for k, v in merged.items()} != {k: _facts(v) for k, v in have.items()}:
            store.replace_inventories(tx, uuid, merged.values())
            store.bump(tx, uuid)
        return store.provider(tx, uuid) or found

    def remove_provider(self, tx: Tx, uuid: str) -> None:
        """A host is gone for good. Conflict while something is allocated on it."""
        tx.lock("resource_provider", uuid)
        if store.allocations_on(tx, uuid):
            raise Conflict(f"Resource provider {uuid} has allocations.", code="placement.resource_provider.inuse")
        store.drop_provider(tx, uuid)

    def _inventory(self, tx: Tx, uuid: str, name: str, values: Mapping[str, Any]) -> InventoryRow:
        return InventoryRow(
            uuid,
            name,
            values["total"],
            values.get("reserved", 0),
            values.get("min_unit", 1),
            values.get("max_unit", MAX_UNIT),
            values.get("step_size", 1),
            values.get("allocation_ratio", 1.0),
            tx.now,
        )

    # -- claims ---------------------------------------------------------------------------------------------------

    def claim(
        self,
        tx: Tx,
        consumer_id: str,
        provider_uuid: str,
        resources: Mapping[str, int],
        project_id: str,
        user_id: str,
        *,
        consumer_type: str = "INSTANCE",
    ) -> None:
        """Give a consumer these resources of one provider, instead of whatever it had. NoCapacity if they are not
        there, NotFound without such a provider. Claiming the same twice is claiming it once."""
        self.claim_many(tx, consumer_id, {provider_uuid: resources}, project_id, user_id, consumer_type=consumer_type)

    def claim_new(
        self,
        tx: Tx,
        places: Mapping[str, str],
        resources: Mapping[str, int],
        project_id: str,
        user_id: str,
        *,
        checked: bool,
    ) -> None:
        """The same resources for each of several consumers that had nothing (consumer -> provider), in three
        statements. The caller holds the providers' locks; ``checked``: and has found room for all of them."""
        resources = {name: amount for name, amount in resources.items() if amount}
        if not resources:
            return
        if not checked:
            for uuid, number in sorted(Counter(places.values()).items()):
                self.check(tx, uuid, {name: amount * number for name, amount in resources.items()})
        store.insert_allocations_of(tx, {consumer: {uuid: resources} for consumer, uuid in places.items()})
        store.bump_all(tx, sorted(set(places.values())))
        store.insert_consumers(tx, [ConsumerRow(c, project_id, user_id, "INSTANCE", 1, tx.now) for c in places])

    def claim_many(
        self,
        tx: Tx,
        consumer_id: str,
        wanted: Mapping[str, Mapping[str, int]],
        project_id: str,
        user_id: str,
        *,
        consumer_type: str | None = "INSTANCE",
    ) -> None:
        """As ``claim``, of several providers (a move: source and destination)."""
        wanted = {uuid: {n: a for n, a in part.items() if a} for uuid, part in wanted.items()}
        wanted = {uuid: part for uuid, part in wanted.items() if part}
        for uuid in sorted(wanted):
            tx.lock("resource_provider", uuid)
        tx.lock("consumer", consumer_id)
        self.replace_allocations(tx, consumer_id, wanted)
        if wanted:
            self.note_consumer(tx, consumer_id, project_id, user_id, consumer_type)
        else:
            store.drop_consumer(tx, consumer_id)

    def replace_allocations(self, tx: Tx, consumer_id: str, wanted: Mapping[str, Mapping[str, int]]) -> None:
        """The caller holds the locks of the providers named in ``wanted``."""
        before = {row.provider_uuid for row in store.allocations_of(tx, consumer_id)}
        store.drop_allocations(tx, consumer_id)
        for uuid, resources in wanted.items():
            self.check(tx, uuid, resources)
        store.insert_allocations(tx, consumer_id, wanted)
        for uuid in sorted(before | set(wanted)):
            store.bump(tx, uuid)

    def check(self, tx: Tx, uuid: str, resources: Mapping[str, int]) -> None:
        """Raise unless the provider has this much free now."""
        inventories = store.inventories(tx, uuid)
        if not inventories and store.provider(tx, uuid) is None:
            raise NotFound(
                f"No resource provider with uuid {uuid} found.", code="placement.resource_provider.not_found"
            )
        used = store.usage(tx, uuid)
        missing = []
        for name, amount in resources.items():
            inventory = inventories.get(name)
            if inventory is None:
                missing.append(f"{name}: the provider has none")
            else:
                reason = inventory.why_not(amount, used.get(name, 0))
                if reason is not None:
                    missing.append(reason)
        if missing:
            raise NoCapacity(
                f"Unable to allocate from resource provider {uuid}: {'; '.join(missing)}.",
                missing=missing,
                provider=uuid,
            )

    def note_consumer(
        self, tx: Tx, consumer_id: str, project_id: str, user_id: str, consumer_type: str | None
    ) -> ConsumerRow:
        """Insert or update the consumer, raising its generation."""
        found = store.consumer(tx, consumer_id)
        row = ConsumerRow(consumer_id, project_id, user_id, consumer_type, 1, tx.now)
        if found is None:
            store.insert_consumer(tx, row)
            return row
        row.generation = found.generation + 1
        if not store.update_consumer(tx, row, found.generation):
            raise Conflict(f"Consumer {consumer_id} was changed meanwhile.", code="placement.concurrent_update")
        return row

    def hand_over(self, tx: Tx, consumer_id: str, other_id: str, *, consumer_type: str) -> None:
        """What the consumer has is the other's, which has nothing (a server that moves leaves what it takes of its host
        to its migration, and gets it back). Idempotent."""
        held, owner = self.allocations(tx, consumer_id), store.consumer(tx, consumer_id)
        if not held or owner is None:
            return
        self.claim_many(tx, consumer_id, {}, owner.project_id, owner.user_id)
        for uuid in sorted(held):
            tx.lock("resource_provider", uuid)
        store.insert_allocations(tx, other_id, held)
        self.note_consumer(tx, other_id, owner.project_id, owner.user_id, consumer_type)

    def release(self, tx: Tx, consumer_id: str) -> None:
        """Give back whatever the consumer has; nothing is fine too."""
        tx.lock("consumer", consumer_id)
        held = {row.provider_uuid for row in store.allocations_of(tx, consumer_id)}
        if held:
            store.drop_allocations(tx, consumer_id)
            for uuid in sorted(held):
                store.bump(tx, uuid)
        store.drop_consumer(tx, consumer_id)

    # -- asking ---------------------------------------------------------------------------------------------------

    def usages(self, tx: Tx, provider_uuid: str) -> dict[str, int]:
        """Resource class -> used, of one provider."""
        return store.usage(tx, provider_uuid)

    def all_usages(self, tx: Tx) -> dict[str, dict[str, int]]:
        """Provider -> resource class -> used."""
        return store.all_usage(tx)

    def inventories(self, tx: Tx) -> dict[str, dict[str, InventoryRow]]:
        """Provider -> resource class -> inventory."""
        return store.all_inventories(tx)

    def stock(self, tx: Tx) -> dict[str, Shelf]:
        """Provider -> what it has and what of it is used."""
        return self._stock.read(tx)

    def traits(self, tx: Tx) -> dict[str, set[str]]:
        """Provider -> traits."""
        return store.all_traits_of(tx)

    def allocations(self, tx: Tx, consumer_id: str) -> dict[str, dict[str, int]]:
        """Provider -> resource class -> used, of one consumer."""
        found: dict[str, dict[str, int]] = {}
        for row in store.allocations_of(tx, consumer_id):
            found.setdefault(row.provider_uuid, {})[row.resource_class] = row.used
        return found

    def consumers_on(self, tx: Tx, provider_uuid: str) -> Iterable[str]:
        return sorted({row.consumer_uuid for row in store.allocations_on(tx, provider_uuid)})


def _facts(row: InventoryRow) -> tuple[Any, ...]:
    return (row.total, row.reserved, row.min_unit, row.max_unit, row.step_size, row.allocation_ratio)
