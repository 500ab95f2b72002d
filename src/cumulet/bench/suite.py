"""Runs the cases on one target, one after the other, and keeps their figures.

Fails: a case that raises is a figure with its error; the run goes on. Interrupted, what was made is removed first.
"""

import itertools
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from cumulet import __version__
from cumulet.bench.meter import Meter, Spent
from cumulet.bench.results import FORMAT, Figure, Run, figure_of
from cumulet.bench.target import BenchError, Refused, Target, sweep
from cumulet.bench.wire import Answer, Flood, Prepared, WireError
from cumulet.kernel.clock import SystemClock, iso


class Sizes(msgspec.Struct, kw_only=True, frozen=True):
    """How much of everything; smaller is quicker and says less."""

    samples: int = 100
    slow_samples: int = 30  # of what takes long: server until ACTIVE, volume until available
    seconds: float = 5.0  # of each rate
    clients: int = 8
    pace: float = 30.0  # requests a second, where a steady load is measured
    crowd: int = 50  # servers by ten clients
    servers: int = 1000
    ports: int = 1000
    volumes: int = 100
    image_mib: int = 256
    idle_seconds: float = 60.0
    starts: int = 5
    overload: int = 600  # connections at once, against a private cloud only
    patience: float = 600.0  # for anything that is waited for


QUICK = Sizes(
    samples=40,
    slow_samples=12,
    seconds=2.0,
    servers=200,
    ports=200,
    volumes=30,
    image_mib=64,
    idle_seconds=10,
    starts=2,
    overload=300,
)


class Progress:
    """On a terminal one line that changes; elsewhere one line for each figure."""

    def __init__(self, stream: Any = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._live = self._stream.isatty()
        self._next = 0.0

    def doing(self, text: str) -> None:
        if self._live and time.monotonic() > self._next:
            self._next = time.monotonic() + 0.1
            self._stream.write(f"\r\x1b[K{text[:100]}")
            self._stream.flush()

    def line(self, text: str) -> None:
        self._stream.write(("\r\x1b[K" if self._live else "") + text + "\n")
        self._stream.flush()


Group = Callable[["Bench"], None]


class Bench:
    """What a case works with. ``private``: the cloud is this run's own, so that it may be overloaded."""

    def __init__(
        self, target: Target, sizes: Sizes, meter: Meter, progress: Progress, *, private: bool = False
    ) -> None:
        self.target = target
        self.user = target.user
        self.sizes = sizes
        self.meter = meter
        self.progress = progress
        self.private = private
        self.launched: float | None = None  # when the cloud's first process began (`time.perf_counter`)
        self.beside: list[int] = []  # processes of the database and the broker, as far as they are known
        self.figures: list[Figure] = []
        self._numbers = itertools.count(1)

    # -- measuring -------------------------------------------------------------------------------------------

    def samples(
        self,
        case: str,
        title: str,
        operation: Callable[[], float],
        n: int,
        *,
        warm: int = 3,
        pace: float | None = None,
        **more: Any,
    ) -> Figure:
        """``operation()`` answers the seconds it took. ``pace``: so many a second, begun on the beat."""
        for _ in range(min(warm, n)):
            operation()
        taken: list[float] = []
        spent = self.meter.start()
        began = time.perf_counter()
        for number in range(n):
            self.progress.doing(f"{title}: {number} of {n}")
            if pace:
                time.sleep(max(0.0, began + number / pace - time.perf_counter()))
            taken.append(operation() * 1000)
        return self.keep(figure_of(case, title, taken, **more), self.meter.since(spent), n)

    def asking(self, request: Prepared) -> Callable[[], float]:
        """The operation that sends this request, which must succeed."""

        def ask() -> float:
            answer = self.user.send(request)
            if answer.status >= 300:
                raise Refused(answer, "the request")
            return answer.seconds

        return ask

    def rate(self, case: str, title: str, request: Prepared) -> Figure:
        """How many a second the clients get answered together."""
        size = self.sizes
        self.progress.doing(title)
        self.user.flood(lambda: request, request.origin, connections=size.clients, seconds=min(0.5, size.seconds))
        spent = self.meter.start()
        found = self.user.flood(lambda: request, request.origin, connections=size.clients, seconds=size.seconds)
        self.check(found)
        figure = Figure(case=case, title=title, unit="/s", better="more", n=len(found.latencies))
        figure.median = round(found.rate, 1)
        latency = figure_of(case, title, [one * 1000 for one in found.latencies])
        figure.more = {"p50 ms": latency.median, "p95 ms": latency.p95}
        return self.keep(figure, self.meter.since(spent), len(found.latencies))

    @staticmethod
    def check(found: Flood) -> None:
        bad = {status: count for status, count in found.statuses.items() if status >= 300}
        if bad:
            raise BenchError(f"refused under load: {bad}")

    def keep(self, figure: Figure, spent: Spent | None = None, operations: int = 1) -> Figure:
        if spent is not None and spent.cpu_seconds is not None:
            figure.cpu_ms = round(max(0.0, spent.cpu_seconds) * 1000 / operations, 4)
        if spent is not None and spent.statements is not None:
            figure.statements = round(max(0, spent.statements) / operations, 2)
        self.figures = [one for one in self.figures if one.case != figure.case] + [figure]
        value = figure.error or figure.skipped or f"{figure.median:.4g} {figure.unit}"
        self.progress.line(f"  {figure.title}: {value}")
        return figure

    # -- common deeds ----------------------------------------------------------------------------------------

    def quiet(self, seconds: float = 0.5) -> None:
        """Let what the last case left to do be done."""
        time.sleep(seconds if self.sizes.seconds >= 1 else 0.01)

    def skip(self, case: str, title: str, why: str) -> None:
        self.keep(Figure(case=case, title=title, unit="", skipped=why))

    def make(self, path: str, service: str, body: Callable[[], Any], count: int, **more: Any) -> list[float]:
        """So many at once; ms of each answer. What is refused for a moment (503) is asked again."""
        left = count
        taken: list[float] = []

        def prepared() -> Prepared:
            return self.user.prepare("POST", service, path, body())

        def following() -> Prepared | None:
            nonlocal left
            self.progress.doing(f"POST {path}: {len(taken)} of {count}")
            left -= 1
            return prepared() if left >= 0 else None

        def answered(answer: Answer) -> Prepared | None:
            if answer.status == 503:
                time.sleep(0.02)
                return prepared()
            if answer.status >= 300:
                raise Refused(answer, f"POST {path}")
            taken.append(answer.seconds * 1000)
            return None

        self.user.flood(following, prepared().origin, answered=answered, **{"connections": 4, **more})
        return taken

    def until(self, service: str, path: str, key: str, status: str, began: float, before: list[float]) -> None:
        """Until the object has the status. It is left alone for most of the time that it took ``before`` (ms), then
        asked every millisecond, or less often where waiting is long."""
        if before:
            time.sleep(max(0.0, 0.0008 * sorted(before)[len(before) // 2] - (time.perf_counter() - began)))
        while True:
            found = self.user.do("GET", service, path)[key]["status"]
            if found == status:
                return
            if found.lower() == "error":
                raise BenchError(f"{path} is in error")
            self._patient(f"{path} becoming {status}", began)

    def until_gone(self, service: str, path: str, began: float, before: list[float]) -> None:
        if before:
            time.sleep(max(0.0, 0.0008 * sorted(before)[len(before) // 2] - (time.perf_counter() - began)))
        while (answer := self.user.ask("GET", service, path)).status != 404:
            if answer.status >= 300:
                raise Refused(answer, f"GET {path}")
            self._patient(f"{path} going", began)

    def _patient(self, what: str, began: float) -> None:
        passed = time.perf_counter() - began
        if passed > self.sizes.patience:
            raise BenchError(f"{what}: not within {self.sizes.patience:.0f} s")
        time.sleep(max(0.001, passed / 50))

    def delete_all(self, *kinds: str) -> None:
        """All that the run made of these kinds (as lists call them), waited for."""
        left = sweep(self.user, self.target.prefix + "-x-", kinds=kinds, seconds=self.sizes.patience)
        if left:
            raise BenchError(f"could not be deleted: {', '.join(left)}")

    def name(self) -> str:
        """Of something a case makes and removes (``-x-``: `delete_all` finds it)."""
        return f"{self.target.prefix}-x-{next(self._numbers)}"


def run_cases(bench: Bench, groups: Sequence[tuple[str, Group]]) -> None:
    for name, group in groups:
        try:
            group(bench)
        except (BenchError, WireError) as error:
            bench.keep(Figure(case=name, title=name, unit="", error=str(error)))
        bench.quiet()


@contextmanager
def cleaning(target: Target, say: Callable[[str], None], *, needed: bool = True) -> Iterator[None]:
    """Whatever happens inside, what the target made is removed; a second interrupt leaves the rest to --cleanup.
    ``needed``: False for a cloud that goes whole."""
    try:
        yield
    finally:
        left: list[str] = []
        if needed:
            say("removing what was made")
            try:
                left = target.clean()
            except (BenchError, WireError) as error:
                left = [str(error)]
        target.close()
        for one in left:
            say(f"could not be removed: {one}; try cumulet bench --cleanup")


def describe(target: Target, meter: Meter, *, processes: int | None = None) -> dict[str, Any]:
    """What cloud this is, as far as it tells."""
    status = target.status()
    if not status:
        return {"kind": "OpenStack"}
    found = {"kind": "Cumulet", "version": status["version"], "database": status["database"], "bus": status["bus"]}
    found["hosts"] = len(status["hosts"])
    found["processes"] = processes or len(meter.pids) or 1
    return found


def machine() -> dict[str, Any]:
    model = ""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20
    return {
        "cpus": os.cpu_count(),
        "model": model,
        "memory_mib": memory,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 2),
    }


def revision() -> str:
    """The commit this code stands at, with a ``+`` when it differs from it; the version outside a clone."""
    import subprocess

    here = Path(__file__).parents[1]

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + (
            "+" if git("status", "--porcelain", "--untracked=no", ".") else ""
        )
    except (OSError, subprocess.CalledProcessError):
        return __version__


def new_run(command: str) -> Run:
    return Run(
        format=FORMAT, began=iso(SystemClock().now()) or "", revision=revision(), command=command, machine=machine()
    )
