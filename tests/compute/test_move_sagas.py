"""The generic saga checks over the moves of servers, on a whole control plane and two fake hosts."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from cumulet.saga import testing
from cumulet.saga.testing import Case
from cumulet.services.compute import migrations, store
from cumulet.services.compute.workflows.evacuate import FleeParams, LeaveDeadParams
from cumulet.services.compute.workflows.leave import LeaveParams
from cumulet.services.compute.workflows.live import LiveParams
from cumulet.services.compute.workflows.move import BackParams, MoveParams
from tests.compute.test_sagas import VISIBLE, CloudHarness, new_harness
from tests.support.patience import eventually

pytestmark = pytest.mark.timeout(600)  # many steps, each killed in turn
# what tells of the attempt, and what hosts converge to
TOLD = ("server_migrations", "server_faults", "vmms", "desired_docs", "hosts", "reconcilers")
IGNORE: dict[str, set[str] | None] = {
    "servers": VISIBLE,
    "ports": {"status", "wired", "powered"},
    "consumers": {"generation"},
    **dict.fromkeys(TOLD),
}


class Closely:
    """The harness, seeing also whether guests run and what disks hold."""

    def __init__(self, harness: CloudHarness) -> None:
        self._harness = harness

    def __getattr__(self, name: str) -> Any:
        return getattr(self._harness, name)

    def host_state(self) -> Any:
        found = self._harness.host_state()
        for name, host in self._harness.cloud.hosts.items():
            with host.fake.world.look() as state:
                found[name]["powers"] = {one: domain.power_state for one, domain in state.domains.items()}
                found[name]["contents"] = {one: (d.content, d.root_gb) for one, d in state.disks.items()}
        return found


@pytest.fixture(scope="module")
def harness(cloud_backends: Any) -> Iterator[CloudHarness]:
    with new_harness(2, cloud_backends()) as made:
        yield Closely(made)  # type: ignore[misc]


def all_up(h: CloudHarness) -> None:
    """No host is said to be dead, and those that were are rid of what fled from them."""
    for name in h.cloud.hosts:
        h.db.write(lambda tx, name=name: h.cloud.control.hosts.set_forced_down(tx, name, False))  # type: ignore[misc]

    def rid() -> bool:
        h.compute.clear_after_moves()  # which a reconciler does now and then, at a moment that nobody chose
        return not h.db.read(migrations.done)

    eventually(rid)


@pytest.fixture(autouse=True)
def vouched(harness: CloudHarness) -> Iterator[None]:
    """A host that a test said to be dead is not so for the next one, however it ended."""
    yield
    all_up(harness)


def begun(h: CloudHarness, server_id: str, kind: str = "migration") -> str:
    def work(tx: Any) -> str:
        server = store.server(tx, server_id)
        assert server is not None
        return migrations.begin(tx, server, kind, None, (None, None), None)

    migration: str = h.db.write(work)
    return migration


def to_move(h: CloudHarness) -> tuple[str, msgspec.Struct]:
    server_id = h.running_server()
    return server_id, MoveParams(migration_id=begun(h, server_id))


def without_image(prepare: Any) -> Any:
    """The same server, of an image of its own that was deleted."""

    def made(h: CloudHarness) -> tuple[str, msgspec.Struct]:
        usual, h.nova._image = h.nova.image, None
        found: tuple[str, msgspec.Struct] = prepare(h)
        gone, h.nova._image = h.nova.image, usual
        assert h.cloud.api("admin").request("DELETE", "image", f"/images/{gone}").status == 204
        return found

    return made


def moved(h: CloudHarness) -> tuple[str, msgspec.Struct]:
    """One that waits for confirmation."""
    server_id, params = to_move(h)
    migrate = h.compute.move_workflows.migrate
    saga_id = h.db.write(lambda tx: h.engine.start(tx, migrate, server_id, params, h.ctx))
    assert testing.ended(h, saga_id, 20).status == "finished"
    assert isinstance(params, MoveParams)
    return server_id, BackParams(migration_id=params.migration_id)


def case(harness: CloudHarness, kind: str, prepare: Any, **more: Any) -> Case:
    return Case(kind, prepare, IGNORE, seconds=30, ctx=harness.ctx, settle_seconds=2.0, **more)


def test_a_move_unwinds_from_every_step(harness: CloudHarness) -> None:
    assert testing.check_unwinds(harness, case(harness, "server.migrate", to_move)) >= 20


@pytest.mark.slow
def test_relocating_survives_kills(harness: CloudHarness) -> None:
    def prepare(h: CloudHarness) -> tuple[str, msgspec.Struct]:
        server_id, params = to_move(h)
        return server_id, msgspec.structs.replace(params, confirmed=True)

    relocating = case(harness, "server.relocate", prepare, unwinds=False)
    testing.check_runs(harness, relocating)
    assert testing.check_crashes(harness, relocating) >= 2


def test_a_move_without_image_unwinds_from_every_step(harness: CloudHarness) -> None:
    testing.check_unwinds(harness, case(harness, "server.migrate", without_image(to_move)))


@pytest.mark.slow
def test_bringing_a_deleted_image_survives_everything(harness: CloudHarness) -> None:
    moving = case(harness, "server.migrate", without_image(to_move))
    testing.check_repeats(harness, moving)
    assert testing.check_crashes(harness, moving) >= 30


@pytest.mark.slow
def test_a_resize_on_its_way(harness: CloudHarness) -> None:
    testing.check_unwinds(harness, case(harness, "server.resize", to_move))


@pytest.mark.slow
@pytest.mark.timeout(600)  # a hundred moves, each with a crash
def test_a_move_survives_everything(harness: CloudHarness) -> None:
    moving = case(harness, "server.migrate", to_move)
    testing.check_repeats(harness, moving)
    assert testing.check_crashes(harness, moving) >= 30
    assert testing.check_crashes_unwinding(harness, moving) >= 15


@pytest.mark.slow
@pytest.mark.parametrize("deleted", [False, True])
def test_every_undo_of_a_move_matters(harness: CloudHarness, deleted: bool) -> None:
    withdraws, other = ("offer_images", "offer") if deleted else ("offer", "offer_images")
    moving = replace(
        case(harness, "server.migrate", without_image(to_move) if deleted else to_move),
        redundant={
            "unplug": "binding the port back has its document make it again",
            "volumes": "this server has none; test_moves.py has some",
            "ports": "the port documents take the taps with them",
            "undefine": "without it the undo of stop is tried again for a minute",
            other: "nothing was offered, or both are withdrawn at once",
        },
    )
    assert set(testing.check_undos_matter(harness, moving)) >= {"prepare", "bind", "disks", "define", withdraws}


@pytest.mark.slow
def test_a_move_that_waits_for_nobody_survives_kills(harness: CloudHarness) -> None:
    def to_relocate(h: CloudHarness) -> tuple[str, msgspec.Struct]:
        server_id, params = to_move(h)
        return server_id, msgspec.structs.replace(params, confirmed=True)

    relocating = case(harness, "server.relocate", to_relocate, unwinds=False)
    testing.check_repeats(harness, relocating)
    assert testing.check_crashes(harness, relocating) >= 4


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["server.confirm_resize", "server.revert_resize"])
def test_the_end_of_a_move_survives_kills(harness: CloudHarness, kind: str) -> None:
    ending = case(harness, kind, moved, unwinds=False)
    testing.check_repeats(harness, ending)
    assert testing.check_crashes(harness, ending) >= 2


@pytest.mark.slow
def test_going_back_unwinds(harness: CloudHarness) -> None:
    back = case(harness, "server.move_back", moved)
    assert testing.check_unwinds(harness, back) >= 15
    assert testing.check_crashes(harness, back) >= 20


# -- live ----------------------------------------------------------------------------------------------------------


def to_migrate(h: CloudHarness) -> tuple[str, msgspec.Struct]:
    server_id = h.running_server()
    return server_id, LiveParams(migration_id=begun(h, server_id, migrations.LIVE))


def live_case(harness: CloudHarness, prepare: Any = to_migrate) -> Case:
    return case(harness, "server.live_migrate", prepare, forward_from="handover")


def test_a_live_migration_unwinds_until_the_guest_went(harness: CloudHarness) -> None:
    assert testing.check_unwinds(harness, live_case(harness)) >= 10


def test_a_live_migration_without_image_unwinds(harness: CloudHarness) -> None:
    testing.check_unwinds(harness, live_case(harness, without_image(to_migrate)))


@pytest.mark.slow
def test_a_live_migration_survives_everything(harness: CloudHarness) -> None:
    moving = live_case(harness)
    testing.check_repeats(harness, moving)
    assert testing.check_crashes(harness, moving) >= 20
    assert testing.check_crashes_unwinding(harness, moving) >= 6


@pytest.mark.slow
def test_every_undo_of_a_live_migration_matters(harness: CloudHarness) -> None:
    moving = replace(
        live_case(harness, without_image(to_migrate)),
        redundant={
            "volumes": "this server has none; test_live_migration.py has some",
            "ports": "the port documents take the taps with them",
        },
    )
    assert testing.check_undos_matter(harness, moving) == ["claim", "offer_images", "bind", "receive"]


@pytest.mark.slow
def test_handing_over_survives_kills(harness: CloudHarness) -> None:
    """Its children, by way of their parent."""
    for kind in ("server.handover", "server.end_receive"):
        crashes = 0
        saga = testing.declared(harness, kind)
        for point, position in testing.crash_points(saga):
            crashes += testing.crash_child(harness, live_case(harness), kind, (point, position, "running"))
        assert crashes >= 4


# -- evacuation ----------------------------------------------------------------------------------------------------


def to_flee(h: CloudHarness) -> tuple[str, msgspec.Struct]:
    """Of a host that is said to be dead, though its agent lives."""
    all_up(h)
    server_id = h.running_server()
    migration = begun(h, server_id, migrations.EVACUATION)
    host = h.db.read(lambda tx: store.server(tx, server_id)).host
    h.db.write(lambda tx: h.cloud.control.hosts.set_forced_down(tx, host, True))
    return server_id, FleeParams(migration_id=migration)


@pytest.mark.slow
def test_fleeing_survives_everything(harness: CloudHarness) -> None:
    def without_wires(state: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """The dead host is not told to make its ports again: it finds out when it compares."""
        return {host: {kind: ids for kind, ids in found.items() if kind != "wires"} for host, found in state.items()}

    fleeing = case(harness, "server.flee", to_flee, host_ignore=without_wires)
    assert testing.check_unwinds(harness, fleeing) >= 15
    testing.check_repeats(harness, fleeing)
    assert testing.check_crashes(harness, fleeing) >= 15
    whole = case(harness, "server.evacuate", to_flee, unwinds=False)
    testing.check_runs(harness, whole)
    assert testing.check_crashes(harness, whole) >= 2


@pytest.mark.slow
def test_leaving_a_dead_host_survives_kills(harness: CloudHarness) -> None:
    def prepare(h: CloudHarness) -> tuple[str, msgspec.Struct]:
        server_id = h.running_server()

        def work(tx: Any) -> str:
            server = store.server(tx, server_id)
            assert server is not None
            [other] = set(h.cloud.hosts) - {server.host}
            fled = msgspec.structs.replace(server, host=other)
            return migrations.begin(tx, fled, migrations.EVACUATION, None, (None, None), server.host)

        return server_id, LeaveDeadParams(migration_id=h.db.write(work))

    leaving = case(harness, "server.leave_dead", prepare, unwinds=False)
    testing.check_runs(harness, leaving)
    assert testing.check_crashes(harness, leaving) >= 2


@pytest.mark.slow
def test_leaving_survives_kills(harness: CloudHarness) -> None:
    def prepare(h: CloudHarness) -> tuple[str, msgspec.Struct]:
        server_id = h.running_server()
        here = h.db.read(lambda tx: store.server(tx, server_id)).host
        [other] = set(h.cloud.hosts) - {here}
        return server_id, LeaveParams(host=other)

    leaving = case(harness, "server.leave", prepare, unwinds=False)
    testing.check_repeats(harness, leaving)
    assert testing.check_crashes(harness, leaving) >= 4
