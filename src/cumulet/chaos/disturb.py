"""What disturbs a cloud: a list of disturbances, chosen by weight from the run's seed, each taken back some time later.

`Disturber` owns the course (choose, tell, take back); what can be done to a cloud is the list it is given. `mend` takes
everything back at once; afterwards nothing is disturbed any more. A disturbance that raises ends the run: it is a
defect of the run or of the cloud's own life (a conductor that does not come back), and either is to be told.
"""

import heapq
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from cumulet.bus import Chaos, LocalBus
from cumulet.chaos.model import now
from cumulet.emulator import Emulator

Undo = tuple[float, str, Callable[[], object]]  # after so many seconds, what is told, what is done
Say = Callable[[str], None]
_LONGER = 10  # times a run's seconds: then it has what it has


@dataclass(frozen=True)
class Disturbance:
    """``act(random)`` answers what it did, and how that is taken back if it is; None: it could not be done now."""

    name: str
    weight: int
    act: Callable[[random.Random], tuple[str, Undo | None] | None]


class Disturber:
    def __init__(self, disturbances: list[Disturbance], seed: int, say: Say, *, pause_s: float = 0.5) -> None:
        self.random = random.Random(f"{seed}/disturber")
        self.disturbances = disturbances
        self.counts: dict[str, int] = {}
        self._say = say
        self._pause_s = pause_s
        self._undo: list[tuple[float, int, str, Callable[[], object]]] = []
        self._numbers = count()

    def run(self, seconds: float, go_on: Callable[[], bool], enough: Callable[[], bool] = lambda: True) -> None:
        """Until time is up and it is ``enough``, on the caller's thread: processes that it starts end with the thread
        that started them."""
        next_at, end = now(), now() + seconds
        last = end + seconds * (_LONGER - 1)
        while now() < last and go_on():
            if now() >= end:
                if enough():
                    return
                end = now() + 0.5
            if now() >= next_at:
                self._disturb()
                next_at = now() + self.random.uniform(0.2, 1.8) * self._pause_s
            self._take_back(now())
            until = min([next_at, end, now() + 0.5, *(entry[0] for entry in self._undo[:1])])
            time.sleep(max(0.01, until - now()))

    def mend(self) -> None:
        """All that was done is taken back."""
        self._take_back(float("inf"))

    def _disturb(self) -> None:
        weights = [one.weight for one in self.disturbances]
        one = self.random.choices(self.disturbances, weights)[0]
        did = one.act(self.random)
        if did is None:
            return
        told, undo = did
        self.counts[one.name] = self.counts.get(one.name, 0) + 1
        self._say(told)
        if undo is not None:
            seconds, word, back = undo
            heapq.heappush(self._undo, (now() + seconds, next(self._numbers), word, back))

    def _take_back(self, until: float) -> None:
        while self._undo and self._undo[0][0] <= until:
            _, _, word, back = heapq.heappop(self._undo)
            back()
            if word:
                self._say(word)


def harm_messages(seed: int, use: Callable[[Chaos | None], None], *, weight: int) -> Disturbance:
    """``use`` brings the harm upon the bus, or ends it."""
    going_on: list[Chaos] = []
    numbers = count()

    def act(rng: random.Random) -> tuple[str, Undo] | None:
        values = rng.uniform(0, 0.3), rng.uniform(0, 0.3), rng.uniform(0, 0.5), rng.uniform(0.01, 0.5)
        if going_on:
            return None
        chaos = Chaos(seed + next(numbers), *values, quiet=True)
        use(chaos)
        going_on.append(chaos)
        told = f"messages: {chaos.drop:.0%} lost, {chaos.double:.0%} doubled, {chaos.delay:.0%} late"
        return told, (rng.uniform(0.3, 2), "messages arrive", back)

    def back() -> None:
        use(None)
        going_on.clear()

    return Disturbance("messages harmed", weight, act)


def in_file(path: Path) -> Callable[[Chaos | None], None]:
    """For buses that were opened with ``?chaos=path``."""
    return lambda chaos: path.unlink(missing_ok=True) if chaos is None else chaos.write(path)


_WORDS = (
    "boot", "stop", "reboot", "image", "disk", "port", "delete", "snapshot", "attach", "detach", "volume",
    "volume-delete", "volume-extend", "volume-snapshot", "ExportVolume", "UnexportVolume", "DefineServer",
)  # fmt: skip
_FULL = "No space left on device"


class EmulatedDisturbances:
    """Of an emulated cloud in this process."""

    def __init__(self, cloud: Emulator, seed: int) -> None:
        self._cloud = cloud
        assert isinstance(cloud.bus, LocalBus)
        self._bus = cloud.bus
        self._seed = seed
        self._conductor_lives = True

    def list(self) -> list[Disturbance]:
        return [
            Disturbance("host killed", 8, self._lose_host),
            Disturbance("conductor killed", 6, self._kill_conductor),
            harm_messages(self._seed, self._harm, weight=8),
            Disturbance("operations fail", 8, self._fail),
            Disturbance("disk full", 3, self._fill),
            Disturbance("operations late", 6, self._delay),
            Disturbance("operations hang", 4, self._hang),
            Disturbance("clock jumps", 4, self._jump),
            Disturbance("requests cut", 4, self._cut),
        ]

    def _lose_host(self, rng: random.Random) -> tuple[str, Undo | None] | None:
        host = rng.choice(list(self._cloud.hosts.values()))
        seconds = rng.uniform(0.1, 3)
        if host.lost:
            return None
        host.lose()
        return f"{host.name} killed", (seconds, f"{host.name} started", host.start)

    def _kill_conductor(self, rng: random.Random) -> tuple[str, Undo | None] | None:
        seconds = rng.uniform(0, 1.5)
        if not self._conductor_lives:
            return None
        self._conductor_lives = False
        self._cloud.kill_conductor()
        return "conductor killed", (seconds, "conductor started", self._start_conductor)

    def _start_conductor(self) -> None:
        self._cloud.start_conductor()
        self._conductor_lives = True

    def _harm(self, chaos: Chaos | None) -> None:
        self._bus.chaos = chaos

    def _fault(self, rng: random.Random, what: str, number: int, host: str | None) -> tuple[str, Undo]:
        where = f" on {host}" if host else ""
        return what + where, (rng.uniform(0.5, 4), "", lambda: self._cloud.faults.remove(number))

    def _where(self, rng: random.Random) -> str | None:
        return rng.choice([None, *self._cloud.hosts])

    def _fail(self, rng: random.Random) -> tuple[str, Undo | None]:
        word, host, times = rng.choice(_WORDS), self._where(rng), rng.randint(1, 3)
        number = self._cloud.faults.fail(word, times=times, host=host, message="chaos")
        return self._fault(rng, f"{word} fails {times} times", number, host)

    def _fill(self, rng: random.Random) -> tuple[str, Undo | None]:
        word, host = rng.choice(["disk", "image", "volume", "volume-extend", "snapshot"]), self._where(rng)
        number = self._cloud.faults.fail(word, times=None, host=host, message=_FULL, code="no-space")
        return self._fault(rng, f"disk full: {word} fails", number, host)

    def _delay(self, rng: random.Random) -> tuple[str, Undo | None]:
        word, host, seconds = rng.choice(_WORDS), self._where(rng), rng.choice([0.2, 1, 5, 60])
        number = self._cloud.faults.delay(word, seconds, times=rng.randint(1, 3), host=host)
        return self._fault(rng, f"{word} takes {seconds:g} s", number, host)

    def _hang(self, rng: random.Random) -> tuple[str, Undo | None]:
        word, host = rng.choice(_WORDS), self._where(rng)
        number = self._cloud.faults.hang(word, times=rng.randint(1, 2), host=host)
        return self._fault(rng, f"{word} hangs", number, host)

    def _jump(self, rng: random.Random) -> tuple[str, Undo | None]:
        seconds = rng.choice([1, 5, 20, 45, 120, 700])
        self._cloud.clock.jump(seconds)
        return f"clock jumps {seconds} s", None

    def _cut(self, rng: random.Random) -> tuple[str, Undo | None]:
        kind, times = rng.choice(["cut", "503", "slow"]), rng.randint(1, 4)
        if kind == "cut":
            number = self._cloud.faults.drop(times=times)
        elif kind == "503":
            number = self._cloud.faults.answer(503, times=times)
        else:
            number = self._cloud.faults.slow(0.3, times=times)
        return f"{times} requests: {kind}", (2.0, "", lambda: self._cloud.faults.remove(number))
