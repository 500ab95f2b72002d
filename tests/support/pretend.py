"""A pretend host: namespaces, a private /run, /etc and /var, three NICs. See ``tests/hostnetwork/testhosts.sh``."""

import contextlib
import ctypes
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

_SCRIPT = Path(__file__).parent.parent / "hostnetwork" / "testhosts.sh"
_CLONE_NEWNET = 0x40000000


class PretendHosts:
    """``prefix``: at most 4 characters, the tests' own. Hosts are h1, h2, …"""

    def __init__(self, prefix: str, number: int = 1) -> None:
        self._prefix = prefix
        self._environment = {**os.environ, "TH_PREFIX": prefix}
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
