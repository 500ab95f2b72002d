"""The local bus under chaos: whoever repeats gets through, and the same seed does the same harm."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cumulet.agent.contract import Accepted, AskOutcome
from cumulet.bus import BusTimeout, Chaos, LocalBus, open_bus


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


def test_a_file_brings_chaos_upon_a_bus_of_another_process(tmp_path: Path) -> None:
    def within(seconds: float, holds: Callable[[], bool]) -> bool:
        end = time.monotonic() + seconds
        while not holds() and time.monotonic() < end:
            time.sleep(0.01)
        return holds()

    file = tmp_path / "harm.json"
    bus = open_bus(f"local?chaos={file}")
    assert bus.in_process
    Chaos(seed=3, drop=1.0, quiet=True).write(file)
    assert within(5, lambda: not bus.in_process)
    bus.serve("agent.a", lambda message: Accepted(op_id=message.op_id))
    with pytest.raises(BusTimeout):
        bus.call("agent.a", AskOutcome(op_id="1"))
    file.unlink()
    assert within(5, lambda: bus.in_process)
    assert bus.call("agent.a", AskOutcome(op_id="2")) == Accepted(op_id="2")
    bus.close()
