"""Allocations as API clients write them: several consumers and providers at once, all or nothing."""

from collections.abc import Mapping, Sequence

import msgspec

from cumulet.db import Tx
from cumulet.kernel.errors import BadInput, Conflict, NotFound
from cumulet.services.placement import names, store
from cumulet.services.placement.editing import CONCURRENT
from cumulet.services.placement.public import NoCapacity, PlacementService
from cumulet.services.placement.store import ConsumerRow

NOBODY = "00000000-0000-0000-0000-000000000000"  # project and user of consumers written before 1.8


class ConsumerClaim(msgspec.Struct, kw_only=True):
    """``generation`` is only looked at with ``check_generation``: None then means that the consumer is new."""

    consumer: str
    allocations: Mapping[str, Mapping[str, int]]
    project_id: str = NOBODY
    user_id: str = NOBODY
    consumer_type: str | None = None
    keep_type: bool = True  # the request's version does not know types
    generation: int | None = None
    check_generation: bool = False


def write(tx: Tx, placement: PlacementService, claims: Sequence[ConsumerClaim]) -> None:
    """Conflict when a generation is another one by now, or something does not fit."""
    providers = sorted({uuid for claim in claims for uuid in claim.allocations})
    for uuid in providers:
        tx.lock("resource_provider", uuid)
    for consumer in sorted(claim.consumer for claim in claims):
        tx.lock("consumer", consumer)
    for uuid in providers:
        if store.provider(tx, uuid) is None:
            raise BadInput(f"Allocation for resource provider '{uuid}' that does not exist.")
    names.check_classes(tx, {n for claim in claims for part in claim.allocations.values() for n in part})
    consumers = {claim.consumer: _consumer(tx, claim) for claim in claims}
    # what is given back first makes room for what is taken
    for claim in claims:
        held = {row.provider_uuid for row in store.allocations_of(tx, claim.consumer)}
        store.drop_allocations(tx, claim.consumer)
        for uuid in sorted(held - claim.allocations.keys()):
            store.bump(tx, uuid)
    for claim in claims:
        for uuid, resources in claim.allocations.items():
            try:
                placement.check(tx, uuid, resources)
            except NoCapacity as error:
                raise Conflict(f"Unable to allocate inventory: {error.message}", **error.details) from error
        store.insert_allocations(tx, claim.consumer, claim.allocations)
        _note(tx, claim, consumers[claim.consumer])
    for uuid in providers:
        store.bump(tx, uuid)


def _consumer(tx: Tx, claim: ConsumerClaim) -> ConsumerRow | None:
    found = store.consumer(tx, claim.consumer)
    if claim.check_generation:
        expected = None if found is None else found.generation
        if claim.generation != expected:
            raise Conflict(
                f"Consumer generation conflict for {claim.consumer}: expected {expected}, got {claim.generation}.",
                code=CONCURRENT,
            )
    return found


def _note(tx: Tx, claim: ConsumerClaim, found: ConsumerRow | None) -> None:
    if not claim.allocations:
        store.drop_consumer(tx, claim.consumer)
        return
    kind = found.consumer_type if found is not None and claim.keep_type else claim.consumer_type
    row = ConsumerRow(claim.consumer, claim.project_id, claim.user_id, kind, 1, tx.now)
    if found is None:
        store.insert_consumer(tx, row)
        return
    if claim.project_id == NOBODY:
        row.project_id, row.user_id = found.project_id, found.user_id
    if not store.update_consumer(tx, row, found.generation):
        raise Conflict(f"Consumer {claim.consumer} was changed meanwhile.", code=CONCURRENT)


def remove(tx: Tx, placement: PlacementService, consumer: str) -> None:
    tx.lock("consumer", consumer)
    if not store.allocations_of(tx, consumer):
        raise NotFound(f"No allocations for consumer '{consumer}'.")
    placement.release(tx, consumer)
