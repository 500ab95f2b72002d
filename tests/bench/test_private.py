"""The benchmark's own clouds: started, measured, filled, and gone, whatever ends the run."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from cumulet.bench.cases import scale
from cumulet.bench.meter import Meter
from cumulet.bench.private import PrivateCloud
from cumulet.bench.results import load
from cumulet.bench.suite import Bench, Progress
from cumulet.bench.target import Target
from tests.bench.test_bench import TINY
from tests.support.patience import eventually
from tests.support.postgres import PostgresServer
from tests.support.rabbit import RabbitServer

pytestmark = pytest.mark.slow
COUNTS = scale.Counts(
    hosts=5, scheduled_among=20, ports=150, servers=250, users=7, schedule_rate=10, schedule_seconds=0.5
)


def begin(*words: str, temporary: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        # whatever started the tests may ignore Ctrl-C, as a shell does in the background
        ["env", "--default-signal=INT", sys.executable, "-m", "cumulet", "bench", "--fake", "--quick", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(temporary)},
    )


def living(temporary: Path) -> list[str]:
    """Processes that were started for a cloud there."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if "serve" in command and str(temporary) in command:
            found.append(command)
    return found


def test_a_private_cloud_is_measured_and_gone(tmp_path: Path) -> None:
    run = begin("--only", "start,memory,token", "--json", str(tmp_path / "found.json"), temporary=tmp_path)
    _, said = run.communicate(timeout=100)
    assert run.returncode == 0, said
    found = load(tmp_path / "found.json")
    assert {f.case for f in found.figures} >= {"start.fresh", "start.again", "start.emulator", "token.rate"}
    assert found.cloud["processes"] == 1
    assert found.cloud["database"] == "sqlite"
    memory, token = found.find("memory.fresh"), found.find("token.check")
    assert memory is not None
    assert token is not None
    assert 20 < (memory.median or 0) < 500
    assert token.cpu_ms
    assert token.statements
    assert str(tmp_path) not in found.command
    assert [one.name for one in tmp_path.iterdir()] == ["found.json"]
    assert living(tmp_path) == []


def test_processes_apart(tmp_path: Path, postgres: PostgresServer, rabbit: RabbitServer) -> None:
    words = ["--processes", "--database", postgres.new_database(), "--bus", rabbit.url + "?prefix=bench"]
    beside = ["--beside", str(postgres.pid), "--beside", str(rabbit.pid)]
    file = tmp_path / "found.json"
    run = begin("--only", "first,memory", *words, *beside, "--json", str(file), temporary=tmp_path)
    _, said = run.communicate(timeout=100)
    assert run.returncode == 0, said
    found = load(file)
    assert found.cloud == {**found.cloud, "database": "postgresql", "bus": "rabbitmq", "processes": 3}
    memory = found.find("memory.fresh")
    assert memory is not None
    assert memory.more["database and broker MiB"] > 20
    assert found.find("first.active")
    assert str(postgres.port) not in file.read_text()
    assert living(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ended_from_outside(tmp_path: Path, number: signal.Signals) -> None:
    run = begin("--only", "thousand", temporary=tmp_path)
    eventually(lambda: living(tmp_path))
    time.sleep(1)
    run.send_signal(number)
    _, said = run.communicate(timeout=40)
    assert run.returncode == 130
    assert "Traceback" not in said
    assert list(tmp_path.iterdir()) == []
    assert living(tmp_path) == []


def test_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = begin("--only", "thousand", temporary=tmp_path)
    eventually(lambda: living(tmp_path))
    run.kill()
    run.communicate(timeout=40)
    eventually(lambda: not living(tmp_path))  # they do not outlive it
    (left,) = tmp_path.iterdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    cloud = PrivateCloud()
    assert not left.exists()
    cloud.stop()


@pytest.fixture
def bench() -> Iterator[Bench]:
    cloud = PrivateCloud()
    try:
        cloud.start()
        target = Target(cloud.credentials)
        target.log_in()
        target.wait_for_room()
        target.prepare()
        made = Bench(target, TINY, Meter(lambda memory: target.process(memory=memory) or {}, cloud.pids), Progress())
        made.database = cloud.settings.state_dir / "cumulet.db"  # type: ignore[attr-defined]
        yield made
        target.close()
    finally:
        cloud.stop()


def test_a_crowd_is_what_the_cloud_itself_would_have_made(bench: Bench) -> None:
    scale.rows(bench, bench.database, COUNTS)  # type: ignore[attr-defined]
    figures = {figure.case: figure for figure in bench.figures}
    assert set(figures["scale.page"].more) == {"time ×", "CPU ×", "SQL ×"}
    assert figures["scale.page_deep"].median
    user, admin = bench.user, bench.target.admin
    servers = user.do("GET", "compute", "/servers/detail?limit=1000")["servers"]
    copies = [one for one in servers if one["name"].rpartition("-x-")[2].count("-")]
    assert len(copies) == COUNTS.servers
    assert len({one["id"] for one in servers}) == len(servers)
    original = next(one for one in servers if copies[0]["name"].startswith(one["name"] + "-"))
    same = {key: copies[0][key] for key in ("status", "flavor", "image", "metadata", "OS-EXT-STS:vm_state")}
    assert same == {key: original[key] for key in same}
    addresses = [one for server in servers for net in server["addresses"].values() for one in net]
    assert len({one["addr"] for one in addresses}) == len(addresses) == len(servers)
    assert len({one["OS-EXT-IPS-MAC:mac_addr"] for one in addresses}) == len(addresses)
    ports = user.do("GET", "network", f"/ports?network_id={bench.target.network}&limit=1000")["ports"]
    assert {one["device_id"] for one in ports} >= {one["id"] for one in servers}
    groups = {one["security_groups"][0] for one in ports if one["device_id"] == copies[0]["id"]}
    assert len(user.do("GET", "network", f"/security-groups/{groups.pop()}")["security_group"]["security_group_rules"])
    story = admin.do("GET", "operator", f"/explain/servers/{copies[0]['id']}?xml=0")
    assert [one["action"] for one in story["operations"]] == ["create"]
    hosts = {one["name"]: one for one in bench.target.status()["hosts"]}
    assert len(hosts) == COUNTS.hosts + 1
    assert all(host["up"] for host in hosts.values())
    findings = admin.do("POST", "operator", "/audit", {"audit": {}})["findings"]
    assert {one["code"] for one in findings} == {"host-not-audited"}  # nobody is there; the rows contradict nothing
    users = admin.do("GET", "identity", "/users")["users"]
    assert len(users) == COUNTS.users + 2


def test_scheduling_among_hosts_that_do_not_answer(bench: Bench) -> None:
    scale.hosts(bench, bench.database, msgspec.structs.replace(COUNTS, hosts=3))  # type: ignore[attr-defined]
    figures = {figure.case: figure for figure in bench.figures}
    assert figures["scale.schedule"].n == 5
    assert figures["scale.schedule"].unit == "/s"
    assert set(figures["scale.post"].more) >= {"time ×"}
