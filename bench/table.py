"""docs/performance.md, made from the results of ``bench/run``: every target beside what was reached, met or not."""

from collections.abc import Iterator
from pathlib import Path

from bench.targets import ONE_PROCESS, SCALE, TIMES, Target
from cumulet.bench.results import Figure, Run, load

_HEAD = """# How fast, how heavy

Made by `bench/run`, which starts what it needs, measures, writes `docs/results/*.json` and this page. Nothing here is
typed by hand but targets, upstream's figures and reasons (`bench/targets.py`). `cumulet bench compare A.json B.json`
compares two runs; `cumulet bench --os-cloud NAME` measures any other OpenStack cloud with the same suite.

What is measured is the product with the quickstart's settings: policy, real password hashing (argon2id), saga journal,
durable database, encoded bus messages; only the host is the fake agent, as upstream's was a fake hypervisor. The load
generator runs on the same cores. Figures are medians, with the 95th percentile in brackets; *CPU* is of all the cloud's
processes for each operation, *SQL* the statements of the process that answers (what it does meanwhile in the background
is counted too).
"""


def write(results: Path, page: Path) -> None:
    page.write_text(text(results))


def text(results: Path) -> str:
    parts = [_HEAD]
    runs = {name: load(results / f"{name}.json") for name in ("sqlite", "servers", "scale")}
    parts.append(_section("One process on SQLite", runs["sqlite"], ONE_PROCESS))
    parts.append(
        _section("API, conductor and agent as processes over PostgreSQL and RabbitMQ", runs["servers"], TIMES, ten=True)
    )
    parts.append(_section("Costs that stay flat", runs["scale"], SCALE))
    return "\n".join(parts)


def _section(title: str, run: Run, targets: list[Target], *, ten: bool = False) -> str:
    lines = [f"## {title}", "", _origin(run), ""]
    lines.append("| what | upstream 2026.2 | target | reached | | CPU ms | SQL | remark |")
    lines.append("|---|---|---|---|---|---|---|---|")
    lines += [_row(run.find(target.case), target, ten=ten) for target in targets]
    met = [verdict for target in targets if (verdict := _verdict(run.find(target.case), target, ten=ten)) is not None]
    lines += ["", f"{sum(met)} of {len(met)} targets met.", ""]
    return "\n".join(lines)


def _origin(run: Run) -> str:
    machine = run.machine
    processes = run.cloud.get("processes", 1)
    return (
        f"`{run.command}` at revision {run.revision}, {run.began[:10]}, {run.seconds / 60:.0f} minutes: "
        f"{machine['cpus']} cores ({machine['model'] or 'model unknown'}), {machine['memory_mib'] / 1024:.0f} GiB, "
        f"{machine['system']}, Python {machine['python']}, load {machine['load']} before it began; "
        f"{processes} {'process' if processes == 1 else 'processes'}, {run.cloud.get('database')}, "
        f"bus {run.cloud.get('bus')}."
    )


def _row(figure: Figure | None, target: Target, *, ten: bool) -> str:
    unit = figure.unit if figure is not None else ""
    upstream = target.upstream_text or (_number(target.upstream, unit) if target.upstream is not None else "–")
    wanted = _ten_times(target, unit) if ten else target.limit_text or "–"
    verdict = _verdict(figure, target, ten=ten)
    mark = "" if verdict is None else "met" if verdict else "**missed**"
    reached = "not measured"
    if figure is not None and figure.median is not None:
        reached = _number(figure.median, unit)
        if figure.p95 is not None and figure.n > 3:
            reached += f" ({_plain(figure.p95)})"
    cells = [target.what, upstream, wanted, reached, mark]
    cells += [_plain(figure.cpu_ms), _plain(figure.statements)] if figure is not None else ["", ""]
    remarks = list(_remarks(figure, target, ten=ten))
    return "| " + " | ".join([*cells, "; ".join(remarks)]) + " |"


def _remarks(figure: Figure | None, target: Target, *, ten: bool) -> Iterator[str]:
    if figure is None:
        return
    if figure.error or figure.skipped:
        yield (figure.error or figure.skipped or "").replace("|", "/")[:120]
    if target.upstream and figure.median:
        times = figure.median / target.upstream
        times = times if target.better == "more" else 1 / times
        yield f"{times:.0f} × upstream" if times >= 10 else f"{times:.1f} × upstream"
    for name, value in figure.more.items():
        if name not in ("p50 ms", "p95 ms"):
            yield f"{name} {_plain(value) if isinstance(value, float) else value}"
    if target.why and not ten:
        yield target.why


def _verdict(figure: Figure | None, target: Target, *, ten: bool) -> bool | None:
    """None: there is no target."""
    if ten:
        assert target.upstream is not None
        if figure is None or figure.median is None:
            return False
        bound = target.upstream
        return figure.median >= bound * 10 if target.better == "more" else figure.median <= bound / 10
    if target.limit is None:
        return None
    value = None
    if figure is not None:
        value = figure.more.get(target.ratio) if target.ratio else figure.median
    if value is None:
        return False
    return bool(value >= target.limit if target.better == "more" else value <= target.limit)


def _ten_times(target: Target, unit: str) -> str:
    assert target.upstream is not None
    if target.better == "more":
        return f"≥ {_number(target.upstream * 10, unit)}"
    return f"≤ {_number(target.upstream / 10, unit)}"


def _number(value: float, unit: str) -> str:
    shown = _plain(value)
    return f"{shown}{unit}" if unit.startswith("/") else f"{shown} {unit}".strip()


def _plain(value: float | None) -> str:
    if value is None:
        return ""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.2g}" if abs(value) < 1 else f"{value:.3g}"
