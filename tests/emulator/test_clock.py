"""The emulator's clock by itself."""

import threading
import time
from typing import Any

import pytest

from cumulet.emulator.clock import EmulatorClock
from cumulet.kernel.clock import SECOND, FakeClock, Signal


def test_it_goes_with_real_time() -> None:
    made = time.monotonic()
    clock = EmulatorClock()
    earlier = time.time_ns() // 1000
    assert earlier - 1000 <= clock.now() <= time.time_ns() // 1000 + 1000
    begun, real = clock.monotonic(), time.monotonic()
    assert 0 <= begun <= real - made
    time.sleep(0.02)
    inner = time.monotonic() - real
    passed = clock.monotonic() - begun
    assert inner <= passed <= time.monotonic() - made


def test_it_is_moved_and_set_back_and_monotonic_never_falls() -> None:
    clock = EmulatorClock()
    before = clock.now()
    clock.advance(hours=2)
    assert 7200 <= (clock.now() - before) / SECOND < 7260
    assert 7140 < clock.ahead_seconds < 7260
    last = clock.monotonic()
    clock.reset()
    assert abs(clock.ahead_seconds) < 60
    assert clock.monotonic() >= last
    for wrong in (-1, 1e12):
        with pytest.raises(ValueError):
            clock.advance(wrong)


def test_it_stands_still() -> None:
    clock = EmulatorClock()
    clock.freeze()
    now, monotonic = clock.now(), clock.monotonic()
    time.sleep(0.01)
    assert (clock.now(), clock.monotonic()) == (now, monotonic)
    clock.advance(minutes=1)
    assert (clock.now() - now, clock.monotonic() - monotonic) == (60 * SECOND, 60)
    clock.resume()
    time.sleep(0.01)
    assert clock.now() > now + 60 * SECOND
    assert clock.monotonic() > monotonic + 60


@pytest.mark.parametrize("event", [Signal, threading.Event])
def test_those_who_wait_notice(event: Any) -> None:
    clock = EmulatorClock()
    assert clock.wait(event(), 0.01) is False
    found: list[bool] = []
    for frozen in (False, True):
        if frozen:
            clock.freeze()
        never, soon = event(), event()
        threads = [
            threading.Thread(target=lambda one=one: found.append(clock.wait(one, 3600)))  # type: ignore[misc]
            for one in (never, soon)
        ]
        for thread in threads:
            thread.start()
        time.sleep(0.01)
        soon.set()
        threads[1].join(30)
        assert found == [True]
        clock.advance(3600)
        threads[0].join(30)
        assert found == [True, False]
        assert clock.overdue() == 0
        found.clear()


def test_a_signal_is_an_event_that_can_be_nudged() -> None:
    signal = Signal()
    assert not signal.wait(0.001)
    known = signal.nudges
    signal.nudge()
    begun = time.monotonic()
    assert not signal.wait(60, known)  # that one came before the wait and counts
    assert time.monotonic() - begun < 50
    signal.set()
    assert signal.wait(30)
    signal.clear()
    assert not signal.is_set()


@pytest.mark.parametrize("made", [EmulatorClock, FakeClock])
def test_a_clock_that_jumps_before_the_wait_does_not_prolong_it(made: type[EmulatorClock | FakeClock]) -> None:
    clock = made()
    due = clock.monotonic() + 3000
    clock.advance(3600)
    begun = time.monotonic()
    assert not clock.wait_until(Signal(), due)
    assert time.monotonic() - begun < 50
