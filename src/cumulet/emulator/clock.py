"""The emulator's clock: goes with real time, can stand still, and can be moved ahead.

Whatever the control plane and the fake hosts wait for, they wait for on this clock; moving it has them all look at the
time again. ``monotonic()`` never goes back, not even when the clock is set back to real time.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cumulet.kernel.clock import SECOND, Signal, Waitable

_LOOK_S = 0.02  # how often one looks who waits for an event that cannot be nudged


class EmulatorClock:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ahead_us = 0
        self._since_start = -time.monotonic()
        self._frozen: tuple[int, float] | None = None  # now, monotonic
        self._waiters: dict[int, tuple[Signal, float]] = {}
        self.move: Callable[[float], None] = self.jump  # how `advance` goes about it

    # -- as the rest of Cumulet sees it -------------------------------------------------------------------------------

    def now(self) -> int:
        with self._lock:
            return self._now()

    def monotonic(self) -> float:
        with self._lock:
            return self._monotonic()

    def wait(self, event: Waitable, seconds: float) -> bool:
        return self.wait_until(event, self.monotonic() + seconds)

    def wait_until(self, event: Waitable, moment: float) -> bool:
        if not isinstance(event, Signal):
            while not event.is_set() and (left := moment - self.monotonic()) > 0:
                event.wait(min(left, _LOOK_S))
            return event.is_set()
        with self._waiting(event, moment):
            while not event.is_set():
                nudges = event.nudges
                left = moment - self.monotonic()
                if left <= 0:
                    break
                event.wait(None if self.frozen else left, nudges)
        return event.is_set()

    # -- as its owner sees it -----------------------------------------------------------------------------------------

    @property
    def frozen(self) -> bool:
        return self._frozen is not None

    @property
    def ahead_seconds(self) -> float:
        """Of real time."""
        return (self.now() - time.time_ns() // 1000) / SECOND

    def advance(self, seconds: float = 0, *, minutes: float = 0, hours: float = 0, days: float = 0) -> None:
        """Move ahead. Work that takes time is let through it in steps, so that it ends as if one had waited."""
        total = seconds + 60 * minutes + 3600 * hours + 86_400 * days
        if not 0 <= total < 1e10:
            raise ValueError("a clock can be moved ahead, never back, and not beyond all measure")
        self.move(total)

    def freeze(self) -> None:
        """Stand still until `resume`; `advance` moves it all the same."""
        with self._lock:
            if self._frozen is None:
                self._frozen = self._now(), self._monotonic()
        self._nudge()

    def resume(self) -> None:
        """Go on from where it stands."""
        with self._lock:
            if self._frozen is not None:
                now, monotonic = self._frozen
                self._frozen = None
                self._ahead_us = now - time.time_ns() // 1000
                self._since_start = monotonic - time.monotonic()
        self._nudge()

    def reset(self) -> None:
        """Back to real time. Nothing that remembers the time it showed may be running."""
        self.resume()
        with self._lock:
            self._ahead_us = 0

    def jump(self, seconds: float) -> None:
        """Ahead at once, whatever is under way."""
        with self._lock:
            if self._frozen is not None:
                self._frozen = self._frozen[0] + int(seconds * SECOND), self._frozen[1] + seconds
            else:
                self._ahead_us += int(seconds * SECOND)
                self._since_start += seconds
        self._nudge()

    def overdue(self) -> int:
        """How many waits are over whose threads have not noticed yet."""
        with self._lock:
            now = self._monotonic()
            return sum(1 for _, end in self._waiters.values() if end <= now)

    # -- inside -------------------------------------------------------------------------------------------------------

    def _now(self) -> int:
        return self._frozen[0] if self._frozen is not None else time.time_ns() // 1000 + self._ahead_us

    def _monotonic(self) -> float:
        return self._frozen[1] if self._frozen is not None else time.monotonic() + self._since_start

    @contextmanager
    def _waiting(self, signal: Signal, end: float) -> Iterator[None]:
        key = threading.get_ident()
        with self._lock:
            self._waiters[key] = signal, end
        try:
            yield
        finally:
            with self._lock:
                del self._waiters[key]

    def _nudge(self) -> None:
        with self._lock:
            signals = {signal for signal, _ in self._waiters.values()}
        for signal in signals:
            signal.nudge()
