"""Volumes over HTTP on a whole cloud with fake hosts."""

import pytest

from cumulet.saga import journal
from tests.support.cloud import unique
from tests.support.patience import eventually

NOBODY = "00000000-0000-0000-0000-000000000000"


def test_a_volume_lives(volumes):
    name = unique("v")
    volume = volumes.create(name=name, description="d", metadata={"a": "b"})
    shown = volumes.show(volume)
    assert (shown["name"], shown["size"], shown["status"], shown["bootable"]) == (name, 1, "available", "false")
    assert shown["metadata"] == {"a": "b"}
    assert shown["attachments"] == []
    assert shown["volume_type"] == "__DEFAULT__"
    assert shown["links"][0]["href"].endswith(f"/volumes/{volume}")
    changed = volumes.ok("PUT", f"/volumes/{volume}", {"volume": {"name": "new", "description": None}})["volume"]
    assert (changed["name"], changed["description"]) == ("new", None)
    assert volumes.call("DELETE", f"/volumes/{volume}").status == 202
    volumes.gone(f"/volumes/{volume}")


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 400),
        ({"size": 0}, 400),
        ({"size": -3}, 400),
        ({"size": "large"}, 400),
        ({"size": 2**31}, 400),
        ({"size": 1, "name": "x" * 256}, 400),
        ({"size": 1, "colour": "red"}, 400),
        ({"size": 1, "volume_type": "none-such"}, 404),
        ({"size": 1, "snapshot_id": NOBODY}, 404),
        ({"size": 1, "source_volid": NOBODY}, 404),
        ({"size": 1, "snapshot_id": "x"}, 400),
        ({"size": 1, "imageRef": NOBODY}, 400),
        ({"size": 1, "availability_zone": "moon"}, 400),
        ({"size": 1, "metadata": {"k": "x" * 256}}, 400),
        ({"size": 1, "metadata": {"": "x"}}, 400),
        ({"size": 1, "metadata": "x"}, 400),
        ({"size": 5000}, 413),
    ],
)
def test_what_create_refuses(volumes, body, status):
    answer = volumes.call("POST", "/volumes", {"volume": body})
    assert answer.status == status, answer.text
    assert next(iter(answer.body.values()))["code"] == status


def test_fields_belong_to_versions(volumes):
    body = {"volume": {"size": 1, "backup_id": NOBODY}}
    assert volumes.call("POST", "/volumes", body, version="3.46").status == 400
    assert volumes.call("POST", "/volumes", body, version="3.47").status == 404
    assert volumes.call("GET", "/attachments", version="3.26").status == 404
    assert volumes.call("GET", "/volumes", version="3.99").status == 406
    assert volumes.call("GET", "/volumes", version="x").status == 400


def test_others_do_not_see_it(volumes, other, admin):
    volume = volumes.create()
    assert other.call("GET", f"/volumes/{volume}").status == 404
    assert other.call("DELETE", f"/volumes/{volume}").status == 404
    assert admin.show(volume)["os-vol-host-attr:host"].endswith("@file#file")
    assert "os-vol-host-attr:host" not in volumes.show(volume)
    ids = [v["id"] for v in admin.ok("GET", "/volumes/detail?all_tenants=1")["volumes"]]
    assert volume in ids
    assert volume not in [v["id"] for v in admin.ok("GET", "/volumes")["volumes"]]
    assert volume not in [v["id"] for v in other.ok("GET", "/volumes?all_tenants=1")["volumes"]]


def test_readers_only_read(cloud, volumes):
    volume = volumes.create()
    reader = cloud.api("reader")
    assert reader.get("volume", f"/volumes/{volume}").status == 200
    assert reader.post("volume", "/volumes", {"volume": {"size": 1}}).status == 403
    assert reader.delete("volume", f"/volumes/{volume}").status == 403


def test_lists_page_sort_and_filter(volumes):
    stamp = unique("page")
    made = [volumes.create(None, name=f"{stamp}-{n}", metadata={"run": stamp}) for n in range(3)]
    for volume in made:
        volumes.until(f"/volumes/{volume}", "volume", "available")
    mine = f"name~={stamp}"
    first = volumes.ok("GET", f"/volumes?{mine}&sort=name:asc&limit=2")
    assert [v["id"] for v in first["volumes"]] == made[:2]
    link = first["volumes_links"][0]["href"].partition("/v3")[2]
    assert [v["id"] for v in volumes.ok("GET", link)["volumes"]] == made[2:]
    counted = volumes.ok("GET", f"/volumes/detail?{mine}&with_count=true&limit=1")
    assert counted["count"] == 3
    assert [v["id"] for v in volumes.ok("GET", f"/volumes?{mine}&offset=1&sort=name:desc")["volumes"]] == [
        made[1],
        made[0],
    ]
    found = volumes.ok("GET", f"/volumes?metadata={{'run': '{stamp}'}}")["volumes"]
    assert {v["id"] for v in found} == set(made)
    assert volumes.ok("GET", f"/volumes?name={stamp}-1")["volumes"][0]["id"] == made[1]
    assert volumes.call("GET", "/volumes?colour=red").status == 400
    assert volumes.call("GET", "/volumes?colour=red", version="3.0").status == 200
    assert volumes.call("GET", "/volumes?limit=x").status == 400
    assert volumes.call("GET", f"/volumes?marker={NOBODY}").status == 404
    assert volumes.call("GET", "/volumes?sort=colour").status == 400
    summary = volumes.ok("GET", "/volumes/summary")["volume-summary"]
    assert summary["total_count"] >= 3
    assert stamp in summary["metadata"]["run"]


def test_metadata(volumes):
    volume = volumes.create(metadata={"a": "1"})
    path = f"/volumes/{volume}/metadata"
    assert volumes.ok("POST", path, {"metadata": {"b": "2"}}) == {"metadata": {"a": "1", "b": "2"}}
    assert volumes.ok("PUT", path + "/b", {"meta": {"b": "3"}}) == {"meta": {"b": "3"}}
    assert volumes.ok("GET", path + "/b") == {"meta": {"b": "3"}}
    assert volumes.call("PUT", path + "/c", {"meta": {"b": "3"}}).status == 400
    assert volumes.call("DELETE", path + "/b").status == 200
    assert volumes.call("DELETE", path + "/b").status == 404
    assert volumes.ok("PUT", path, {"metadata": {"z": "9"}}) == {"metadata": {"z": "9"}}
    assert volumes.ok("GET", path) == {"metadata": {"z": "9"}}


def test_a_volume_grows(volumes):
    volume = volumes.create()
    assert volumes.action(volume, "os-extend", {"new_size": 1}).status == 400
    assert volumes.action(volume, "os-extend", {"new_size": "x"}).status == 400
    assert volumes.action(volume, "os-extend", {"new_size": 100000}).status == 413
    assert volumes.action(volume, "os-extend", {"new_size": "3"}).status == 202
    assert volumes.until(f"/volumes/{volume}", "volume", "available")["size"] == 3


def test_a_failed_create_is_an_error_with_a_message_and_can_be_deleted(cloud, volumes, other):
    for host in cloud.hosts.values():
        host.fake.faults.fail("CreateVolume")
    try:
        volume = volumes.create("error")
    finally:
        for host in cloud.hosts.values():
            host.fake.faults.clear()
    found = volumes.ok("GET", f"/messages?resource_uuid={volume}")["messages"]
    assert [m["message_level"] for m in found] == ["ERROR"]
    assert volumes.ok("GET", f"/messages/{found[0]['id']}") == {"message": found[0]}
    assert (found[0]["resource_type"], found[0]["resource_uuid"]) == ("VOLUME", volume)
    assert other.call("GET", f"/messages/{found[0]['id']}").status == 404
    assert volumes.call("GET", f"/messages/{found[0]['id']}", version="3.2").status == 404
    assert volumes.call("DELETE", f"/messages/{found[0]['id']}").status == 204
    assert volumes.call("GET", f"/messages/{found[0]['id']}").status == 404
    assert volumes.action(volume, "os-extend", {"new_size": 3}).status == 400
    volumes.call("DELETE", f"/volumes/{volume}")
    volumes.gone(f"/volumes/{volume}")


def test_no_backend_is_an_error_volume(cloud, volumes, admin):
    for name in cloud.hosts:
        body = {"binary": "cinder-volume", "host": f"{name}@file", "disabled_reason": "test"}
        assert admin.call("PUT", "/os-services/disable-log-reason", body).body["status"] == "disabled"
    try:
        volume = volumes.create("error")
        assert "No valid" in volumes.ok("GET", f"/messages?resource_uuid={volume}")["messages"][0]["user_message"]
    finally:
        for name in cloud.hosts:
            admin.ok("PUT", "/os-services/enable", {"binary": "cinder-volume", "host": f"{name}@file"})


@pytest.mark.parametrize("kind", ["volume", "snapshot"])
def test_what_a_volume_is_made_of_goes_after_it_is_made(cloud, volumes, kind):
    origin = volumes.create()
    source = origin if kind == "volume" else volumes.snapshot(origin)
    of_it = {"source_volid" if kind == "volume" else "snapshot_id": source}

    def waits():
        sagas = cloud.control.db.read(lambda tx: journal.of_object(tx, kind, source))
        return [row for row, _ in sagas if row.kind == f"{kind}.delete" and row.phase == "waiting"]

    going_on = [host.fake.faults.hang("CreateVolume", owner=kind) for host in cloud.hosts.values()]
    try:
        made = volumes.create(None, **of_it)
        assert volumes.call("DELETE", f"/{kind}s/{source}").status == 202
        assert volumes.call("POST", "/volumes", {"volume": of_it}).status == 400  # so that the wait has an end
        eventually(waits)
        assert volumes.ok("GET", f"/{kind}s/{source}")[kind]["status"] == "deleting"
    finally:
        for event in going_on:
            event.set()
        for host in cloud.hosts.values():
            host.fake.faults.remove(kind)
    volumes.until(f"/volumes/{made}", "volume", "available")
    volumes.gone(f"/{kind}s/{source}")


def test_snapshots(volumes):
    volume = volumes.create()
    snapshot = volumes.snapshot(volume, name="s", metadata={"k": "v"})
    shown = volumes.ok("GET", f"/snapshots/{snapshot}")["snapshot"]
    assert (shown["volume_id"], shown["size"], shown["metadata"]) == (volume, 1, {"k": "v"})
    assert shown["os-extended-snapshot-attributes:progress"] == "100%"
    assert volumes.call("DELETE", f"/volumes/{volume}").status == 400
    copy = volumes.create(snapshot_id=snapshot, size=None)
    assert volumes.show(copy)["snapshot_id"] == snapshot
    assert volumes.call("POST", "/volumes", {"volume": {"snapshot_id": snapshot, "size": 0}}).status == 400
    clone = volumes.create(source_volid=volume)
    assert volumes.show(clone)["source_volid"] == volume
    assert volumes.ok("PUT", f"/snapshots/{snapshot}", {"snapshot": {"name": "t"}})["snapshot"]["name"] == "t"
    assert snapshot in [s["id"] for s in volumes.ok("GET", f"/snapshots?volume_id={volume}")["snapshots"]]
    assert volumes.action(volume, "revert", {"snapshot_id": snapshot}).status == 202
    volumes.until(f"/volumes/{volume}", "volume", "available")
    assert volumes.call("DELETE", f"/snapshots/{snapshot}").status == 202
    volumes.gone(f"/snapshots/{snapshot}")
    assert volumes.call("GET", f"/snapshots/{NOBODY}").status == 404


def test_metadata_of_a_snapshot(volumes, other):
    snapshot = volumes.snapshot(volumes.create(), metadata={"a": "1"})
    path = f"/snapshots/{snapshot}/metadata"
    assert volumes.ok("GET", path) == {"metadata": {"a": "1"}}
    assert volumes.ok("POST", path, {"metadata": {"b": "2"}}) == {"metadata": {"a": "1", "b": "2"}}
    assert volumes.ok("PUT", path + "/b", {"meta": {"b": "3"}}) == {"meta": {"b": "3"}}
    assert volumes.ok("GET", path + "/b") == {"meta": {"b": "3"}}
    assert volumes.call("PUT", path + "/c", {"meta": {"b": "3"}}).status == 400
    assert volumes.call("POST", path, {"metadata": {"": "x"}}).status == 400
    assert volumes.call("POST", path, {"metadata": {"k": "x" * 256}}).status == 400
    assert other.call("GET", path).status == 404
    assert other.call("POST", path, {"metadata": {"b": "2"}}).status == 404
    deleted = volumes.call("DELETE", path + "/b")
    assert (deleted.status, deleted.text) == (200, "")
    assert volumes.call("DELETE", path + "/b").status == 404
    assert volumes.call("GET", path + "/b").status == 404
    assert volumes.ok("PUT", path, {"metadata": {"z": "9"}}) == {"metadata": {"z": "9"}}
    assert volumes.ok("GET", f"/snapshots/{snapshot}")["snapshot"]["metadata"] == {"z": "9"}


def test_administrators_mend_snapshots(volumes, admin):
    snapshot = volumes.snapshot(volumes.create())
    path = f"/snapshots/{snapshot}"

    def act(who, name, **argument):
        return who.call("POST", path + "/action", {name: argument}).status

    def shown():
        found = volumes.ok("GET", path)["snapshot"]
        return found["status"], found["os-extended-snapshot-attributes:progress"]

    assert act(admin, "os-update_snapshot_status", status="available") == 400  # it is not being made
    assert act(volumes, "os-reset_status", status="creating") == 403
    assert act(admin, "os-reset_status", status="merry") == 400
    assert act(admin, "os-reset_status", status="creating") == 202
    assert shown()[0] == "creating"
    assert act(admin, "os-update_snapshot_status", status="deleting") == 400
    assert act(admin, "os-update_snapshot_status", status="creating", progress="half") == 400
    assert act(admin, "os-update_snapshot_status", status="creating", progress="50%") == 202
    assert shown() == ("creating", "50%")
    assert volumes.call("DELETE", path).status == 400
    assert act(admin, "os-update_snapshot_status", status="error") == 202
    assert shown()[0] == "error"
    assert act(volumes, "os-force_delete") == 403
    assert act(admin, "os-force_delete") == 202
    volumes.gone(path)


def test_cascade_takes_the_snapshots_too(cloud, volumes):
    volume = volumes.create()
    snapshots = [volumes.snapshot(volume) for _ in range(2)]
    assert volumes.call("DELETE", f"/volumes/{volume}?cascade=true").status == 202
    volumes.gone(f"/volumes/{volume}")
    for snapshot in snapshots:
        volumes.gone(f"/snapshots/{snapshot}")
    for host in cloud.hosts.values():
        assert volume not in host.fake.world.leftovers().get("volumes", [])


def test_attaching_the_old_way(volumes, admin):
    volume = volumes.create()
    assert volumes.action(volume, "os-reserve").status == 202
    assert volumes.show(volume)["status"] == "attaching"
    assert volumes.call("DELETE", f"/volumes/{volume}").status == 400
    assert volumes.action(volume, "os-unreserve").status == 202
    assert volumes.show(volume)["status"] == "available"
    body = {"instance_uuid": NOBODY, "mountpoint": "/dev/vdc"}
    assert volumes.action(volume, "os-attach", body).status == 202
    shown = volumes.show(volume)
    assert shown["status"] == "in-use"
    assert [(a["server_id"], a["device"]) for a in shown["attachments"]] == [(NOBODY, "/dev/vdc")]
    assert volumes.call("DELETE", f"/volumes/{volume}").status == 400
    assert volumes.action(volume, "os-attach", body).status == 400
    assert volumes.action(volume, "os-begin_detaching").status == 202
    assert volumes.show(volume)["status"] == "detaching"
    assert volumes.action(volume, "os-roll_detaching").status == 202
    assert volumes.show(volume)["status"] == "in-use"
    assert volumes.action(volume, "os-detach", {}).status == 202
    assert volumes.show(volume)["status"] == "available"


def test_administrators_detach_by_force(volumes, admin):
    volume = volumes.create()
    body = {"instance_uuid": NOBODY, "mountpoint": "/dev/vdc"}
    assert volumes.action(volume, "os-attach", body).status == 202
    (attachment,) = volumes.show(volume)["attachments"]
    assert volumes.action(volume, "os-begin_detaching").status == 202
    force = {"attachment_id": attachment["attachment_id"], "connector": {"host": "client"}}
    assert volumes.action(volume, "os-force_detach", force).status == 403
    assert admin.action(volume, "os-force_detach", {**force, "colour": "red"}).status == 400
    assert admin.action(volume, "os-force_detach", force).status == 202
    shown = volumes.until(f"/volumes/{volume}", "volume", "available")
    assert shown["attachments"] == []


def test_the_attachments_api_exports(cloud, volumes, other):
    volume = volumes.create()
    made = volumes.ok("POST", "/attachments", {"attachment": {"volume_uuid": volume, "instance_uuid": NOBODY}})
    attachment = made["attachment"]
    assert attachment["status"] == "reserved"
    assert volumes.show(volume)["status"] == "reserved"
    assert volumes.call("POST", "/attachments", {"attachment": {"volume_uuid": volume}}).status == 400
    path = f"/attachments/{attachment['id']}"
    body = {"attachment": {"connector": {"host": "client", "mountpoint": "/dev/vdb", "ip": "10.0.0.1"}}}
    connected = volumes.ok("PUT", path, body)["attachment"]
    assert connected["connection_info"]["driver_volume_type"] == "nbd"
    assert connected["connection_info"]["export"].startswith("nbd")
    assert volumes.show(volume)["status"] == "attaching"
    assert volumes.call("POST", path + "/action", {"os-complete": {}}).status == 204
    assert volumes.show(volume)["status"] == "in-use"
    assert volumes.ok("GET", path)["attachment"]["status"] == "attached"
    listed = volumes.ok("GET", f"/attachments?volume_id={volume}")["attachments"]
    assert [a["id"] for a in listed] == [attachment["id"]]
    assert listed[0].keys() == {"id", "status", "instance", "volume_id"}
    (detail,) = volumes.ok("GET", f"/attachments/detail?volume_id={volume}", version="3.27")["attachments"]
    assert detail == volumes.ok("GET", path, version="3.27")["attachment"]
    assert detail["connection_info"]["driver_volume_type"] == "nbd"
    assert other.ok("GET", f"/attachments/detail?volume_id={volume}")["attachments"] == []
    assert volumes.call("GET", "/attachments/detail", version="3.26").status == 404
    assert volumes.call("DELETE", path).status == 200
    volumes.until(f"/volumes/{volume}", "volume", "available")
    for host in cloud.hosts.values():
        assert attachment["id"] not in host.fake.world.leftovers().get("exports", [])


def test_a_connection_without_an_attachment(cloud, volumes, admin):
    volume = volumes.create()
    connector = {"connector": {"host": "client", "ip": "10.0.0.1"}}
    made = volumes.action(volume, "os-initialize_connection", connector)
    assert made.status == 200, made.text
    told = made.body["connection_info"]
    assert (told["driver_volume_type"], told["volume_id"]) == ("nbd", volume)
    assert volumes.action(volume, "os-initialize_connection", connector).body["connection_info"] == told
    other = volumes.action(volume, "os-initialize_connection", {"connector": {"host": "another"}})
    assert other.status == 200

    def exports():
        found = [host.fake.world.state.volumes.get(volume) for host in cloud.hosts.values()]
        return sum(len(one.exports) for one in found if one is not None)

    assert exports() == 2
    shown = volumes.show(volume)
    assert (shown["status"], shown["attachments"]) == ("available", [])
    assert volumes.ok("GET", f"/attachments?volume_id={volume}")["attachments"] == []
    assert volumes.call("DELETE", f"/volumes/{volume}").status == 400
    assert volumes.action(volume, "revert", {"snapshot_id": volumes.snapshot(volume)}).status == 400
    for wrong in ({}, {"connector": {}}, {"connector": {"host": 5}}, {"connector": "client"}):
        assert volumes.action(volume, "os-initialize_connection", wrong).status == 400
        assert volumes.action(volume, "os-terminate_connection", wrong).status == 400
    for left in (1, 1):
        assert volumes.action(volume, "os-terminate_connection", connector).status == 202
        cloud.wait(lambda left=left: exports() == left)
    assert admin.call("DELETE", f"/volumes/{volume}?force=true&cascade=true").status == 202
    volumes.gone(f"/volumes/{volume}")
    assert exports() == 0


def test_flags_and_resets(volumes, admin):
    volume = volumes.create()
    assert volumes.action(volume, "os-set_bootable", {"bootable": "true"}).status == 200
    assert volumes.show(volume)["bootable"] == "true"
    assert volumes.action(volume, "os-update_readonly_flag", {"readonly": True}).status == 202
    assert volumes.show(volume)["metadata"]["readonly"] == "True"
    assert volumes.action(volume, "os-reset_status", {"status": "error"}).status == 403
    assert admin.action(volume, "os-reset_status", {"status": "error"}).status == 202
    assert volumes.show(volume)["status"] == "error"
    assert admin.action(volume, "os-reset_status", {"status": "merry"}).status == 400
    assert admin.action(volume, "os-reset_status", {}).status == 400
    assert volumes.action(volume, "os-dance").status == 400
    assert volumes.call("POST", f"/volumes/{volume}/action", {}).status == 400
    assert admin.action(volume, "os-force_delete").status == 202
    volumes.gone(f"/volumes/{volume}")


def test_a_volume_becomes_an_image_and_an_image_a_volume(cloud, volumes):
    volume = volumes.create()
    name = unique("image")
    body = {"image_name": name, "disk_format": "qcow2", "visibility": "private", "protected": False}
    answer = volumes.action(volume, "os-volume_upload_image", body)
    assert answer.status == 202, answer.text
    image = answer.body["os-volume_upload_image"]["image_id"]
    volumes.until(f"/volumes/{volume}", "volume", "available")
    shown = volumes.api.get("image", f"/images/{image}").body
    assert (shown["status"], shown["name"], shown["disk_format"]) == ("active", name, "qcow2")
    assert volumes.api.get("image", f"/images/{image}/file").status == 200
    made = volumes.create(imageRef=image)
    booted = volumes.show(made)
    assert booted["bootable"] == "true"
    assert booted["volume_image_metadata"]["image_id"] == image
    assert volumes.call("POST", "/volumes", {"volume": {"imageRef": image}}).status == 400
    assert volumes.api.delete("image", f"/images/{image}").status == 204


def test_a_volume_is_written_anew_from_an_image(cloud, volumes, other):
    api, volume = cloud.api("demo"), volumes.create()
    made = api.post("image", "/images", {"name": unique("new"), "disk_format": "raw", "container_format": "bare"})
    image = made["id"]
    assert volumes.action(volume, "os-reimage", {"image_id": image}).status == 400  # no data yet
    sent = api.put(
        "image", f"/images/{image}/file", data=b"x" * 512, headers={"content-type": "application/octet-stream"}
    )
    assert sent.status == 204, sent.text
    assert volumes.action(volume, "os-reimage", {"image_id": image}, version="3.67").status == 404
    assert volumes.action(volume, "os-reimage", {"image_id": NOBODY}).status == 404
    assert volumes.action(volume, "os-reimage", {"image_id": "x"}).status == 400
    assert other.action(volume, "os-reimage", {"image_id": image}).status == 404
    again = volumes.action(volume, "os-reimage", {"image_id": image})
    assert (again.status, again.text) == (202, "")
    shown = volumes.until(f"/volumes/{volume}", "volume", "available")
    assert shown["volume_image_metadata"]["image_id"] == image
    assert shown["bootable"] == "true"
    assert api.delete("image", f"/images/{image}").status == 204


def test_what_no_volume_is_encrypted_with(volumes, other):
    volume = volumes.create()
    assert volumes.ok("GET", f"/volumes/{volume}/encryption") == {"encryption_key_id": None}
    assert volumes.ok("GET", f"/volumes/{volume}/encryption/encryption_key_id") == {"encryption_key_id": None}
    assert volumes.ok("GET", f"/volumes/{volume}/encryption/cipher") == {"cipher": None}
    assert other.call("GET", f"/volumes/{volume}/encryption").status == 404
    assert volumes.call("GET", f"/volumes/{NOBODY}/encryption").status == 404


def test_a_failed_upload_leaves_no_image(cloud, volumes):
    volume = volumes.create()
    for host in cloud.hosts.values():
        host.fake.faults.fail("UploadVolume")
    try:
        answer = volumes.action(volume, "os-volume_upload_image", {"image_name": unique("image")})
        image = answer.body["os-volume_upload_image"]["image_id"]
        volumes.until(f"/volumes/{volume}", "volume", "available")
    finally:
        for host in cloud.hosts.values():
            host.fake.faults.clear()
    assert volumes.api.get("image", f"/images/{image}").status == 404


def test_a_type_chooses_its_backend(volumes, admin):
    for specs, status in (({"storage_protocol": "nbd"}, "available"), ({"storage_protocol": "smoke"}, "error")):
        kind = admin.ok("POST", "/types", {"volume_type": {"name": unique("type"), "extra_specs": specs}})
        volume = volumes.create(status, volume_type=kind["volume_type"]["name"])
        assert volumes.call("DELETE", f"/volumes/{volume}").status == 202
        volumes.gone(f"/volumes/{volume}")
        admin.ok("DELETE", f"/types/{kind['volume_type']['id']}")


def test_nothing_is_made_in_plain_form_that_was_to_be_encrypted(cloud, volumes, admin):
    kind = admin.ok("POST", "/types", {"volume_type": {"name": unique("secret")}})["volume_type"]
    plain = volumes.create()
    body = {"encryption": {"provider": "luks", "control_location": "front-end", "cipher": "aes-xts-plain64"}}
    admin.ok("POST", f"/types/{kind['id']}/encryption", body)
    refused = volumes.call("POST", "/volumes", {"volume": {"size": 1, "volume_type": kind["name"]}})
    assert refused.status == 400, refused.text
    assert "Key manager" in refused.body["badRequest"]["message"]
    assert volumes.action(plain, "os-retype", {"new_type": kind["name"]}).status == 400
    disk = {
        "boot_index": 0, "source_type": "blank", "destination_type": "volume", "volume_size": 1,
        "volume_type": kind["name"],
    }  # fmt: skip
    flavor = {"name": unique("flavor"), "ram": 64, "vcpus": 1, "disk": 0}
    flavor = cloud.api("admin").post("compute", "/flavors", {"flavor": flavor}).body["flavor"]["id"]
    server = {"name": "s", "flavorRef": flavor, "networks": "none", "block_device_mapping_v2": [disk]}
    answer = cloud.api("demo").post("compute", "/servers", {"server": server}, version="2.90")
    assert answer.status == 400, answer.text
    assert cloud.api("admin").delete("compute", f"/flavors/{flavor}").status == 202
    admin.ok("DELETE", f"/types/{kind['id']}")


def test_image_metadata(volumes):
    volume = volumes.create()
    assert volumes.action(volume, "os-set_image_metadata", {"metadata": {"os": "x"}}).body == {"metadata": {"os": "x"}}
    assert volumes.show(volume)["volume_image_metadata"] == {"os": "x"}
    assert volumes.action(volume, "os-show_image_metadata").body == {"metadata": {"os": "x"}}
    assert volumes.action(volume, "os-unset_image_metadata", {"key": "os"}).status == 200
    assert volumes.action(volume, "os-unset_image_metadata", {"key": "os"}).status == 404
