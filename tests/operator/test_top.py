"""The state of the moment: what runs and waits where, over HTTP and as the command draws it."""

from typing import Any

import pytest
import requests
from click.testing import CliRunner

from cumulet.cli import top as top_cli
from cumulet.cli.client import Cloud as Client
from cumulet.services.operator.vitals import Pulse, Vitals, others
from tests.compute.helpers import Nova
from tests.operator.test_operator import ask


def moment(cloud: Any) -> dict[str, Any]:
    answer = ask(cloud, "admin", "/top")
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_what_runs_and_what_waits(cloud: Any) -> None:
    first = moment(cloud)
    me = first["processes"][0]
    assert me["process"] == cloud.control.operator.tracer.process
    assert me["rss_mb"] > 10
    assert me["threads"] > 1
    assert {host["name"] for host in first["hosts"]} == set(cloud.hosts)
    assert all(host["up"] and host["beat_age_seconds"] < 60 for host in first["hosts"])
    assert {"requests for a thread", "sagas for a thread", "hosts' operations"} <= set(first["queues"])
    names = {one["name"] for one in first["reconcilers"]}
    assert {"operator.traces", "network.documents"} <= names
    again = moment(cloud)
    assert again["processes"][0]["requests"] > me["requests"]
    for user in ("demo", "reader", "manager"):
        assert ask(cloud, user, "/top").status_code == 403


def test_a_saga_at_a_host_is_seen(new_cloud: Any) -> None:
    cloud = new_cloud()
    nova = Nova(cloud)
    hanging = cloud.host.fake.faults.hang("CreateDisks")
    server = nova.boot(wait=None)
    cloud.host.fake.faults.hanging.acquire(timeout=10)
    cloud.host.agent.heartbeat_now()

    def busy() -> Any:
        found = moment(cloud)
        return found if found["hosts"][0]["operations"] == 1 else None

    found = cloud.wait(busy)
    kinds = {one["kind"]: one for one in found["sagas"]}
    assert kinds["server.build"]["called"] == 1
    assert 0 < kinds["server.build"]["deadline_in_seconds"] < 400
    assert kinds["server.create"]["parked"] == 1
    assert kinds["server.create"]["overdue"] == 0
    assert found["queues"]["hosts' operations"] == 1
    text = "\n".join(top_cli.frame(found))
    assert "server.build" in text
    assert "1 hosts' operations" in text
    hanging.set()
    nova.wait(server, "ACTIVE")
    cloud.wait(lambda: moment(cloud)["sagas"] == [])


def test_failures_of_ours_are_remembered(new_cloud: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    cloud = new_cloud()

    def broken() -> Any:
        raise RuntimeError("no")

    monkeypatch.setattr(cloud.control.operator, "status", broken)
    failed = ask(cloud, "admin", "/status")
    assert failed.status_code == 500
    error = moment(cloud)["errors"][0]
    assert (error["status"], error["method"], error["path"]) == (500, "GET", "/operator/v1/status")
    assert error["request_id"] == failed.headers["x-openstack-request-id"]
    story = ask(cloud, "admin", f"/explain/requests/{error['request_id']}").json()
    assert story["request"]["status"] == 500
    assert "500 after" in story["rows"][-1]["text"]


def test_the_command_draws_one_frame(cloud: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(top_cli, "operator_cloud", lambda name: Client({"auth": cloud.auth("admin")}))
    monkeypatch.setattr(top_cli.time, "sleep", lambda seconds: None)
    run = CliRunner().invoke(top_cli.top, ["--once"])
    assert run.exit_code == 0, run.output
    assert "\x1b" not in run.output
    for word in ("requests/s", "reconciler", "fake-1", "operator.traces"):
        assert word in run.output
    assert '"processes": [' in CliRunner().invoke(top_cli.top, ["--json"]).output


def test_other_processes_tell_by_rows(cloud: Any) -> None:
    control = cloud.control
    vitals = Vitals(tracer=control.operator.tracer, bus=control.bus, sagas=control.sagas, clock=cloud.db.clock.now)
    vitals.look()
    other = Vitals(
        tracer=type(control.operator.tracer)("conductor@elsewhere[7]"),
        bus=control.bus,
        sagas=control.sagas,
        clock=cloud.db.clock.now,
    )
    pulse = Pulse(cloud.db, other)
    pulse.start()
    pulse.beat()
    told = [one for one in moment(cloud)["processes"] if one["process"] == "conductor@elsewhere[7]"]
    assert len(told) == 1
    assert 0 <= told[0]["age_seconds"] < 60
    assert cloud.db.read(lambda tx: others(tx, "conductor@elsewhere[7]")) == []
    pulse.stop()  # in order: it takes its leave
    assert [one for one in moment(cloud)["processes"] if one["process"] == "conductor@elsewhere[7]"] == []


def test_nobody_is_told_without_a_token(cloud: Any) -> None:
    assert requests.get(f"{cloud.url}/operator/v1/top", timeout=10).status_code == 401
