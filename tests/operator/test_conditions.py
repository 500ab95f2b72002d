"""What degrades the cloud is told, with its cure, and goes by itself: each cause made, seen and taken away."""

import time
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner
from sqlalchemy import select, text, update

from cumulet.cli import status as status_cli
from cumulet.cli.client import Cloud as Client
from cumulet.conductor.tables import DESIRED_DOCS, HOSTS
from cumulet.kernel.clock import SECOND
from cumulet.reconcile.tables import RECONCILERS
from cumulet.saga.tables import SAGA_STEPS, SAGAS
from cumulet.services.hosts.tables import HOST_AUTHORITY, HOST_CERTIFICATES
from cumulet.services.operator.tables import CONDITIONS, PROCESSES
from tests.compute.helpers import Nova
from tests.operator.test_operator import ask


@pytest.fixture(scope="module")
def own(cloud_backends: Callable[[], dict[str, Any]]) -> Any:
    """One cloud for what this module breaks; its reconcilers run when the tests say so."""
    import shutil

    from tests.conftest import _directory
    from tests.support.cloud import Cloud

    directory = _directory()
    made = Cloud(directory, hosts=2, **cloud_backends()).start()
    yield made
    made.stop()
    shutil.rmtree(directory, ignore_errors=True)


def conditions(cloud: Any, *, resolved: bool = False) -> dict[str, dict[str, Any]]:
    cloud.control.operator.reconcile_conditions()
    answer = ask(cloud, "admin", "/conditions" + ("?all=1" if resolved else ""))
    assert answer.status_code == 200, answer.text
    return {one["id"]: one for one in answer.json()["conditions"]}


def of(cloud: Any, code: str, *, resolved: bool = False) -> list[dict[str, Any]]:
    return [one for one in conditions(cloud, resolved=resolved).values() if one["code"] == code]


def change(cloud: Any, statement: Any) -> None:
    assert cloud.db.write(lambda tx: tx.run(statement)) >= 1


def test_a_sound_cloud_has_none_and_writes_none(own: Any) -> None:
    assert conditions(own) == {}
    with own.db.counting() as count:
        assert own.control.operator.reconcile_conditions() is None
    assert count[0] <= 10  # reads alone
    rows = own.db.read(lambda tx: tx.rows(select(CONDITIONS.c.id)))
    assert list(rows) == []


def lose(cloud: Any, name: str) -> None:
    """As if it had not been heard of for an hour."""
    cloud.hosts[name].lose()
    long_ago = cloud.db.clock.now() - 3600 * SECOND
    change(cloud, update(HOSTS).where(HOSTS.c.name == name).values(seen_at=long_ago))


def test_a_host_that_is_down(own: Any) -> None:
    before = {one["id"]: one["count"] for one in of(own, "host-down", resolved=True)}
    lose(own, "fake-2")
    (found,) = of(own, "host-down")
    assert (found["severity"], found["object_kind"], found["object_id"], found["host"]) == (
        "error", "host", "fake-2", "fake-2",
    )  # fmt: skip
    assert found["count"] == before.get(found["id"], 0) + 1
    assert found["resolved_at"] is None
    assert "cumulet up" in found["cure"]
    status = ask(own, "admin", "/status").json()
    assert [one["code"] for one in status["conditions"]] == ["host-down"]
    own.hosts["fake-2"].start()
    own.wait(lambda: not of(own, "host-down"), 20)
    (over,) = of(own, "host-down", resolved=True)
    assert over["resolved_at"] is not None
    lose(own, "fake-2")  # the same again: one row, counted
    (again,) = of(own, "host-down")
    assert (again["id"], again["count"]) == (found["id"], found["count"] + 1)
    own.hosts["fake-2"].start()
    own.wait(lambda: not of(own, "host-down"), 20)


def test_an_operators_word_is_information(own: Any) -> None:
    own.db.write(lambda tx: own.control.hosts.set_forced_down(tx, "fake-2"))
    (found,) = of(own, "host-forced-down")
    assert found["severity"] == "info"
    assert of(own, "host-down") == []
    own.db.write(lambda tx: own.control.hosts.set_forced_down(tx, "fake-2", False))
    assert of(own, "host-forced-down") == []


def beat(cloud: Any, host: str, **facts: Any) -> Callable[[], None]:
    """Let the host's heartbeats say something else; the returned function ends it."""
    agent = cloud.hosts[host].agent
    real = agent.heartbeat

    def changed() -> Any:
        said = real()
        resources = {name: facts[name] for name in facts if name in said.resources.__struct_fields__}
        others = {name: facts[name] for name in facts if name not in resources}
        return msgspec.structs.replace(said, resources=msgspec.structs.replace(said.resources, **resources), **others)

    agent.heartbeat = changed
    agent.heartbeat_now()

    def end() -> None:
        del agent.heartbeat
        agent.heartbeat_now()

    return end


@pytest.mark.parametrize(
    ("facts", "code", "severity", "words"),
    [
        ({"local_gb_used": 1850, "local_gb": 2000}, "disk-nearly-full", "warning", "servers on fake-1 is 92 % full"),
        ({"local_gb_used": 1990, "local_gb": 2000}, "disk-nearly-full", "error", "servers on fake-1"),
        ({"volume_total_gb": 100.0, "volume_free_gb": 4.0}, "disk-nearly-full", "warning", "volumes on fake-1 is 96 %"),
        ({"warnings": [{"code": "no-kvm", "message": "no KVM here", "cure": "load kvm"}]}, "no-kvm", "info", "no KVM"),
        ({"warnings": [{"code": "odd", "message": "it is odd", "cure": "x"}]}, "odd", "warning", "it is odd"),
    ],
)  # fmt: skip
def test_what_hosts_say_of_themselves(own: Any, facts: Any, code: str, severity: str, words: str) -> None:
    end = beat(own, "fake-1", **facts)
    (found,) = own.wait(lambda: of(own, code), 10)
    assert (found["severity"], found["host"]) == (severity, "fake-1")
    assert words in found["message"]
    end()
    own.wait(lambda: not of(own, code), 10)


def test_a_clock_that_is_wrong(own: Any) -> None:
    end = beat(own, "fake-1", sent_at=int(time.time() * SECOND) + 3600 * SECOND)
    (found,) = own.wait(lambda: of(own, "clock-skew"), 10)
    assert "s ahead of the conductor's" in found["message"]
    end()
    own.wait(lambda: not of(own, "clock-skew"), 10)


def test_a_certificate_that_ends(own: Any) -> None:
    day = 86_400 * SECOND
    now = own.db.clock.now()
    row = {
        "serial": "1",
        "host": "fake-1",
        "fingerprint": "f",
        "key_hash": "k",
        "issued_at": 1,
        "expires_at": now + day,
    }
    own.db.write(lambda tx: tx.insert(HOST_CERTIFICATES, row))
    (found,) = of(own, "certificate-near-expiry")
    assert (found["severity"], found["host"]) == ("warning", "fake-1")
    this = HOST_CERTIFICATES.c.serial == "1"
    change(own, update(HOST_CERTIFICATES).where(this).values(expires_at=now - day))
    assert [one["severity"] for one in of(own, "certificate-expired")] == ["error"]
    short = update(HOST_CERTIFICATES).where(this).values(issued_at=now - 2 * day, expires_at=now + day)
    change(own, short)
    assert of(own, "certificate-near-expiry") == [], "of three days one is left: it has just been renewed"
    newer = {**row, "serial": "2", "expires_at": now + 300 * day}
    own.db.write(lambda tx: tx.insert(HOST_CERTIFICATES, newer))
    assert of(own, "certificate-expired") == of(own, "certificate-near-expiry") == []


def test_the_authority_that_ends(own: Any) -> None:
    own.control.operator.machines.joining.authority()
    assert of(own, "authority-near-expiry") == []
    change(own, update(HOST_AUTHORITY).values(created_at=own.db.clock.now() - 19 * 365 * 86_400 * SECOND))
    (found,) = of(own, "authority-near-expiry")
    assert found["severity"] == "warning"
    change(own, update(HOST_AUTHORITY).values(created_at=own.db.clock.now()))
    assert of(own, "authority-near-expiry") == []


def test_a_saga_past_its_deadline(own: Any) -> None:
    nova = Nova(own)
    hanging = own.host.fake.faults.hang("CreateDisks")
    other = own.hosts["fake-2"].fake.faults.hang("CreateDisks")
    server = nova.boot(wait=None)

    def late() -> list[dict[str, Any]]:
        past = update(SAGAS).where(SAGAS.c.phase == "called").values(deadline_at=SAGAS.c.created_at - 60 * SECOND)
        own.db.write(lambda tx: tx.run(past))
        return of(own, "saga-overdue")

    (found,) = own.wait(late)
    assert f"server.build of server {server} is " in found["message"]
    assert "cumulet explain request req-" in found["cure"]
    own.host.fake.faults.clear()
    own.hosts["fake-2"].fake.faults.clear()
    assert hanging.is_set()
    assert other.is_set()
    own.wait(lambda: not of(own, "saga-overdue"))
    nova.remove(server)


def test_an_undo_that_was_skipped_until_the_host_is_compared(own: Any) -> None:
    nova = Nova(own)
    server = nova.boot()
    step = own.db.read(
        lambda tx: tx.first(
            select(SAGA_STEPS.c.saga_id, SAGA_STEPS.c.name, SAGA_STEPS.c.host).where(SAGA_STEPS.c.name == "disks")
        )
    )
    this = (SAGA_STEPS.c.saga_id == step[0]) & (SAGA_STEPS.c.name == "disks")
    now = own.db.clock.now()
    change(own, update(SAGA_STEPS).where(this).values(state="undo_skipped", undone_at=now, error="Host was down."))
    (found,) = of(own, "undo-incomplete")
    assert (found["host"], found["object_id"]) == (step[2], f"{step[0]}:disks")
    own.hosts[step[2]].agent._inventory_at = 0.0
    own.hosts[step[2]].agent.heartbeat_now()
    own.wait(lambda: not of(own, "undo-incomplete"), 10)
    change(own, update(SAGA_STEPS).where(this).values(state="done", undone_at=None, error=None))
    nova.remove(server)


def test_too_much_waits(own: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (check,) = [one for one in own.control.operator.checks if one.name == "backlog-full"]
    monkeypatch.setattr(check.find.__self__, "max_waiting", 0)  # type: ignore[attr-defined]
    (found,) = of(own, "backlog-full")
    assert found["severity"] == "error"
    monkeypatch.undo()
    assert of(own, "backlog-full") == []


def test_a_reconciler_that_fails(own: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    reconcilers = own.control.reconcilers
    one = reconcilers._known["image.files"]

    def broken() -> str:
        raise RuntimeError("no store")

    real = one.run
    one.run, one.at_once = broken, True
    reconcilers.run_now("image.files")
    (found,) = of(own, "reconciler-failing")
    assert "image.files fails: RuntimeError: no store" in found["message"]
    one.run, one.at_once = real, True
    reconcilers.run_now("image.files")
    assert of(own, "reconciler-failing") == []
    long_ago = own.db.clock.now() - 3600 * SECOND
    late = update(RECONCILERS).where(RECONCILERS.c.name == "identity.keys")
    change(own, late.values(next_at=long_ago, lease_until=0))
    assert [c["object_id"] for c in of(own, "reconciler-late")] == ["identity.keys"]
    change(own, late.values(next_at=own.db.clock.now() + 3600 * SECOND))
    assert of(own, "reconciler-late") == []


def test_a_document_that_a_host_cannot_apply(own: Any) -> None:
    api = own.api("demo")
    faults = [host.fake.faults for host in own.hosts.values()]
    for one in faults:
        one.fail("network", times=None, code="no-namespace", message="the kernel says no")
    network = api.post("network", "/networks", {"network": {"name": "n"}})["network"]["id"]
    subnet = {"network_id": network, "cidr": "10.9.0.0/24", "ip_version": 4}
    assert api.post("network", "/subnets", {"subnet": subnet}).status == 201
    (found,) = own.wait(lambda: of(own, "document-failing"), 20)
    assert f"cannot apply network {network}: the kernel says no" in found["message"]
    for one in faults:
        one.clear()
    own.wait(lambda: not of(own, "document-failing"), 20)
    row = (DESIRED_DOCS.c.kind == "network") & (DESIRED_DOCS.c.object_id == network)
    before = own.db.clock.now() - 3600 * SECOND
    change(own, update(DESIRED_DOCS).where(row).values(applied_generation=0, updated_at=before))
    assert [one["object_id"] for one in of(own, "document-late")] == [network]
    change(own, update(DESIRED_DOCS).where(row).values(applied_generation=DESIRED_DOCS.c.generation))
    assert of(own, "document-late") == []
    assert api.delete("network", f"/networks/{network}").status == 204


def test_a_process_that_fell_silent(own: Any) -> None:
    row = {"name": "conductor@gone[1]", "seen_at": own.db.clock.now() - 60 * SECOND, "vitals": {}}
    own.db.write(lambda tx: tx.insert(PROCESSES, row))
    (found,) = of(own, "process-silent")
    assert found["object_id"] == "conductor@gone[1]"
    own.db.write(lambda tx: tx.run(text("DELETE FROM processes WHERE name = 'conductor@gone[1]'")))
    assert of(own, "process-silent") == []


def test_only_administrators_hear_of_them(own: Any) -> None:
    for user in ("demo", "reader", "manager"):
        assert ask(own, user, "/conditions").status_code == 403


def test_the_command_lists_them(own: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status_cli, "operator_cloud", lambda name: Client({"auth": own.auth("admin")}))
    lose(own, "fake-2")
    conditions(own)
    own.hosts["fake-2"].start()
    own.wait(lambda: not conditions(own), 20)
    run = CliRunner().invoke(status_cli.warnings, [])
    assert run.output == "no warnings\n"
    old = CliRunner().invoke(status_cli.warnings, ["--all"]).output
    assert "Host fake-2 was last heard of" in old
    assert ", over since 20" in old
    end = beat(own, "fake-1", warnings=[{"code": "no-kvm", "message": "no KVM here", "cure": "load kvm"}])
    own.wait(lambda: of(own, "no-kvm"), 10)
    shown = CliRunner().invoke(status_cli.warnings, []).output
    assert shown.startswith("info     fake-1: no KVM here\n")
    assert "cure: load kvm" in shown
    end()
    own.wait(lambda: not of(own, "no-kvm"), 10)


def test_writes_only_what_changed(own: Any) -> None:
    change(own, update(HOSTS).where(HOSTS.c.name == "fake-1").values(forced_down=True))
    conditions(own)
    rows = own.db.read(lambda tx: tx.rows(select(CONDITIONS.c.last_seen).where(CONDITIONS.c.resolved_at.is_(None))))
    assert len(rows) == 1
    assert own.control.operator.reconcile_conditions() is None
    again = own.db.read(lambda tx: tx.rows(select(CONDITIONS.c.last_seen).where(CONDITIONS.c.resolved_at.is_(None))))
    assert list(again) == list(rows)  # within a minute nothing is written
    change(own, update(HOSTS).where(HOSTS.c.name == "fake-1").values(forced_down=False))
    conditions(own)
