"""Figures: what a case found, the file that keeps a whole run, the table of one and the comparison of two.

The file names nothing of the machine but its make: it may be published.
"""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

FORMAT = 1


class Figure(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One measured thing. ``median`` is the figure itself; times are in ms, rates per second. ``better``: which way."""

    case: str
    title: str
    unit: str
    better: str = "less"
    n: int = 0
    median: float | None = None
    p95: float | None = None
    least: float | None = None
    most: float | None = None
    cpu_ms: float | None = None  # of all the cloud's processes, per operation
    statements: float | None = None  # of the process that answers, per operation
    error: str | None = None
    skipped: str | None = None
    more: dict[str, Any] = msgspec.field(default_factory=dict)


class Run(msgspec.Struct, kw_only=True, omit_defaults=True):
    format: int
    began: str = ""
    revision: str = ""
    command: str = ""
    cloud: dict[str, Any] = msgspec.field(default_factory=dict)
    machine: dict[str, Any] = msgspec.field(default_factory=dict)
    seconds: float = 0.0
    figures: list[Figure] = msgspec.field(default_factory=list)

    def find(self, case: str) -> Figure | None:
        return next((figure for figure in self.figures if figure.case == case), None)


class ResultsError(Exception):
    """A file that holds no results."""


def figure_of(case: str, title: str, samples: Sequence[float], *, unit: str = "ms", **more: Any) -> Figure:
    """The figure of samples that are in ``unit`` already."""
    if not samples:
        raise ValueError(f"{case}: nothing was measured")
    ordered = sorted(samples)
    return Figure(
        case=case,
        title=title,
        unit=unit,
        n=len(ordered),
        median=round(_quantile(ordered, 0.5), 4),
        p95=round(_quantile(ordered, 0.95), 4) if len(ordered) > 1 else None,
        least=round(ordered[0], 4),
        most=round(ordered[-1], 4),
        **more,
    )


def _quantile(ordered: Sequence[float], share: float) -> float:
    """Linear between the two samples around it."""
    place = share * (len(ordered) - 1)
    low, high = math.floor(place), math.ceil(place)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def save(run: Run, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(msgspec.to_builtins(run), indent=1, ensure_ascii=False) + "\n")


def load(path: Path) -> Run:
    try:
        run = msgspec.json.decode(path.read_bytes(), type=Run)
    except (OSError, msgspec.DecodeError, msgspec.ValidationError) as error:
        raise ResultsError(f"{path} holds no results of cumulet bench: {error}") from error
    if run.format != FORMAT:
        raise ResultsError(f"{path} has format {run.format}, this version reads {FORMAT}")
    return run


HEADER = ("case", "median", "p95", "unit", "n", "CPU ms", "SQL", "")


def row(figure: Figure) -> tuple[str, ...]:
    note = figure.error or (f"skipped: {figure.skipped}" if figure.skipped else "")
    if not note:
        note = ", ".join(f"{name} {_short(value)}" for name, value in figure.more.items())
    return (
        figure.title,
        _short(figure.median),
        _short(figure.p95),
        figure.unit,
        str(figure.n or "-"),
        _short(figure.cpu_ms),
        _short(figure.statements),
        note,
    )


def _short(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value)


def compared(first: Run, second: Run) -> Iterator[tuple[str, ...]]:
    """A row for each case that either has; the ratio is second to first, and says which way is better."""
    names = [figure.case for figure in first.figures]
    names += [figure.case for figure in second.figures if figure.case not in names]
    for name in names:
        a, b = first.find(name), second.find(name)
        known = b or a
        assert known is not None
        yield (
            known.title,
            _short(a.median if a else None),
            _short(b.median if b else None),
            known.unit,
            _ratio(a.median if a else None, b.median if b else None, known.better),
            _ratio(a.cpu_ms if a else None, b.cpu_ms if b else None, "less"),
            _ratio(a.statements if a else None, b.statements if b else None, "less"),
        )


COMPARE_HEADER = ("case", "first", "second", "unit", "second / first", "CPU", "SQL")


def _ratio(first: float | None, second: float | None, better: str) -> str:
    if not first or second is None:
        return "-"
    ratio = second / first
    if 0.97 < ratio < 1.03:
        return f"{ratio:.2f}"
    return f"{ratio:.2f} {'better' if (ratio < 1) == (better == 'less') else 'worse'}"
