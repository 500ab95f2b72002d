"""What is killed with SIGKILL, stopped with SIGSTOP and started again: the processes of a cloud.

A `Victim` says how each is done to one process; `disturbances` makes of many what a `Disturber` chooses from. Which are
away is known here, so that nobody kills what is dead.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from cumulet.chaos.disturb import Disturbance, Undo


def _nothing() -> None:
    """Somebody else starts it again."""


@dataclass(frozen=True)
class Victim:
    """``pause`` None: it is not stopped. ``start`` does what its init system would, if nobody else does."""

    name: str
    kind: str  # as it is counted
    kill: Callable[[], None]
    start: Callable[[], None] = _nothing
    pause: Callable[[], None] | None = None
    resume: Callable[[], None] = _nothing
    dead_s: Sequence[float] = (0.0, 0.3, 1.0, 3.0)  # until it is started
    paused_s: Sequence[float] = (0.2, 1.0)
    weight: int = 6  # of its kind's kills; stops are two thirds as frequent


class Victims:
    """``look()`` is called before each disturbance: it raises if something is not as it should be."""

    def __init__(self, victims: Sequence[Victim], look: Callable[[], Any] = _nothing) -> None:
        self._kinds: dict[str, list[Victim]] = {}
        for victim in victims:
            self._kinds.setdefault(victim.kind, []).append(victim)
        self._away: set[str] = set()
        self._look = look

    def disturbances(self) -> list[Disturbance]:
        found = []
        for kind, victims in self._kinds.items():
            found.append(Disturbance(f"{kind} killed", victims[0].weight, self._act(victims, self._kill)))
            stoppable = [one for one in victims if one.pause is not None]
            if stoppable:
                weight = max(1, victims[0].weight * 2 // 3)
                found.append(Disturbance(f"{kind} stopped", weight, self._act(stoppable, self._stop)))
        return found

    def _act(
        self, victims: list[Victim], do: Callable[[random.Random, Victim], tuple[str, Undo]]
    ) -> Callable[[random.Random], tuple[str, Undo] | None]:
        def act(rng: random.Random) -> tuple[str, Undo] | None:
            victim = rng.choice(victims)
            if victim.name in self._away:
                return None
            self._look()
            self._away.add(victim.name)
            return do(rng, victim)

        return act

    def _kill(self, rng: random.Random, victim: Victim) -> tuple[str, Undo]:
        seconds = rng.choice(victim.dead_s)
        victim.kill()
        word = f"{victim.name} started" if victim.start is not _nothing else ""
        return f"{victim.name} killed", (seconds, word, self._back(victim, victim.start))

    def _stop(self, rng: random.Random, victim: Victim) -> tuple[str, Undo]:
        seconds = rng.choice(victim.paused_s)
        assert victim.pause is not None
        victim.pause()
        told = f"{victim.name} stopped for {seconds:g} s"
        return told, (seconds, f"{victim.name} goes on", self._back(victim, victim.resume))

    def _back(self, victim: Victim, do: Callable[[], None]) -> Callable[[], None]:
        def back() -> None:
            do()
            self._away.discard(victim.name)

        return back
