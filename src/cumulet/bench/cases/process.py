"""The cloud's own processes: memory, CPU while idle, and what they do with more than they can serve."""

import time

from cumulet.bench.results import Figure, figure_of
from cumulet.bench.suite import Bench
from cumulet.bench.target import BenchError
from cumulet.bench.wire import Answer

_UNKNOWN = "only the cloud's own machine, or a Cumulet, tells"


def memory_fresh(bench: Bench) -> None:
    """Memory before the suite."""
    _memory(bench, "memory.fresh", "memory of all processes, fresh")


def memory_used(bench: Bench) -> None:
    """Memory after it."""
    bench.quiet(2)
    _memory(bench, "memory.used", "memory of all processes, after the suite")


def _memory(bench: Bench, case: str, title: str) -> None:
    kib = bench.meter.pss_kib()
    if kib is None:
        bench.skip(case, title, _UNKNOWN)
        return
    figure = figure_of(case, title, [kib / 1024], unit="MiB")
    figure.more = {"processes": len(bench.meter.pids) or 1}
    if bench.beside:
        figure.more["database and broker MiB"] = round(bench.meter.pss_of_trees(bench.beside) / 1024)
    bench.keep(figure)


def idle(bench: Bench) -> None:
    """CPU while nobody asks anything, every reconciler on."""
    title = f"CPU while idle, {bench.sizes.idle_seconds:.0f} s"
    bench.quiet(3)
    share = bench.meter.idle_share(
        bench.sizes.idle_seconds, lambda left: bench.progress.doing(f"idle: {left:.0f} s more")
    )
    if share is None:
        bench.skip("idle.cpu", title, _UNKNOWN)
        return
    bench.keep(figure_of("idle.cpu", title, [share * 100], unit="% of a core"))


def overload(bench: Bench) -> None:
    """Far more at once than it takes: it must refuse what it cannot queue, lose nothing it accepted, and recover."""
    user, size = bench.user, bench.sizes
    title = f"{size.overload} clients at once"
    if not bench.private:
        bench.skip("overload", title, "only done to a cloud of the run's own (--fake)")
        return
    listed = user.prepare("GET", "network", f"/ports?network_id={bench.target.network}")
    quick = bench.asking(listed)
    before = sorted(quick() for _ in range(20))[10]
    waits: list[float] = []

    def noted(answer: Answer) -> None:
        waits.append(answer.seconds * 1000)

    found = user.flood(
        lambda: listed, listed.origin, connections=size.overload, seconds=min(3.0, size.seconds), answered=noted
    )
    other = {s: n for s, n in found.statuses.items() if s >= 300 and s != 503}
    if other:
        raise BenchError(f"answered under overload: {other}")
    began = time.perf_counter()
    while quick() > before * 3 and time.perf_counter() - began < 30:
        continue
    figure = figure_of("overload", f"wait with {title}", waits)
    refused = found.statuses.get(503, 0)
    figure.more = {"longest ms": round(max(waits)), "answered/s": round(found.succeeded / found.seconds)}
    figure.more["refused (503)"] = refused
    figure.more["well again after s"] = round(time.perf_counter() - began, 3)
    bench.keep(figure)


def starts(fresh: list[float], again: list[float], emulator: list[float]) -> list[Figure]:
    """Figures of a private cloud's starts (they come before there is a target)."""
    found = []
    for case, of, seconds in (
        ("fresh", "new database", fresh),
        ("again", "database there", again),
        ("emulator", "emulator", emulator),
    ):
        if seconds:
            title = f"process start to first answer, {of}"
            found.append(figure_of(f"start.{case}", title, [one * 1000 for one in seconds]))
    return found
