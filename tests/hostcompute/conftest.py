"""A real libvirtd of our own in a network namespace of its own, with the compute driver on it, for the tests marked
``host``. What it learns of QEMU is kept between runs: probing takes ten seconds and more."""

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cumulet.agent import contract as c
from cumulet.agent.errors import DriverError
from cumulet.guest import boot_sector_qcow2
from cumulet.kernel.ids import new_uuid
from tests.support import leftovers

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


_HOME = open("/proc/thread-self/ns/net")  # noqa: SIM115 - for as long as the process lives


def _enter(namespace: Any) -> None:
    if _libc.setns(namespace.fileno(), _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


@pytest.fixture(scope="package")
def own_network() -> Iterator[None]:
    """This thread, and what it starts, in a network namespace that ends with it."""
    if _libc.unshare(_CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    yield
    _enter(_HOME)


@contextlib.contextmanager
def outside() -> Iterator[None]:
    """In the machine's own network for a while: for what fetches packages."""
    with open("/proc/thread-self/ns/net") as here:
        _enter(_HOME)
        try:
            yield
        finally:
            _enter(here)


class Taps:
    """The smallest `PortPlugger`: a tap, and nothing on it."""

    def __init__(self) -> None:
        self.ports: dict[str, str] = {}

    def plug(self, port: c.PortDoc) -> None:
        if port.id not in self.ports:
            subprocess.run(["ip", "tuntap", "add", port.tap, "mode", "tap"], check=True)
            subprocess.run(["ip", "link", "set", port.tap, "up"], check=True)
            self.ports[port.id] = port.tap

    def unplug(self, port_id: str) -> None:
        tap = self.ports.pop(port_id, None)
        if tap is not None:
            subprocess.run(["ip", "link", "delete", tap], check=True)

    def plugged(self) -> list[str]:
        return sorted(self.ports)


class Reports:
    """What the runtime would be told."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int, str]] = []
        self._news = threading.Condition()

    def server_changed(self, server_id: str, power_state: int, reason: str = "") -> None:
        with self._news:
            self.seen.append((server_id, power_state, reason))
            self._news.notify_all()

    def reapply(self, kind: str, ids: Iterable[str] | None = None) -> None:
        raise AssertionError("the compute driver applies no documents")

    def document(self, kind: str, object_id: str) -> Any | None:
        return None

    def password_posted(self, server_id: str, password: str) -> c.PasswordTaken:
        raise AssertionError("the compute driver serves no metadata")

    def wait_for(self, server_id: str, power_state: int, seconds: float = 120) -> str:
        """The reason of the newest report of this server, once it is of this state."""
        end = time.monotonic() + seconds
        with self._news:
            while True:
                last = next((seen for seen in reversed(self.seen) if seen[0] == server_id), None)
                if last is not None and last[1] == power_state:
                    return last[2]
                assert self._news.wait(end - time.monotonic()), f"no report of state {power_state}: {self.seen}"


class Host:
    """A driver that has started, and short words for what tests do with it."""

    def __init__(self, directory: Path, cache: Path) -> None:
        from cumulet.agent.compute.driver import ComputeConfig, ComputeDriver, private_libvirtd

        self.directory = directory
        # software emulation: what these tests claim holds in either, and KVM may be broken here
        self.config = ComputeConfig(
            state=directory / "state", run=directory / "run", cache=cache, virt_type="qemu", detach_seconds=2
        )
        self.daemon = private_libvirtd(self.config)
        self.taps, self.reports = Taps(), Reports()
        self.new_driver: Callable[[], Any] = lambda: ComputeDriver(self.config, self.taps)
        self.driver = self.new_driver()
        self.driver.start(self.reports)
        self.image = self.make_image("boot", boot_sector_qcow2())
        self.deaf_image = self.make_image("deaf", boot_sector_qcow2("deaf", cooperative=False))

    def make_image(self, name: str, data: bytes, form: str = "qcow2") -> c.ImageSource:
        path = self.directory / f"image-{name}"
        path.write_bytes(data)
        return c.ImageSource(image_id=new_uuid(), disk_format=form, size=len(data), path=str(path))

    def restart(self) -> None:
        """As if the agent's process had ended and begun again."""
        self.driver.stop()
        self.reports = Reports()
        self.driver = self.new_driver()
        self.driver.start(self.reports)

    def do(self, operation: c.Operation) -> Any:
        return self.driver.operations()[type(operation)](operation, lambda *fraction: None)

    def ask(self, query: c.Query) -> Any:
        return self.driver.queries()[type(query)](query)

    def power(self, spec: c.ServerSpec, action: Any, grace_seconds: float = 20) -> None:
        self.do(
            c.PowerServer(
                server_id=spec.server_id, instance_name=spec.instance_name, action=action, grace_seconds=grace_seconds
            )
        )

    def state(self, spec: c.ServerSpec) -> int:
        found = {server.server_id: server.power_state for server in self.driver.inventory().servers}
        return found[spec.server_id]

    def spec(self, **changes: Any) -> c.ServerSpec:
        server_id = new_uuid()
        base = c.ServerSpec(
            server_id=server_id,
            name="test",
            instance_name=f"instance-{server_id[:8]}",
            generation=1,
            project_id="p" * 32,
            user_id="u" * 32,
            vcpus=1,
            memory_mb=32,
            root_gb=1,
            image=self.image,
            flavor_name="tiny",
        )
        return msgspec.structs.replace(base, **changes)

    def create(self, **changes: Any) -> c.ServerSpec:
        """A server that runs, made as the saga does."""
        spec = self.spec(**changes)
        if spec.image is not None:
            self.do(c.CacheImage(image=spec.image))
        self.do(c.CreateDisks(server=spec))
        self.do(c.PlugPorts(server_id=spec.server_id, ports=spec.ports))
        self.do(c.DefineServer(server=spec))
        self.power(spec, "start")
        return spec

    def delete(self, spec: c.ServerSpec) -> None:
        self.do(c.UndefineServer(server_id=spec.server_id, instance_name=spec.instance_name))
        self.do(c.UnplugPorts(server_id=spec.server_id, port_ids=[port.id for port in spec.ports]))
        self.do(c.DeleteDisks(server_id=spec.server_id))

    def wait_for_console(self, spec: c.ServerSpec, text: str, seconds: float = 180) -> str:
        end = time.monotonic() + seconds
        while text not in (log := self.ask(c.ConsoleLog(server_id=spec.server_id))):
            assert time.monotonic() < end, f"{text!r} is not in {log!r}"
            time.sleep(0.05)
        return log

    def qemu_pid(self, spec: c.ServerSpec) -> int:
        return int((self.daemon.run / "qemu" / f"{spec.instance_name}.pid").read_text())

    def close(self) -> None:
        for server in self.driver.inventory().servers:
            self.driver.remove_absent(c.Absent(servers=[server.server_id]))
        for port_id in self.taps.plugged():
            self.taps.unplug(port_id)
        self.driver.stop()
        self.daemon.stop()


def port(**changes: Any) -> c.PortDoc:
    number = os.urandom(3)
    fields: dict[str, Any] = {
        "id": new_uuid(),
        "generation": 1,
        "network_id": new_uuid(),
        "segment": c.Segment(network_type="local", mtu=1450),
        "mac_address": "fa:16:3e:" + number.hex(":"),
        "fixed_ips": [],
    }
    return c.PortDoc(**(fields | changes))


def learned(config: pytest.Config) -> Path:
    assert config.cache is not None
    return Path(config.cache.mkdir("hostcompute-learned"))


@pytest.fixture(scope="package")
def host(own_network: None, pytestconfig: pytest.Config) -> Iterator[Host]:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    directory = leftovers.directory("hc-")  # short: sockets live in it
    directory.chmod(0o755)
    cache = learned(pytestconfig)
    try:
        host = Host(directory, cache)
        yield host
        host.close()
    finally:
        pid_file = directory / "run" / "libvirt" / "libvirtd.pid"
        if pid_file.exists():  # closing failed: leave nothing behind all the same
            for left in (directory / "run" / "libvirt" / "qemu").glob("*.pid"):
                kill(int(left.read_text()))
            kill(int(pid_file.read_text()))
        shutil.rmtree(directory, ignore_errors=True)


def kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


@pytest.fixture
def server(host: Host) -> Iterator[c.ServerSpec]:
    """A running boot sector."""
    spec = host.create()
    yield spec
    host.delete(spec)


def code_of(operation: Callable[[], Any]) -> str:
    with pytest.raises(DriverError) as caught:
        operation()
    return caught.value.code
