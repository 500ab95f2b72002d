"""Changes of volumes asked for at once: what comes second sees what came first."""

import base64
import json
from typing import Any

import pytest

from tests.support.at_once import at_once, rounds, statuses
from tests.support.cloud import Answer, Cloud, unique
from tests.volume.conftest import Volumes


def ask(volumes: Volumes, method: str, path: str, body: Any = None) -> Any:
    return lambda: volumes.call(method, path, body)


def act(volumes: Volumes, volume: str, name: str, argument: Any = None) -> Any:
    return ask(volumes, "POST", f"/volumes/{volume}/action", {name: argument or {}})


def settle(volumes: Volumes) -> None:
    assert volumes.cloud.settle()


CHANGES: dict[str, tuple[str, str, Any]] = {  # what needs an available volume: method, path, body
    "delete": ("DELETE", "/volumes/{id}", None),
    "extend": ("POST", "/volumes/{id}/action", {"os-extend": {"new_size": 2}}),
    "snapshot": ("POST", "/snapshots", {"snapshot": {"volume_id": "{id}"}}),
    "back up": ("POST", "/backups", {"backup": {"volume_id": "{id}"}}),
    "reserve": ("POST", "/attachments", {"attachment": {"volume_uuid": "{id}"}}),
    "reserve as of old": ("POST", "/volumes/{id}/action", {"os-reserve": {}}),
    "upload": ("POST", "/volumes/{id}/action", {"os-volume_upload_image": {"image_name": "made of it"}}),
    "transfer": ("POST", "/volume-transfers", {"transfer": {"volume_id": "{id}"}}),
    "move": ("POST", "/volumes/{id}/action", {"os-migrate_volume": {"host": "{other host}"}}),
}
BESIDES = [(first, second) for n, first in enumerate(CHANGES) for second in list(CHANGES)[n:]]


@pytest.mark.parametrize(("first", "second"), BESIDES)
def test_one_of_two_changes(cloud: Cloud, volumes: Volumes, first: str, second: str) -> None:
    """Each makes the volume something else than available; but a snapshot does not, and none is in the way of another.
    Asked twice to delete it, the second time changes nothing."""
    volume, admin = volumes.create(), Volumes(cloud, "admin")
    here = admin.show(volume)["os-vol-host-attr:host"]
    other = here.replace("fake-1", "fake-3").replace("fake-2", "fake-1").replace("fake-3", "fake-2")

    def change(name: str) -> Any:
        method, path, body = CHANGES[name]
        filled = json.loads(json.dumps(body).replace("{id}", volume).replace("{other host}", other))
        return ask(admin if name == "move" else volumes, method, path.replace("{id}", volume), filled)

    answers = at_once(change(first), change(second))
    done = [answer.status < 300 for answer in answers]
    assert max(answer.status for answer in answers) < 500, [answer.text for answer in answers]
    if "snapshot" in (first, second) and (done[0] or first == "snapshot"):
        assert any(done)
        if "delete" in (first, second):
            assert done.count(True) == 1
    elif cloud.control.db.is_postgres:
        assert done.count(True) == 1, [answer.text for answer in answers]
    else:  # where they are serial, the first may have come to its end
        assert any(done)
    settle(volumes)
    remove_made(volumes, answers)


def remove_made(volumes: Volumes, answers: list[Answer]) -> None:
    """Images and backups: they count against quotas that are those of other tests, too."""
    for made in [answer.body or {} for answer in answers]:
        if "os-volume_upload_image" in made:
            volumes.cloud.api("demo").delete("image", f"/images/{made['os-volume_upload_image']['image_id']}")
        if "backup" in made:
            volumes.ok("DELETE", f"/backups/{made['backup']['id']}")
            volumes.gone(f"/backups/{made['backup']['id']}")


def test_metadata_of_all_is_kept(cloud: Cloud, volumes: Volumes) -> None:
    volume = volumes.create()
    snapshot = volumes.snapshot(volume)
    for path in (f"/volumes/{volume}/metadata", f"/snapshots/{snapshot}/metadata"):
        answers = at_once(*[ask(volumes, "POST", path, {"metadata": {key: "x"}}) for key in "abc"])
        assert statuses(answers) == [200, 200, 200]
        assert set(volumes.ok("GET", path)["metadata"]) == {"a", "b", "c"}


def test_a_snapshot_goes_while_it_is_used(cloud: Cloud, volumes: Volumes) -> None:
    volume = volumes.create()
    for _ in rounds(cloud):
        snapshot = volumes.snapshot(volume)
        gone, made = at_once(
            ask(volumes, "DELETE", f"/snapshots/{snapshot}"),
            ask(volumes, "POST", "/backups", {"backup": {"volume_id": volume, "snapshot_id": snapshot}}),
        )
        found = statuses([gone, made])  # where they are serial, the backup may be done when the snapshot goes
        assert found in ([202, 400], [202, 404], [400, 202]) or not cloud.control.db.is_postgres
        settle(volumes)
        remove_made(volumes, [made])


def test_a_transfer_is_accepted_once(cloud: Cloud, volumes: Volumes) -> None:
    for _ in rounds(cloud):
        volume = volumes.create()
        made = volumes.ok("POST", "/volume-transfers", {"transfer": {"volume_id": volume}})["transfer"]
        path = f"/volume-transfers/{made['id']}"
        body = {"accept": {"auth_key": made["auth_key"]}}
        others = [Volumes(cloud, "other"), Volumes(cloud, "admin")]
        answers = at_once(*[ask(one, "POST", path + "/accept", body) for one in others], ask(volumes, "DELETE", path))
        assert sorted(statuses(answers)) == [202, 404, 404]
        settle(volumes)


def test_a_backup_goes_while_it_is_used(cloud: Cloud, volumes: Volumes) -> None:
    volume = volumes.create()
    target = volumes.create()
    uses = [
        ("/backups", {"backup": {"volume_id": volume, "incremental": True}}),
        ("/backups/{id}/restore", {"restore": {"volume_id": target}}),
    ]
    for path, body in uses:
        backup = volumes.ok("POST", "/backups", {"backup": {"volume_id": volume}})["backup"]["id"]
        volumes.until(f"/backups/{backup}", "backup", "available")
        gone, made = at_once(
            ask(volumes, "DELETE", f"/backups/{backup}"), ask(volumes, "POST", path.replace("{id}", backup), body)
        )
        found = statuses([gone, made])
        assert found in ([202, 400], [202, 404], [400, 202]) or not cloud.control.db.is_postgres
        settle(volumes)
        if made.status == 202 and "backup" in made.body:
            volumes.ok("DELETE", f"/backups/{made['backup']['id']}")
            volumes.gone(f"/backups/{made['backup']['id']}")
        if gone.status != 202:
            volumes.ok("DELETE", f"/backups/{backup}")
        volumes.gone(f"/backups/{backup}")


def test_a_backup_is_restored_once_at_a_time(cloud: Cloud, volumes: Volumes) -> None:
    volume, targets = volumes.create(), [volumes.create(), volumes.create()]
    backup = volumes.ok("POST", "/backups", {"backup": {"volume_id": volume}})["backup"]["id"]
    volumes.until(f"/backups/{backup}", "backup", "available")
    path = f"/backups/{backup}/restore"
    answers = at_once(*[ask(volumes, "POST", path, {"restore": {"volume_id": one}}) for one in targets])
    second = statuses(answers).count(400)
    assert second == 1 or not cloud.control.db.is_postgres, "where they are serial, the first may have come to its end"
    settle(volumes)
    volumes.ok("DELETE", f"/backups/{backup}")
    volumes.gone(f"/backups/{backup}")


def test_a_record_is_imported_once(cloud: Cloud, volumes: Volumes) -> None:
    volume, admin = volumes.create(), Volumes(cloud, "admin")
    backup = volumes.ok("POST", "/backups", {"backup": {"volume_id": volume}})["backup"]["id"]
    volumes.until(f"/backups/{backup}", "backup", "available")
    record = admin.ok("GET", f"/backups/{backup}/export_record")["backup-record"]
    known = json.loads(base64.b64decode(record["backup_url"]))
    volumes.ok("DELETE", f"/backups/{backup}")
    volumes.gone(f"/backups/{backup}")
    known["host"] = None  # its data is gone
    record["backup_url"] = base64.b64encode(json.dumps(known).encode()).decode()
    answers = at_once(*[ask(admin, "POST", "/backups/import_record", {"backup-record": record})] * 2)
    assert sorted(statuses(answers)) == [201, 400]
    admin.ok("DELETE", f"/backups/{backup}")
    settle(volumes)


def test_an_attachment_goes_twice(cloud: Cloud, volumes: Volumes) -> None:
    volume = volumes.create()
    for _ in rounds(cloud):
        made = volumes.ok("POST", "/attachments", {"attachment": {"volume_uuid": volume}})["attachment"]["id"]
        answers = at_once(*[ask(volumes, "DELETE", f"/attachments/{made}")] * 2)
        assert sorted(statuses(answers)) == [200, 404]
        assert volumes.show(volume)["status"] == "available"


def test_a_type_goes_while_a_volume_of_it_comes(cloud: Cloud, volumes: Volumes) -> None:
    admin = Volumes(cloud, "admin")
    for _ in rounds(cloud):
        kind = admin.ok("POST", "/types", {"volume_type": {"name": unique("type")}})["volume_type"]
        asked = {"volume": {"size": 1, "volume_type": kind["id"]}}
        gone, made = at_once(ask(admin, "DELETE", f"/types/{kind['id']}"), ask(volumes, "POST", "/volumes", asked))
        assert statuses([gone, made]) in ([202, 404], [400, 202])
        if made.status == 202:
            volumes.made.append(made["volume"]["id"])
            volumes.clean()
            admin.ok("DELETE", f"/types/{kind['id']}")


def test_names_of_types_and_specs_of_all(cloud: Cloud) -> None:
    admin = Volumes(cloud, "admin")
    kinds = [admin.ok("POST", "/types", {"volume_type": {"name": unique("type")}})["volume_type"] for _ in range(2)]
    name = unique("type")
    body = {"volume_type": {"name": name}}
    answers = at_once(
        *[ask(admin, "PUT", f"/types/{kind['id']}", body) for kind in kinds], ask(admin, "POST", "/types", body)
    )
    assert sorted(statuses(answers)) in ([200, 409, 409],)
    path = f"/types/{kinds[0]['id']}"
    answers = at_once(*[ask(admin, "POST", path + "/extra_specs", {"extra_specs": {key: "x"}}) for key in "abc"])
    assert statuses(answers) == [200, 200, 200]
    assert set(admin.ok("GET", path + "/extra_specs")["extra_specs"]) == {"a", "b", "c"}
    for made in admin.ok("GET", "/types?is_public=none")["volume_types"]:
        if made["name"] == name or made["id"] in {kind["id"] for kind in kinds}:
            admin.ok("DELETE", f"/types/{made['id']}")


def test_specs_go_while_a_type_takes_them(cloud: Cloud) -> None:
    admin = Volumes(cloud, "admin")
    for _ in rounds(cloud):
        kind = admin.ok("POST", "/types", {"volume_type": {"name": unique("type")}})["volume_type"]["id"]
        specs = admin.ok("POST", "/qos-specs", {"qos_specs": {"name": unique("specs")}})["qos_specs"]["id"]
        gone, taken = at_once(
            ask(admin, "DELETE", f"/qos-specs/{specs}"),
            ask(admin, "GET", f"/qos-specs/{specs}/associate?vol_type_id={kind}"),
        )
        assert statuses([gone, taken]) in ([202, 404], [400, 202])
        found = admin.ok("GET", f"/types/{kind}")["volume_type"]["qos_specs_id"]
        assert found == (specs if taken.status == 202 else None)
        if taken.status == 202:
            admin.ok("DELETE", f"/qos-specs/{specs}?force=true")
        admin.ok("DELETE", f"/types/{kind}")
