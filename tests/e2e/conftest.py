"""A whole cloud in one pretend host, made by the quickstart itself; the tests drive it with OpenStack's own clients.

The pretend host has its own network namespace, /etc, /var, /root and /usr/local/bin, so nothing of the machine is
touched. This process enters its network namespace while a test runs, so that the API on loopback and the floating
addresses are reachable from here.
"""

import contextlib
import ctypes
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cumulet import guest
from tests.support.pretend import claim

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tests" / "hostnetwork" / "testhosts.sh"
PREFIX = claim("qs")
ENV = {**os.environ, "TH_PREFIX": PREFIX, "TH_OVERLAY": "/etc /var /root /usr/local/bin"}
CACHE = Path("/var/cache/cumulet")
BIN = ROOT / ".venv" / "bin"
_libc = ctypes.CDLL(None, use_errno=True)
_NEWNET = 0x40000000


class CloudHost:
    """The pretend host."""

    def __init__(self) -> None:
        self.name = "h1"
        self._openstack: subprocess.Popen[str] | None = None

    def run(self, *argv: str, check: bool = True, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [str(SCRIPT), "exec", self.name, "env", f"PATH=/usr/local/bin:{BIN}:{os.environ['PATH']}", *argv],
            capture_output=True,
            text=True,
            env=ENV,
            cwd="/",
            timeout=timeout,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        if check and done.returncode != 0:
            raise AssertionError(f"{' '.join(argv)}: exit {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done

    def sh(self, script: str, check: bool = True, timeout: float = 300) -> str:
        return self.run("sh", "-c", script, check=check, timeout=timeout).stdout

    def cumulet(self, *argv: str, check: bool = True, timeout: float = 400) -> subprocess.CompletedProcess[str]:
        return self.run(str(BIN / "cumulet"), *argv, check=check, timeout=timeout)

    def openstack(self, *argv: str, cloud: str = "cumulet") -> str:
        """The unmodified client's answer, values only."""
        if self._openstack is None or self._openstack.poll() is not None:
            self._openstack = subprocess.Popen(
                [
                    str(SCRIPT),
                    "exec",
                    self.name,
                    str(BIN / "python"),
                    str(Path(__file__).parent / "openstack_commands.py"),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=ENV,
                cwd="/",
            )
        assert self._openstack.stdin
        assert self._openstack.stdout
        self._openstack.stdin.write(json.dumps(["--os-cloud", cloud, *argv]) + "\n")
        self._openstack.stdin.flush()
        code, said, error = json.loads(self._openstack.stdout.readline())
        assert code == 0, f"openstack {' '.join(argv)}: exit {code}\n{said}\n{error}"
        return str(said).strip()

    def close(self) -> None:
        if self._openstack is not None:
            self._openstack.communicate()  # its standard input ends, and so does it
            self._openstack = None

    def guest(self, server: str, command: str, timeout: float = 60) -> str:
        """What a command prints in a guest, over SSH with the key and through its floating address."""
        return self.cumulet("ssh", server, command, timeout=timeout).stdout

    def namespace(self) -> Path:
        return Path(f"/run/netns/{PREFIX}-{self.name}")


@contextlib.contextmanager
def inside(namespace: Path) -> Iterator[None]:
    """This thread in another network namespace."""
    with open("/proc/thread-self/ns/net") as home, open(namespace) as there:
        if _libc.setns(there.fileno(), _NEWNET):
            raise OSError(ctypes.get_errno(), "setns")
        try:
            yield
        finally:
            if _libc.setns(home.fileno(), _NEWNET):
                raise OSError(ctypes.get_errno(), "setns back")


@pytest.fixture(scope="session")
def cloud_host() -> Iterator[CloudHost]:
    if os.geteuid() != 0 or not shutil.which("qemu-system-x86_64"):
        pytest.skip("needs root and QEMU")
    CACHE.mkdir(parents=True, exist_ok=True)
    guest.build(CACHE)  # here, where packages can be fetched; the pretend host sees the cache
    subprocess.run([str(SCRIPT), "down"], env=ENV, check=False, capture_output=True)
    subprocess.run([str(SCRIPT), "up", "1"], env=ENV, check=True, capture_output=True)
    host = CloudHost()
    # only what a user's home has; whatever the machine's has must not matter
    host.sh(
        "rm -rf /root/.config/openstack /root/.ssh/cumulet* /etc/cumulet /var/lib/cumulet /var/log/cumulet"
        " /usr/local/bin/cumulet /usr/local/bin/openstack"
    )
    yield host
    host.close()
    subprocess.run([str(SCRIPT), "down"], env=ENV, check=True, capture_output=True)


@pytest.fixture(scope="session")
def quickstart(cloud_host: CloudHost) -> str:
    """What the quickstart printed."""
    return cloud_host.cumulet("quickstart", timeout=580).stdout


@pytest.fixture(scope="session")
def connect(cloud_host: CloudHost, quickstart: str) -> Callable[[str], Any]:
    """openstacksdk's connection as ``demo`` or ``admin``."""
    import openstack

    def connection(user: str) -> Any:
        password = cloud_host.sh(f"cat /var/lib/cumulet/{user}-password").strip()
        return openstack.connect(
            auth_url="http://127.0.0.1:8774/identity",
            username=user,
            password=password,
            project_name=user,
            user_domain_name="Default",
            project_domain_name="Default",
            region_name="RegionOne",
            load_yaml_config=False,
            load_envvars=False,
        )

    return connection


@pytest.fixture
def demo(cloud_host: CloudHost, connect: Callable[[str], Any]) -> Iterator[Any]:
    with inside(cloud_host.namespace()):
        yield connect("demo")


@pytest.fixture
def admin(cloud_host: CloudHost, connect: Callable[[str], Any]) -> Iterator[Any]:
    with inside(cloud_host.namespace()):
        yield connect("admin")


def eventually(what: str, check: Callable[[], Any], seconds: float = 300) -> Any:
    end = time.monotonic() + seconds
    while True:
        value = check()
        if value:
            return value
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.5)
