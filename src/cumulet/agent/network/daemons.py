"""dnsmasq and radvd: helpers in namespaces that are not our children and outlive us.

Each puts itself in the background and writes a pid file. At the next start it is found by that file and its command
line in /proc, and left alone: what decides between reload and restart is whether the command line that runs is the one
wanted. A daemon whose pid file was lost is found by its command line, which names the file.
"""

import os
import signal
import time
from pathlib import Path

from cumulet.agent.errors import DriverError
from cumulet.agent.network.shell import in_namespace, run, write_atomically
from cumulet.agent.outlive import outliving


def pid_of(argv: list[str], pid_file: Path) -> int | None:
    """The process that serves with this pid file, whatever its other arguments."""
    pid = _read_pid(pid_file)
    if pid is not None and _is_it(pid, argv[0], pid_file):
        return pid
    for entry in os.listdir("/proc"):
        if entry.isdecimal() and _is_it(int(entry), argv[0], pid_file):
            return int(entry)
    return None


def ensure(namespace: str, argv: list[str], pid_file: Path) -> bool:
    """Have exactly this daemon running in the namespace; True if it had to be (re)started. ``argv`` must name
    ``pid_file``, and the program must go to the background by itself once it serves."""
    pid = pid_of(argv, pid_file) if pid_file.exists() else None
    if pid is not None:
        if as_wanted(pid, argv, namespace):
            if _read_pid(pid_file) != pid:
                write_atomically(pid_file, f"{pid}\n")  # it was somebody's that is dead
            return False
        _end(pid)
    pid_file.parent.mkdir(parents=True, exist_ok=True)
    try:
        in_namespace(namespace, lambda: run(outliving(argv), timeout=20))
    except DriverError:
        pid = pid_of(argv, pid_file)  # one whose pid file was lost holds the port
        if pid is None:
            raise
        _end(pid)
        in_namespace(namespace, lambda: run(outliving(argv), timeout=20))
    return True


def as_wanted(pid: int, argv: list[str], namespace: str) -> bool:
    """Is it started so, and there?"""
    return command_line(pid)[1:] == argv[1:] and _same_namespace(pid, namespace)


def runs(program: str, pid_file: Path) -> bool:
    """Quick: the pid file is believed about where to look."""
    pid = _read_pid(pid_file)
    return pid is not None and _is_it(pid, program, pid_file)


def reload(argv: list[str], pid_file: Path) -> None:
    pid = pid_of(argv, pid_file)
    if pid is not None:
        os.kill(pid, signal.SIGHUP)


def stop(program: str, pid_file: Path) -> None:
    pid = pid_of([program], pid_file)
    if pid is not None:
        _end(pid)
    pid_file.unlink(missing_ok=True)


def command_line(pid: int) -> list[str]:
    try:
        raw = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return []
    return raw.decode(errors="replace").split("\0")[:-1]


def _is_it(pid: int, program: str, pid_file: Path) -> bool:
    line = command_line(pid)
    return (
        bool(line) and os.path.basename(line[0]) == os.path.basename(program) and any(str(pid_file) in a for a in line)
    )


def _same_namespace(pid: int, namespace: str) -> bool:
    try:
        return os.stat(f"/proc/{pid}/ns/net").st_ino == os.stat(f"/run/netns/{namespace}").st_ino
    except FileNotFoundError:
        return False


def _read_pid(pid_file: Path) -> int | None:
    try:
        return int(pid_file.read_text().strip())
    except (OSError, ValueError):
        return None


def _end(pid: int) -> None:
    """TERM, then KILL after two seconds; returns when it is gone."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        for number, patience in ((signal.SIGTERM, 2.0), (signal.SIGKILL, 5.0)):
            try:
                signal.pidfd_send_signal(handle, number)
            except ProcessLookupError:
                return
            if _gone(pid, patience):
                return
    finally:
        os.close(handle)
    raise DriverError("timeout", f"process {pid} ({' '.join(command_line(pid))[:200]}) does not end")


def _gone(pid: int, patience: float) -> bool:
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.005)
    return False
