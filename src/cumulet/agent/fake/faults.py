"""Faults of a fake host: the next CreateDisks fails, every PowerServer takes a second, ExportVolume hangs.

Rules name an operation, query or document kind by its tag (``compute.create_disks``), its class name
(``CreateDisks``) or ``*``. ``history`` has the last operations that reached the host. What takes time takes it on the
host's clock, which the emulator can move; ``asleep`` and ``hung`` tell how many bodies wait for it, or for ever.
"""

import threading
from collections import Counter, deque
from collections.abc import Callable
from typing import Any, Literal

from cumulet.agent.contract import Operation
from cumulet.agent.driver import Progress
from cumulet.agent.errors import DriverError
from cumulet.kernel.clock import Clock, Signal, SystemClock

_SAID_EVERY_S = 0.5
_LOOK_S = 0.05  # how soon what hangs notices that its agent is dead


class _Rule:
    def __init__(
        self,
        what: str,
        times: int | None,
        *,
        seconds: float = 0.0,
        error: DriverError | None = None,
        hang: threading.Event | None = None,
        after: bool = False,
        only_if: Callable[[Any], bool] | None = None,
        owner: object = None,
    ) -> None:
        self.owner = owner
        self.awake = Signal()  # given to those who sleep by this rule now
        self.what = what
        self.left = times
        self.seconds = seconds
        self.error = error
        self.hang = hang
        self.after = after
        self.only_if = only_if


class Faults:
    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._lock = threading.Lock()
        self._go_on = Signal()  # given to those asleep now
        self._life = 0  # of the agent: operations of an earlier one have no further effect
        self.asleep = self.hung = 0
        self.pace: dict[str, float] = {}  # class name of a body -> seconds that it takes anyway
        self._rules: list[_Rule] = []
        self.history: deque[Operation] = deque(maxlen=500)
        self._counts: Counter[str] = Counter()
        self.hanging = threading.Semaphore(0)  # released once by each body that begins to hang

    def fail(
        self,
        what: str,
        *,
        times: int | None = 1,
        code: str = "internal",
        message: str = "a fault was injected",
        after: bool = False,
        only_if: Callable[[Any], bool] | None = None,
        owner: object = None,
    ) -> None:
        """Fail the next ``times`` (None: all), before the effect or ``after`` it happened. ``owner``: see `remove`."""
        self._add(_Rule(what, times, error=DriverError(code, message), after=after, only_if=only_if, owner=owner))

    def delay(
        self,
        what: str,
        seconds: float,
        *,
        times: int | None = None,
        only_if: Callable[[Any], bool] | None = None,
        owner: object = None,
    ) -> None:
        self._add(_Rule(what, times, seconds=seconds, only_if=only_if, owner=owner))

    def hang(
        self,
        what: str,
        *,
        times: int | None = 1,
        after: bool = False,
        only_if: Callable[[Any], bool] | None = None,
        owner: object = None,
        until: threading.Event | None = None,
    ) -> threading.Event:
        """Hang the next ``times``, silently, until the returned event is set."""
        event = until or threading.Event()
        self._add(_Rule(what, times, hang=event, after=after, only_if=only_if, owner=owner))
        return event

    def clear(self) -> None:
        """No more faults; what hangs or sleeps goes on."""
        with self._lock:
            rules, self._rules = self._rules, []
            sleepers, self._go_on = self._go_on, Signal()
        sleepers.set()
        _end(rules)

    def remove(self, owner: object) -> None:
        """No more faults of this owner; what hangs or sleeps by one of them goes on, and nothing else."""
        with self._lock:
            rules = [rule for rule in self._rules if rule.owner is owner]
            self._rules = [rule for rule in self._rules if rule.owner is not owner]
        _end(rules)

    def die(self) -> None:
        """The agent is killed: operations that sleep or hang end where they are, without effect or a word."""
        with self._lock:
            self._life += 1
            sleepers = [self._go_on, *(rule.awake for rule in self._rules)]
            self._go_on = Signal()
            for rule in self._rules:
                rule.awake = Signal()
        for signal in sleepers:
            signal.set()

    def count(self, what: str) -> int:
        with self._lock:
            return self._counts[what]

    def _add(self, rule: _Rule) -> None:
        with self._lock:
            self._rules.append(rule)

    def meet(self, body: Any, when: Literal["before", "after"], progress: Progress | None = None) -> None:
        """Called around each effect. Raises DriverError, waits, or does nothing."""
        names = _names(body)
        with self._lock:
            life = self._life
            if when == "before":
                self._counts.update(names)
                if isinstance(body, Operation):
                    self.history.append(body)
            met = []
            for rule in self._rules:
                fits = (rule.what == "*" or rule.what in names) and rule.after == (when == "after")
                if fits and rule.left != 0 and (rule.only_if is None or rule.only_if(body)):
                    if rule.left is not None:
                        rule.left -= 1
                    met.append(rule)
        if when == "before" and self.pace:
            self.sleep(self.pace.get(type(body).__name__, 0.0), progress)
            self._live_on(life, progress)
        for rule in met:
            self.sleep(rule.seconds, progress, awake=rule.awake)
            if rule.hang is not None:
                self._count(hung=1)
                self.hanging.release()
                while not rule.hang.wait(_LOOK_S) and self._life == life:
                    pass
                self._count(hung=-1)
            self._live_on(life, progress)
            if rule.error is not None:
                raise DriverError(rule.error.code, rule.error.message)

    def _live_on(self, life: int, progress: Progress | None) -> None:
        if progress is not None and life != self._life:  # an operation: it has a thread of the dead agent's
            raise SystemExit

    def sleep(
        self,
        seconds: float,
        progress: Progress | None = None,
        until: Signal | None = None,
        awake: Signal | None = None,
    ) -> None:
        """Take so long on the host's clock, saying now and then that we are alive. `clear` ends it, or ``until``, or
        ``awake``. An operation whose agent is killed ends where it is."""
        if seconds <= 0:
            return
        clock, go_on, life = self._clock, until or awake or self._go_on, self._life
        end = clock.monotonic() + seconds
        self._count(asleep=1)
        while (left := end - clock.monotonic()) > 0 and not clock.wait(go_on, min(left, _SAID_EVERY_S)):
            if progress is not None and left > _SAID_EVERY_S:
                self._count(asleep=-1)
                progress(max(0.0, 1 - left / seconds))
                self._count(asleep=1)
            if until is not None and life != self._life:
                break
        self._count(asleep=-1)
        if until is not None:
            self._live_on(life, progress)

    def monotonic(self) -> float:
        """Seconds of the host's clock."""
        return self._clock.monotonic()

    def _count(self, *, asleep: int = 0, hung: int = 0) -> None:
        with self._lock:
            self.asleep += asleep
            self.hung += hung


def _end(rules: list[_Rule]) -> None:
    for rule in rules:
        rule.awake.set()
        if rule.hang is not None:
            rule.hang.set()


def _names(body: Any) -> set[str]:
    kind: Any = body if isinstance(body, type) else type(body)
    return {kind.__name__, str(kind.__struct_config__.tag or getattr(kind, "kind", "")), getattr(kind, "kind", "")}
