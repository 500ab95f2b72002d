"""Three pretend hosts for the tests of this folder, made once."""

from collections.abc import Iterator

import pytest

from cumulet import guest
from tests.hosts.machines import Machines, machines_alone
from tests.hosts.world import World, make_world


@pytest.fixture(scope="package")
def alone(pytestconfig: pytest.Config) -> Iterator[tuple[Machines, guest.GuestImage]]:
    assert pytestconfig.cache is not None
    with machines_alone(pytestconfig.cache.mkdir("hosts").parent) as made:
        yield made


@pytest.fixture(scope="package")
def machines(alone: tuple[Machines, guest.GuestImage]) -> Machines:
    return alone[0]


@pytest.fixture(scope="package")
def built(alone: tuple[Machines, guest.GuestImage]) -> guest.GuestImage:
    return alone[1]


@pytest.fixture(scope="package")
def world(machines: Machines, built: guest.GuestImage, tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(machines, built.disk, tmp_path_factory.mktemp("key"))


@pytest.fixture(scope="package")
def sector(world: World, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An image that needs no time to boot."""
    path = tmp_path_factory.mktemp("sector") / "image"
    path.write_bytes(guest.boot_sector_qcow2())
    return world.upload(path)
