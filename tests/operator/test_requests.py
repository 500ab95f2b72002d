"""The course of a request: what is noted, what is drawn, and that clocks do not draw what cannot be."""

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cumulet.cli import explain as explain_cli
from cumulet.cli.client import Cloud as Client
from cumulet.kernel.trace import Note, Tracer
from cumulet.saga.journal import SagaRow, StepRow
from cumulet.services.operator import traces
from cumulet.services.operator.sequence import sequence
from tests.compute.helpers import Nova
from tests.operator.test_operator import ask

MS = 1000
START = 1_800_000_000_000_000


def course(cloud: Any, request_id: str) -> dict[str, Any]:
    answer = ask(cloud, "admin", f"/explain/requests/{request_id}")
    assert answer.status_code == 200, answer.text
    story: dict[str, Any] = answer.json()
    return story


def finished(cloud: Any, request_id: str) -> dict[str, Any]:
    def look() -> dict[str, Any] | None:
        story = course(cloud, request_id)
        done = all(saga["status"] in ("finished", "failed") for saga in story["sagas"])
        return story if story["request"] is not None and done else None

    found: dict[str, Any] = cloud.wait(look)
    return found


def texts(story: dict[str, Any]) -> list[str]:
    return [row["text"] for row in story["rows"]]


def place(story: dict[str, Any], start: str) -> int:
    found = [number for number, text in enumerate(texts(story)) if text.startswith(start)]
    assert found, (start, texts(story))
    return found[0]


def test_the_course_of_a_create(cloud: Any) -> None:
    nova = Nova(cloud)
    answer = nova.post("/servers", {"server": nova.server_body()})
    server = answer["server"]["id"]
    nova.wait(server, "ACTIVE")
    request_id = answer.headers["x-openstack-request-id"]
    story = finished(cloud, request_id)
    asked = story["request"]
    assert (asked["method"], asked["status"], asked["user"]) == ("POST", 202, "demo")
    assert asked["path"] == "/compute/v2.1/servers"
    assert [saga["kind"] for saga in story["sagas"]] == ["server.create", "server.build"]
    names = [line["name"] for line in story["lifelines"]]
    host = cloud.api("admin").get("compute", f"/servers/{server}")["server"]["OS-EXT-SRV-ATTR:host"]
    assert names == ["api", "database", "queue", "conductor", f"agent@{host}"]
    order = [
        "POST /compute/v2.1/servers", "transaction of ", "wake server.create", "server.create taken after",
        "server.create: schedule done", "CreateDisks", "CreateDisks accepted", "CreateDisks done",
        "outcome of CreateDisks", "server.build: disks done", "PowerServer", "PowerServer accepted",
        "server.build: first_report done", "server.create: conclude done",
    ]  # fmt: skip
    assert [place(story, one) for one in order] == sorted(place(story, one) for one in order)
    times = [row["at_ms"] for row in story["rows"]]
    assert times == sorted(times)
    disks = texts(story)[place(story, "server.build: disks done")]
    assert re.search(r"; transaction \d+\.\d ms$", disks), disks
    way = next(row for row in story["rows"] if row["text"].startswith("CreateDisks accepted"))
    assert (names[way["from"]], names[way["to"]]) == ("queue", f"agent@{host}")
    assert any(one["lifeline"] == names.index(f"agent@{host}") for one in story["active"])
    listed = ask(cloud, "admin", "/requests?limit=1000").json()["requests"]
    mine = next(one for one in listed if one["request_id"] == request_id)
    assert (mine["method"], mine["status"], mine["path"]) == ("POST", 202, "/compute/v2.1/servers")
    nova.remove(server)


def test_what_fails_is_drawn_with_its_undo(new_cloud: Any) -> None:
    cloud = new_cloud()
    nova = Nova(cloud)
    cloud.host.fake.faults.fail("DefineServer", times=None, code="broken", message="libvirt says no")
    answer = nova.post("/servers", {"server": nova.server_body()})
    nova.wait(answer["server"]["id"], "ERROR")
    story = finished(cloud, answer.headers["x-openstack-request-id"])
    define = place(story, "server.build: define failed")
    assert "libvirt says no" in texts(story)[define]
    undone = place(story, "server.build: disks undone")
    assert define < place(story, "undo DeleteDisks accepted") < undone < place(story, "server.build failed")
    kinds = {row["text"].split(",")[0]: row["kind"] for row in story["rows"]}
    assert kinds["server.build: disks undone"] == "undo"


def test_only_what_changes_or_fails_is_noted(cloud: Any) -> None:
    api = cloud.api("demo")
    looked = api.get("compute", "/servers").headers["x-openstack-request-id"]
    assert ask(cloud, "admin", f"/explain/requests/{looked}").status_code == 404
    refused = api.post("compute", "/servers", {"server": {}})
    assert refused.status == 400
    story = course(cloud, refused.headers["x-openstack-request-id"])
    assert (story["request"]["status"], story["sagas"]) == (400, [])
    assert [row["kind"] for row in story["rows"]] == ["request", "failed"]
    before = ask(cloud, "admin", "/requests?limit=1").json()["requests"]
    cloud.api("demo")._log_in()  # an anonymous request: anyone could fill the record
    assert ask(cloud, "admin", "/requests?limit=1").json()["requests"] == before
    for user in ("demo", "reader", "manager"):
        assert ask(cloud, user, "/requests").status_code == 403
        assert ask(cloud, user, f"/explain/requests/{looked}").status_code == 403
    assert ask(cloud, "admin", "/requests?limit=0").status_code == 400


def test_the_journal_alone_is_drawn_too(cloud: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cloud.control.operator.tracer, "enabled", False)
    nova = Nova(cloud)
    answer = nova.post("/servers", {"server": nova.server_body()})
    nova.wait(answer["server"]["id"], "ACTIVE")
    story = course(cloud, answer.headers["x-openstack-request-id"])
    assert story["request"] is None
    assert place(story, "disks (as the journal has it)") < place(story, "server.build: disks done")
    nova.remove(answer["server"]["id"])


def test_the_command_draws(cloud: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(explain_cli, "operator_cloud", lambda name: Client({"auth": cloud.auth("admin")}))
    nova = Nova(cloud)
    answer = nova.post("/servers", {"server": nova.server_body()})
    nova.wait(answer["server"]["id"], "ACTIVE")
    request_id = answer.headers["x-openstack-request-id"]
    finished(cloud, request_id)
    run = CliRunner().invoke(explain_cli.explain, ["request", request_id, "--svg", str(tmp_path / "r.svg")])
    assert run.exit_code == 0, run.output
    lines = run.output.splitlines()
    head = next(line for line in lines if line.lstrip().startswith("ms "))
    assert [word for word in head.split() if not word.startswith("agent@")] == [
        "ms", "api", "database", "queue", "conductor",
    ]  # fmt: skip
    assert any("───▶┃" in line and "POST /compute/v2.1/servers by demo" in line for line in lines)
    drawn = ElementTree.fromstring((tmp_path / "r.svg").read_text())
    words = "".join(drawn.itertext())
    assert "CreateDisks accepted" in words
    assert request_id in words
    listed = CliRunner().invoke(explain_cli.explain, ["request", "--limit", "1000"])
    assert request_id in listed.output
    nova.remove(answer["server"]["id"])


# -- clocks ---------------------------------------------------------------------------------------------------------


def one_call(skew: int, *, agent_after: int = 1 * MS, conductor_skew: int = 0) -> dict[str, Any]:
    """A request, a saga of one call of 50 ms; the agent's clock is ``skew`` off, the conductor's ``conductor_skew``."""
    away = START + 10 * MS + conductor_skew
    saga = SagaRow(
        id="s", kind="server.stop", version=1, object_kind="server", object_id="o", parent_id=None,
        parent_position=None, owns=True, request_id="r", project_id=None, user_id=None, params={}, status="finished",
        position=0, phase="ended", attempt=1, op_host=None, op_id=None, step_started_at=START, deadline_at=None,
        patience=0, wake_at=None, lease_owner=None, epoch=3, cancel_requested=False, cancelled=False, error=None,
        error_code=None, error_details=None, created_at=START + MS, updated_at=away, ended_at=away + 60 * MS,
    )  # fmt: skip
    step = StepRow("s", 0, "stop", "done", "h1", None, None, START + MS, away + 60 * MS, None)
    accepted = START + 10 * MS + agent_after + skew
    told = [
        ("api@a[1]", START, "request",
         {"method": "POST", "path": "/x", "status": 202, "user": "u", "user_id": "u", "ended_at": START + 8 * MS,
          "transactions": [(START + MS, START + 5 * MS, 7)]}),
        ("conductor@b[2]", START + 9 * MS + conductor_skew, "message",
         {"name": "WakeSagas", "sender": "api@a[1]", "sent_at": START + 6 * MS, "ended_at": 0, "sagas": ["s"]}),
        ("conductor@b[2]", START + 9500 + conductor_skew, "taken",
         {"saga": "s", "queued_at": START + 9 * MS + conductor_skew, "position": 0}),
        ("conductor@b[2]", away, "call",
         {"op": "s:stop:do:1", "host": "h1", "saga": "s", "what": "PowerServer", "answered_at": away + 3 * MS,
          "answer": "Accepted"}),
        ("conductor@b[2]", away + 58 * MS, "message",
         {"name": "Outcome", "sender": "agent@h1", "sent_at": 0, "ended_at": 0, "op": "s:stop:do:1", "host": "h1",
          "state": "done", "error": None, "accepted_at": accepted, "started_at": accepted,
          "worked_until": accepted + 50 * MS}),
    ]  # fmt: skip
    return sequence("r", told, [(saga, [step])])  # type: ignore[arg-type]


@pytest.mark.parametrize("skew", [0, 5_000 * MS, -5_000 * MS, 20 * MS, -20 * MS])
@pytest.mark.parametrize("conductor_skew", [0, 700 * MS, -700 * MS])
def test_no_arrow_points_back_in_time(skew: int, conductor_skew: int) -> None:
    story = one_call(skew, conductor_skew=conductor_skew)
    order = [
        "POST /x", "transaction", "wake server.stop", "woken", "takes server.stop", "PowerServer",
        "PowerServer accepted", "PowerServer done after 50.0 ms", "outcome of PowerServer", "server.stop: stop done",
    ]  # fmt: skip
    places = [place(story, one) for one in order]
    assert places == sorted(places), texts(story)
    if conductor_skew < 0:
        assert story["clocks"]["conductor@b[2]"] > 0
    assert ("agent@h1" in story["clocks"]) == (bool(skew) or conductor_skew < 0 or conductor_skew > 0)


def test_a_clock_within_the_bounds_is_believed() -> None:
    assert one_call(0)["clocks"] == {}
    assert one_call(1 * MS)["clocks"] == {}  # the answer took 3 ms: an offset of one could as well be none


# -- the record -----------------------------------------------------------------------------------------------------


def test_the_record_is_bounded(cloud: Any) -> None:
    db = cloud.control.db
    request_id = "req-bounded"
    for number in range(12):
        traces.write(db, "p", [Note(request_id, number, "taken", {"saga": "s"})])
    kept = db.read(lambda tx: traces.notes_of(tx, request_id))
    assert [note[1] for note in kept] == list(range(12))
    db.write(lambda tx: traces.prune(tx, keep_rows=3, keep_hours=1))
    assert len(db.read(lambda tx: traces.notes_of(tx, request_id))) <= 3
    db.write(lambda tx: traces.prune(tx, keep_rows=1000, keep_hours=-1))
    assert db.read(lambda tx: traces.notes_of(tx, request_id)) == []


def test_every_note_is_kept_in_order_and_none_raises() -> None:
    kept: list[Note] = []

    def broken(process: str, notes: list[Note]) -> None:
        raise OSError("no disk")

    tracer = Tracer("p", lambda process, notes: kept.extend(notes))
    for number in range(10_000):
        tracer.note("req-1", "taken", number, saga="s")
    tracer.close()
    assert [note.at for note in kept] == list(range(10_000))
    assert tracer.dropped == 0
    failing = Tracer("p", broken)
    failing.note("req-1", "taken", 1)
    failing.close()
    assert failing.dropped == 1
    assert Tracer("p").note("req-1", "taken", 1) is None
