"""`PlacementService` as other services use it."""

import threading
from typing import Any

import msgspec
import pytest

from cumulet.agent.contract import HostResources
from cumulet.db import Database
from cumulet.kernel.errors import Conflict, NotFound
from cumulet.kernel.ids import new_uuid
from cumulet.services.placement.public import NoCapacity, PlacementService

INVENTORY = {"VCPU": {"total": 4, "allocation_ratio": 2.0}, "MEMORY_MB": {"total": 100, "reserved": 20}}


class Host(msgspec.Struct):
    name: str
    uuid: str
    roles: list[str]
    resources: HostResources


def test_a_hosts_provider_follows_what_it_offers(db: Database, placement: PlacementService) -> None:
    host = Host("h1", new_uuid(), ["compute"], HostResources(vcpus=4, memory_mb=2048, local_gb=10))
    db.write(lambda tx: placement.sync_host(tx, host))
    found = db.read(placement.inventories)[host.uuid]
    assert (found["VCPU"].capacity, found["MEMORY_MB"].capacity, found["DISK_GB"].capacity) == (64, 2304, 10)
    generation = db.write(lambda tx: placement.sync_provider(tx, "h1", host.uuid, {})).generation
    assert db.write(lambda tx: placement.sync_provider(tx, "renamed", host.uuid, {})).name == "renamed"
    assert db.write(lambda tx: placement.sync_provider(tx, "h1", host.uuid, {})).generation == generation
    tiny = Host("h2", new_uuid(), ["compute"], HostResources(vcpus=1, memory_mb=100, local_gb=0))
    db.write(lambda tx: placement.sync_host(tx, tiny))
    assert db.read(placement.inventories)[tiny.uuid]["MEMORY_MB"].reserved == 99
    storage = Host("h3", new_uuid(), ["storage"], HostResources(vcpus=1, memory_mb=100, local_gb=0))
    db.write(lambda tx: placement.sync_host(tx, storage))
    assert storage.uuid not in db.read(placement.inventories)


def test_claims_are_taken_once_and_given_back(db: Database, placement: PlacementService) -> None:
    uuid, consumer = new_uuid(), new_uuid()
    db.write(lambda tx: placement.sync_provider(tx, "h1", uuid, INVENTORY))
    for _ in range(2):
        db.write(lambda tx: placement.claim(tx, consumer, uuid, {"VCPU": 5, "DISK_GB": 0}, "p", "u"))
    assert db.read(lambda tx: placement.usages(tx, uuid)) == {"VCPU": 5}
    assert db.read(lambda tx: placement.allocations(tx, consumer)) == {uuid: {"VCPU": 5}}
    assert db.read(lambda tx: list(placement.consumers_on(tx, uuid))) == [consumer]
    with pytest.raises(NoCapacity, match="VCPU: 4 wanted, 3 of 8 free"):
        db.write(lambda tx: placement.claim(tx, new_uuid(), uuid, {"VCPU": 4}, "p", "u"))
    with pytest.raises(NoCapacity, match="DISK_GB: the provider has none"):
        db.write(lambda tx: placement.claim(tx, new_uuid(), uuid, {"DISK_GB": 4}, "p", "u"))
    with pytest.raises(NotFound):
        db.write(lambda tx: placement.claim(tx, new_uuid(), new_uuid(), {"VCPU": 4}, "p", "u"))
    with pytest.raises(Conflict):
        db.write(lambda tx: placement.remove_provider(tx, uuid))
    for _ in range(2):
        db.write(lambda tx: placement.release(tx, consumer))
    assert db.read(lambda tx: placement.usages(tx, uuid)) == {}
    db.write(lambda tx: placement.remove_provider(tx, uuid))
    assert uuid not in db.read(placement.inventories)


def test_a_move_holds_both_ends(db: Database, placement: PlacementService) -> None:
    here, there, consumer = new_uuid(), new_uuid(), new_uuid()
    for name, uuid in (("a", here), ("b", there)):
        db.write(lambda tx, n=name, u=uuid: placement.sync_provider(tx, n, u, INVENTORY))
    db.write(lambda tx: placement.claim(tx, consumer, here, {"VCPU": 2}, "p", "u"))
    both = {here: {"VCPU": 2}, there: {"VCPU": 3}}
    db.write(lambda tx: placement.claim_many(tx, consumer, both, "p", "u"))
    assert db.read(lambda tx: placement.allocations(tx, consumer)) == both
    db.write(lambda tx: placement.claim(tx, consumer, there, {"VCPU": 3}, "p", "u"))
    assert db.read(placement.all_usages) == {there: {"VCPU": 3}}


def test_twenty_claims_at_once_on_room_for_ten(db: Database, placement: PlacementService) -> None:
    uuid = new_uuid()
    db.write(lambda tx: placement.sync_provider(tx, "h1", uuid, {"VCPU": {"total": 10}}))
    results: list[Any] = []

    def claim() -> None:
        consumer = new_uuid()
        try:
            db.write(lambda tx: placement.claim(tx, consumer, uuid, {"VCPU": 1}, "p", "u"))
            results.append("got it")
        except NoCapacity:
            results.append("full")

    threads = [threading.Thread(target=claim) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == ["full"] * 10 + ["got it"] * 10
    assert db.read(lambda tx: placement.usages(tx, uuid)) == {"VCPU": 10}
