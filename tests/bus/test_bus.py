"""What every transport promises."""

import threading
import time
import uuid
from collections.abc import Callable

import pytest

from cumulet.agent.contract import Accepted, AskOutcome, DeleteDisks, Execute, LookAgain, Outcome
from cumulet.bus import Bus, BusTimeout, RemoteFault, Unreachable
from cumulet.kernel.errors import Unavailable
from tests.support.patience import eventually

NewBus = Callable[[], Bus]


def execute(op_id: str = "op-1") -> Execute:
    return Execute(op_id=op_id, epoch=1, object_id="o", request_id="req-1", body=DeleteDisks(server_id="s"))


@pytest.fixture
def topic() -> str:
    return "agent." + uuid.uuid4().hex[:8]


def test_a_call_is_answered_with_equal_structs(new_bus: NewBus, topic: str) -> None:
    here, there = new_bus(), new_bus()
    seen = []
    there.serve(topic, lambda m: (seen.append(m), Accepted(op_id=m.op_id))[1])
    assert here.call(topic, execute()) == Accepted(op_id="op-1")
    assert seen == [execute()]
    assert seen[0] is not execute


def test_a_handler_without_answer_answers_none(new_bus: NewBus, topic: str) -> None:
    new_bus().serve(topic, lambda m: None)
    assert new_bus().call(topic, AskOutcome(op_id="x")) is None


def test_a_handlers_exception_is_a_remote_fault(new_bus: NewBus, topic: str) -> None:
    def handler(message: object) -> None:
        raise ValueError("no such thing")

    new_bus().serve(topic, handler)
    with pytest.raises(RemoteFault) as raised:
        new_bus().call(topic, AskOutcome(op_id="x"))
    assert (raised.value.kind, raised.value.message) == ("ValueError", "no such thing")


def test_a_slow_handler_is_a_timeout_and_does_no_harm(new_bus: NewBus, topic: str) -> None:
    release = threading.Event()
    new_bus().serve(topic, lambda m: (release.wait(60), None)[1] if m.op_id == "slow" else Accepted(op_id=m.op_id))
    bus = new_bus()
    started = time.monotonic()
    with pytest.raises(BusTimeout):
        bus.call(topic, AskOutcome(op_id="slow"), timeout=0.3)
    assert time.monotonic() - started < 30, "it does not wait for the handler"
    assert bus.call(topic, AskOutcome(op_id="quick")) == Accepted(op_id="quick")
    release.set()


def test_what_is_being_handled_is_counted_and_a_hint_arrives_before_a_later_call(new_bus: NewBus, topic: str) -> None:
    """So one who asks all who are served knows that nothing sent before is on its way, and where it is."""
    here, there = new_bus(), new_bus()
    release = threading.Event()
    there.serve(topic, lambda m: (isinstance(m, LookAgain) and release.wait(60), Accepted(op_id="x"))[1])
    for expected in (1, 2, 3):
        here.cast(topic, LookAgain(keys=[]))
        assert here.call(topic, AskOutcome(op_id="x")) == Accepted(op_id="x")
        assert there.busy() >= expected
    release.set()
    eventually(lambda: there.busy() == 0)


def test_a_topic_nobody_serves_is_unavailable(new_bus: NewBus, topic: str) -> None:
    with pytest.raises((Unreachable, BusTimeout)) as raised:
        new_bus().call(topic, execute(), timeout=0.3)
    assert isinstance(raised.value, Unavailable)


def test_an_unknown_type_is_refused_by_the_sender(new_bus: NewBus, topic: str) -> None:
    import msgspec

    class Stranger(msgspec.Struct):
        x: int

    with pytest.raises(TypeError):
        new_bus().call(topic, Stranger(1))


def test_one_of_several_servers_takes_a_call_and_all_take_a_fanout(new_bus: NewBus, topic: str) -> None:
    taken: list[tuple[str, str]] = []
    for name in ("a", "b"):
        new_bus().serve(topic, lambda m, name=name: taken.append((name, type(m).__name__)))  # type: ignore[misc]
    bus = new_bus()
    for _ in range(10):
        bus.call(topic, AskOutcome(op_id="x"))
    assert len(taken) == 10
    assert {name for name, _ in taken} == {"a", "b"}
    taken.clear()
    bus.fanout(topic, LookAgain())
    eventually(lambda: sorted(taken) == [("a", "LookAgain"), ("b", "LookAgain")])


def test_a_cast_arrives_and_is_not_waited_for(new_bus: NewBus, topic: str) -> None:
    release, seen = threading.Event(), threading.Event()
    new_bus().serve(topic, lambda m: (release.wait(60), seen.set())[1])
    bus = new_bus()
    bus.cast(topic, LookAgain(keys=[("port", "p")]))
    bus.cast(topic, LookAgain(keys=[("port", "p")]))
    assert not seen.is_set()
    release.set()
    assert seen.wait(30)


def test_casts_and_fanouts_to_nobody_are_lost_silently(new_bus: NewBus, topic: str) -> None:
    bus = new_bus()
    bus.cast(topic, LookAgain())
    bus.fanout(topic, LookAgain())
    new_bus().serve(topic, lambda m: None)
    assert bus.call(topic, AskOutcome(op_id="x")) is None


def test_calls_in_circles_do_not_starve_each_other(new_bus: NewBus, topic: str) -> None:
    """Every worker of one side waits for the other side, which calls back."""
    here, there = new_bus(), new_bus()

    def left(message: object) -> object:
        return there_to_here.call(topic + "-right", AskOutcome(op_id="in")) if isinstance(message, Execute) else None

    def right(message: object) -> Accepted:
        here_to_there.call(topic + "-left", AskOutcome(op_id="back"))
        return Accepted(op_id="through")

    there_to_here, here_to_there = new_bus(), new_bus()
    here.serve(topic + "-left", left, threads=2)  # type: ignore[arg-type]
    there.serve(topic + "-right", right, threads=2)
    answers: list[object] = []
    threads = [
        threading.Thread(target=lambda: answers.append(here.call(topic + "-left", execute(), timeout=10)))
        for _ in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(15)
    assert answers == [Accepted(op_id="through")] * 12


def test_a_stopped_service_takes_no_more(new_bus: NewBus, topic: str) -> None:
    service = new_bus().serve(topic, lambda m: Accepted(op_id="old"))
    bus = new_bus()
    bus.call(topic, execute())
    service.stop()
    new_bus().serve(topic, lambda m: Accepted(op_id="new"))
    assert [bus.call(topic, execute()).op_id for _ in range(5)] == ["new"] * 5


def test_many_calls_at_once_get_their_own_answers(new_bus: NewBus, topic: str) -> None:
    new_bus().serve(topic, lambda m: Outcome(op_id=m.op_id, host="h", state="unknown"))
    bus = new_bus()
    wrong: list[object] = []

    def work(number: int) -> None:
        for index in range(20):
            op_id = f"{number}-{index}"
            if bus.call(topic, AskOutcome(op_id=op_id)).op_id != op_id:
                wrong.append(op_id)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert wrong == []
