"""Allocation candidates: which providers could together satisfy groups of wanted resources.

A pure function of a `World` (everything placement knows, read once) and a request. One candidate lives in one tree of
providers and those that share with it (trait MISC_SHARES_VIA_AGGREGATE, an aggregate in common with a provider of the
tree). The group without suffix may be spread over providers; each numbered group comes from one provider.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice, product

import msgspec

from cumulet.db import Tx
from cumulet.services.placement import store
from cumulet.services.placement.query import Aggregates, Traits
from cumulet.services.placement.store import InventoryRow, ProviderRow

SHARING = "MISC_SHARES_VIA_AGGREGATE"
MOST = 20_000  # combinations looked at, whatever is asked for


class Group(msgspec.Struct, kw_only=True):
    suffix: str
    resources: dict[str, int] = {}
    required: Traits
    member_of: Aggregates
    in_tree: str | None = None


class Request(msgspec.Struct, kw_only=True):
    groups: list[Group]
    isolate: bool = False
    subtrees: list[set[str]] = []  # suffixes whose providers must be below one of them
    root_required: Traits
    limit: int | None = None
    nested: bool = True  # before 1.29 only root providers count


class World(msgspec.Struct):
    providers: dict[str, ProviderRow]
    inventories: Mapping[str, Mapping[str, InventoryRow]]
    used: Mapping[str, Mapping[str, int]]
    traits: Mapping[str, set[str]]
    aggregates: Mapping[str, set[str]]

    def fits(self, uuid: str, name: str, amount: int) -> bool:
        inventory = self.inventories.get(uuid, {}).get(name)
        return inventory is not None and inventory.why_not(amount, self.used.get(uuid, {}).get(name, 0)) is None

    def ancestors(self, uuid: str) -> Iterator[str]:
        """Itself first."""
        row = self.providers.get(uuid)
        while row is not None:
            yield row.uuid
            row = self.providers.get(row.parent_uuid) if row.parent_uuid else None


class Candidate(msgspec.Struct):
    allocations: dict[str, dict[str, int]]  # provider -> class -> amount
    mappings: dict[str, list[str]]  # suffix -> providers


def read_world(tx: Tx) -> World:
    return World(
        {row.uuid: row for row in store.providers(tx)},
        store.all_inventories(tx),
        store.all_usage(tx),
        store.all_traits_of(tx),
        store.all_aggregates_of(tx),
    )


def find(world: World, request: Request) -> list[Candidate]:
    found: list[Candidate] = []
    seen: set[bytes] = set()
    for candidate in islice(_all(world, request), MOST):
        key = msgspec.json.encode(
            [
                sorted((uuid, sorted(part.items())) for uuid, part in candidate.allocations.items()),
                sorted((suffix, sorted(uuids)) for suffix, uuids in candidate.mappings.items()),
            ]
        )
        if key in seen:
            continue
        seen.add(key)
        found.append(candidate)
        if request.limit is not None and len(found) >= request.limit:
            break
    return found


def _all(world: World, request: Request) -> Iterator[Candidate]:
    trees: dict[str, list[str]] = {}
    for row in world.providers.values():
        if request.nested or row.parent_uuid is None:
            trees.setdefault(row.root_uuid, []).append(row.uuid)
    for root, tree in trees.items():
        if not request.root_required.met_by(world.traits.get(root, set())):
            continue
        usable = [*tree, *_sharing(world, tree)]
        choices = [list(islice(_choices(world, request, group, tree, usable), MOST)) for group in request.groups]
        for combination in islice(product(*choices), MOST):
            candidate = _combine(world, request, tree, combination)
            if candidate is not None:
                yield candidate


def _sharing(world: World, tree: Iterable[str]) -> list[str]:
    tree = set(tree)
    aggregates = set().union(*(world.aggregates.get(uuid, set()) for uuid in tree))
    return [
        uuid
        for uuid in world.providers
        if uuid not in tree
        and SHARING in world.traits.get(uuid, set())
        and world.aggregates.get(uuid, set()) & aggregates
    ]


Choice = dict[str, str]  # resource class -> provider; "" -> provider of a group without resources


def _choices(world: World, request: Request, group: Group, tree: list[str], usable: list[str]) -> Iterator[Choice]:
    allowed = [uuid for uuid in usable if _allowed(world, group, uuid)]
    if group.suffix:
        for uuid in allowed:
            if not group.required.met_by(world.traits.get(uuid, set())):
                continue
            if all(world.fits(uuid, name, amount) for name, amount in group.resources.items()):
                yield dict.fromkeys(group.resources, uuid) if group.resources else {"": uuid}
        return
    names = list(group.resources)
    options = [[uuid for uuid in allowed if world.fits(uuid, name, group.resources[name])] for name in names]
    for chosen in islice(product(*options), MOST):
        together = set().union(*(world.traits.get(uuid, set()) for uuid in chosen))
        if group.required.met_by(together) and any(uuid in tree for uuid in chosen):
            yield dict(zip(names, chosen, strict=True))


def _allowed(world: World, group: Group, uuid: str) -> bool:
    if group.in_tree is not None:
        wanted = world.providers.get(group.in_tree)
        if wanted is None or world.providers[uuid].root_uuid != wanted.root_uuid:
            return False
    aggregates = world.aggregates.get(uuid, set())
    root = world.aggregates.get(world.providers[uuid].root_uuid, set())
    # an aggregate of the root spans its tree, for the group without suffix
    return group.member_of.met_by(aggregates if group.suffix else aggregates | root)


def _combine(world: World, request: Request, tree: list[str], combination: tuple[Choice, ...]) -> Candidate | None:
    allocations: dict[str, dict[str, int]] = {}
    mappings: dict[str, list[str]] = {}
    numbered: list[str] = []
    for group, choice in zip(request.groups, combination, strict=True):
        mappings[group.suffix] = sorted(set(choice.values()))
        if group.suffix and group.resources:
            numbered.append(mappings[group.suffix][0])
        for name, uuid in choice.items():
            if name:
                part = allocations.setdefault(uuid, {})
                part[name] = part.get(name, 0) + group.resources[name]
    if request.isolate and len(set(numbered)) != len(numbered):
        return None
    if not any(uuid in tree for uuid in allocations):
        return None
    for uuid, part in allocations.items():
        if not all(world.fits(uuid, name, amount) for name, amount in part.items()):
            return None  # groups that fit alone and not together
    for suffixes in request.subtrees:
        uuids = {uuid for suffix in suffixes for uuid in mappings.get(suffix, [])}
        if not any(all(top in set(world.ancestors(uuid)) for uuid in uuids) for top in uuids):
            return None
    return Candidate(allocations, mappings)


def summarised(world: World, candidates: Iterable[Candidate], request: Request) -> list[str]:
    """The providers to tell of: those used; from 1.29 on whole trees of them."""
    used = {uuid for candidate in candidates for uuid in candidate.allocations}
    used |= {uuid for candidate in candidates for uuids in candidate.mappings.values() for uuid in uuids}
    if not request.nested:
        return sorted(used)
    roots = {world.providers[uuid].root_uuid for uuid in used}
    return sorted(uuid for uuid, row in world.providers.items() if row.root_uuid in roots)
