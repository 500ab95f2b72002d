"""Servers whose image was deleted, or deactivated, go on: what they stand on is on their host."""

import re
from typing import Any

import pytest

from tests.compute.helpers import Nova
from tests.compute.places import Places, failed_action
from tests.compute.test_evacuation import lose
from tests.support.cloud import unique


def new_image(places: Places, disk_format: str = "raw", **more: Any) -> str:
    api = places.cloud.api("admin")
    container = disk_format if disk_format in ("aki", "ari") else "bare"
    body = {"name": unique("i"), "disk_format": disk_format, "container_format": container, "visibility": "public"}
    made = api.post("image", "/images", {**body, **more})
    assert made.status == 201, made.text
    image: str = made["id"]
    headers = {"content-type": "application/octet-stream"}
    sent = api.request("PUT", "image", f"/images/{image}/file", data=unique("x").encode() * 99, headers=headers)
    assert sent.status == 204, sent.text
    return image


def delete(places: Places, *images: str) -> None:
    for image in images:
        assert places.cloud.api("admin").request("DELETE", "image", f"/images/{image}").status == 204


def deactivate(places: Places, image: str) -> None:
    assert places.cloud.api("admin").post("image", f"/images/{image}/actions/deactivate").status == 204


def act(nova: Nova, server: str, action: str, argument: Any, status: str) -> None:
    answer = nova.act(server, action, argument)
    assert answer.status in (202, 204), answer.text
    nova.wait(server, status)


@pytest.fixture
def spread(places: Places) -> tuple[Places, str]:
    """A server with a disk, a kernel and a ramdisk of images that nobody else uses, on one host of several."""
    kernel, ramdisk = new_image(places, "aki"), new_image(places, "ari")
    image = new_image(places, kernel_id=kernel, ramdisk_id=ramdisk)
    server = places.boot(imageRef=image)
    delete(places, image, kernel, ramdisk)
    return places, server


def test_where_it_is(spread: tuple[Places, str]) -> None:
    """Everything that does not need new disks."""
    places, server = spread
    nova, content = places.nova, places.content(server)
    act(nova, server, "os-stop", None, "SHUTOFF")
    act(nova, server, "os-start", None, "ACTIVE")
    act(nova, server, "reboot", {"type": "HARD"}, "ACTIVE")
    act(nova, server, "suspend", None, "SUSPENDED")
    act(nova, server, "resume", None, "ACTIVE")
    body = {"volumeAttachment": {"volumeId": places.volume()}}
    assert nova.post(f"/servers/{server}/os-volume_attachments", body).status == 200
    places.cloud.wait(lambda: places.exports(server))
    made = nova.act(server, "createImage", {"name": unique("snapshot")})
    assert made.status == 202, made.text
    api = places.cloud.api("demo")
    path = f"/images/{made['image_id']}"
    places.cloud.wait(lambda: api.get("image", path)["status"] == "active")
    nova.wait(server, "ACTIVE")
    assert places.content(server) == content
    assert places.running(server) == [places.host(server)]
    places.remove(server)


def on(places: Places, server: str, host: str, content: str) -> None:
    assert places.host(server) == host
    assert places.running(server) == [host]
    assert places.content(server) == content


@pytest.mark.parametrize("confirmed", [True, False])
def test_at_rest_to_another_host(spread: tuple[Places, str], confirmed: bool) -> None:
    """The source offers what the server stands on, to the target alone."""
    places, server = spread
    nova, source, content = places.nova, places.host(server), places.content(server)
    act(nova, server, "resize", {"flavorRef": nova.new_flavor(disk=2)}, "VERIFY_RESIZE")
    target = places.host(server)
    assert target != source
    on(places, server, target, content)
    assert server not in places.world(source).offers
    if confirmed:
        act(nova, server, "confirmResize", None, "ACTIVE")
    else:
        act(nova, server, "revertResize", None, "ACTIVE")
    on(places, server, target if confirmed else source, content)
    act(nova, server, "reboot", {"type": "HARD"}, "ACTIVE")
    places.remove(server)


def test_resized_where_it_is(new_cloud: Any) -> None:
    places = Places(Nova(new_cloud(hosts=1)))
    image = new_image(places)
    server = places.boot(imageRef=image)
    delete(places, image)
    content = places.content(server)
    act(places.nova, server, "resize", {"flavorRef": places.nova.new_flavor(disk=2)}, "VERIFY_RESIZE")
    act(places.nova, server, "confirmResize", None, "ACTIVE")
    on(places, server, places.host(server), content)
    places.remove(server)


def test_live_to_another_host(spread: tuple[Places, str]) -> None:
    places, server = spread
    source, content = places.host(server), places.content(server)
    assert places.admin.act(server, "os-migrateLive", {"host": None, "block_migration": "auto"}).status == 202
    places.cloud.wait(lambda: places.host(server) != source)
    places.nova.wait(server, "ACTIVE")
    on(places, server, places.host(server), content)
    places.cloud.wait(lambda: places.traces(server) == [places.host(server)])
    places.remove(server)


@pytest.mark.parametrize("live", [True, False])
@pytest.mark.parametrize("operation", ["OfferImages", "FetchImages"])
def test_what_cannot_be_brought_stays(spread: tuple[Places, str], operation: str, live: bool) -> None:
    places, server = spread
    source, content, taken = places.host(server), places.content(server), places.allocations(server)
    for host in places.cloud.hosts.values():
        host.fake.faults.fail(operation, times=None)
    argument = {"host": None, "block_migration": "auto"} if live else None
    action = "os-migrateLive" if live else "migrate"
    assert places.admin.act(server, action, argument).status == 202
    places.cloud.wait(lambda: failed_action(places.nova, server, "live-migration" if live else "migrate"))
    places.nova.wait(server, "ACTIVE")
    for host in places.cloud.hosts.values():
        host.fake.faults.clear()
    on(places, server, source, content)
    assert places.traces(server) == [source]
    assert server not in places.world(source).offers
    assert places.allocations(server) == taken
    places.remove(server)


def test_rebuilt_of_it_is_refused(spread: tuple[Places, str]) -> None:
    places, server = spread
    gone = places.nova.show(server)["image"]["id"]
    answer = places.nova.act(server, "rebuild", {"imageRef": gone})
    assert answer.status == 400
    assert "Cannot find image for rebuild" in answer.text
    act(places.nova, server, "rebuild", {"imageRef": places.nova.image}, "ACTIVE")
    places.remove(server)


def test_evacuated_of_it_fails(new_cloud: Any) -> None:
    """As it does elsewhere: its disks would be made anew."""
    places = Places(Nova(new_cloud(hosts=2)))
    image = new_image(places)
    server = places.boot(imageRef=image)
    source = places.host(server)
    delete(places, image)
    lose(places, source)
    assert places.admin.act(server, "evacuate", {}).status == 200
    places.cloud.wait(lambda: failed_action(places.nova, server, "evacuate"))
    places.nova.wait(server, "ACTIVE")
    places.cloud.settle()
    row = places.cloud.db.read(lambda tx: places.cloud.control.compute.row(tx, server))
    story = places.cloud.control.operator.explain_server(row, hosts=True, xml=False)["operations"]
    errors = [one["error"] for one in story if one["action"] == "evacuate"]
    assert errors == [f"Image {image} could not be found."]
    assert places.host(server) == source
    assert places.traces(server) == [source]
    assert places.migrations(server)[0]["status"] == "failed"


@pytest.mark.parametrize("operation", ["CacheImage", "PlugPorts"])
def test_deleted_while_it_is_built(places: Places, operation: str) -> None:
    """The fault names the image that is missing."""
    kernel = new_image(places, "aki")
    image = new_image(places, kernel_id=kernel)
    hosts = [host.fake.faults for host in places.cloud.hosts.values()]
    events = [faults.hang(operation) for faults in hosts]
    server = places.boot(imageRef=image, wait=None)
    places.cloud.wait(lambda: any(faults.hung for faults in hosts))
    delete(places, image, kernel)
    for event in events:
        event.set()
    shown = places.nova.wait(server, "ERROR")
    for faults in hosts:
        faults.clear()
    missing = image if operation == "CacheImage" else kernel
    assert re.search(f"aborted: Image {missing} (could not be found|was deleted)", shown["fault"]["message"])
    places.remove(server)


def test_deactivated(places: Places) -> None:
    """Nobody but an administrator gets its bytes; its servers live, and move."""
    image = new_image(places)
    server = places.boot(imageRef=image)
    deactivate(places, image)
    refused = places.nova.post("/servers", {"server": places.nova.server_body(imageRef=image)})
    assert refused.status == 400
    act(places.nova, server, "os-stop", None, "SHUTOFF")
    act(places.nova, server, "os-start", None, "ACTIVE")
    act(places.nova, server, "reboot", {"type": "HARD"}, "ACTIVE")
    source = places.host(server)
    act(places.admin, server, "migrate", None, "VERIFY_RESIZE")
    assert places.host(server) != source
    act(places.nova, server, "confirmResize", None, "ACTIVE")
    places.remove(server)
