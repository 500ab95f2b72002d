"""Directories of tests, and what a killed run left in them and running on them.

A run notes each directory it makes under its own process id; the next run finds the notes of processes that are gone,
ends the orphans that live on those directories, and removes both. Of a run that goes on nothing is touched.
"""

import contextlib
import os
import shutil
import signal
import tempfile
from pathlib import Path

_NOTES = Path(tempfile.gettempdir()) / "cumulet-tests"


def directory(prefix: str, parent: str | Path | None = None) -> Path:
    """A new one, noted."""
    made = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    _NOTES.mkdir(exist_ok=True)
    with (_NOTES / _identity(os.getpid())).open("a") as notes:
        notes.write(f"{made}\n")
    return made


def sweep() -> None:
    for notes in _NOTES.glob("*"):
        if notes.name == _identity(int(notes.name.split(".")[0])):
            continue
        taken = notes.with_name(_identity(os.getpid()) + ".sweep")
        with contextlib.suppress(FileNotFoundError):  # another worker took it
            notes.rename(taken)
            for line in taken.read_text().splitlines():
                for pid in _orphans_on(line):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                shutil.rmtree(line, ignore_errors=True)
            taken.unlink()


def forget() -> None:
    """The run ends; what it could not remove stays noted for the next."""
    notes = _NOTES / _identity(os.getpid())
    if notes.exists() and not any(Path(line).exists() for line in notes.read_text().splitlines()):
        notes.unlink()
    with contextlib.suppress(OSError):  # others are noted there
        _NOTES.rmdir()


def _identity(pid: int) -> str:
    """A process id and its start: ids are used again."""
    with contextlib.suppress(OSError):
        return f"{pid}.{Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[19]}"
    return f"{pid}.gone"


def _orphans_on(path: str) -> list[int]:
    """Nobody's children that name the directory, work in it, or have it mounted where we have not."""
    name = Path(path).name  # as it is called in its own file system
    ours = name in Path("/proc/self/mountinfo").read_text()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            if parent != 1 or int(process.name) == os.getpid():
                continue
            if (
                path.encode() in (process / "cmdline").read_bytes()
                or str((process / "cwd").readlink()).startswith(path)
                or (not ours and name in (process / "mountinfo").read_text())
            ):
                found.append(int(process.name))
    return found
