"""The fake host keeps the conformance tests of the real drivers, and fails when told to."""

import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cumulet.agent import contract as c
from cumulet.agent.errors import DriverError
from cumulet.agent.fake import FakeHost
from tests.agent.conformance import (
    ComputeConformance,
    ComputeRig,
    DriverRig,
    MoveConformance,
    MoveRig,
    NetworkConformance,
    NetworkRig,
    StorageConformance,
    StorageRig,
    VolumeMoveConformance,
    VolumeMoveRig,
    image_file,
)

SEGMENT = c.Segment(network_type="vxlan", segmentation_id=7)


def volume() -> c.VolumeAttachment:
    return c.VolumeAttachment(
        attachment_id=str(uuid.uuid4()),
        volume_id=str(uuid.uuid4()),
        device="/dev/vdb",
        connection=c.DiskConnection(driver="nbd", uri="nbd://h1/x"),
    )


def port() -> c.PortDoc:
    return c.PortDoc(
        id=str(uuid.uuid4()),
        generation=1,
        network_id=str(uuid.uuid4()),
        segment=SEGMENT,
        mac_address="fa:16:3e:00:00:01",
        fixed_ips=[c.FixedIp(subnet_id=str(uuid.uuid4()), ip_address="10.0.0.5")],
    )


def document(kind: str, generation: int, object_id: str) -> Any:
    match kind:
        case "metadata":
            return c.MetadataDoc(id=object_id, generation=generation, meta_data={}, network_data={})
        case "network":
            return c.NetworkDoc(id=object_id, generation=generation, segment=SEGMENT, subnets=[], dhcp_port=None)
        case "router":
            return c.RouterDoc(id=object_id, generation=generation)
        case "group":
            return c.GroupDoc(id=object_id, generation=generation, members=["10.0.0.4"])
    raise AssertionError(kind)


@pytest.fixture(params=["memory", "file"])
def host(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[FakeHost]:
    made = FakeHost("h1", path=tmp_path / "world.db" if request.param == "file" else None)
    yield made
    assert made.empty(), made.world.leftovers()
    if request.param == "file":
        assert FakeHost("h1", path=tmp_path / "world.db").empty()


class TestFakeCompute(ComputeConformance):
    @pytest.fixture
    def rig(self, host: FakeHost, tmp_path: Path) -> ComputeRig:
        return ComputeRig(DriverRig(host.compute, tmp_path), image_file(tmp_path), port, volume, boot_seconds=1)


class TestFakeMove(MoveConformance):
    @pytest.fixture
    def rig(self, host: FakeHost, tmp_path: Path) -> Iterator[MoveRig]:
        other, image = FakeHost("h2"), image_file(tmp_path)
        here, there = (
            ComputeRig(DriverRig(one.compute, tmp_path), image, port, volume, boot_seconds=1) for one in (host, other)
        )
        yield MoveRig(here, there, host.name, other.name)
        there.rig.close()
        assert other.empty(), other.world.leftovers()

    def test_it_takes_time_and_is_steered(self, host: FakeHost, rig: MoveRig) -> None:
        host.compute.moving.seconds = 60
        for action, code in (("abort", "aborted"), ("force_complete", None)):
            spec = rig.here.spec()
            names = {"server_id": spec.server_id, "instance_name": spec.instance_name}
            rig.here.build(spec)
            rig.here.power(spec, "start")
            ended: list[str | None] = []

            def work(spec: c.ServerSpec = spec, ended: list[str | None] = ended) -> None:
                try:
                    rig.here.rig.run(rig.migrate(spec, rig.receive(spec)))
                    ended.append(None)
                except DriverError as error:
                    ended.append(error.code)

            thread = threading.Thread(target=work)
            thread.start()
            while not (data := rig.here.rig.ask(c.MigrationProgress(**names))):
                assert thread.is_alive()
            assert 0 < data["memory_remaining_bytes"] <= data["memory_total_bytes"] == spec.memory_mb << 20
            assert rig.here.state(spec) == 1
            rig.here.rig.run(c.SteerMigration(action=action, **names))
            thread.join(10)
            assert ended == [code]
            assert (rig.here if code else rig.there).state(spec) == 1
            rig.there.rig.run(rig.end(spec, discard=code is not None))
            rig.leave_both(spec)

    def test_what_is_not_over_in_time_is_given_up(self, host: FakeHost, rig: MoveRig) -> None:
        host.compute.moving.seconds = 60
        spec = rig.here.spec()
        rig.here.build(spec)
        rig.here.power(spec, "start")
        address = rig.receive(spec)
        with pytest.raises(DriverError) as raised:
            rig.here.rig.run(rig.migrate(spec, address, timeout_seconds=1))
        assert raised.value.code == "timeout"
        rig.here.rig.run(rig.migrate(spec, address, timeout_seconds=1, on_timeout="force_complete"))
        assert rig.there.state(spec) == 1
        rig.leave_both(spec)


class TestFakeStorage(StorageConformance):
    @pytest.fixture
    def rig(self, host: FakeHost, tmp_path: Path) -> StorageRig:
        return StorageRig(DriverRig(host.storage, tmp_path), "h1")


class TestFakeVolumeMove(VolumeMoveConformance):
    @pytest.fixture
    def rig(self, host: FakeHost, tmp_path: Path) -> Iterator[VolumeMoveRig]:
        other = FakeHost("h2")
        here, there = (StorageRig(DriverRig(one.storage, tmp_path), one.name) for one in (host, other))
        content = {"h1": host, "h2": other}

        def holds(rig: StorageRig, volume_id: str) -> bool:
            return content[rig.host].world.state.volumes[volume_id].content == "written on h1"

        yield VolumeMoveRig(here, there, lambda rig, volume_id: None, holds)
        assert other.empty(), other.world.leftovers()


class TestFakeNetwork(NetworkConformance):
    @pytest.fixture
    def rig(self, host: FakeHost, tmp_path: Path) -> NetworkRig:
        return NetworkRig(DriverRig(host.network, tmp_path), document)


def test_every_operation_and_query_of_the_contract_is_there() -> None:
    from typing import get_args

    host = FakeHost()
    operations = {kind for driver in host.drivers for kind in driver.operations()}
    assert operations == set(get_args(c.OperationBody)) - {c.MendHost}  # that is the runtime's
    for driver in host.drivers:
        assert all(kind.role == driver.role for kind in driver.operations())
    queries = {kind for driver in host.drivers for kind in driver.queries()}
    assert queries == set(get_args(c.QueryBody)) - {c.AuditHost}
    assert {kind for driver in host.drivers for kind in driver.documents()} == set(c.DOCUMENTS)


def test_faults() -> None:
    host = FakeHost()
    delete = host.compute.operations()[c.DeleteDisks]
    body = c.DeleteDisks(server_id="s")

    def run() -> None:
        delete(body, lambda fraction=None: None)

    host.faults.fail("compute.delete_disks", times=2, code="no-space")
    for _ in range(2):
        with pytest.raises(DriverError) as raised:
            run()
        assert raised.value.code == "no-space"
    run()
    release = host.faults.hang("*")
    thread = threading.Thread(target=run)
    thread.start()
    assert host.faults.hanging.acquire(timeout=30)
    assert thread.is_alive()
    release.set()
    thread.join(30)
    assert host.faults.count("DeleteDisks") == 4
    assert host.faults.count("CreateDisks") == 0


def test_a_host_survives_its_process_in_a_file(tmp_path: Path) -> None:
    host = FakeHost(path=tmp_path / "world.db")
    host.storage.operations()[c.CreateVolume](c.CreateVolume(volume_id="v", size_gb=3), lambda fraction=None: None)
    again = FakeHost(path=tmp_path / "world.db")
    assert again.storage.inventory().volumes == ["v"]
    assert again.world.leftovers() == {"volumes": ["v"]}
