"""What every provider has and what of it is used, kept in memory by the provider's generation.

Every change of a provider's inventories or allocations raises its generation, in the same transaction. So one statement
tells which of thousands of providers changed since the last look, and only those are read again. What a transaction
read after writing something itself is not kept: it might be rolled back.
"""

import threading
from collections.abc import Mapping
from typing import NamedTuple

from cumulet.db import Tx
from cumulet.services.placement import store
from cumulet.services.placement.store import InventoryRow

_MANY = 200  # more that changed are read in one go with all others


class Shelf(NamedTuple):
    """One provider's. ``free``: shares of memory, processors and disk that are left, weighed; more is better."""

    inventories: dict[str, InventoryRow]
    used: dict[str, int]  # not to be changed: it is shared
    free: float


_EMPTY = Shelf({}, {}, 0.0)


def free_share(inventories: Mapping[str, InventoryRow], used: Mapping[str, int]) -> float:
    free = 0.0
    for name, factor in (("MEMORY_MB", 1.0), ("VCPU", 0.5), ("DISK_GB", 0.25)):
        inventory = inventories.get(name)
        if inventory is not None and inventory.capacity > 0:
            free += factor * (inventory.capacity - used.get(name, 0)) / inventory.capacity
    return free


class Stock:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[str, tuple[int, Shelf]] = {}  # provider -> (generation, what it has)

    def read(self, tx: Tx) -> dict[str, Shelf]:
        """Provider -> what it has. In two statements at most."""
        clean = tx.written == 0
        generations = store.generations(tx)
        with self._lock:
            known = dict(self._known)
        stale = [uuid for uuid, generation in generations.items() if known.get(uuid, _NEVER)[0] != generation]
        if stale:
            found = store.stock(tx, stale if len(stale) <= _MANY else None)
            for uuid in stale:
                inventories, used = found.get(uuid, ({}, {}))
                known[uuid] = (generations[uuid], Shelf(inventories, used, free_share(inventories, used)))
        if clean and (stale or len(known) > len(generations)):
            with self._lock:
                self._known = {uuid: known[uuid] for uuid in generations}
        return {uuid: known[uuid][1] for uuid in generations}


_NEVER = (-1, _EMPTY)
