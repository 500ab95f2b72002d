"""What every driver must do, real or fake. Used like this, once for each driver:

    from tests.agent.conformance import ComputeConformance, ComputeRig

    class TestLibvirt(ComputeConformance):
        @pytest.fixture
        def rig(self) -> Iterator[ComputeRig]: ...

The tests give each operation once, twice and after it was undone, as the control plane does after crashes, and at the
end nothing may be left. A rig says how to make what the operations refer to, and what exists on the host.
"""

import dataclasses
import hashlib
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cumulet.agent import contract as c
from cumulet.agent.driver import DocumentApplier, Driver
from cumulet.agent.errors import DriverError


def no_progress(fraction: float | None = None) -> None:
    pass


class Events:
    """The hooks a driver gets; remembers what it said."""

    def __init__(self) -> None:
        self.servers: list[tuple[str, int]] = []
        self.docs: dict[tuple[str, str], Any] = {}

    def server_changed(self, server_id: str, power_state: int, reason: str = "") -> None:
        self.servers.append((server_id, power_state))

    def reapply(self, kind: str, ids: Any = None) -> None:
        pass

    def document(self, kind: str, object_id: str) -> Any | None:
        return self.docs.get((kind, object_id))

    def password_posted(self, server_id: str, password: str) -> c.PasswordTaken:
        raise AssertionError("nothing asks the control plane here")

    def last(self, server_id: str) -> int | None:
        return next((state for one, state in reversed(self.servers) if one == server_id), None)


class DriverRig:
    """A started driver. ``run`` does what the runtime would, without journal."""

    def __init__(self, driver: Driver, directory: Path) -> None:
        self.driver = driver
        self.directory = directory
        self.events = Events()
        driver.start(self.events)
        self._bodies = driver.operations()
        self._queries = driver.queries()

    def run(self, body: c.Operation) -> Any:
        """The result, after the way over the wire."""
        sent = msgspec.json.decode(
            msgspec.json.encode(c.Execute(op_id="x", epoch=1, object_id="o", request_id="r", body=body)),  # type: ignore[arg-type]
            type=c.Execute,
        )
        result = self._bodies[type(sent.body)](sent.body, no_progress)
        return None if result is None else msgspec.json.decode(msgspec.json.encode(result))

    def twice(self, body: c.Operation) -> Any:
        """Done again, as after a crash: the host is as after once."""
        self.run(body)
        return self.run(body)

    def fails(self, body: c.Operation) -> str:
        """The code with which it fails."""
        with pytest.raises(DriverError) as raised:
            self.run(body)
        assert raised.value.code
        assert raised.value.message
        return raised.value.code

    def ask(self, query: c.Query) -> Any:
        return self._queries[type(query)](query)

    def close(self) -> None:
        self.driver.stop()


def image_file(directory: Path, *, size: int = 1 << 20) -> c.ImageSource:
    """A raw image with a pattern in it."""
    data = (b"cumulet conformance " * (size // 20 + 1))[:size]
    path = directory / f"{uuid.uuid4()}.img"
    path.write_bytes(data)
    return c.ImageSource(
        image_id=str(uuid.uuid4()),
        disk_format="raw",
        size=size,
        sha512=hashlib.sha512(data).hexdigest(),
        path=str(path),
    )


@dataclasses.dataclass
class ComputeRig:
    """``bootable``: an image (with kernel and ramdisk, if it takes them) that runs and stays running, whatever else it
    does. ``port()``: a port of a network that exists on the host, or None where ports are another driver's.
    ``boot_seconds``: patience for a start. ``soft_stops``: the guest answers to ACPI."""

    rig: DriverRig
    bootable: c.ImageSource
    port: Callable[[], c.PortDoc | None]
    volume: Callable[[], c.VolumeAttachment | None]
    kernel: c.ImageSource | None = None
    ramdisk: c.ImageSource | None = None
    memory_mb: int = 64
    root_gb: int = 1
    boot_seconds: float = 20.0
    flags: dict[str, str] = dataclasses.field(default_factory=dict)  # image properties the guest needs

    def spec(self, **more: Any) -> c.ServerSpec:
        server_id = str(uuid.uuid4())
        port = self.port()
        values: dict[str, Any] = {
            "server_id": server_id,
            "name": "conformance",
            "instance_name": "instance-" + server_id[:8],
            "generation": 1,
            "project_id": "p" * 32,
            "user_id": "u" * 32,
            "vcpus": 1,
            "memory_mb": self.memory_mb,
            "root_gb": self.root_gb,
            "image": self.bootable,
            "kernel": self.kernel,
            "ramdisk": self.ramdisk,
            "image_properties": self.flags,
            "ports": [port] if port is not None else [],
        }
        return c.ServerSpec(**{**values, **more})

    def build(self, spec: c.ServerSpec) -> None:
        for image in (spec.image, spec.kernel, spec.ramdisk):
            if image is not None:
                self.rig.run(c.CacheImage(image=image))
        self.rig.run(c.CreateDisks(server=spec))
        if spec.ports:
            self.rig.run(c.PlugPorts(server_id=spec.server_id, ports=spec.ports))
        self.rig.run(c.DefineServer(server=spec))

    def power(self, spec: c.ServerSpec, action: Any, grace_seconds: float = 1) -> None:
        self.rig.run(
            c.PowerServer(
                server_id=spec.server_id, instance_name=spec.instance_name, action=action, grace_seconds=grace_seconds
            )
        )

    def destroy(self, spec: c.ServerSpec) -> None:
        self.rig.twice(c.UndefineServer(server_id=spec.server_id, instance_name=spec.instance_name))
        if spec.ports:
            self.rig.twice(c.UnplugPorts(server_id=spec.server_id, port_ids=[port.id for port in spec.ports]))
        self.rig.twice(c.DeleteDisks(server_id=spec.server_id))

    def state(self, spec: c.ServerSpec) -> int | None:
        found = {server.server_id: server.power_state for server in self.rig.driver.inventory().servers}
        return found.get(spec.server_id)

    def await_state(self, spec: c.ServerSpec, state: int) -> None:
        end = time.monotonic() + self.boot_seconds
        while self.state(spec) != state or self.rig.events.last(spec.server_id) not in (state, None):
            assert time.monotonic() < end, f"state is {self.state(spec)}, said {self.rig.events.servers}"
            time.sleep(0.02)

    def assert_gone(self, spec: c.ServerSpec) -> None:
        found = self.rig.driver.inventory()
        assert spec.server_id not in [server.server_id for server in found.servers]
        assert not {port.id for port in spec.ports} & set(found.ports)


class ComputeConformance:
    """The subclass gives ``rig``."""

    def test_a_life(self, rig: ComputeRig) -> None:
        """Each step done twice, as after a crash in the middle of it."""
        spec = rig.spec()
        for image in (spec.image, spec.kernel, spec.ramdisk):
            if image is not None:
                assert rig.rig.twice(c.CacheImage(image=image))["hit"] is True
        rig.rig.twice(c.CreateDisks(server=spec))
        if spec.ports:
            rig.rig.twice(c.PlugPorts(server_id=spec.server_id, ports=spec.ports))
        xml = rig.rig.twice(c.DefineServer(server=spec))["xml"]
        assert spec.instance_name in xml
        assert rig.state(spec) == 4
        for action, state in (("start", 1), ("pause", 3), ("unpause", 1), ("stop", 4), ("start", 1)):
            rig.power(spec, action)
            rig.power(spec, action)
            rig.await_state(spec, state)
        rig.power(spec, "hard_reboot")
        rig.await_state(spec, 1)
        rig.destroy(spec)
        rig.assert_gone(spec)

    def test_suspend_and_resume(self, rig: ComputeRig) -> None:
        spec = rig.spec()
        rig.build(spec)
        rig.power(spec, "start")
        rig.power(spec, "suspend")
        rig.power(spec, "suspend")
        assert rig.state(spec) in (4, 7)
        rig.power(spec, "resume")
        rig.power(spec, "resume")
        rig.await_state(spec, 1)
        rig.destroy(spec)
        rig.assert_gone(spec)

    def test_undoing_what_was_never_done(self, rig: ComputeRig) -> None:
        rig.destroy(rig.spec())

    def test_undoing_at_any_point_leaves_nothing(self, rig: ComputeRig) -> None:
        for steps in range(4):
            spec = rig.spec()
            if steps > 0:
                rig.rig.run(c.CreateDisks(server=spec))
            if steps > 1 and spec.ports:
                rig.rig.run(c.PlugPorts(server_id=spec.server_id, ports=spec.ports))
            if steps > 2:
                rig.rig.run(c.DefineServer(server=spec))
            rig.destroy(spec)
            rig.assert_gone(spec)

    def test_deleting_a_running_server(self, rig: ComputeRig) -> None:
        spec = rig.spec()
        rig.build(spec)
        rig.power(spec, "start")
        rig.destroy(spec)
        rig.assert_gone(spec)

    def test_nothing_happens_to_a_server_that_is_not_there(self, rig: ComputeRig) -> None:
        spec = rig.spec()
        names = {"server_id": spec.server_id, "instance_name": spec.instance_name}
        for action in ("start", "stop", "soft_reboot", "hard_reboot", "pause", "unpause", "suspend", "resume"):
            assert rig.rig.fails(c.PowerServer(action=action, **names)) == "not-found"
        assert rig.rig.fails(c.SetAdminPassword(user="root", password="x", **names)) == "not-found"
        with pytest.raises(DriverError) as raised:
            rig.rig.ask(c.DomainXml(**names))
        assert raised.value.code == "not-found"

    def test_an_image_that_is_not_what_it_should_be(self, rig: ComputeRig, tmp_path: Path) -> None:
        good = image_file(tmp_path)
        wrong = msgspec.structs.replace(good, image_id=str(uuid.uuid4()), sha512="0" * 128)
        assert rig.rig.fails(c.CacheImage(image=wrong)) == "image-invalid"
        short = msgspec.structs.replace(good, image_id=str(uuid.uuid4()), size=good.size + 1)
        assert rig.rig.fails(c.CacheImage(image=short)) == "image-invalid"
        gone = msgspec.structs.replace(good, image_id=str(uuid.uuid4()), path=str(tmp_path / "nothing"))
        rig.rig.fails(c.CacheImage(image=gone))
        assert rig.rig.run(c.CacheImage(image=good))["hit"] is False

    def test_snapshot(self, rig: ComputeRig, tmp_path: Path) -> None:
        spec = rig.spec()
        rig.build(spec)
        target = tmp_path / "snapshot.qcow2"
        upload = c.Upload(image_id=str(uuid.uuid4()), disk_format="qcow2", path=str(target))
        operation = c.SnapshotServer(server_id=spec.server_id, instance_name=spec.instance_name, upload=upload)
        for running in (False, True):
            if running:
                rig.power(spec, "start")
            done = rig.rig.run(operation)
            data = target.read_bytes()
            assert data[:4] == b"QFI\xfb"
            assert done["size"] == len(data)
            assert done["sha512"] == hashlib.sha512(data).hexdigest()
            assert done["md5"] == hashlib.md5(data, usedforsecurity=False).hexdigest()
            assert rig.state(spec) == (1 if running else 4)
        rig.destroy(spec)
        rig.assert_gone(spec)

    def test_volumes_come_and_go(self, rig: ComputeRig) -> None:
        volume = rig.volume()
        if volume is None:
            pytest.skip("no volumes without a storage driver")
        spec = rig.spec()
        rig.build(spec)
        names = {"server_id": spec.server_id, "instance_name": spec.instance_name}
        for running in (False, True):
            if running:
                rig.power(spec, "start")
            rig.rig.twice(c.AttachVolume(volume=volume, **names))
            assert volume.volume_id[:20] in rig.rig.ask(c.DomainXml(**names))
            rig.rig.twice(c.DetachVolume(volume_id=volume.volume_id, **names))
        rig.destroy(spec)
        rig.rig.run(c.DetachVolume(volume_id=volume.volume_id, **names))

    def test_ports_come_and_go(self, rig: ComputeRig) -> None:
        port = rig.port()
        if port is None:
            pytest.skip("no ports without a network driver")
        spec = rig.spec()
        rig.build(spec)
        names = {"server_id": spec.server_id, "instance_name": spec.instance_name}
        for running in (False, True):
            if running:
                rig.power(spec, "start")
            rig.rig.twice(c.AttachPort(port=port, **names))
            assert port.id in rig.rig.driver.inventory().ports
            rig.rig.twice(c.DetachPort(port_id=port.id, mac_address=port.mac_address, **names))
            assert port.id not in rig.rig.driver.inventory().ports
        rig.destroy(spec)
        rig.assert_gone(spec)

    def test_console_log_of_a_started_server(self, rig: ComputeRig) -> None:
        spec = rig.spec()
        rig.build(spec)
        rig.power(spec, "start")
        whole = rig.rig.ask(c.ConsoleLog(server_id=spec.server_id))
        assert isinstance(whole, str)
        assert rig.rig.ask(c.ConsoleLog(server_id=spec.server_id, length=0)) == ""
        endpoint = rig.rig.ask(
            c.ConsoleEndpoint(server_id=spec.server_id, instance_name=spec.instance_name, type="vnc")
        )
        assert endpoint
        rig.destroy(spec)

    def test_defining_again_replaces(self, rig: ComputeRig) -> None:
        spec = rig.spec()
        rig.build(spec)
        larger = msgspec.structs.replace(spec, memory_mb=spec.memory_mb + 32, generation=2)
        rig.rig.run(c.DefineServer(server=larger))
        names = {"server_id": spec.server_id, "instance_name": spec.instance_name}
        memory = spec.memory_mb + 32
        xml = rig.rig.ask(c.DomainXml(**names))
        assert str(memory) in xml or str(memory * 1024) in xml
        rig.destroy(spec)

    def test_leftovers_are_removed_when_named_and_only_then(self, rig: ComputeRig) -> None:
        kept, leftover = rig.spec(), rig.spec()
        for spec in (kept, leftover):
            rig.build(spec)
        named = c.Absent(servers=[leftover.server_id], ports=[port.id for port in leftover.ports])
        rig.rig.driver.remove_absent(named)
        rig.rig.driver.remove_absent(named)
        rig.assert_gone(leftover)
        assert rig.state(kept) == 4
        rig.destroy(kept)
        rig.assert_gone(kept)

    def test_a_resize_on_the_spot_can_be_taken_back_or_confirmed(self, rig: ComputeRig) -> None:
        for confirmed in (True, False):
            spec = rig.spec()
            rig.build(spec)
            larger = msgspec.structs.replace(spec, root_gb=spec.root_gb + 1, memory_mb=spec.memory_mb + 32)
            rig.rig.twice(c.ResizeDisks(server=larger))
            rig.rig.run(c.DefineServer(server=larger))
            rig.power(larger, "start")
            rig.await_state(larger, 1)
            if confirmed:
                rig.rig.twice(c.DropDisksAside(server_id=spec.server_id))
                rig.rig.twice(c.RevertDisks(server_id=spec.server_id))  # nothing is aside any more
            else:
                rig.power(larger, "stop")
                rig.rig.twice(c.RevertDisks(server_id=spec.server_id))
                rig.rig.run(c.DefineServer(server=spec))
                rig.power(spec, "start")
                rig.await_state(spec, 1)
            rig.destroy(spec)
            rig.assert_gone(spec)

    def test_deleting_a_server_that_is_being_resized(self, rig: ComputeRig) -> None:
        spec = rig.spec()
        rig.build(spec)
        rig.rig.run(c.ResizeDisks(server=msgspec.structs.replace(spec, root_gb=spec.root_gb + 1)))
        rig.destroy(spec)
        rig.assert_gone(spec)

    def test_what_was_never_to_move(self, rig: ComputeRig) -> None:
        spec = rig.spec()
        names = {"server_id": spec.server_id, "instance_name": spec.instance_name}
        rig.rig.twice(c.WithdrawDisks(server_id=spec.server_id))
        rig.rig.twice(c.RevertDisks(server_id=spec.server_id))
        rig.rig.twice(c.DropDisksAside(server_id=spec.server_id))
        rig.rig.twice(c.EndReceive(**names))
        rig.rig.twice(c.EndReceive(discard=True, **names))
        assert rig.rig.fails(c.SteerMigration(action="abort", **names)) == "not-found"
        assert rig.rig.ask(c.MigrationProgress(**names)) == {}
        rig.assert_gone(spec)

    def test_a_running_server_does_not_offer_its_disks(self, rig: ComputeRig) -> None:
        spec = rig.spec()
        rig.build(spec)
        rig.power(spec, "start")
        rig.rig.fails(c.OfferDisks(server_id=spec.server_id, to_host="elsewhere"))
        rig.destroy(spec)
        rig.assert_gone(spec)

    def test_a_guest_that_runs_is_not_discarded(self, rig: ComputeRig) -> None:
        spec = rig.spec()
        rig.build(spec)
        rig.power(spec, "start")
        end = c.EndReceive(server_id=spec.server_id, instance_name=spec.instance_name, discard=True)
        assert rig.rig.fails(end) == "guest-running"
        rig.await_state(spec, 1)
        rig.destroy(spec)
        rig.assert_gone(spec)


@dataclasses.dataclass
class MoveRig:
    """Two hosts that reach each other. ``source`` and ``target``: their names."""

    here: ComputeRig
    there: ComputeRig
    source: str
    target: str

    def content(self, rig: ComputeRig, spec: c.ServerSpec) -> bytes:
        """The root disk, as a snapshot of it says."""
        path = rig.rig.directory / f"{uuid.uuid4()}.raw"
        upload = c.Upload(image_id=str(uuid.uuid4()), disk_format="raw", path=str(path))
        rig.rig.run(c.SnapshotServer(server_id=spec.server_id, instance_name=spec.instance_name, upload=upload))
        return path.read_bytes()

    def receive(self, spec: c.ServerSpec) -> str:
        for image in (spec.image, spec.kernel, spec.ramdisk):
            if image is not None:
                self.there.rig.run(c.CacheImage(image=image))
        if spec.ports:
            self.there.rig.run(c.PlugPorts(server_id=spec.server_id, ports=spec.ports))
        address: str = self.there.rig.twice(c.PrepareReceive(server=spec, from_host=self.source))["address"]
        return address

    def migrate(self, spec: c.ServerSpec, address: str, **more: Any) -> c.MigrateServer:
        return c.MigrateServer(server=spec, to_host=self.target, address=address, **more)

    def end(self, spec: c.ServerSpec, *, discard: bool) -> c.EndReceive:
        return c.EndReceive(server_id=spec.server_id, instance_name=spec.instance_name, discard=discard)

    def leave_both(self, spec: c.ServerSpec) -> None:
        for rig in (self.here, self.there):
            rig.destroy(spec)
            rig.assert_gone(spec)


class MoveConformance:
    """Two drivers of one kind: the subclass gives ``rig``."""

    def test_a_cold_move(self, rig: MoveRig) -> None:
        spec = rig.here.spec()
        rig.here.build(spec)
        before = rig.content(rig.here, spec)
        rig.here.rig.run(c.UndefineServer(server_id=spec.server_id, instance_name=spec.instance_name))
        offered = rig.here.rig.twice(c.OfferDisks(server_id=spec.server_id, to_host=rig.target))["disks"]
        disks = msgspec.convert(offered, list[c.DiskOffer])
        larger = msgspec.structs.replace(spec, root_gb=spec.root_gb + 1)
        assert larger.image is not None
        rig.there.rig.run(c.CacheImage(image=larger.image))
        rig.there.rig.twice(c.FetchDisks(server=larger, from_host=rig.source, disks=disks))
        rig.here.rig.twice(c.WithdrawDisks(server_id=spec.server_id))
        if spec.ports:
            rig.there.rig.run(c.PlugPorts(server_id=spec.server_id, ports=spec.ports))
        rig.there.rig.run(c.DefineServer(server=larger))
        after = rig.content(rig.there, larger)
        assert after[: len(before)] == before
        rig.there.power(larger, "start")
        rig.there.await_state(larger, 1)
        rig.leave_both(spec)

    @pytest.mark.parametrize("live", [False, True])
    def test_an_image_that_was_deleted(self, rig: MoveRig, live: bool) -> None:
        """The target gets it from the source's cache."""
        spec = self.of_its_own_image(rig)
        rig.here.build(spec)
        before = rig.content(rig.here, spec)
        assert spec.image is not None
        gone = msgspec.structs.replace(spec.image, path=None)
        spec = msgspec.structs.replace(spec, image=gone)
        ids = {"server_id": spec.server_id}
        assert rig.there.rig.fails(c.CacheImage(image=gone)) == "image-gone"
        assert rig.there.rig.fails(c.OfferImages(**ids, to_host=rig.source, images=[gone])) == "image-gone"
        offered = rig.here.rig.twice(c.OfferImages(**ids, to_host=rig.target, images=[gone]))["disks"]
        offers = msgspec.convert(offered, list[c.DiskOffer])
        rig.there.rig.twice(c.FetchImages(**ids, from_host=rig.source, images=[gone], offers=offers))
        assert rig.there.rig.run(c.CacheImage(image=gone))["hit"]
        if live:
            rig.here.power(spec, "start")
            rig.here.rig.run(rig.migrate(spec, rig.receive(spec)))
            rig.there.rig.run(rig.end(spec, discard=False))
            rig.there.await_state(spec, 1)
            rig.there.power(spec, "stop")
            rig.there.await_state(spec, 4)
        else:
            disks = msgspec.convert(
                rig.here.rig.run(c.OfferDisks(**ids, to_host=rig.target))["disks"], list[c.DiskOffer]
            )
            rig.there.rig.run(c.FetchDisks(server=spec, from_host=rig.source, disks=disks))
            if spec.ports:
                rig.there.rig.run(c.PlugPorts(server_id=spec.server_id, ports=spec.ports))
            rig.there.rig.run(c.DefineServer(server=spec))
        rig.here.rig.twice(c.WithdrawDisks(**ids))
        assert rig.content(rig.there, spec) == before
        rig.leave_both(spec)

    @staticmethod
    def of_its_own_image(rig: MoveRig) -> c.ServerSpec:
        """A bootable image that the target does not have."""
        image = msgspec.structs.replace(rig.here.bootable, image_id=str(uuid.uuid4()))
        return rig.here.spec(image=image)

    def test_a_live_migration(self, rig: MoveRig) -> None:
        spec = rig.here.spec()
        rig.here.build(spec)
        rig.here.power(spec, "start")
        rig.here.await_state(spec, 1)
        address = rig.receive(spec)
        rig.here.rig.run(rig.migrate(spec, address))
        rig.there.await_state(spec, 1)
        assert rig.here.state(spec) in (None, 4)  # its disks at most
        rig.here.rig.run(rig.migrate(spec, address))  # another life of the agent looks first
        rig.there.rig.twice(rig.end(spec, discard=False))
        assert rig.there.rig.fails(rig.end(spec, discard=True)) == "guest-running"
        rig.there.power(spec, "stop")
        rig.leave_both(spec)

    def test_a_paused_server_stays_paused(self, rig: MoveRig) -> None:
        spec = rig.here.spec()
        rig.here.build(spec)
        rig.here.power(spec, "start")
        rig.here.power(spec, "pause")
        rig.here.rig.run(rig.migrate(spec, rig.receive(spec)))
        assert rig.there.state(spec) == 3
        rig.leave_both(spec)

    def test_a_door_that_was_closed(self, rig: MoveRig) -> None:
        """The guest runs where it ran."""
        spec = rig.here.spec()
        rig.here.build(spec)
        rig.here.power(spec, "start")
        address = rig.receive(spec)
        rig.there.rig.twice(rig.end(spec, discard=True))
        rig.here.rig.fails(rig.migrate(spec, address))
        rig.here.await_state(spec, 1)
        if spec.ports:
            rig.there.rig.run(c.UnplugPorts(server_id=spec.server_id, port_ids=[port.id for port in spec.ports]))
        rig.there.assert_gone(spec)
        rig.leave_both(spec)


@dataclasses.dataclass
class StorageRig:
    """``host``: the driver's own host name."""

    rig: DriverRig
    host: str

    def volumes(self) -> set[str]:
        return set(self.rig.driver.inventory().volumes)

    def exports(self) -> set[tuple[str, str]]:
        return {tuple(one) for one in self.rig.driver.inventory().exports}  # type: ignore[misc]

    def create(self, **more: Any) -> str:
        volume_id = str(uuid.uuid4())
        self.rig.run(c.CreateVolume(volume_id=volume_id, size_gb=1, **more))
        return volume_id


class StorageConformance:
    """The subclass gives ``rig``."""

    def test_a_life(self, rig: StorageRig) -> None:
        volume_id = str(uuid.uuid4())
        rig.rig.twice(c.CreateVolume(volume_id=volume_id, size_gb=1))
        assert volume_id in rig.volumes()
        rig.rig.twice(c.ExtendVolume(volume_id=volume_id, new_size_gb=2))
        rig.rig.twice(c.DeleteVolume(volume_id=volume_id))
        assert volume_id not in rig.volumes()

    def test_deleting_what_never_was(self, rig: StorageRig) -> None:
        nothing = str(uuid.uuid4())
        rig.rig.run(c.DeleteVolume(volume_id=nothing))
        rig.rig.run(c.DeleteVolumeSnapshot(snapshot_id=nothing, volume_id=nothing))
        rig.rig.run(c.UnexportVolume(volume_id=nothing, attachment_id=nothing))

    def test_what_is_not_there_is_not_found(self, rig: StorageRig) -> None:
        nothing = str(uuid.uuid4())
        assert rig.rig.fails(c.ExtendVolume(volume_id=nothing, new_size_gb=2)) == "not-found"
        assert rig.rig.fails(c.CreateVolumeSnapshot(snapshot_id=nothing, volume_id=nothing)) == "not-found"
        assert rig.rig.fails(
            c.ExportVolume(volume_id=nothing, attachment_id=nothing, attachment_generation=1, host=rig.host)
        ) == ("not-found")
        assert rig.rig.fails(c.CreateVolume(volume_id=str(uuid.uuid4()), size_gb=1, source_volume_id=nothing)) == (
            "not-found"
        )
        assert rig.volumes() == set()

    def test_snapshots_and_what_is_made_of_them(self, rig: StorageRig) -> None:
        volume_id, snapshot_id = rig.create(), str(uuid.uuid4())
        rig.rig.twice(c.CreateVolumeSnapshot(snapshot_id=snapshot_id, volume_id=volume_id))
        copy = rig.create(source_snapshot_id=snapshot_id, source_snapshot_volume_id=volume_id)
        clone = rig.create(source_volume_id=volume_id)
        assert {volume_id, copy, clone} <= rig.volumes()
        rig.rig.twice(c.DeleteVolumeSnapshot(snapshot_id=snapshot_id, volume_id=volume_id))
        for one in (volume_id, copy, clone):
            rig.rig.twice(c.DeleteVolume(volume_id=one))
        assert rig.volumes() == set()

    def test_exports_are_per_attachment_and_fenced(self, rig: StorageRig) -> None:
        volume_id, attachment_id = rig.create(), str(uuid.uuid4())
        export = c.ExportVolume(
            volume_id=volume_id, attachment_id=attachment_id, attachment_generation=2, host=rig.host
        )
        connection = rig.rig.twice(export)["connection"]
        assert connection.get("uri") or connection.get("path")
        assert (volume_id, attachment_id) in rig.exports()
        stale = msgspec.structs.replace(export, attachment_generation=1)
        rig.rig.fails(stale)
        assert rig.rig.fails(c.DeleteVolume(volume_id=volume_id)) == "busy"
        rig.rig.twice(c.UnexportVolume(volume_id=volume_id, attachment_id=attachment_id))
        assert rig.exports() == set()
        rig.rig.run(c.DeleteVolume(volume_id=volume_id))
        assert rig.volumes() == set()

    def test_from_an_image_and_back(self, rig: StorageRig, tmp_path: Path) -> None:
        image = image_file(tmp_path)
        volume_id = rig.create(image=image)
        target = tmp_path / "upload.raw"
        upload = c.Upload(image_id=str(uuid.uuid4()), disk_format="raw", path=str(target))
        done = rig.rig.twice(c.UploadVolume(volume_id=volume_id, upload=upload))
        data = target.read_bytes()
        assert done["size"] == len(data)
        assert done["sha512"] == hashlib.sha512(data).hexdigest()
        rig.rig.run(c.DeleteVolume(volume_id=volume_id))
        wrong = msgspec.structs.replace(image, image_id=str(uuid.uuid4()), sha512="0" * 128)
        refused = str(uuid.uuid4())
        rig.rig.fails(c.CreateVolume(volume_id=refused, size_gb=1, image=wrong))
        rig.rig.run(c.DeleteVolume(volume_id=refused))
        assert rig.volumes() == set()

    def test_exports_named_absent_are_removed(self, rig: StorageRig) -> None:
        volume_id, attachment_id = rig.create(), str(uuid.uuid4())
        rig.rig.run(
            c.ExportVolume(volume_id=volume_id, attachment_id=attachment_id, attachment_generation=1, host=rig.host)
        )
        rig.rig.driver.remove_absent(c.Absent(exports=[(volume_id, attachment_id)]))
        assert rig.exports() == set()
        assert rig.volumes() == {volume_id}
        rig.rig.run(c.DeleteVolume(volume_id=volume_id))


@dataclasses.dataclass
class VolumeMoveRig:
    """Two hosts, each reached by the other. ``write`` puts something into a volume that ``holds`` finds again."""

    here: StorageRig
    there: StorageRig
    write: Callable[[StorageRig, str], None]
    holds: Callable[[StorageRig, str], bool]

    def export(self, volume_id: str, to: StorageRig) -> tuple[c.ExportVolume, c.DiskConnection]:
        operation = c.ExportVolume(
            volume_id=volume_id, attachment_id=str(uuid.uuid4()), attachment_generation=1, host=to.host
        )
        made = self.here.rig.twice(operation)
        return operation, msgspec.convert(made["connection"], c.DiskConnection)

    def fetch(self, volume_id: str, connection: c.DiskConnection, move_id: str = "move") -> c.FetchVolume:
        return c.FetchVolume(
            volume_id=volume_id, size_gb=1, move_id=move_id, from_host=self.here.host, connection=connection
        )


class VolumeMoveConformance:
    """Two drivers of one kind: the subclass gives ``rig``."""

    def test_a_volume_moves(self, rig: VolumeMoveRig) -> None:
        here, there, volume_id = rig.here, rig.there, rig.here.create()
        rig.write(here, volume_id)
        export, connection = rig.export(volume_id, there)
        there.rig.twice(rig.fetch(volume_id, connection))
        assert there.volumes() == here.volumes() == {volume_id}
        assert rig.holds(there, volume_id)
        here.rig.twice(c.UnexportVolume(volume_id=volume_id, attachment_id=export.attachment_id))
        here.rig.twice(c.DeleteVolume(volume_id=volume_id))
        assert here.volumes() == set()
        there.rig.twice(c.ExtendVolume(volume_id=volume_id, new_size_gb=2))
        there.rig.twice(c.DeleteVolume(volume_id=volume_id))
        assert there.volumes() == set()

    def test_a_move_is_taken_back(self, rig: VolumeMoveRig) -> None:
        here, there, volume_id = rig.here, rig.there, rig.here.create()
        rig.write(here, volume_id)
        export, connection = rig.export(volume_id, there)
        there.rig.run(c.DeleteVolume(volume_id=volume_id))  # of what never came
        there.rig.run(rig.fetch(volume_id, connection))
        there.rig.twice(c.DeleteVolume(volume_id=volume_id))
        there.rig.run(rig.fetch(volume_id, connection, "another"))
        here.rig.run(c.UnexportVolume(volume_id=volume_id, attachment_id=export.attachment_id))
        there.rig.driver.remove_absent(c.Absent(volumes=[volume_id]))
        there.rig.driver.remove_absent(c.Absent(volumes=[volume_id]))
        assert (here.volumes(), there.volumes()) == ({volume_id}, set())
        assert rig.holds(here, volume_id)
        here.rig.run(c.DeleteVolume(volume_id=volume_id))

    def test_only_for_the_host_it_is_exported_to(self, rig: VolumeMoveRig) -> None:
        volume_id = rig.here.create()
        export, connection = rig.export(volume_id, rig.here)
        rig.there.rig.fails(rig.fetch(volume_id, connection))
        assert rig.there.volumes() == set()
        rig.here.rig.run(c.UnexportVolume(volume_id=volume_id, attachment_id=export.attachment_id))
        rig.here.rig.run(c.DeleteVolume(volume_id=volume_id))


@dataclasses.dataclass
class NetworkRig:
    """``document(kind, generation, id)``: a document of the kind that works on this host."""

    rig: DriverRig
    document: Callable[[str, int, str], Any]


class NetworkConformance:
    """The subclass gives ``rig``. Each kind of document: applied, again, changed, removed, again."""

    KINDS = ("metadata", "network", "router", "group")

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_documents_life(self, rig: NetworkRig, kind: str) -> None:
        applier: DocumentApplier = rig.rig.driver.documents()[kind]
        object_id = str(uuid.uuid4())
        assert object_id not in list(applier.list())
        for generation in (1, 1, 2):
            document = rig.document(kind, generation, object_id)
            applier.apply(msgspec.json.decode(msgspec.json.encode(document), type=type(document)))
            assert object_id in list(applier.list())
        for _ in range(2):
            applier.remove(object_id, 3)
            assert object_id not in list(applier.list())

    @pytest.mark.parametrize("kind", KINDS)
    def test_removing_what_never_was(self, rig: NetworkRig, kind: str) -> None:
        rig.rig.driver.documents()[kind].remove(str(uuid.uuid4()), 1)

    @pytest.mark.parametrize("kind", KINDS)
    def test_applied_documents_are_taken_over_by_a_new_life(self, rig: NetworkRig, kind: str) -> None:
        object_id = str(uuid.uuid4())
        document = rig.document(kind, 1, object_id)
        rig.rig.driver.documents()[kind].apply(document)
        rig.rig.driver.stop()
        rig.rig.driver.start(rig.rig.events)
        applier = rig.rig.driver.documents()[kind]
        applier.apply(document)
        assert object_id in list(applier.list())
        applier.remove(object_id, 2)
        assert object_id not in list(applier.list())
