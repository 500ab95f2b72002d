"""A short run of chaos upon three real hosts, from a fixed seed. `./run-tests --long chaos` runs a long one."""

import pytest

from cumulet import guest
from cumulet.chaos.run import Wanted
from tests.hosts.chaos import chaos, images
from tests.hosts.machines import HOSTS, Machines
from tests.hosts.world import World

pytestmark = [pytest.mark.host, pytest.mark.timeout(1800)]


def test_three_hosts(machines: Machines, world: World, built: guest.GuestImage) -> None:
    wanted = Wanted(requests=20)
    result = chaos(machines, world, seconds=75, seed=4, images=images(built), say=print, wanted=wanted)
    assert result["violations"] == []
    assert result["requests"]["acknowledged"] >= 20
    assert len(result["disturbances"]) >= 8
    assert result["witnesses"]["pings"] > 200
    assert all(len(machines.guests(host)) == 1 for host in HOSTS)
