"""A pretend host: namespaces, a private /run, /etc and /var, three NICs. See ``tests/hostnetwork/testhosts.sh``."""

import contextlib
import ctypes
import fcntl
import functools
import os
import string
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

_SCRIPT = Path(__file__).parent.parent / "hostnetwork" / "testhosts.sh"
_SYSTEMD = Path(__file__).parent / "systemd-init.sh"
_CLONE_NEWNET = 0x40000000


@functools.cache
def claim(name: str) -> str:
    """A prefix that no other run on this machine uses while this process lives: ``name`` (at most 3 characters), or
    with a letter more. What a killed run left under it is taken down by the next that gets it."""
    for letter in ["", *string.ascii_lowercase]:
        lock = open(Path(tempfile.gettempdir()) / f"testhosts-{name}{letter}.lock", "w")  # noqa: SIM115
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            continue
        _held.append(lock)
        return name + letter
    raise RuntimeError(f"every prefix {name}… is in use")


_held: list[object] = []  # open for good


class PretendHosts:
    """``name``: at most 3 characters, the tests' own. Hosts are h1, h2, … ``systemd``: it is process 1 of each, and
    /usr and /opt are theirs, too."""

    def __init__(self, name: str, number: int = 1, *, systemd: bool = False) -> None:
        self._prefix = prefix = claim(name)
        self._environment = {**os.environ, "TH_PREFIX": prefix}
        if systemd:
            self._environment |= {"TH_OVERLAY": "/etc /var /usr /opt", "TH_INIT": str(_SYSTEMD)}
        self.number = number

    def _run(self, *arguments: str) -> None:
        done = subprocess.run(
            ["bash", str(_SCRIPT), *arguments], env=self._environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"testhosts.sh {' '.join(arguments)}: {done.stderr}{done.stdout}")

    def up(self) -> None:
        self._run("down")
        self._run("up", str(self.number))

    def down(self) -> None:
        self._run("down")

    def power_off(self, host: str) -> None:
        """Every process of the host dies; its disks stay."""
        self._run("kill", host)

    def power_on(self, host: str) -> None:
        self._run("start", host)

    def command(self, host: str, *command: str) -> list[str]:
        """The command line that runs a command in a host."""
        return ["env", f"TH_PREFIX={self._prefix}", "bash", str(_SCRIPT), "exec", host, *command]

    def output(self, host: str, *command: str) -> str:
        return subprocess.run(self.command(host, *command), capture_output=True, text=True, check=True).stdout

    def init(self, host: str) -> int:
        """The host's first process, as this one knows it."""
        return int(Path(f"/tmp/testhosts-{self._prefix}/{host}/pid").read_text())

    @contextlib.contextmanager
    def inside(self, host: str) -> Iterator[None]:
        """This thread in the host's network for a while: its sockets reach what listens there."""
        libc = ctypes.CDLL(None, use_errno=True)
        with open("/proc/thread-self/ns/net") as here, open(f"/run/netns/{self._prefix}-{host}") as there:
            if libc.setns(there.fileno(), _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
            try:
                yield
            finally:
                if libc.setns(here.fileno(), _CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), "setns")
