"""Hosts' own accounts at a real broker: what they may do, and that nobody speaks for another."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from cumulet.agent.contract import Accepted, AskOutcome, LookAgain
from cumulet.bus import Bus, open_bus, speaker
from cumulet.bus.accounts import BrokerAccounts
from cumulet.kernel.errors import Unavailable
from cumulet.settings import Tls
from tests.support.rabbit import RabbitServer

pytestmark = pytest.mark.rabbit


@pytest.fixture(scope="module")
def broker() -> Iterator[RabbitServer]:
    server = RabbitServer(management=True)
    server.start()
    yield server
    server.destroy()


@pytest.fixture(scope="module")
def accounts(broker: RabbitServer) -> BrokerAccounts:
    return BrokerAccounts(broker.management_url, "/", "cloud", Tls())


class World:
    """A conductor with the cloud's account, and hosts with their own."""

    def __init__(self, broker: RabbitServer, accounts: BrokerAccounts) -> None:
        self._broker, self._accounts = broker, accounts
        self.buses: list[Bus] = []
        self.heard: list[tuple[str | None, str]] = []
        self.conductor = self._open(f"{broker.url}?prefix=cloud")
        self.conductor.serve("conductor", self._hear)
        self.conductor.call("conductor", AskOutcome(op_id="it serves"))

    def _open(self, url: str) -> Bus:
        self.buses.append(open_bus(url))
        return self.buses[-1]

    def _hear(self, message: Any) -> Any:
        self.heard.append((speaker(), message.op_id))
        return Accepted(op_id=message.op_id)

    def host(self, name: str) -> Any:
        account = self._accounts.ensure(name, "secret")
        address = self._broker.url.rpartition("@")[2]
        bus = self._open(f"amqp://{account}:secret@{address}?prefix=cloud&as={name}")
        bus.serve(f"agent.{name}", lambda m: Accepted(op_id=f"{name} {m.op_id}"))
        return bus

    def close(self) -> None:
        for bus in self.buses:
            bus.close()


@pytest.fixture
def world(broker: RabbitServer, accounts: BrokerAccounts) -> Iterator[World]:
    made = World(broker, accounts)
    yield made
    made.close()


def test_both_ways_and_the_conductor_knows_who_speaks(world: World) -> None:
    one, two = world.host("h1"), world.host("h2")
    assert one.call("conductor", AskOutcome(op_id="hello")).op_id == "hello"
    assert two.call("conductor", AskOutcome(op_id="hi")).op_id == "hi"
    assert world.heard == [(None, "it serves"), ("h1", "hello"), ("h2", "hi")]
    assert world.conductor.call("agent.h1", AskOutcome(op_id="x")).op_id == "h1 x"
    assert world.conductor.call("agent.h2", AskOutcome(op_id="x")).op_id == "h2 x"


def test_hints_reach_a_host(world: World) -> None:
    seen: list[str] = []
    arrived = threading.Event()
    world.host("h4").serve("agent.h4", lambda m: (seen.append(type(m).__name__), arrived.set())[1])
    world.conductor.cast("agent.h4", LookAgain())
    world.conductor.fanout("agent.h4", LookAgain())
    assert arrived.wait(30)


def test_a_host_reaches_no_other_host(world: World) -> None:
    one, two = world.host("h1"), world.host("h2")
    with pytest.raises(Unavailable):
        one.call("agent.h2", AskOutcome(op_id="x"), timeout=1)
    two.call("conductor", AskOutcome(op_id="still"))
    thief = world._open(one_as_two := f"{_url(one)}&as=h2")  # h1's account that claims to be h2
    thief.serve("agent.h2", lambda m: Accepted(op_id="stolen"))
    assert [world.conductor.call("agent.h2", AskOutcome(op_id="x")).op_id for _ in range(4)] == ["h2 x"] * 4
    with pytest.raises(Unavailable):
        thief.call("conductor", AskOutcome(op_id="lie"), timeout=1)
    assert "lie" not in [what for _, what in world.heard], one_as_two


def _url(bus: Any) -> str:
    broker = bus.broker
    return f"amqp://{broker.account}:{broker.password}@{broker.addresses[0]}//?prefix=cloud"


def test_an_account_may_not_leave_its_name_out(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    one = world.host("h1")
    monkeypatch.setattr(type(one), "_account", {})
    with pytest.raises(Unavailable):
        one.call("conductor", AskOutcome(op_id="nameless"), timeout=1)
    monkeypatch.undo()
    assert one.call("conductor", AskOutcome(op_id="named")).op_id == "named"
    assert world.heard[1:] == [("h1", "named")]
    direct = world._open(_url(one))  # as the control plane speaks: past the exchange
    with pytest.raises(Unavailable):
        direct.call("conductor", AskOutcome(op_id="direct"), timeout=1)
    assert "direct" not in [what for _, what in world.heard]


def test_a_removed_host_is_cut_off(world: World, accounts: BrokerAccounts) -> None:
    gone = world.host("h3")
    assert gone.call("conductor", AskOutcome(op_id="once")).op_id == "once"
    assert "h3" in accounts.hosts()
    accounts.remove("h3")
    accounts.remove("h3")
    assert "h3" not in accounts.hosts()
    with pytest.raises(Unavailable):
        gone.call("conductor", AskOutcome(op_id="again"), timeout=2)


def test_a_broker_that_does_not_answer_is_unavailable() -> None:
    with pytest.raises(Unavailable):
        BrokerAccounts("http://me:x@127.0.0.1:1", "/", "cloud", Tls()).hosts()
