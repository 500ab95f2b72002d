"""The generic checks, on the test's own sagas; and that they notice what they are for."""

from dataclasses import replace
from typing import Any

import pytest

from cumulet.saga import Call, Saga, Transact, nothing_to_undo, testing
from cumulet.saga.testing import Case, SagaCheckFailed
from tests.saga import sagas
from tests.saga.world import Params, World

IGNORE: dict[str, set[str] | None] = {"test_things": {"status"}}
numbers = iter(range(10_000))


def new_thing(world: World) -> tuple[str, Params]:
    thing = f"thing-{next(numbers)}"
    world.add_thing(thing)
    return thing, Params(size=5)


def ready(world: World, *registered: Saga) -> World:
    world.registered = list(registered)
    world.engine.register(*registered)
    world.engine.run()
    return world


BUILD = Case("thing.build", new_thing, IGNORE)


def test_it_runs_and_unwinds_from_every_step(world: World) -> None:
    ready(world, sagas.BUILD)
    testing.check_runs(world, BUILD)
    assert testing.check_unwinds(world, BUILD) == 7


def test_every_operation_may_be_done_twice(world: World) -> None:
    ready(world, sagas.BUILD)
    testing.check_repeats(world, BUILD)


def test_it_survives_a_kill_at_every_point(world: World) -> None:
    ready(world, sagas.BUILD)
    assert testing.check_crashes(world, BUILD) >= 10


def test_it_unwinds_over_a_kill_at_every_point(world: World) -> None:
    ready(world, sagas.BUILD)
    assert testing.check_crashes_unwinding(world, BUILD) >= 9


def test_a_delete_survives_a_kill_at_every_point(world: World) -> None:
    ready(world, sagas.BUILD, sagas.REMOVE)
    case = Case("thing.remove", new_thing, IGNORE, unwinds=False)
    testing.check_everything(world, case)


def test_sagas_with_children_survive(world: World) -> None:
    def prepare(w: World) -> tuple[str, Params]:
        thing, params = new_thing(w)
        return thing, params

    ready(world, sagas.BUILD, sagas.RETRY)
    case = Case("thing.retry", prepare, IGNORE)
    testing.check_runs(world, case)
    assert testing.check_crashes(world, case) >= 2


def test_every_undo_is_needed(world: World) -> None:
    ready(world, sagas.BUILD)
    assert testing.check_undos_matter(world, BUILD) == ["grow", "create", "export"]


@pytest.mark.parametrize("name", ["grow", "create", "export"])
def test_a_missing_undo_is_noticed(world: World, name: str) -> None:
    steps = tuple(
        replace(step, undo=nothing_to_undo("removed")) if step.name == name else step for step in sagas.BUILD.steps
    )
    ready(world, replace(sagas.BUILD, steps=steps))  # type: ignore[arg-type]
    with pytest.raises(SagaCheckFailed, match="left something"):
        testing.check_unwinds(world, BUILD)


def test_an_undo_without_effect_is_noticed(world: World) -> None:
    idle = Transact("idle", lambda tx, run: None, lambda tx, run: None)
    ready(world, replace(sagas.BUILD, steps=(idle, *sagas.BUILD.steps)))
    with pytest.raises(SagaCheckFailed, match="without the undo of idle"):
        testing.check_undos_matter(world, BUILD)


def test_an_operation_that_cannot_be_repeated_is_noticed(world: World) -> None:
    perform = world.host.perform

    def once(message: Any) -> Any:
        outcome = perform(message)
        if message.body.__struct_config__.tag == "volume.create":
            with world.host.lock:
                if f"volume {message.object_id}" in world.host.state and message.op_id.endswith(":1"):
                    world.host.state.add(f"another {message.object_id}")
        return outcome

    world.host.perform = once  # type: ignore[method-assign]
    ready(world, sagas.BUILD)
    with pytest.raises(SagaCheckFailed, match="left something"):
        testing.check_repeats(world, BUILD)


def test_a_step_that_never_ends_is_noticed(world: World) -> None:
    world.host.hold.add("volume.create")
    ready(world, sagas.BUILD)
    with pytest.raises(SagaCheckFailed, match="still is running"):
        testing.check_runs(world, replace(BUILD, seconds=0.2))


def test_declared_finds_the_newest_version(world: World) -> None:
    newer = replace(sagas.BUILD, version=2)
    ready(world, sagas.BUILD, newer)
    assert testing.declared(world, "thing.build") is newer
    assert all(isinstance(step, Call | Transact) for step in newer.steps)
