"""Servers: create, show, list, update, delete, over HTTP."""

from tests.compute.helpers import Nova
from tests.support.cloud import unique


def test_create_show_delete(nova: Nova) -> None:
    name = unique("first")
    made = nova.post("/servers", {"server": nova.server_body(name=name, metadata={"a": "b"})})
    assert made.status == 202, made.text
    server = made["server"]
    assert set(server) == {"id", "links", "OS-DCF:diskConfig", "security_groups", "adminPass"}
    assert made.headers["Location"] == server["links"][0]["href"]
    shown = nova.wait(server["id"], "ACTIVE")
    assert shown["name"] == name
    assert shown["metadata"] == {"a": "b"}
    assert shown["OS-EXT-STS:power_state"] == 1
    assert shown["OS-EXT-STS:vm_state"] == "active"
    assert shown["OS-SRV-USG:launched_at"]
    assert shown["image"]["id"] == nova.image
    assert shown["hostId"]
    assert "OS-EXT-SRV-ATTR:host" not in shown
    nova.remove(server["id"])
    assert nova.get(f"/servers/{server['id']}").status == 404
