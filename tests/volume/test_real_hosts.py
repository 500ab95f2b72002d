"""Two storage hosts with real qcow2 files and storage daemons, which speak to each other by TCP with mutual TLS, under
a whole control plane: a volume moves by the API, and agents die meanwhile."""

import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cumulet.agent.errors import DriverError
from cumulet.agent.image.cache import ImageCache
from cumulet.agent.runtime.agent import Agent, AgentSettings
from cumulet.agent.runtime.store import AgentStore
from cumulet.agent.volume import fetch as volume_fetch
from cumulet.agent.volume.driver import FileProvider, StorageDriver
from tests.support import leftovers
from tests.support.patience import eventually
from tests.support.ports import free_ports
from tests.volume.conftest import Volumes
from tests.volume.test_driver import folders_of_one_authority, io
from tests.volume.test_moves import copies, findings, host_of, migrate, moved

pytestmark = pytest.mark.skipif(
    shutil.which("qemu-storage-daemon") is None or shutil.which("qemu-io") is None, reason="QEMU's tools are missing"
)


class RealHost:
    def __init__(self, cloud: Any, name: str, root: Path, pki: Path, port: int) -> None:
        self.name, self._cloud, self._root, self._pki = name, cloud, root, pki
        self._listen = f"127.0.0.1:{port}"
        self.run = leftovers.directory("vol-", "/tmp")
        self.start()

    def start(self) -> None:
        self.provider = FileProvider(
            self._root / "storage", self.run, ImageCache(self._root / "cache"), listen=self._listen, tls=self._pki
        )
        settings = AgentSettings(host=self.name, heartbeat_seconds=0.5)
        store = AgentStore(self._root / "agent.db")
        self.agent = Agent(settings, self._cloud.bus, store, [StorageDriver(self.provider)])
        self.agent.start()

    def stop(self) -> None:
        self.agent.stop(0.2)

    def holds(self) -> list[str]:
        return self.provider.volumes.ids()

    def file(self, volume: str) -> str:
        return str(self.provider.volumes.path(volume))


@pytest.fixture
def pair(new_cloud: Callable[..., Any], tmp_path: Path) -> Iterator[tuple[Any, Volumes, dict[str, RealHost]]]:
    cloud = new_cloud(hosts=1)
    control = cloud.control
    control.db.write(lambda tx: control.hosts.set_disabled(tx, "fake-1", role="storage"))
    names = ("real-1", "real-2")
    made = {
        name: RealHost(cloud, name, tmp_path / name, folder, port)
        for name, folder, port in zip(names, folders_of_one_authority(tmp_path, *names), free_ports(2), strict=True)
    }
    cloud.wait(lambda: set(names) <= set(cloud.up_hosts()), 20)
    yield cloud, Volumes(cloud, "admin"), made
    for one in made.values():
        one.stop()
        one.provider.daemon.stop()
        shutil.rmtree(one.run, ignore_errors=True)


def test_a_volume_moves_and_what_is_in_it(pair: tuple[Any, Volumes, dict[str, RealHost]]) -> None:
    cloud, admin, hosts = pair
    volume = admin.create()
    source = hosts[host_of(admin, volume)]
    [target] = [one for one in hosts.values() if one is not source]
    io(source.file(volume), "write -P 7 0 3M", "write -P 8 900M 1M")
    assert migrate(admin, volume, target.name, lock_volume=True).status == 202
    shown = moved(admin, volume)
    assert (shown["status"], shown["migration_status"]) == ("available", "success")
    assert (source.holds(), target.holds(), host_of(admin, volume)) == ([], [volume], target.name)
    io(target.file(volume), "read -P 7 0 3M", "read -P 8 900M 1M", "read -P 0 3M 64M")
    assert Path(target.file(volume)).stat().st_blocks * 512 < 6 << 20
    assert [one.provider.exports.all() for one in hosts.values()] == [[], []]
    cloud.settle()
    assert not findings(cloud, volume)


@pytest.mark.parametrize("dies", ["source", "target"])
def test_an_agent_that_dies_while_it_is_copied(
    pair: tuple[Any, Volumes, dict[str, RealHost]], monkeypatch: pytest.MonkeyPatch, dies: str
) -> None:
    cloud, admin, hosts = pair
    volume = admin.create()
    source = hosts[host_of(admin, volume)]
    [target] = [one for one in hosts.values() if one is not source]
    victim = source if dies == "source" else target
    io(source.file(volume), "write -P 7 0 3M")
    run, once, over = volume_fetch._run, [True], threading.Event()

    def dying(arguments: list[str], *ahead: Any) -> bytes:
        done = run(arguments, *ahead)
        if arguments[0] == "convert" and once:
            once.clear()
            victim.stop()
            victim.start()
            if dies == "target":  # this thread is the dead one's
                over.wait(60)
                raise DriverError("internal", "dead")
        return done

    monkeypatch.setattr(volume_fetch, "_run", dying)
    assert migrate(admin, volume, target.name).status == 202
    assert moved(admin, volume)["migration_status"] == "success"
    assert not once, "the agent died"
    eventually(lambda: (source.holds(), target.holds()) == ([], [volume]), 60)
    io(target.file(volume), "read -P 7 0 3M")
    over.set()
    assert copies(cloud, volume) == []
    cloud.settle()
    assert not findings(cloud, volume)
