"""What requests cost in statements, and that passwords do not stay in the database."""

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import select

from cumulet.db import METADATA
from tests.compute.helpers import LATEST, Nova
from tests.support.budgets import Meter
from tests.support.cloud import unique


@pytest.fixture(autouse=True)
def tidy(nova: Nova) -> Iterator[None]:
    """Nothing stays: the project's quota is small."""
    before = {server["id"] for server in nova.get("/servers")["servers"]}
    yield
    made = [server["id"] for server in nova.get("/servers")["servers"] if server["id"] not in before]
    for server_id in made:
        assert nova.delete(f"/servers/{server_id}").status == 204
    for server_id in made:
        nova.gone(server_id)


@pytest.fixture
def network(nova: Nova) -> str:
    api = nova.cloud.api("demo")
    made: str = api.post("network", "/networks", {"network": {"name": unique("net")}})["network"]["id"]
    subnet = {"network_id": made, "cidr": "10.77.0.0/24", "ip_version": 4}
    assert api.post("network", "/subnets", {"subnet": subnet}).status == 201
    return made


def test_statements_of_servers(nova: Nova, network: str, monkeypatch: pytest.MonkeyPatch) -> None:
    locks = 6 if nova.cloud.db.is_postgres else 0  # SQLite has one write lock; PostgreSQL locks what must be serial
    first = nova.boot(networks=[{"uuid": network}])  # the project's default group is made, once
    meter = Meter(nova.cloud, monkeypatch)
    bare = nova.server_body()
    assert meter.cheapest(lambda: nova.post("/servers", {"server": bare})) <= 15 + locks
    wired = nova.server_body(networks=[{"uuid": network}])
    assert meter.cheapest(lambda: nova.post("/servers", {"server": wired})) <= 24 + locks
    both = {**wired, "name": unique("two"), "min_count": 2, "max_count": 2}
    # one more: two for its saga, one for its address
    assert meter.cheapest(lambda: nova.post("/servers", {"server": both})) <= 24 + 3 + locks
    assert meter.of(nova.get(f"/servers/{first}")) <= 11
    some = meter.of(nova.get("/servers/detail"))
    assert some <= 11
    nova.boot(networks=[{"uuid": network}], wait=None)
    assert meter.of(nova.get("/servers/detail")) == some


def stored(nova: Nova, secret: str) -> list[str]:
    def look(tx: Any) -> list[str]:
        return [t.name for t in METADATA.sorted_tables if any(secret in repr(row) for row in tx.rows(select(t)))]

    found: list[str] = nova.cloud.control.db.read(look)
    return found


def test_passwords_do_not_stay(nova: Nova) -> None:
    made = nova.post("/servers", {"server": nova.server_body(adminPass="Geheim-1", config_drive=True)}, version=LATEST)
    assert made["server"]["adminPass"] == "Geheim-1"
    server = made["server"]["id"]
    nova.wait(server, "ACTIVE")
    nova.cloud.wait(lambda: stored(nova, "Geheim-1") == [])
    assert nova.act(server, "changePassword", {"adminPass": "Geheim-2"}).status == 202
    nova.wait(server, "ACTIVE")
    assert stored(nova, "Geheim-2") == []
    assert nova.act(server, "rebuild", {"imageRef": nova.image, "adminPass": "Geheim-3"}).status == 202
    nova.wait(server, "ACTIVE")
    assert stored(nova, "Geheim-3") == []


def test_nor_do_those_of_failed_creates(nova: Nova) -> None:
    impossible = nova.new_flavor(vcpus=1, ram=50_000, disk=900_000)
    nova.boot(adminPass="Geheim-4", flavorRef=impossible, wait="ERROR")
    assert stored(nova, "Geheim-4") == []
