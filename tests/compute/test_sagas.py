"""The generic saga checks over compute's sagas, on a whole control plane and fake hosts."""

import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sqlalchemy import select

from cumulet.compose import build_control_plane
from cumulet.emulator.cloud import QUICK_HASHES
from cumulet.kernel.context import RequestContext
from cumulet.saga import testing
from cumulet.saga.tables import SAGAS
from cumulet.saga.testing import Case
from cumulet.services.compute import store
from cumulet.services.compute.intake import Intake, May
from cumulet.services.compute.schema import Hints, NetworkRequest, ServerCreate
from cumulet.services.compute.workflows.create import BuildParams, CreateParams
from cumulet.services.compute.workflows.delete import DeleteParams
from cumulet.services.compute.workflows.guest import RebuildParams, SnapshotParams
from cumulet.services.compute.workflows.power import PowerParams, TakeBackParams
from cumulet.services.image.tables import IMAGES
from tests.compute.helpers import Nova
from tests.support import cloud as support
from tests.support.cloud import unique

VISIBLE = {"vm_state", "task_state", "power_state", "status"}


class Recorder:
    """Stands where the engine stands while a create is taken in: nothing starts."""

    def __init__(self) -> None:
        self.started: list[tuple[str, msgspec.Struct]] = []

    def start(self, tx: Any, saga: Any, object_id: str, params: msgspec.Struct, ctx: Any, **more: Any) -> str:
        self.started.append((object_id, params))
        return unique("saga")


class CloudHarness:
    """A cloud whose control plane is killed and started anew; hosts and database stay."""

    def __init__(self, nova: Nova) -> None:
        self.cloud = nova.cloud
        self.nova = nova
        api = nova.cloud.api("demo")
        self.ctx = RequestContext(
            request_id="req-saga",
            project_id=api.project_id,
            user_id=api.user_id,
            roles=frozenset({"member", "reader", "admin"}),
        )
        made = api.post("network", "/networks", {"network": {"name": unique("net")}})
        assert made.status == 201, made.text
        self.network = made["network"]["id"]
        subnet = {"network_id": self.network, "cidr": "10.9.0.0/16", "ip_version": 4, "enable_dhcp": False}
        assert api.post("network", "/subnets", {"subnet": subnet}).status == 201

    @property
    def db(self) -> Any:
        return self.cloud.control.db

    @property
    def engine(self) -> Any:
        return self.cloud.control.sagas

    @property
    def compute(self) -> Any:
        return self.cloud.control.compute

    def stop_control_plane(self) -> None:
        self.cloud.control.reconcilers.stop()  # they would outlive it, and the cloud
        self.cloud.control.conductor.stop()

    def start_control_plane(self) -> None:
        self.cloud.control = build_control_plane(
            self.cloud.settings, bus=self.cloud.bus, passwords=QUICK_HASHES, name="test-conductor"
        )
        self.cloud.control.image.start()
        self.cloud.control.conductor.start()
        self._look_at_once()

    def _look_at_once(self) -> None:
        """Reports that came while nobody listened are found by the next poll, seconds later: do not wait for it."""
        parked = select(SAGAS.c.object_kind, SAGAS.c.object_id).where(SAGAS.c.phase == "waiting")
        for kind, object_id in self.db.read(lambda tx: tx.rows(parked)):
            self.engine.wake(kind, object_id)

    def host_state(self) -> Any:
        def look() -> dict[str, Any]:
            found = {}
            for name, host in self.cloud.hosts.items():
                left = host.fake.world.leftovers()
                for kind in ("network documents", "port documents", "metadata documents", "router documents", "taps"):
                    left.pop(kind, None)  # documents are converged by pulls; taps come and go with them
                found[name] = {kind: sorted(map(str, ids)) for kind, ids in left.items()}
            return found

        return look()

    def new_server(self) -> tuple[str, msgspec.Struct]:
        """A server taken in by POST whose saga has not begun."""
        body = ServerCreate(
            name=unique("saga"),
            flavorRef=self.nova.flavor,
            imageRef=self.nova.image,
            networks=[NetworkRequest(uuid=self.network)],
        )
        recorder, usual = Recorder(), self.compute.intake
        parts = replace(usual.parts, sagas=recorder)  # its own: the rest of the cloud goes on starting what it starts
        intake = Intake(parts, usual.quotas, usual.scheduling, usual.create_workflow)
        self.db.write(lambda tx: intake.create(tx, self.ctx, body, Hints(), May()))
        return recorder.started[0]

    def running_server(self) -> str:
        server_id, params = self.new_server()
        saga = self.compute.create_workflows.create
        saga_id = self.db.write(lambda tx: self.engine.start(tx, saga, server_id, params, self.ctx))
        assert testing.ended(self, saga_id, 20).status == "finished"
        return server_id


@contextmanager
def new_harness(hosts: int, backends: dict[str, Any]) -> Iterator[CloudHarness]:
    def unlimited(settings: Any) -> None:
        settings.quota.instances = settings.quota.cores = settings.quota.ram_mb = settings.quota.ports = -1

    directory = Path(tempfile.mkdtemp(prefix="cumulet-sagas-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    # no host compares what it has with the records meanwhile: it would remove what a saga left, before or after a look
    started = support.Cloud(directory, hosts=hosts, inventory_seconds=86400, configure=unlimited, **backends).start()
    yield CloudHarness(Nova(started))
    started.stop()
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="module")
def harness(cloud_backends: Any) -> Iterator[CloudHarness]:
    with new_harness(1, cloud_backends()) as made:
        yield made


def build_case(harness: CloudHarness) -> Case:
    def prepare(h: CloudHarness) -> tuple[str, msgspec.Struct]:
        server_id, params = h.new_server()
        assert isinstance(params, CreateParams)
        assert params.host is not None
        return server_id, BuildParams(host=params.host)

    return Case(
        "server.build",
        prepare,
        {"servers": {*VISIBLE}, "vmms": None, "desired_docs": None, "hosts": None, "ports": None, "reconcilers": None},
        seconds=30,
        ctx=harness.ctx,
    )


def test_build_unwinds_from_every_step(harness: CloudHarness) -> None:
    assert testing.check_unwinds(harness, build_case(harness)) >= 10


class Everything:
    """The harness, seeing documents and taps too: they settle a moment after the saga's end."""

    def __init__(self, harness: CloudHarness) -> None:
        self._harness = harness

    def __getattr__(self, name: str) -> Any:
        return getattr(self._harness, name)

    def host_state(self) -> Any:
        return {
            name: {kind: sorted(map(str, ids)) for kind, ids in host.fake.world.leftovers().items()}
            for name, host in self._harness.cloud.hosts.items()
        }


@pytest.mark.slow
def test_every_undo_of_build_matters(harness: CloudHarness) -> None:
    case = replace(
        build_case(harness),
        ignore={"servers": {*VISIBLE, "host"}, "vmms": None, "hosts": None, "reconcilers": None, "ports": {"status"}},
        redundant={
            "ports": "the port documents, which the undo of networking withdraws, take the taps with them",
            "volumes": "this server has none; the volume suite takes the sagas of connecting apart",
        },
        settle_seconds=2.0,
    )
    assert testing.check_undos_matter(Everything(harness), case) == ["networking", "disks", "define"]


def test_build_operations_may_be_done_twice(harness: CloudHarness) -> None:
    testing.check_repeats(harness, build_case(harness))


@pytest.mark.slow
def test_build_survives_kills(harness: CloudHarness) -> None:
    assert testing.check_crashes(harness, build_case(harness)) >= 15


@pytest.mark.slow
def test_build_unwinds_over_kills(harness: CloudHarness) -> None:
    assert testing.check_crashes_unwinding(harness, build_case(harness)) >= 5


@pytest.mark.slow
def test_create_survives_kills(harness: CloudHarness) -> None:
    case = Case("server.create", lambda h: h.new_server(), {}, unwinds=False, seconds=30, ctx=harness.ctx)
    testing.check_runs(harness, case)
    assert testing.check_crashes(harness, case) >= 2


@pytest.mark.slow
def test_delete_survives_kills_and_leaves_nothing(harness: CloudHarness) -> None:
    def prepare(h: CloudHarness) -> tuple[str, msgspec.Struct]:
        server_id = h.running_server()
        h.db.write(lambda tx: store.update_server(tx, server_id, deleting=True))
        return server_id, DeleteParams()

    case = Case("server.delete", prepare, {}, unwinds=False, seconds=30, ctx=harness.ctx)
    testing.check_runs(harness, case)
    testing.check_repeats(harness, case)
    assert testing.check_crashes(harness, case) >= 10


@pytest.mark.slow
@pytest.mark.parametrize("action", ["stop", "hard_reboot", "define_again", "take_back"])
def test_power_survives_kills(harness: CloudHarness, action: str) -> None:
    case = Case(
        f"server.{action}",
        lambda h: (
            h.running_server(),
            TakeBackParams(resize="none", run=True) if action == "take_back" else PowerParams(),
        ),
        {},
        unwinds=False,
        seconds=30,
        ctx=harness.ctx,
    )
    testing.check_repeats(harness, case)
    assert testing.check_crashes(harness, case) >= 2


@pytest.mark.slow
@pytest.mark.parametrize("version", [1, 2])
def test_rebuild_survives_kills(harness: CloudHarness, version: int) -> None:
    """The first version was under way when the control plane was upgraded."""
    saga = harness.engine.sagas["server.rebuild", version]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(testing, "declared", lambda h, kind: h.engine.sagas[kind, version])
        case = Case(
            saga.kind, lambda h: (h.running_server(), RebuildParams()), {}, unwinds=False, seconds=30, ctx=harness.ctx
        )
        testing.check_runs(harness, case)
        testing.check_repeats(harness, case)
        assert testing.check_crashes(harness, case) >= 10


def snapshot_image(harness: CloudHarness) -> str:
    """As POST makes it."""
    image = harness.cloud.control.image
    made: str = harness.db.write(lambda tx: image.create_snapshot_image(tx, harness.ctx, unique("snapshot"), {}))
    return made


def images_left(harness: CloudHarness, ids: list[str]) -> list[str]:
    living = select(IMAGES.c.id).where(IMAGES.c.id.in_(ids), IMAGES.c.deleted_at.is_(None))
    return [row[0] for row in harness.db.read(lambda tx: tx.rows(living))]


@pytest.mark.slow
def test_snapshot_leaves_no_image(harness: CloudHarness) -> None:
    def prepare(h: CloudHarness) -> tuple[str, msgspec.Struct]:
        server_id = h.running_server()
        image_id = snapshot_image(h)
        made.append(image_id)
        return server_id, SnapshotParams(image_id=image_id)

    made: list[str] = []

    case = Case("server.snapshot", prepare, {}, unwinds=False, seconds=30, ctx=harness.ctx)
    testing.check_runs(harness, case)
    assert testing.check_crashes(harness, case) >= 2
    untouched = ("server_faults", "vmms", "desired_docs", "hosts", "images", "image_properties", "reconcilers")
    ignore: dict[str, set[str] | None] = {"servers": {*VISIBLE}, **dict.fromkeys(untouched)}
    failing = Case("server.snapshot", prepare, ignore, seconds=30, ctx=harness.ctx)
    made.clear()
    assert testing.check_unwinds(harness, failing) >= 4
    assert made
    assert images_left(harness, made) == []


def test_a_snapshot_that_is_cancelled_before_it_began_leaves_no_image(harness: CloudHarness) -> None:
    server_id, image_id = harness.running_server(), snapshot_image(harness)

    def begin_and_cancel(tx: Any) -> str:
        saga = testing.declared(harness, "server.snapshot")
        saga_id: str = harness.engine.start(tx, saga, server_id, SnapshotParams(image_id=image_id), harness.ctx)
        harness.engine.cancel(tx, "server", server_id)
        return saga_id

    ended = testing.ended(harness, harness.db.write(begin_and_cancel), 30)
    assert (ended.status, ended.cancelled, ended.position) == ("failed", True, 0)
    assert images_left(harness, [image_id]) == []


def test_every_saga_is_named_and_checked(harness: CloudHarness) -> None:
    """A new saga of a server must appear in this file or the moves' (or among the volume's and interface's contract
    tests)."""
    text = Path(__file__).read_text() + Path(__file__).with_name("test_move_sagas.py").read_text()
    named = set(re.findall(r'"(server\.\w+)"', text)) | {f"server.{name}" for name in re.findall(r'"(\w+)"', text)}
    by_contract = {"server.password", "server.start", "server.soft_reboot", "server.unpause"}
    by_contract |= {"server.resume", "server.pause", "server.suspend"}
    kinds = {saga.kind for saga in harness.compute.all_sagas() if saga.object_kind == "server"}
    assert kinds <= named | by_contract
