"""How the command line speaks: plain lines that read well without a terminal, problems as one line with a cure."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click


class Problem(Exception):
    """What went wrong, its cure, and where to read more; printed as one line, exit status 1."""

    def __init__(self, what: str, cure: str = "", log: str = "") -> None:
        text = what.rstrip(".") + "."
        if cure:
            text += f"  Cure: {cure}"
        if log:
            text += f"  Log: {log}"
        super().__init__(text)


class Phases:
    """Timed phases: ``with phases("building the image"): …`` prints the phase when it begins and what it took."""

    def __init__(self, began: float | None = None) -> None:
        self.began = time.time() if began is None else began
        self.taken: list[tuple[str, float]] = []

    def say(self, text: str) -> None:
        click.echo(f"{time.time() - self.began:5.0f}s  {text}")

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        begun = time.monotonic()
        self.say(name)
        yield
        self.taken.append((name, time.monotonic() - begun))


def table(rows: Sequence[Sequence[Any]], header: Sequence[str] | None = None, indent: str = "  ") -> None:
    """Columns aligned by width; numbers (int, float) to the right."""
    texts = [[_cell(c) for c in row] for row in rows]
    every = ([list(header)] if header else []) + texts
    if not every:
        return
    widths = [max(len(row[i]) for row in every) for i in range(len(every[0]))]
    numeric = [all(isinstance(row[i], int | float) for row in rows) for i in range(len(widths))] if rows else []
    for n, row in enumerate(every):
        cells = [
            text.rjust(widths[i]) if numeric and numeric[i] else text.ljust(widths[i]) for i, text in enumerate(row)
        ]
        line = indent + "  ".join(cells).rstrip()
        click.echo(click.style(line, bold=True) if header and n == 0 else line)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3f}"
    if isinstance(value, list | tuple | set | frozenset):
        return ", ".join(str(v) for v in value)
    return str(value)


def mib(kib: float) -> str:
    return f"{kib / 1024:.0f} MiB"
