"""The operator API over HTTP: the state of the cloud, and the story of a server."""

import os
import time
from typing import Any

import requests

from tests.compute.helpers import Nova

NOBODY = "00000000-0000-0000-0000-000000000000"


def ask(cloud: Any, user: str, path: str) -> requests.Response:
    headers = {"X-Auth-Token": cloud.api(user).token}
    return requests.get(f"{cloud.url}/operator/v1{path}", headers=headers, timeout=10)


def test_state_of_the_cloud(cloud: Any) -> None:
    answer = ask(cloud, "admin", "/status")
    assert answer.status_code == 200, answer.text
    status = answer.json()
    assert {host["name"] for host in status["hosts"]} == set(cloud.hosts)
    assert all(host["up"] for host in status["hosts"])
    assert status["reconcilers"]
    assert requests.get(f"{cloud.url}/operator/v1/status", timeout=10).status_code == 401
    for user in ("demo", "reader", "manager"):
        assert ask(cloud, user, "/status").status_code == 403


def test_what_the_process_spends(cloud: Any) -> None:
    first = ask(cloud, "admin", "/process").json()
    assert first["pid"] == os.getpid()
    assert 10 << 20 < first["pss_bytes"] < 4 << 30
    assert first["threads"] > 3
    ask(cloud, "admin", "/status")
    second = ask(cloud, "admin", "/process").json()
    assert second["cpu_seconds"] > first["cpu_seconds"]
    assert second["statements"] >= first["statements"] + 4  # the token of each, and what the status shows
    assert second["started_at"] == first["started_at"]
    assert ask(cloud, "admin", "/process?memory=0").json()["pss_bytes"] is None
    assert ask(cloud, "manager", "/process").status_code == 403


def test_the_story_has_what_was_attached(cloud: Any) -> None:
    nova = Nova(cloud)
    server = nova.boot()
    demo = cloud.api("demo")
    volume = demo.post("volume", "/volumes", {"volume": {"size": 1}})["volume"]["id"]

    def becomes(status: str) -> None:
        end = time.monotonic() + 20
        while demo.get("volume", f"/volumes/{volume}")["volume"]["status"] != status:
            assert time.monotonic() < end, f"the volume is not {status}"
            time.sleep(0.02)

    becomes("available")
    path = f"/servers/{server}/os-volume_attachments"
    assert demo.post("compute", path, {"volumeAttachment": {"volumeId": volume}}).status == 200
    becomes("in-use")
    assert demo.delete("compute", f"{path}/{volume}").status == 202
    becomes("available")
    story = ask(cloud, "admin", f"/explain/servers/{server}?xml=0").json()
    assert [one["action"] for one in story["operations"]] == ["detach_volume", "attach_volume", "create"]
    attach = story["operations"][1]
    assert attach["status"] == "finished"
    assert story["server"]["host"] in {step["host"] for step in attach["steps"]}
    nova.remove(server)
    assert demo.delete("volume", f"/volumes/{volume}").status == 202


def test_story_of_a_server(cloud: Any) -> None:
    nova = Nova(cloud)
    server = nova.boot()
    assert nova.act(server, "os-stop").status == 202
    nova.wait(server, "SHUTOFF")
    path = f"/explain/servers/{server}"
    told = ask(cloud, "admin", path)
    assert told.status_code == 200, told.text
    story = told.json()
    host = cloud.api("admin").get("compute", f"/servers/{server}")["server"]["OS-EXT-SRV-ATTR:host"]
    assert (story["server"]["id"], story["server"]["host"]) == (server, host)
    assert {one["status"] for one in story["operations"]} == {"finished"}
    assert [one["action"] for one in story["operations"]] == ["stop", "create"]  # the newest first
    create = story["operations"][-1]
    names = [step["name"] for step in create["steps"]]
    assert names.index("schedule") < names.index("define") < names.index("start")
    assert host in {step["host"] for step in create["steps"]}
    assert "xml" in story

    own = ask(cloud, "reader", path)  # a project's own people hear it without the hosts
    assert own.status_code == 200
    assert [one["action"] for one in own.json()["operations"]] == ["stop", "create"]
    assert host not in own.text
    assert ask(cloud, "other", path).status_code == 403
    assert ask(cloud, "admin", f"/explain/servers/{NOBODY}").status_code == 404
    nova.remove(server)
    again = ask(cloud, "admin", path + "?xml=0")  # the story outlives its server
    assert again.status_code == 200
    assert again.json()["operations"][0]["action"] == "delete"
