"""What the kernel knows of a process: CPU spent, memory held. Zero when the process is gone or not ours to see."""

import os
import threading
import time
from pathlib import Path
from typing import NamedTuple

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


def cpu_seconds(pid: int) -> float:
    """User and system time of all its threads, living and ended."""
    try:
        return time.clock_gettime((~pid << 3) | 2)  # the process's CPU clock (clock_getcpuclockid(3)): nanoseconds
    except (OSError, OverflowError):
        pass
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / _TICKS


def pss_kib(pid: int) -> int:
    """Proportional set size in KiB."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1])
    except (OSError, ValueError):
        return 0
    return 0


def started_at(pid: int) -> float:
    """Seconds since the epoch, as exact as the kernel's ticks; 0 when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + int(fields[19]) / _TICKS


class Usage(NamedTuple):
    pid: int
    cpu_seconds: float
    rss_mb: float  # resident, shared pages in full: a tenth of what `pss_kib` costs
    threads: int


def usage() -> Usage:
    """Of this process."""
    pid = os.getpid()
    try:
        resident = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        resident = 0
    return Usage(pid, cpu_seconds(pid), resident * _PAGE / (1 << 20), threading.active_count())
