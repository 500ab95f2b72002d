"""Volumes and interfaces of servers; servers with ports; what the guest is told."""

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from cumulet.services.compute import state, store
from tests.compute.helpers import Nova
from tests.support.cloud import unique


@pytest.fixture(scope="module")
def network(nova: Nova) -> Iterator[dict[str, Any]]:
    api = nova.cloud.api("demo")
    made = api.post("network", "/networks", {"network": {"name": unique("net")}})
    assert made.status == 201, made.text
    subnet = {"network_id": made["network"]["id"], "cidr": "10.8.0.0/24", "ip_version": 4}
    answer = api.post("network", "/subnets", {"subnet": subnet})
    assert answer.status == 201, answer.text
    yield made["network"]
    assert api.delete("network", f"/networks/{made['network']['id']}").status == 204


@pytest.fixture(scope="module", autouse=True)
def _no_volume_is_left(nova: Nova) -> Iterator[None]:
    """They count against the project's quota, which is that of other tests, too."""
    yield
    api = nova.cloud.api("demo")
    assert nova.cloud.settle()
    for volume in api.get("volume", "/volumes")["volumes"]:
        assert api.delete("volume", f"/volumes/{volume['id']}?cascade=true").status == 202
    assert nova.cloud.settle()


def new_volume(nova: Nova, **more: Any) -> str:
    api = nova.cloud.api("demo")
    made = api.post("volume", "/volumes", {"volume": {"size": 1, "name": unique("vol"), **more}}, version="3.70")
    assert made.status == 202, made.text
    volume_id: str = made["volume"]["id"]
    await_volume(nova, volume_id, "available")
    return volume_id


def await_volume(nova: Nova, volume_id: str, status: str) -> dict[str, Any]:
    api = nova.cloud.api("demo")

    def look() -> Any:
        found = api.get("volume", f"/volumes/{volume_id}")["volume"]
        assert "error" not in found["status"] or status == found["status"], found
        return found if found["status"] == status else None

    found: dict[str, Any] = nova.cloud.wait(look)
    return found


def test_server_on_a_network(nova: Nova, network: dict[str, Any]) -> None:
    server = nova.boot(networks=[{"uuid": network["id"], "tag": "front"}])
    shown = nova.show(server)
    address = shown["addresses"][network["name"]][0]
    assert address["addr"].startswith("10.8.0.")
    assert address["OS-EXT-IPS:type"] == "fixed"
    assert shown["security_groups"] == [{"name": "default"}]
    port = nova.get(f"/servers/{server}/os-interface")["interfaceAttachments"][0]
    assert (port["port_state"], port["tag"], port["net_id"]) == ("ACTIVE", "front", network["id"])
    assert port["fixed_ips"][0]["ip_address"] == address["addr"]
    assert nova.get(f"/servers/{server}/os-interface/{port['port_id']}").status == 200
    assert nova.get(f"/servers/{server}/ips/{network['name']}")[network["name"]] == [
        {"version": 4, "addr": address["addr"]}
    ]
    assert [s["id"] for s in nova.get(f"/servers?ip=^{address['addr']}$")["servers"]] == [server]
    doc = nova.cloud.control.db.read(lambda tx: nova.cloud.control.compute.metadata_doc(tx, server, 1))
    assert doc.meta_data["uuid"] == server
    assert doc.meta_data["devices"][0]["tags"] == ["front"]
    assert doc.network_data["links"][0]["ethernet_mac_address"] == port["mac_addr"]
    assert doc.ec2["meta-data"]["local-ipv4"] == address["addr"]
    nova.remove(server)
    api = nova.cloud.api("demo")
    assert api.get("network", f"/ports/{port['port_id']}").status == 404


def test_guest_is_told_what_becomes_of_its_ports(nova: Nova, network: dict[str, Any]) -> None:
    """Floating IPs, addresses and groups change after the boot: the metadata service says what is true now."""
    api, admin = nova.cloud.api("demo"), nova.cloud.api("admin")
    outside = admin.post("network", "/networks", {"network": {"name": unique("out"), "router:external": True}})
    out_id = outside["network"]["id"]
    subnet = {"network_id": out_id, "cidr": "198.51.100.0/24", "ip_version": 4, "enable_dhcp": False}
    assert admin.post("network", "/subnets", {"subnet": subnet}).status == 201
    gateway = {"external_gateway_info": {"network_id": out_id}}
    router = api.post("network", "/routers", {"router": {"name": unique("router"), **gateway}})["router"]["id"]
    inside = {"subnet_id": api.get("network", f"/networks/{network['id']}")["network"]["subnets"][0]}
    assert api.put("network", f"/routers/{router}/add_router_interface", inside).status == 200
    server = nova.boot(networks=[{"uuid": network["id"]}])
    port = nova.get(f"/servers/{server}/os-interface")["interfaceAttachments"][0]["port_id"]

    def told(key: str, value: Any) -> None:
        def look() -> bool:
            docs = []
            for host in nova.cloud.hosts.values():  # those that serve the network, and the server's own
                with host.fake.world.look() as state:
                    docs.append(state.documents.get("metadata", {}).get(server))
            found = [doc for doc in docs if doc]
            return bool(found) and all(doc["ec2"]["meta-data"][key] == value for doc in found)

        nova.cloud.wait(look)

    told("public-ipv4", "")
    made = api.post("network", "/floatingips", {"floatingip": {"floating_network_id": out_id, "port_id": port}})
    floating = made["floatingip"]
    told("public-ipv4", floating["floating_ip_address"])
    path = f"/floatingips/{floating['id']}"
    assert api.put("network", path, {"floatingip": {"port_id": None}}).status == 200
    told("public-ipv4", "")
    assert api.put("network", path, {"floatingip": {"port_id": port}}).status == 200
    told("public-ipv4", floating["floating_ip_address"])
    assert api.delete("network", path).status == 204
    told("public-ipv4", "")
    fixed = {"fixed_ips": [{**inside, "ip_address": "10.8.0.77"}]}
    assert api.put("network", f"/ports/{port}", {"port": {**fixed, "security_groups": []}}).status == 200
    told("local-ipv4", "10.8.0.77")
    told("security-groups", [])
    nova.remove(server)
    assert api.put("network", f"/routers/{router}/remove_router_interface", inside).status == 200
    assert api.delete("network", f"/routers/{router}").status == 204
    assert admin.delete("network", f"/networks/{out_id}").status == 204


def test_given_port_survives(nova: Nova, network: dict[str, Any]) -> None:
    api = nova.cloud.api("demo")
    port = api.post("network", "/ports", {"port": {"network_id": network["id"]}})["port"]
    server = nova.boot(networks=[{"port": port["id"]}])
    again = nova.post("/servers", {"server": nova.server_body(networks=[{"port": port["id"]}])})
    assert again.status == 409, again.text
    two = nova.server_body(networks=[{"port": port["id"]}], min_count=2)
    assert nova.post("/servers", {"server": two}).status == 400
    nova.remove(server)
    left = api.get("network", f"/ports/{port['id']}")["port"]
    assert (left["device_id"], left["status"]) == ("", "DOWN")
    assert api.delete("network", f"/ports/{port['id']}").status == 204


def test_interfaces(nova: Nova, network: dict[str, Any]) -> None:
    server = nova.boot()
    path = f"/servers/{server}/os-interface"
    made = nova.post(path, {"interfaceAttachment": {"net_id": network["id"]}})
    assert made.status == 200, made.text
    port = made["interfaceAttachment"]["port_id"]
    nova.cloud.wait(lambda: nova.get(f"{path}/{port}")["interfaceAttachment"]["port_state"] == "ACTIVE")
    assert network["name"] in nova.show(server)["addresses"]
    assert nova.post(path, {"interfaceAttachment": {"net_id": network["id"], "port_id": port}}).status == 400
    assert nova.post(path, {"interfaceAttachment": {"fixed_ips": [{"ip_address": "1.2.3.4"}]}}).status == 400
    assert nova.delete(f"{path}/{port}").status == 202
    nova.cloud.wait(lambda: nova.get(path)["interfaceAttachments"] == [])
    assert nova.delete(f"{path}/{port}").status == 404
    nova.remove(server)


def test_security_groups(nova: Nova, network: dict[str, Any]) -> None:
    api = nova.cloud.api("demo")
    group = api.post("network", "/security-groups", {"security_group": {"name": unique("web")}})["security_group"]
    server = nova.boot(networks=[{"uuid": network["id"]}])
    assert nova.act(server, "addSecurityGroup", {"name": group["name"]}).status == 202
    assert {"name": group["name"]} in nova.show(server)["security_groups"]
    assert nova.act(server, "addSecurityGroup", {"name": "nothing"}).status == 404
    assert nova.act(server, "removeSecurityGroup", {"name": group["name"]}).status == 202
    assert nova.show(server)["security_groups"] == [{"name": "default"}]
    nova.remove(server)
    assert api.delete("network", f"/security-groups/{group['id']}").status == 204


def test_volumes(nova: Nova) -> None:
    server, volume = nova.boot(), new_volume(nova)
    path = f"/servers/{server}/os-volume_attachments"
    made = nova.post(path, {"volumeAttachment": {"volumeId": volume, "tag": "data"}})
    assert made.status == 200, made.text
    attachment = made["volumeAttachment"]
    assert attachment["device"] == "/dev/vdb"
    assert {"attachment_id", "bdm_uuid", "tag", "delete_on_termination"} <= attachment.keys()
    shown = await_volume(nova, volume, "in-use")
    assert shown["attachments"][0]["server_id"] == server
    assert nova.post(path, {"volumeAttachment": {"volumeId": volume}}).status == 400
    assert nova.get(path, version="2.1")["volumeAttachments"] == [
        {"id": volume, "volumeId": volume, "serverId": server, "device": "/dev/vdb"}
    ]
    assert nova.show(server)["os-extended-volumes:volumes_attached"][0]["id"] == volume
    update = {"volumeAttachment": {"volumeId": volume, "delete_on_termination": True}}
    assert nova.put(f"{path}/{volume}", update).status == 202
    assert nova.get(f"{path}/{volume}")["volumeAttachment"]["delete_on_termination"] is True
    assert nova.delete(f"{path}/{volume}").status == 202
    await_volume(nova, volume, "available")
    assert nova.get(f"{path}/{volume}").status == 404
    actions = nova.get(f"/servers/{server}/os-instance-actions")["instanceActions"]
    assert [item["action"] for item in actions[:2]] == ["detach_volume", "attach_volume"]
    one = nova.get(f"/servers/{server}/os-instance-actions/{actions[1]['request_id']}")["instanceAction"]
    assert one["events"][0]["event"] == "compute_attach_volume"
    assert nova.post(path, {"volumeAttachment": {"volumeId": volume}}).status == 200
    await_volume(nova, volume, "in-use")
    nova.remove(server)
    await_volume(nova, volume, "available")


def test_a_volume_in_use_grows_and_ends_through_its_server_alone(nova: Nova) -> None:
    api = nova.cloud.api("demo")
    server, volume = nova.boot(), new_volume(nova)
    path = f"/servers/{server}/os-volume_attachments"
    assert nova.post(path, {"volumeAttachment": {"volumeId": volume}}).status == 200
    shown = await_volume(nova, volume, "in-use")
    attachment = shown["attachments"][0]["attachment_id"]
    action = f"/volumes/{volume}/action"
    assert api.post("volume", action, {"os-extend": {"new_size": 2}}, version="3.42").status == 202
    assert await_volume(nova, volume, "in-use")["size"] == 2

    def extended() -> dict[str, Any] | None:
        actions = nova.get(f"/servers/{server}/os-instance-actions")["instanceActions"]
        request = next((item["request_id"] for item in actions if item["action"] == "extend_volume"), None)
        if request is None:
            return None
        one = nova.get(f"/servers/{server}/os-instance-actions/{request}")["instanceAction"]
        return next((event for event in one["events"] if event["finish_time"]), None)

    event = nova.cloud.wait(extended)
    assert (event["event"], event["result"]) == ("compute_extend_volume", "Success")
    refused = api.delete("volume", f"/attachments/{attachment}", version="3.27")
    assert refused.status == 409, refused.text
    assert "Compute API" in refused.body["conflictingRequest"]["message"]
    admin = nova.cloud.api("admin")
    for body in (
        {"os-detach": {"attachment_id": attachment}},
        {"os-force_detach": {"attachment_id": attachment}},
        {"os-terminate_connection": {"connector": {"host": "client"}}},
    ):
        assert admin.post("volume", action, body).status == 409
    assert nova.delete(f"{path}/{volume}").status == 202
    await_volume(nova, volume, "available")
    nova.remove(server)


def test_attach_that_fails_is_taken_back(nova: Nova) -> None:
    server, volume = nova.boot(), new_volume(nova)
    for host in nova.cloud.hosts.values():
        host.fake.faults.fail("AttachVolume")
    assert (
        nova.post(f"/servers/{server}/os-volume_attachments", {"volumeAttachment": {"volumeId": volume}}).status == 200
    )
    await_volume(nova, volume, "available")
    nova.cloud.wait(lambda: nova.get(f"/servers/{server}/os-volume_attachments")["volumeAttachments"] == [])
    for host in nova.cloud.hosts.values():
        host.fake.faults.clear()
    nova.remove(server)


@pytest.mark.parametrize("operation", ["attach port", "detach port", "attach volume", "detach volume"])
def test_asked_for_at_the_same_time_as_a_move(nova: Nova, network: dict[str, Any], operation: str) -> None:
    """What comes second sees what came first, and is refused: also where units of work run side by side."""
    server = nova.boot(networks=[{"uuid": network["id"]}])
    volume = new_volume(nova)
    path, verb, body = _change_of_devices(nova, server, network["id"], volume, operation)
    cloud = nova.cloud
    compute, began, answers = cloud.control.compute, threading.Event(), []

    def move(tx: Any) -> None:
        row = store.server(tx, server)
        compute.moves.check_quiet(tx, row)
        state.settle(tx, server, "resize_prep")
        began.set()
        time.sleep(0.3)

    def ask() -> None:
        began.wait()
        answers.append(getattr(nova, verb)(path, *body).status)

    asking = threading.Thread(target=ask)
    asking.start()
    cloud.control.db.write(move)
    asking.join()
    assert answers == [409]
    cloud.control.db.write(lambda tx: state.settle(tx, server, None))
    nova.remove(server)


def _change_of_devices(
    nova: Nova, server: str, network: str, volume: str, operation: str
) -> tuple[str, str, tuple[Any, ...]]:
    """Path, method and body."""
    if operation == "attach port":
        return f"/servers/{server}/os-interface", "post", ({"interfaceAttachment": {"net_id": network}},)
    if operation == "detach port":
        [port] = nova.get(f"/servers/{server}/os-interface")["interfaceAttachments"]
        return f"/servers/{server}/os-interface/{port['port_id']}", "delete", ()
    path, body = f"/servers/{server}/os-volume_attachments", {"volumeAttachment": {"volumeId": volume}}
    if operation == "attach volume":
        return path, "post", (body,)
    assert nova.post(path, body).status == 200
    await_volume(nova, volume, "in-use")
    assert nova.cloud.settle()
    return f"{path}/{volume}", "delete", ()


def test_boot_from_volume(nova: Nova) -> None:
    device = {
        "boot_index": 0,
        "uuid": nova.image,
        "source_type": "image",
        "destination_type": "volume",
        "volume_size": 1,
        "delete_on_termination": True,
    }
    server = nova.boot(imageRef="", block_device_mapping_v2=[device])
    shown = nova.show(server)
    assert shown["image"] == ""
    volume = shown["os-extended-volumes:volumes_attached"][0]["id"]
    assert await_volume(nova, volume, "in-use")["bootable"] == "true"
    assert nova.delete(f"/servers/{server}/os-volume_attachments/{volume}").status == 409
    nova.remove(server)
    nova.cloud.wait(lambda: nova.cloud.api("demo").get("volume", f"/volumes/{volume}").status == 404)


def test_boot_with_a_second_volume(nova: Nova) -> None:
    volume = new_volume(nova)
    root = {"boot_index": 0, "uuid": nova.image, "source_type": "image", "destination_type": "local"}
    data = {"boot_index": -1, "uuid": volume, "source_type": "volume", "destination_type": "volume"}
    server = nova.boot(block_device_mapping_v2=[root, data])
    await_volume(nova, volume, "in-use")
    nova.remove(server)
    await_volume(nova, volume, "available")
