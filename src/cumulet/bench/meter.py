"""What the cloud itself spends: CPU, memory and SQL statements of its processes.

Processes of this machine are read from the kernel (nanoseconds, no request); others of a Cumulet by its operator API.
Of any other cloud nothing is known, and nothing is said.
"""

import contextlib
import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from cumulet.kernel.process import cpu_seconds, pss_kib

_LOOKS = 6
_Number = TypeVar("_Number", int, float)


@dataclass
class Spent:
    cpu_seconds: float | None
    statements: int | None


class Meter:
    """``ask``: the operator API's word on the process that answers (True: with its memory), or None where there is
    none. ``pids``: the
    cloud's processes, as far as they run here."""

    def __init__(self, ask: Callable[[bool], dict[str, Any]] | None = None, pids: Sequence[int] = ()) -> None:
        self._ask = ask
        self.pids = list(pids)
        self._own = Spent(None, None)  # what one look costs the cloud
        if ask is not None:
            looks = [self._look() for _ in range(_LOOKS)]
            costs = [_less(later, earlier) for earlier, later in itertools.pairwise(looks)]
            self._own = Spent(_least(one.cpu_seconds for one in costs), _least(one.statements for one in costs))

    def _look(self) -> Spent:
        told = self._ask(False) if self._ask is not None else {}
        cpu = sum(cpu_seconds(pid) for pid in self.pids) if self.pids else told.get("cpu_seconds")
        return Spent(cpu, told.get("statements"))

    def start(self) -> Spent:
        return self._look()

    def since(self, start: Spent) -> Spent:
        return _less(_less(self._look(), start), self._own)

    @staticmethod
    def pss_of_trees(roots: Sequence[int]) -> int:
        """KiB of these processes and of all that they started."""
        parents: dict[int, list[int]] = {}
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                parents.setdefault(parent, []).append(int(entry.name))
        found, left = 0, list(roots)
        while left:
            pid = left.pop()
            found += pss_kib(pid)
            left += parents.get(pid, [])
        return found

    def pss_kib(self) -> int | None:
        if self.pids:
            return sum(pss_kib(pid) for pid in self.pids)
        told = self._ask(True) if self._ask is not None else {}
        return told["pss_bytes"] // 1024 if told.get("pss_bytes") else None

    def idle_share(self, seconds: float, tick: Callable[[float], None]) -> float | None:
        """CPU seconds per second while nobody asks anything."""
        start = self._look()
        if start.cpu_seconds is None:
            return None
        began = time.monotonic()
        while (left := seconds - (time.monotonic() - began)) > 0:
            tick(left)
            time.sleep(min(left, 1.0))
        spent = self.since(start)
        assert spent.cpu_seconds is not None
        return max(0.0, spent.cpu_seconds) / (time.monotonic() - began)


def _least(costs: Iterable[_Number | None]) -> _Number | None:
    """The least of them: whatever else the cloud did meanwhile only adds, and would be taken off every figure."""
    return min((one for one in costs if one is not None), default=None)


def _less(one: Spent, other: Spent) -> Spent:
    return Spent(
        None if one.cpu_seconds is None else one.cpu_seconds - (other.cpu_seconds or 0),
        None if one.statements is None else one.statements - (other.statements or 0),
    )
