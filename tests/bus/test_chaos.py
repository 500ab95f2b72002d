"""The local bus under chaos: whoever repeats gets through, and the same seed does the same harm."""

import threading

import pytest

from cumulet.agent.contract import Accepted, AskOutcome
from cumulet.bus import BusTimeout, Chaos, LocalBus


def test_the_same_seed_harms_the_same_messages() -> None:
    def harm(seed: int) -> list[list[float]]:
        chaos = Chaos(seed=seed, drop=0.3, double=0.3, delay=0.3)
        return [chaos.copies() for _ in range(50)]

    assert harm(7) == harm(7)
    assert harm(7) != harm(8)


def test_dropped_calls_time_out_and_repeats_get_through() -> None:
    seen: dict[str, int] = {}
    lock = threading.Lock()

    def handler(message: AskOutcome) -> Accepted:
        with lock:
            seen[message.op_id] = seen.get(message.op_id, 0) + 1
        return Accepted(op_id=message.op_id)

    bus = LocalBus(Chaos(seed=3, drop=0.3, double=0.3, delay=0.3, delay_seconds=0.01, drop_seconds=0.02))
    bus.serve("agent.a", handler)
    timeouts = 0
    for number in range(60):
        for _ in range(50):
            try:
                assert bus.call("agent.a", AskOutcome(op_id=str(number)), timeout=0.1).op_id == str(number)
                break
            except BusTimeout:
                timeouts += 1
        else:
            pytest.fail("never answered")
    assert timeouts > 0
    assert len(seen) == 60
    assert max(seen.values()) > 1
    bus.close()
