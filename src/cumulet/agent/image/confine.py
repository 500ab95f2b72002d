"""Runs a program over an untrusted file with as few rights as this machine can take from it.

Started as root: as the user ``nobody``, without capabilities, in a network and IPC namespace of its own, unable to gain
rights, limited in CPU time, memory, file size and files; it is lent descriptors and can open nothing that is not
world-readable. Started as anyone else: the same, except that the user stays and the namespaces are taken where the
kernel allows it. It is killed when its time is up.
"""

import functools
import os
import subprocess
from collections.abc import Callable, Sequence

UNPRIVILEGED = 65534


class ConfinedError(Exception):
    """The program failed, or was killed. ``message`` is its last words."""


def run(
    command: Sequence[str],
    *,
    lent: Sequence[int] = (),
    seconds: float = 20,
    cpu_seconds: int = 10,
    memory_bytes: int = 2 << 30,
    file_bytes: int = 0,
    watch: Callable[[], str | None] = lambda: None,
) -> str:
    """Its standard output. ``watch`` is asked twice a second; a text it returns is the reason to kill the program."""
    limits = [f"--as={memory_bytes}", f"--cpu={cpu_seconds}", f"--fsize={file_bytes}", "--nofile=64", "--core=0"]
    process = subprocess.Popen(
        ["prlimit", *limits, "--", *_jail(), *command],
        pass_fds=lent,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        cwd="/",
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"},
        start_new_session=True,
    )
    reason, left = None, seconds
    while True:
        try:
            out, said = process.communicate(timeout=min(0.5, max(left, 0.01)))
            break
        except subprocess.TimeoutExpired:
            left -= 0.5
            reason = f"not finished after {seconds:.0f} seconds" if left <= 0 else watch()
            if reason is not None:
                process.kill()
    if reason is None and process.returncode:
        reason = said.strip()[-500:] or f"ended by signal {-process.returncode}"
    if reason is not None:
        raise ConfinedError(reason)
    return out


@functools.cache
def _jail() -> tuple[str, ...]:
    rights: tuple[str, ...] = ("setpriv", "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all")
    if os.geteuid() == 0:
        user = (f"--reuid={UNPRIVILEGED}", f"--regid={UNPRIVILEGED}", "--clear-groups", "--")
        spaces: tuple[str, ...] = ("unshare", "--net", "--ipc", "--")
        return (*(spaces if _works(spaces) else ()), *rights, *user)
    spaces = ("unshare", "--user", "--net", "--ipc", "--")
    return (*(spaces if _works(spaces) else ()), "setpriv", "--no-new-privs", "--")


def _works(prefix: Sequence[str]) -> bool:
    return subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode == 0
