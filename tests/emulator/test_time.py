"""What the moved clock does to a cloud."""

from collections.abc import Callable
from typing import Any

from cumulet.emulator import Emulator
from tests.emulator.conftest import Emulated


def services(emulated: Emulated) -> dict[str, str]:
    found = emulated.api("admin").get("compute", "/os-services?binary=nova-compute")["services"]
    return {service["host"]: service["state"] for service in found}


def test_tokens_expire(emulated: Emulated) -> None:
    api = emulated.api("alt_demo")
    assert api.get("compute", "/servers").status == 200
    emulated.emulator.clock.advance(hours=25)
    assert api.get("compute", "/servers").status == 401
    emulated.emulator.reset()
    assert api.get("compute", "/servers").status == 200


def test_a_boot_takes_its_time(emulated: Emulated) -> None:
    emulator = emulated.emulator
    emulator.faults.delay("boot", 30)
    server = emulated.boot()
    assert (emulated.status(server), emulated.server(server)["OS-EXT-STS:task_state"]) == ("BUILD", "spawning")
    emulator.clock.advance(20)
    assert emulated.status(server) == "BUILD"
    emulator.clock.advance(11)
    assert emulated.status(server) == "ACTIVE"


def test_everything_takes_its_usual_time(new_openstack_cloud: Callable[..., Emulator]) -> None:
    """By the clock: moved, it is over."""
    emulator = new_openstack_cloud(realistic=True)
    emulated = Emulated(emulator)
    emulator.clock.freeze()
    server = emulated.boot()
    seen = []
    while emulated.status(server) == "BUILD":
        seen.append(emulated.server(server)["OS-EXT-STS:task_state"])
        emulator.clock.advance(0.5)
    assert emulated.status(server) == "ACTIVE"
    assert set(seen) == {"spawning"}
    assert 8 <= len(seen) <= 16  # some five to seven seconds


def test_a_boot_of_minutes_is_slow_and_not_stuck(emulated: Emulated) -> None:
    """It says that it lives, and is heard before time runs on; one that says nothing is given up."""
    emulator = emulated.emulator
    emulator.faults.delay("boot", 500)
    slow = emulated.boot("slow")
    emulator.clock.advance(600)
    assert emulated.status(slow) == "ACTIVE"

    emulator.faults.hang("boot")
    stuck = emulated.boot("stuck")
    assert emulated.status(stuck) == "BUILD"
    emulator.clock.advance(hours=2)  # its host does nothing else for it, either: each undo is waited for
    assert emulated.status(stuck) == "ERROR"


def test_only_lost_hosts_go_down(emulated: Emulated) -> None:
    emulator = emulated.emulator
    assert services(emulated) == {"host-1": "up", "host-2": "up"}
    emulator.hosts["host-2"].lose()
    assert services(emulated) == {"host-1": "up", "host-2": "up"}
    emulator.clock.advance(minutes=1)
    assert services(emulated) == {"host-1": "up", "host-2": "down"}
    assert emulated.status(emulated.boot()) == "ACTIVE"
    emulator.clock.advance(days=30)
    emulated._apis.clear()  # the tokens have expired
    assert services(emulated) == {"host-1": "up", "host-2": "down"}
    emulator.hosts["host-2"].start()
    emulator.wait(lambda: services(emulated) == {"host-1": "up", "host-2": "up"})
    emulated._apis.clear()


def test_boots_go_on_while_time_is_moved(emulated: Emulated) -> None:
    """No living host is ever taken for dead, whatever is under way when the clock jumps."""
    emulator = emulated.emulator
    servers = []
    for number in range(6):
        servers.append(emulated.boot(f"s{number}", settle=False))
        emulator.clock.advance(minutes=10)
    assert emulator.settle()
    assert [emulated.status(server) for server in servers] == ["ACTIVE"] * 6


def test_a_cloud_stands_still(emulated: Emulated) -> None:
    emulator = emulated.emulator
    emulator.clock.freeze()
    server: dict[str, Any] = emulated.server(emulated.boot())
    assert server["status"] == "ACTIVE"
    assert server["created"] == server["updated"]
    emulator.clock.resume()
