"""Time as the control plane sees it.

All stored times are integers: microseconds since the Unix epoch, UTC. Deadlines inside one process use
``monotonic()``. A ``FakeClock`` stands in for tests: it moves only when told to. What waits on a clock waits for a
``Signal``, so that a clock which jumps (the emulator's) can have its waiters look at the time again.
"""

import threading
import time
from datetime import UTC, datetime
from functools import lru_cache
from typing import Protocol

SECOND = 1_000_000


class Waitable(Protocol):
    """A ``threading.Event`` or a ``Signal``."""

    def is_set(self) -> bool: ...

    def wait(self, timeout: float | None = None) -> bool: ...


class Signal:
    """A ``threading.Event`` whose waiters can also be nudged: they return without it being set."""

    def __init__(self) -> None:
        self._state = threading.Condition()
        self._set = False
        self._nudges = 0

    def is_set(self) -> bool:
        return self._set

    def set(self) -> None:
        with self._state:
            self._set = True
            self._state.notify_all()

    def clear(self) -> None:
        with self._state:
            self._set = False

    def nudge(self) -> None:
        with self._state:
            self._nudges += 1
            self._state.notify_all()

    @property
    def nudges(self) -> int:
        return self._nudges

    def wait(self, timeout: float | None = None, nudges: int | None = None) -> bool:
        """Until it is set, nudged or the time is over; True if it is set. ``nudges``: how many are known of; one that
        came since ends the wait at once."""
        with self._state:
            known = self._nudges if nudges is None else nudges
            self._state.wait_for(lambda: self._set or self._nudges != known, timeout)
            return self._set


class Clock(Protocol):
    def now(self) -> int:
        """Microseconds since the epoch, UTC."""
        ...

    def monotonic(self) -> float:
        """Seconds on a clock that never jumps."""
        ...

    def wait(self, event: Waitable, seconds: float) -> bool:
        """Wait for the event at most so long; True if it was set."""
        ...

    def wait_until(self, event: Waitable, moment: float) -> bool:
        """The same until ``monotonic()`` shows this: a clock that jumps before the wait begins does not prolong it."""
        ...


class SystemClock:
    def now(self) -> int:
        return time.time_ns() // 1000

    def monotonic(self) -> float:
        return time.monotonic()

    def wait(self, event: Waitable, seconds: float) -> bool:
        return event.wait(seconds)

    def wait_until(self, event: Waitable, moment: float) -> bool:
        return event.wait(max(moment - time.monotonic(), 0))


class FakeClock:
    """A clock that stands still until ``advance`` is called; waiters poll it in real milliseconds."""

    def __init__(self, start: int = 1_700_000_000 * SECOND) -> None:
        self._now = start

    def now(self) -> int:
        return self._now

    def monotonic(self) -> float:
        return self._now / SECOND

    def advance(self, seconds: float) -> None:
        self._now += int(seconds * SECOND)

    def wait(self, event: Waitable, seconds: float) -> bool:
        return self.wait_until(event, (self._now + int(seconds * SECOND)) / SECOND)

    def wait_until(self, event: Waitable, moment: float) -> bool:
        while self.monotonic() < moment:
            if event.wait(0.005):
                return True
        return event.is_set()


@lru_cache(maxsize=16384)  # a list shows the same times again and again
def iso(us: int | None, *, zone: str = "Z", micros: bool = False) -> str | None:
    """``2026-11-23T22:30:00Z``, the form most OpenStack bodies use; None stays None."""
    if us is None:
        return None
    moment = datetime.fromtimestamp(us // SECOND, UTC).replace(tzinfo=None, microsecond=us % SECOND)
    return moment.isoformat(timespec="microseconds" if micros else "seconds") + zone


def parse_iso(text: str) -> int:
    """Microseconds since the epoch; a time without a zone is UTC. Raises ValueError."""
    moment = datetime.fromisoformat(text.strip().replace("Z", "+00:00"))
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return int(moment.timestamp() * SECOND)
