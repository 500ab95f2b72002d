"""Which of our processes run on this machine. The truth is a lock on ``<run_dir>/<role>.pid``, never the number in it:
a lock dies with its process, a number may be someone else's by now."""

import fcntl
import os
import signal
import time
from pathlib import Path
from typing import IO

from cumulet.cli.output import Problem


def hold(run_dir: Path, role: str, seconds: float = 3.0) -> IO[str]:
    """Claim the role for this process until it ends; Problem when another process has it and keeps it: one that is
    dying (killed a moment ago) is waited for."""
    run_dir.mkdir(parents=True, exist_ok=True)
    file = open(run_dir / f"{role}.pid", "a+")  # noqa: SIM115 - held for the life of the process
    end = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError as error:
            if time.monotonic() < end:
                time.sleep(0.02)
                continue
            file.seek(0)
            raise Problem(f"role {role} runs already (process {file.read().strip()})", "cumulet down") from error
    file.seek(0)
    file.truncate()
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file


def running(run_dir: Path, role: str) -> int | None:
    """The process id that holds the role, or None."""
    try:
        with open(run_dir / f"{role}.pid") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                text = file.read().strip()
                return int(text) if text else None
    except FileNotFoundError:
        pass
    return None


def stop(run_dir: Path, role: str, seconds: float = 20) -> bool:
    """Ask the role's process to end (SIGTERM), force it after ``seconds``. True if there was one."""
    pid = running(run_dir, role)
    if pid is None:
        return False
    os.kill(pid, signal.SIGTERM)
    end = time.monotonic() + seconds
    while running(run_dir, role) == pid:
        if time.monotonic() > end:
            os.kill(pid, signal.SIGKILL)
            end += 5
        time.sleep(0.02)
    return True


def processes() -> list[tuple[int, str]]:
    """(pid, command line) of every process of this machine that we may see; a container's are another machine's."""
    found = []
    here = os.readlink("/proc/self/ns/pid")
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if os.readlink(entry / "ns/pid") != here:
                    continue
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            except OSError:
                continue
            if command:
                found.append((int(entry.name), command))
    return found
