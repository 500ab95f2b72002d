"""What may happen to messages on their way, over both transports; and to the way itself, over RabbitMQ."""

import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from cumulet.agent import contract as c
from cumulet.bus import Bus, BusTimeout, Chaos, LocalBus, catalogue
from cumulet.kernel.errors import Unavailable
from tests.support.rabbit import RabbitServer
from tests.support.wire import Wire


@pytest.fixture
def topic() -> str:
    return "agent." + uuid.uuid4().hex[:8]


def answer(message: Any) -> c.Accepted:
    return c.Accepted(op_id=message.op_id)


# -- messages --------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["local", pytest.param("amqp", marks=pytest.mark.rabbit)])
def harmful(request: pytest.FixtureRequest) -> Iterator[Callable[[Chaos], Bus]]:
    made: list[Bus] = []

    def make(chaos: Chaos) -> Bus:
        if request.param == "local":
            made.append(LocalBus(chaos))
        else:
            from cumulet.bus.amqp import AmqpBus

            bus = AmqpBus(request.getfixturevalue("own_rabbit").url)
            bus.chaos = chaos
            made.append(bus)
        return made[-1]

    yield make
    for bus in made:
        bus.close()


def test_whoever_repeats_gets_through(harmful: Callable[[Chaos], Bus], topic: str) -> None:
    """Lost, doubled, late, overtaken: each of sixty calls is answered with its own answer, some were handled twice."""
    seen: dict[str, int] = {}
    lock = threading.Lock()

    def handler(message: c.AskOutcome) -> c.Accepted:
        with lock:
            seen[message.op_id] = seen.get(message.op_id, 0) + 1
        return answer(message)

    bus = harmful(Chaos(seed=5, drop=0.2, double=0.3, delay=0.3, delay_seconds=0.05, drop_seconds=0.05))
    bus.serve(topic, handler)
    again = 0
    for number in range(60):
        for _ in range(60):
            try:
                assert bus.call(topic, c.AskOutcome(op_id=str(number)), timeout=0.25) == c.Accepted(op_id=str(number))
                break
            except BusTimeout:
                again += 1
        else:
            pytest.fail("never answered")
    assert again > 0
    assert len(seen) == 60
    assert max(seen.values()) > 1


def test_hints_may_be_overtaken_and_doubled(harmful: Callable[[Chaos], Bus], topic: str) -> None:
    seen: list[str] = []
    bus = harmful(Chaos(seed=11, double=0.5, delay=0.5, delay_seconds=0.1))
    bus.serve(topic, lambda m: seen.append(m.keys[0][1]), threads=1)
    sent = [str(number) for number in range(40)]
    for one in sent:
        bus.cast(topic, c.LookAgain(keys=[("port", one)]))
    end = time.monotonic() + 5
    while set(seen) != set(sent):
        assert time.monotonic() < end
        time.sleep(0.01)
    assert len(seen) > 40, "some came twice"
    assert list(dict.fromkeys(seen)) != sent, "some were overtaken"


def test_a_call_whose_caller_gave_up_is_not_handled(new_bus: Callable[[], Bus], topic: str) -> None:
    """Who serves the topic too late finds nothing: a call lives as long as its caller's patience."""
    bus = new_bus()
    with pytest.raises(Unavailable):
        bus.call(topic, c.AskOutcome(op_id="old"), timeout=0.3)
    time.sleep(0.3)
    seen: list[str] = []
    new_bus().serve(topic, lambda m: (seen.append(m.op_id), answer(m))[1])
    assert bus.call(topic, c.AskOutcome(op_id="new")) == c.Accepted(op_id="new")
    assert seen == ["new"]


@pytest.mark.parametrize(
    ("message", "seconds"),
    [(c.AskOutcome(op_id="x"), 0.2), (c.Ask(query=c.ConsoleLog(server_id="s")), 0.6)],
    ids=["quick", "slow"],
)
def test_each_class_has_its_own_patience(
    new_bus: Callable[[], Bus], topic: str, monkeypatch: pytest.MonkeyPatch, message: Any, seconds: float
) -> None:
    assert catalogue.timeout_of(c.AskOutcome(op_id="x"), None) < catalogue.timeout_of(
        c.Ask(query=c.ConsoleLog(server_id="s")), None
    )
    monkeypatch.setitem(catalogue._TIMEOUTS, "AskOutcome", 0.2)
    monkeypatch.setitem(catalogue._TIMEOUTS, "Ask", 0.6)
    release = threading.Event()
    bus = new_bus()
    new_bus().serve(topic, lambda m: (release.wait(60), None)[1])
    began = time.monotonic()
    with pytest.raises(BusTimeout):
        bus.call(topic, message)
    assert seconds <= time.monotonic() - began < 30
    release.set()


# -- processes and the network, with a broker --------------------------------------------------------------------------

_DIES = """
import os, sys, time
from cumulet.bus.amqp import AmqpBus
def handler(message):
    os._exit(9) if message.op_id == "deadly" else None
    from cumulet.agent.contract import Accepted
    return Accepted(op_id="first")
AmqpBus(sys.argv[1]).serve(sys.argv[2], handler)
print("serves", flush=True)
time.sleep(60)
"""


@pytest.mark.rabbit
def test_a_consumer_that_dies_with_a_message_in_hand(own_rabbit: RabbitServer, topic: str) -> None:
    """The message is lost with it: its caller times out, repeats, and another one answers."""
    from cumulet.bus.amqp import AmqpBus

    first = subprocess.Popen(
        [sys.executable, "-c", _DIES, own_rabbit.url, topic], stdout=subprocess.PIPE, env=os.environ
    )
    assert first.stdout is not None
    assert first.stdout.readline() == b"serves\n"
    bus = AmqpBus(own_rabbit.url)
    assert bus.call(topic, c.AskOutcome(op_id="well")).op_id == "first"
    with pytest.raises(BusTimeout):
        bus.call(topic, c.AskOutcome(op_id="deadly"), timeout=0.5)
    assert first.wait(30) == 9
    other = AmqpBus(own_rabbit.url)
    other.serve(topic, lambda m: c.Accepted(op_id="second"))
    assert bus.call(topic, c.AskOutcome(op_id="deadly"), timeout=30).op_id == "second"
    for one in (bus, other):
        one.close()


@pytest.fixture
def wire(own_rabbit: RabbitServer) -> Iterator[Wire]:
    made = Wire(own_rabbit.port)
    yield made
    made.close()


def through(wire: Wire, broker: RabbitServer) -> Any:
    from cumulet.bus.amqp import AmqpBus

    return AmqpBus(urlsplit(broker.url)._replace(netloc=f"cumulet:cumulet@127.0.0.1:{wire.port}").geturl())


@pytest.mark.rabbit
@pytest.mark.parametrize("side", ["caller", "server"])
def test_a_network_that_is_cut(own_rabbit: RabbitServer, wire: Wire, topic: str, side: str) -> None:
    """Connections are torn: calls fail in their time, and one asked for after the network's return works."""
    from cumulet.bus.amqp import AmqpBus

    far, near = through(wire, own_rabbit), AmqpBus(own_rabbit.url)
    caller, server = (far, near) if side == "caller" else (near, far)
    server.serve(topic, answer)
    assert caller.call(topic, c.AskOutcome(op_id="before")).op_id == "before"
    wire.cut()
    began = time.monotonic()
    with pytest.raises(Unavailable):
        caller.call(topic, c.AskOutcome(op_id="away"), timeout=1)
    assert time.monotonic() - began < 30
    wire.mend()
    back = time.monotonic()
    assert caller.call(topic, c.AskOutcome(op_id="after"), timeout=30).op_id == "after"
    print(f"{side}: back after {time.monotonic() - back:.2f} s")
    for bus in (caller, server):
        bus.close()


@pytest.mark.rabbit
def test_a_network_that_drops_everything(own_rabbit: RabbitServer, wire: Wire, topic: str) -> None:
    """No connection is torn, nothing comes through: calls fail in their time, heartbeats find it out."""
    from cumulet.bus.amqp import AmqpBus

    caller, server = AmqpBus(own_rabbit.url), through(wire, own_rabbit)
    server.serve(topic, answer)
    assert caller.call(topic, c.AskOutcome(op_id="before")).op_id == "before"
    wire.silence()
    began = time.monotonic()
    with pytest.raises(Unavailable):
        caller.call(topic, c.AskOutcome(op_id="away"), timeout=1)
    assert time.monotonic() - began < 30
    wire.mend()
    back = time.monotonic()
    while True:
        try:
            caller.call(topic, c.AskOutcome(op_id="after"), timeout=1)
            break
        except Unavailable:
            assert time.monotonic() - back < 60
    print(f"back {time.monotonic() - back:.1f} s after the network")
    for bus in (caller, server):
        bus.close()
