"""What is done to one server."""

from typing import Any

import pytest

from tests.compute.helpers import Nova
from tests.support.cloud import unique

NOBODY = "00000000-0000-0000-0000-000000000000"


@pytest.fixture(scope="module")
def server(nova: Nova) -> Any:
    server_id = nova.boot()
    yield server_id
    nova.remove(server_id)


def test_power(nova: Nova, server: str) -> None:
    for action, argument, status in (
        ("os-stop", None, "SHUTOFF"),
        ("os-start", None, "ACTIVE"),
        ("pause", None, "PAUSED"),
        ("unpause", None, "ACTIVE"),
        ("suspend", None, "SUSPENDED"),
        ("resume", None, "ACTIVE"),
        ("reboot", {"type": "SOFT"}, "ACTIVE"),
        ("reboot", {"type": "HARD"}, "ACTIVE"),
    ):
        answer = nova.act(server, action, argument)
        assert answer.status == 202, (action, answer.text)
        assert answer.text == ""
        nova.wait(server, status)


def test_wrong_state(nova: Nova, server: str) -> None:
    for action in ("os-start", "unpause", "resume"):
        answer = nova.act(server, action)
        assert answer.status == 409, (action, answer.text)
        assert answer["conflictingRequest"]["message"].endswith("while it is in vm_state active")
    assert nova.act(server, "fly").status == 400
    assert nova.act(server, "reboot", {"type": "GENTLE"}).status == 400
    assert nova.post(f"/servers/{server}/action", {"os-stop": None, "os-start": None}).status == 400


def test_lock(nova: Nova, server: str) -> None:
    assert nova.act(server, "lock", {"locked_reason": "mine"}).status == 202
    shown = nova.show(server)
    assert (shown["locked"], shown["locked_reason"]) == (True, "mine")
    assert nova.act(server, "os-stop").status == 409
    assert nova.delete(f"/servers/{server}").status == 409
    assert nova.act(server, "unlock").status == 202
    admin = nova.as_user("admin")
    assert admin.act(server, "lock").status == 202
    assert nova.act(server, "unlock").status == 403
    assert admin.act(server, "unlock").status == 202
    assert nova.show(server)["locked"] is False


def test_lock_before_reasons(nova: Nova, server: str) -> None:
    """Up to 2.72 a lock has no reason, and whatever stands in the body is not looked at."""
    for argument in (None, {"locked_reason": "mine"}):
        locked = nova.act(server, "lock", argument, version="2.72")
        assert (locked.status, locked.text) == (202, "")
        shown = nova.show(server)
        assert (shown["locked"], shown["locked_reason"]) == (True, None)
        assert "locked_reason" not in nova.show(server, version="2.72")
        assert nova.act(server, "unlock", version="2.1").status == 202
        assert nova.show(server, version="2.9")["locked"] is False
    assert nova.as_user("other").act(server, "lock", version="2.72").status == 404
    assert nova.as_user("reader").act(server, "lock", version="2.72").status == 403


def test_reset_state(nova: Nova, server: str) -> None:
    assert nova.act(server, "os-resetState", {"state": "error"}).status == 403
    admin = nova.as_user("admin")
    assert admin.act(server, "os-resetState", {"state": "error"}).status == 202
    assert nova.show(server)["status"] == "ERROR"
    assert admin.act(server, "os-resetState", {"state": "active"}).status == 202
    assert nova.show(server)["status"] == "ACTIVE"


def test_console_and_diagnostics(nova: Nova, server: str) -> None:
    answer = nova.act(server, "os-getConsoleOutput", {"length": "10"})
    assert answer.status == 200, answer.text
    assert isinstance(answer["output"], str)
    assert nova.act(server, "os-getConsoleOutput", {"length": "x"}).status == 400
    assert nova.get(f"/servers/{server}/diagnostics").status == 403
    found = nova.as_user("admin").get(f"/servers/{server}/diagnostics")
    assert found.status == 200, found.text


def test_create_image(nova: Nova, server: str) -> None:
    answer = nova.act(server, "createImage", {"name": unique("snap"), "metadata": {"k": "v"}})
    assert answer.status == 202, answer.text
    image_id = answer["image_id"]
    api = nova.cloud.api("demo")
    nova.cloud.wait(lambda: api.get("image", f"/images/{image_id}").body["status"] == "active")
    image = api.get("image", f"/images/{image_id}").body
    assert image["instance_uuid"] == server
    assert (image["image_type"], image["k"]) == ("snapshot", "v")
    nova.wait(server, "ACTIVE")
    old = nova.act(server, "createImage", {"name": unique("snap")}, version="2.44")
    assert old.headers["Location"].rsplit("/", 1)[0].endswith("/images")
    nova.wait(server, "ACTIVE")
    assert api.delete("image", f"/images/{image_id}").status == 204


def test_rebuild(nova: Nova) -> None:
    server = nova.boot()
    answer = nova.act(server, "rebuild", {"imageRef": nova.image, "name": "again", "metadata": {"x": "y"}})
    assert answer.status == 202, answer.text
    assert answer["server"]["adminPass"]
    assert answer["server"]["status"] == "REBUILD"
    shown = nova.wait(server, "ACTIVE")
    assert (shown["name"], shown["metadata"]) == ("again", {"x": "y"})
    nova.act(server, "os-stop")
    nova.wait(server, "SHUTOFF")
    assert nova.act(server, "rebuild", {"imageRef": nova.image}).status == 202
    nova.wait(server, "SHUTOFF")
    nova.remove(server)


def test_a_rebuild_that_gets_no_image_takes_nothing_away(nova: Nova) -> None:
    server = nova.boot()
    host = nova.as_user("admin").show(server)["OS-EXT-SRV-ATTR:host"]
    world = nova.cloud.hosts[host].fake.world.state
    content = world.disks[server].content
    nova.cloud.faults.fail("CacheImage", host=host, message="the image service is away")
    assert nova.act(server, "rebuild", {"imageRef": nova.image}).status == 202
    failed = nova.wait(server, "ERROR")
    assert "the image service is away" in failed["fault"]["message"]
    assert world.disks[server].content == content
    assert nova.act(server, "reboot", {"type": "HARD"}).status == 202
    nova.cloud.wait(lambda: nova.show(server)["status"] == "ACTIVE")
    assert world.disks[server].content == content
    nova.remove(server)


def test_network_info_is_told_anew(nova: Nova, server: str) -> None:
    assert nova.act(server, "injectNetworkInfo").status == 403
    admin = nova.as_user("admin")
    before = nova.show(server)
    told = admin.act(server, "injectNetworkInfo")
    assert (told.status, told.text) == (202, "")
    after = nova.show(server)
    assert {**after, "updated": None} == {**before, "updated": None}
    assert admin.act(NOBODY, "injectNetworkInfo").status == 404


def test_delete_by_force(nova: Nova) -> None:
    """As delete, in any state; nothing is kept that could be restored."""
    server = nova.boot()
    assert nova.as_user("admin").act(server, "os-resetState", {"state": "error"}).status == 202
    assert nova.as_user("other").act(server, "forceDelete").status == 404
    assert nova.as_user("reader").act(server, "forceDelete").status == 403
    assert nova.act(server, "lock", {"locked_reason": "mine"}).status == 202
    assert nova.act(server, "forceDelete").status == 409
    assert nova.act(server, "unlock").status == 202
    gone = nova.act(server, "forceDelete")
    assert (gone.status, gone.text) == (202, "")
    nova.gone(server)
    assert nova.act(server, "forceDelete").status == 404
    assert nova.act(server, "restore").status == 404


def test_there_is_nothing_to_restore(nova: Nova, server: str) -> None:
    """As upstream without reclaim_instance_interval: no server is ever in the state that restore needs."""
    refused = nova.act(server, "restore")
    assert refused.status == 409
    message = refused["conflictingRequest"]["message"]
    assert message == f"Cannot 'restore' instance {server} while it is in vm_state active"
    assert nova.as_user("other").act(server, "restore").status == 404
    assert nova.as_user("reader").act(server, "restore").status == 403


def test_instance_actions(nova: Nova, server: str) -> None:
    found = nova.get(f"/servers/{server}/os-instance-actions")["instanceActions"]
    assert found[-1]["action"] == "create"
    assert {"stop", "start", "reboot"} <= {item["action"] for item in found}
    one = nova.get(f"/servers/{server}/os-instance-actions/{found[-1]['request_id']}")["instanceAction"]
    events = {event["event"]: event for event in one["events"]}
    assert events["compute__do_build_and_run_instance"]["result"] == "Success"
    assert events["compute__do_build_and_run_instance"]["finish_time"]
    assert "host" not in events["compute__do_build_and_run_instance"]
    assert nova.get(f"/servers/{server}/os-instance-actions/req-none").status == 404
    page = nova.get(f"/servers/{server}/os-instance-actions?limit=1")
    assert len(page["instanceActions"]) == 1
    assert page["links"][0]["rel"] == "next"


def test_password_that_the_guest_posts(nova: Nova, server: str) -> None:
    """The first stays until the user clears it; the metadata service answers with it."""
    agent = nova.cloud.host.agent
    path = f"/servers/{server}/os-server-password"
    assert nova.get(path)["password"] == ""
    assert agent.password_posted(server, "sealed").outcome == "kept"
    assert agent.password_posted(server, "other").outcome == "conflict"
    assert nova.get(path)["password"] == "sealed"
    doc = nova.cloud.control.db.read(lambda tx: nova.cloud.control.compute.metadata_doc(tx, server, 1))
    assert doc.ec2["password"] == "sealed"
    assert nova.delete(path).status == 204
    assert nova.get(path)["password"] == ""
    assert agent.password_posted(server, "other").outcome == "kept"
    assert nova.delete(path).status == 204
    assert agent.password_posted("0b5a6c1e-0000-4000-8000-000000000000", "x").outcome == "gone"


def test_metadata(nova: Nova, server: str) -> None:
    path = f"/servers/{server}/metadata"
    assert nova.put(path, {"metadata": {"a": "1"}})["metadata"] == {"a": "1"}
    assert nova.post(path, {"metadata": {"b": "2"}})["metadata"] == {"a": "1", "b": "2"}
    assert nova.put(path + "/c", {"meta": {"c": "3"}})["meta"] == {"c": "3"}
    assert nova.get(path + "/c")["meta"] == {"c": "3"}
    assert nova.delete(path + "/c").status == 204
    assert nova.get(path + "/c").status == 404
    assert nova.put(path + "/c", {"meta": {"d": "3"}}).status == 400
    assert nova.put(path, {"metadata": {"a": None}}).status == 400
    assert nova.get(path)["metadata"] == {"a": "1", "b": "2"}


def test_tags(nova: Nova, server: str) -> None:
    path = f"/servers/{server}/tags"
    assert nova.put(path, {"tags": ["b", "a"]})["tags"] == ["a", "b"]
    assert nova.put(path + "/c").status == 201
    assert nova.put(path + "/c").status == 204
    assert nova.get(path + "/c").status == 204
    assert nova.delete(path + "/c").status == 204
    assert nova.get(path + "/c").status == 404
    assert nova.delete(path).status == 204
    assert nova.get(path)["tags"] == []
    assert nova.get(path, version="2.25").status == 404


def test_small_sub_resources(nova: Nova, server: str) -> None:
    assert nova.get(f"/servers/{server}/os-server-password")["password"] == ""
    assert nova.delete(f"/servers/{server}/os-server-password").status == 204
    assert nova.get(f"/servers/{server}/ips")["addresses"] == {}
    assert nova.get(f"/servers/{server}/ips/nowhere").status == 404
    assert nova.get(f"/servers/{server}/os-security-groups")["security_groups"] == []
    assert nova.get(f"/servers/{server}/topology")["nodes"] == []
    assert nova.get(f"/servers/{server}/os-interface")["interfaceAttachments"] == []
    assert nova.get(f"/servers/{server}/os-volume_attachments")["volumeAttachments"] == []


def test_guest_that_stops_by_itself(nova: Nova) -> None:
    server = nova.boot()
    host = nova.as_user("admin").show(server)["OS-EXT-SRV-ATTR:host"]
    nova.cloud.hosts[host].fake.compute.crash(server)
    nova.wait(server, "SHUTOFF")
    nova.remove(server)
