"""The roles as processes: alone (`all`), and apart over PostgreSQL and RabbitMQ with kills in the middle of things."""

import fcntl
import shutil
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from cumulet.cli.status import agent_problem
from tests.support import leftovers
from tests.support.cloud import Api, unique
from tests.support.patience import eventually
from tests.support.postgres import PostgresServer
from tests.support.processes import Processes
from tests.support.rabbit import RabbitServer

pytestmark = pytest.mark.slow


@pytest.fixture
def alone() -> Iterator[Processes]:
    directory = leftovers.directory("cumulet-all-")
    processes = Processes(directory)
    yield processes
    processes.stop()
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="module")
def apart(postgres: PostgresServer, rabbit: RabbitServer) -> Iterator[Processes]:
    directory = leftovers.directory("cumulet-roles-")
    processes = Processes(
        directory, database_url=postgres.new_database(), bus_url=rabbit.url + f"?prefix={unique('roles')}"
    )
    processes.settings.compute.fake_boot_seconds = 2.0
    try:
        processes.start("api", "conductor", "agent")
        processes.make_accounts()
        yield processes
    finally:
        processes.stop()
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="module")
def servers(apart: Processes) -> "Servers":
    eventually(apart.hosts_up)
    return Servers(apart)


class Servers:
    """What a user does with servers."""

    def __init__(self, processes: Processes) -> None:
        admin = processes.api("admin")
        self.user: Api = processes.api("demo")
        flavor = {"name": unique("tiny"), "vcpus": 1, "ram": 64, "disk": 1}
        self.flavor = admin.post("compute", "/flavors", {"flavor": flavor})["flavor"]["id"]
        image = {"name": unique("image"), "disk_format": "raw", "container_format": "bare", "visibility": "public"}
        self.image = admin.post("image", "/images", image)["id"]
        sent = admin.put(
            "image",
            f"/images/{self.image}/file",
            data=b"x" * 4096,
            headers={"content-type": "application/octet-stream"},
        )
        assert sent.status == 204, sent.text

    def create(self) -> str:
        body = {"name": unique("server"), "imageRef": self.image, "flavorRef": self.flavor, "networks": "none"}
        made = self.user.post("compute", "/servers", {"server": body}, version="2.90")
        assert made.status == 202, made.text
        return str(made["server"]["id"])

    def show(self, server_id: str) -> dict[str, Any] | None:
        answer = self.user.get("compute", f"/servers/{server_id}")
        return None if answer.status == 404 else answer["server"]

    def is_active(self, server_id: str) -> bool:
        server = self.show(server_id)
        assert server is not None
        assert server["status"] != "ERROR", server.get("fault")
        return bool(server["status"] == "ACTIVE")

    def is_spawning(self, server_id: str) -> bool:
        server = self.show(server_id)
        return server is not None and server["OS-EXT-STS:task_state"] == "spawning"

    def delete(self, server_id: str) -> None:
        assert self.user.delete("compute", f"/servers/{server_id}").status == 204

    def is_gone(self, server_id: str) -> bool:
        return self.show(server_id) is None


def assert_nothing_left(processes: Processes) -> None:
    world = processes.world()
    left = {what: list(world[what]) for what in ("domains", "disks", "taps", "volumes") if world.get(what)}
    assert left == {}


def test_all_in_one_process_starts_and_stops(alone: Processes) -> None:
    seconds = alone.start("all")
    print(f"role all works after {seconds:.2f} s")
    assert requests.get(alone.url + "/identity/v3", timeout=30).status_code == 200
    assert (alone.settings.run_dir / "all.ready").exists()
    assert alone.terminate("all") == 0
    assert not (alone.settings.run_dir / "all.ready").exists()
    # again over what the first life left
    alone.start("all")
    assert alone.api("admin").get("identity", "/users").status == 200
    alone.kill("all")
    alone.start("all")
    assert alone.api("admin").get("identity", "/users").status == 200


def test_a_port_in_use_is_a_clear_failure(alone: Processes) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", alone.settings.api.port))
        taken.listen()
        with pytest.raises(AssertionError, match=r"[Aa]ddress already in use"):
            alone.start("all")


def test_an_agent_that_does_not_start_is_told_and_tried_again(alone: Processes) -> None:
    """Its journal cannot be opened: the API answers all the same, and the agent works once that is mended."""
    in_the_way = alone.settings.state_dir / "agent" / f"{alone.settings.host_name}.db"
    in_the_way.mkdir(parents=True)
    alone.launch("all")
    eventually(lambda: answers(alone))
    problem = alone.settings.run_dir / "agent.problem"
    eventually(problem.exists)
    assert "unable to open" in (agent_problem(alone.settings) or "")
    alone.make_accounts()
    assert alone.hosts_up() == []
    assert not (alone.settings.run_dir / "all.ready").exists()
    in_the_way.rmdir()
    eventually(alone.hosts_up)
    eventually((alone.settings.run_dir / "all.ready").exists)
    assert not problem.exists()


def answers(processes: Processes) -> bool:
    try:
        return requests.get(processes.url + "/identity/v3", timeout=30).status_code == 200
    except requests.ConnectionError:
        return False


def test_a_dying_process_is_waited_for(alone: Processes) -> None:
    """Its lock and its port: the next life takes them when they are free."""
    run_dir = alone.settings.run_dir
    run_dir.mkdir(parents=True)
    with socket.socket() as taken, (run_dir / "all.pid").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        taken.bind(("127.0.0.1", alone.settings.api.port))
        taken.listen()
        alone.launch("all")
        time.sleep(1.0)
        lock.close()
        time.sleep(1.0)
    eventually(lambda: answers(alone))


def test_an_administrators_password_is_made_up_once(alone: Processes) -> None:
    alone.write_settings()
    alone.settings.admin_password_file.unlink()
    alone.write_settings = lambda: alone.directory / "cumulet.toml"  # type: ignore[method-assign]
    alone.start("all")
    path = alone.settings.admin_password_file
    assert len(path.read_text().strip()) > 15
    assert path.stat().st_mode & 0o077 == 0


@pytest.mark.postgres
@pytest.mark.rabbit
class TestApart:
    def test_create_and_delete(self, apart: Processes, servers: Servers) -> None:
        server_id = servers.create()
        eventually(lambda: servers.is_active(server_id))
        assert list(apart.world()["domains"]) == [server_id]
        servers.delete(server_id)
        eventually(lambda: servers.is_gone(server_id))
        assert_nothing_left(apart)

    def test_the_course_of_a_request_over_three_processes(self, apart: Processes, servers: Servers) -> None:
        body = {
            "name": unique("server"), "imageRef": servers.image, "flavorRef": servers.flavor, "networks": "none",
        }  # fmt: skip
        made = servers.user.post("compute", "/servers", {"server": body}, version="2.90")
        server_id, request_id = made["server"]["id"], made.headers["x-openstack-request-id"]
        eventually(lambda: servers.is_active(server_id))
        headers = {"X-Auth-Token": apart.api("admin").token}

        def look() -> Any:
            found = requests.get(
                f"{apart.url}/operator/v1/explain/requests/{request_id}", headers=headers, timeout=10
            ).json()
            return found if any("conclude done" in row["text"] for row in found["rows"]) else None

        story = eventually(look)
        lifelines = story["lifelines"]
        assert [line["name"] for line in lifelines][:4] == ["api", "database", "queue", "conductor"]
        assert lifelines[0]["process"].startswith("api@")
        assert lifelines[3]["process"].startswith("conductor@")
        time.sleep(1)  # the conductor writes its notes in batches
        hops = [(row["text"].split(",")[0], row["from"], row["to"]) for row in look()["rows"]]
        for hop in (
            ("wake server.create", 0, 2), ("CreateDisks", 3, 2), ("CreateDisks accepted", 2, 4),
        ):  # fmt: skip
            assert hop in hops, hops
        assert any(text.startswith("woken after") and (a, b) == (2, 3) for text, a, b in hops), hops
        assert any(text.startswith("PowerServer done after 2") and (a, b) == (4, 2) for text, a, b in hops), hops
        times = [row["at_ms"] for row in look()["rows"]]
        assert times == sorted(times)
        servers.delete(server_id)
        eventually(lambda: servers.is_gone(server_id))

    @pytest.mark.parametrize("victim", ["conductor", "agent", "api"])
    def test_a_role_killed_in_the_middle_of_a_create(self, apart: Processes, servers: Servers, victim: str) -> None:
        server_id = servers.create()
        eventually(lambda: servers.is_spawning(server_id))
        apart.kill(victim)
        apart.start(victim)
        eventually(lambda: servers.is_active(server_id))
        servers.delete(server_id)
        eventually(lambda: servers.is_gone(server_id))
        assert_nothing_left(apart)

    @pytest.mark.parametrize("victim", ["conductor", "agent"])
    def test_a_delete_while_a_role_is_dead(self, apart: Processes, servers: Servers, victim: str) -> None:
        server_id = servers.create()
        eventually(lambda: servers.is_spawning(server_id))
        apart.kill(victim)
        servers.delete(server_id)
        apart.start(victim)
        eventually(lambda: servers.is_gone(server_id))
        eventually(lambda: not apart.world()["domains"] and not apart.world()["disks"])
        assert_nothing_left(apart)

    def test_sigterm_ends_every_role_in_order(self, apart: Processes) -> None:
        for role in ("agent", "conductor", "api"):
            assert apart.terminate(role) == 0
        apart.start("api", "conductor", "agent")
