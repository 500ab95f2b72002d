"""Backups, transfers, types, QoS, quotas, services: the volume service's other nouns."""

import threading

import pytest

from tests.support.cloud import unique
from tests.support.patience import eventually

NOBODY = "00000000-0000-0000-0000-000000000000"


def test_backups(volumes, admin):
    volume = volumes.create(metadata={"kept": "yes"})
    made = volumes.ok("POST", "/backups", {"backup": {"volume_id": volume, "name": "b", "metadata": {"k": "v"}}})
    backup = made["backup"]["id"]
    shown = volumes.until(f"/backups/{backup}", "backup", "available")
    assert (shown["size"], shown["is_incremental"], shown["metadata"]) == (1, False, {"k": "v"})
    assert volumes.show(volume)["status"] == "available"
    child = volumes.ok("POST", "/backups", {"backup": {"volume_id": volume, "incremental": True}})["backup"]["id"]
    assert volumes.until(f"/backups/{child}", "backup", "available")["is_incremental"] is True
    assert volumes.ok("GET", f"/backups/{backup}")["backup"]["has_dependent_backups"] is True
    assert volumes.call("DELETE", f"/backups/{backup}").status == 400
    restored = volumes.ok("POST", f"/backups/{backup}/restore", {"restore": {"name": "again"}})["restore"]
    volumes.made.append(restored["volume_id"])
    volumes.until(f"/volumes/{restored['volume_id']}", "volume", "available")
    assert volumes.show(restored["volume_id"])["metadata"] == {"kept": "yes"}
    into = volumes.ok("POST", f"/backups/{backup}/restore", {"restore": {"volume_id": volume}})["restore"]
    assert into["volume_id"] == volume
    volumes.until(f"/volumes/{volume}", "volume", "available")
    volumes.until(f"/backups/{backup}", "backup", "available")
    copied = volumes.create(backup_id=child, size=None)
    assert volumes.show(copied)["size"] == 1
    assert volumes.ok("PUT", f"/backups/{child}", {"backup": {"name": "c"}})["backup"]["name"] == "c"
    record = admin.ok("GET", f"/backups/{child}/export_record")["backup-record"]
    assert volumes.call("GET", f"/backups/{child}/export_record").status == 403
    for one in (child, backup):
        assert volumes.call("DELETE", f"/backups/{one}").status == 202
        volumes.gone(f"/backups/{one}")
    again = admin.call("POST", "/backups/import_record", {"backup-record": record})
    assert again.status == 201, again.text
    assert admin.ok("GET", f"/backups/{child}")["backup"]["status"] == "available"
    admin.call("DELETE", f"/backups/{child}")
    admin.gone(f"/backups/{child}")
    broken = {"backup-record": {**record, "backup_url": "eHh4"}}
    assert admin.call("POST", "/backups/import_record", broken).status == 400


@pytest.mark.parametrize("end", ["made", "failed", "deleted"])
def test_a_backup_stays_while_a_volume_is_made_of_it(cloud, volumes, admin, end):
    backup = volumes.ok("POST", "/backups", {"backup": {"volume_id": volumes.create()}})["backup"]["id"]
    path = f"/backups/{backup}"
    volumes.until(path, "backup", "available")
    faults = [host.fake.faults for host in cloud.hosts.values()]
    try:
        for each in faults:
            each.hang("RestoreBackup", owner=path)
            if end == "failed":
                each.fail("RestoreBackup", after=True, owner=end)
        made = volumes.create(None, backup_id=backup)
        assert volumes.ok("GET", path)["backup"]["status"] == "restoring"
        assert volumes.call("DELETE", path).status == 400
        assert volumes.call("POST", "/volumes", {"volume": {"backup_id": backup, "size": 1}}).status == 400
        eventually(lambda: any(each.hung for each in faults))
        findings = cloud.control.operator.audit(fix=False)["findings"]
        assert "backup-stuck" not in [one["code"] for one in findings]
        if end == "deleted":
            assert admin.action(made, "os-force_delete").status == 202
        for each in faults:
            each.remove(path)
        volumes.until(path, "backup", "available")
    finally:
        for each in faults:
            each.remove(path)
            each.remove(end)
    if end == "deleted":
        volumes.gone(f"/volumes/{made}")
    else:
        assert volumes.show(made)["status"] == ("error" if end == "failed" else "available")
    volumes.ok("DELETE", path)
    volumes.gone(path)


def test_backups_are_listed_and_administrators_mend_them(volumes, admin, other):
    name = unique("backup")
    body = {"backup": {"volume_id": volumes.create(), "name": name}}
    backup = volumes.ok("POST", "/backups", body)["backup"]["id"]
    path = f"/backups/{backup}"
    volumes.until(path, "backup", "available")
    (listed,) = volumes.ok("GET", f"/backups?name={name}")["backups"]
    assert set(listed) == {"id", "name", "links"}
    assert (listed["id"], listed["name"]) == (backup, name)
    (detail,) = volumes.ok("GET", f"/backups/detail?name={name}")["backups"]
    assert detail == volumes.ok("GET", path)["backup"]
    assert backup not in [one["id"] for one in other.ok("GET", "/backups")["backups"]]
    assert volumes.call("POST", path + "/action", {"os-reset_status": {"status": "error"}}).status == 403
    assert admin.call("POST", path + "/action", {"os-reset_status": {"status": "merry"}}).status == 400
    assert admin.call("POST", path + "/action", {"os-reset_status": {"status": "creating"}}).status == 202
    assert volumes.ok("GET", path)["backup"]["status"] == "creating"
    assert volumes.call("DELETE", path).status == 400
    assert volumes.call("POST", path + "/action", {"os-force_delete": {}}).status == 403
    assert admin.call("POST", path + "/action", {"os-force_delete": {}}).status == 202
    volumes.gone(path)
    assert admin.call("POST", path + "/action", {"os-force_delete": {}}).status == 404


@pytest.mark.parametrize(("base", "version"), [("/os-volume-transfer", "3.0"), ("/volume-transfers", "3.55")])
def test_a_transfer_by_the_old_path_and_the_new(volumes, other, base, version):
    volume, name = volumes.create(), unique("transfer")
    made = volumes.call("POST", base, {"transfer": {"volume_id": volume, "name": name}}, version=version)
    assert made.status == 202, made.text
    transfer, one = made.body["transfer"], f"{base}/{made.body['transfer']['id']}"
    assert (transfer["volume_id"], transfer["name"]) == (volume, name)
    assert transfer["links"][0]["href"].endswith(one)
    again = volumes.call("POST", base, {"transfer": {"volume_id": volume}}, version=version)
    assert again.status == 400
    shown = volumes.ok("GET", one, version=version)["transfer"]
    assert shown == {key: value for key, value in transfer.items() if key != "auth_key"}
    assert shown.keys() == {"id", "volume_id", "name", "created_at", "links"} | (
        {"no_snapshots"} if version == "3.55" else set()
    )
    listed = volumes.ok("GET", f"{base}?name={name}", version=version)["transfers"]
    assert listed == [{key: shown[key] for key in ("id", "volume_id", "name", "links")}]
    assert volumes.ok("GET", f"{base}/detail?name={name}", version=version)["transfers"] == [shown]
    assert other.call("GET", one, version=version).status == 404
    assert transfer["id"] not in [t["id"] for t in other.ok("GET", base, version=version)["transfers"]]
    wrong = other.call("POST", one + "/accept", {"accept": {"auth_key": "wrong"}}, version=version)
    assert wrong.status == 400
    accepted = other.call("POST", one + "/accept", {"accept": {"auth_key": transfer["auth_key"]}}, version=version)
    assert accepted.status == 202, accepted.text
    assert accepted.body["transfer"]["volume_id"] == volume
    other.made.append(volume)
    assert other.show(volume)["status"] == "available"
    assert volumes.call("GET", one, version=version).status == 404
    assert volumes.call("GET", f"/volumes/{volume}").status == 404
    back = other.ok("POST", base, {"transfer": {"volume_id": volume}}, version=version)["transfer"]
    assert volumes.call("DELETE", f"{base}/{back['id']}", version=version).status == 404
    assert other.call("DELETE", f"{base}/{back['id']}", version=version).status == 202
    assert other.show(volume)["status"] == "available"


def test_the_new_path_of_transfers_begins_with_3_55(volumes):
    assert volumes.call("GET", "/volume-transfers", version="3.54").status == 404


def test_transfers(volumes, other):
    volume = volumes.create()
    made = volumes.ok("POST", "/volume-transfers", {"transfer": {"volume_id": volume, "name": "t"}})["transfer"]
    assert volumes.show(volume)["status"] == "awaiting-transfer"
    assert volumes.call("DELETE", f"/volumes/{volume}").status == 400
    assert other.call("GET", f"/volume-transfers/{made['id']}").status == 404
    accept = f"/os-volume-transfer/{made['id']}/accept"
    assert other.call("POST", accept, {"accept": {"auth_key": "wrong"}}).status == 400
    assert other.call("POST", accept, {"accept": {"auth_key": made["auth_key"]}}).status == 202
    assert other.show(volume)["status"] == "available"
    assert volumes.call("GET", f"/volumes/{volume}").status == 404
    back = other.ok("POST", "/os-volume-transfer", {"transfer": {"volume_id": volume}})["transfer"]
    assert back["id"] in [t["id"] for t in other.ok("GET", "/os-volume-transfer/detail")["transfers"]]
    assert other.call("DELETE", f"/os-volume-transfer/{back['id']}").status == 202
    assert other.show(volume)["status"] == "available"


def test_types_and_access(volumes, admin):
    name = unique("type")
    body = {"volume_type": {"name": name, "os-volume-type-access:is_public": False, "extra_specs": {"of:a": "b"}}}
    kind = admin.ok("POST", "/types", body)["volume_type"]
    assert admin.call("POST", "/types", body).status == 409
    assert volumes.call("POST", "/types", body).status == 403
    path = f"/types/{kind['id']}"
    assert volumes.call("GET", path).status == 404
    project = volumes.api.project_id
    assert admin.call("POST", path + "/action", {"addProjectAccess": {"project": project}}).status == 202
    assert admin.call("POST", path + "/action", {"addProjectAccess": {"project": project}}).status == 409
    assert admin.ok("GET", path + "/os-volume-type-access")["volume_type_access"][0]["project_id"] == project
    assert volumes.ok("GET", path)["volume_type"]["extra_specs"] == {}
    assert admin.ok("POST", path + "/extra_specs", {"extra_specs": {"c": "d"}}) == {"extra_specs": {"c": "d"}}
    assert admin.ok("GET", path + "/extra_specs") == {"extra_specs": {"of:a": "b", "c": "d"}}
    assert admin.ok("PUT", path + "/extra_specs/c", {"c": "e"}) == {"c": "e"}
    assert admin.ok("GET", path + "/extra_specs/c") == {"c": "e"}
    assert admin.ok("DELETE", path + "/extra_specs/c") is None
    assert admin.ok("POST", path + "/extra_specs", {"extra_specs": {"x:c": "e"}})
    assert admin.call("DELETE", path + "/extra_specs/x:c").status == 202
    assert admin.call("GET", path + "/extra_specs/c").status == 404
    volume = volumes.create(volume_type=name)
    assert volumes.show(volume)["volume_type"] == name
    assert admin.call("DELETE", path).status == 400
    assert volumes.action(volume, "os-retype", {"new_type": "__DEFAULT__"}).status == 202
    assert volumes.show(volume)["volume_type"] == "__DEFAULT__"
    assert admin.call("POST", path + "/action", {"removeProjectAccess": {"project": project}}).status == 202
    assert admin.ok("PUT", path, {"volume_type": {"description": "new"}})["volume_type"]["description"] == "new"
    default = f"/default-types/{project}"
    expected = {"project_id": project, "volume_type_id": kind["id"]}
    assert admin.call("PUT", default, {"default_type": {"volume_type": "none-such"}}).status == 400
    assert admin.ok("PUT", default, {"default_type": {"volume_type": kind["id"]}}) == {"default_type": expected}
    assert admin.ok("GET", default) == {"default_type": expected}
    assert expected in admin.ok("GET", "/default-types")["default_types"]
    assert volumes.call("GET", "/default-types").status == 403
    assert admin.call("GET", "/default-types", version="3.61").status == 404
    assert admin.call("DELETE", default).status == 204
    assert admin.call("GET", default).status == 404
    assert expected not in admin.ok("GET", "/default-types")["default_types"]
    assert admin.call("DELETE", path).status == 202
    assert admin.call("GET", path).status == 404


def test_encryption_of_a_type(admin):
    kind = admin.ok("POST", "/types", {"volume_type": {"name": unique("type")}})["volume_type"]["id"]
    path = f"/types/{kind}/encryption"
    made = admin.ok("POST", path, {"encryption": {"provider": "luks", "control_location": "front-end"}})["encryption"]
    assert admin.call("POST", path, {"encryption": {"provider": "luks"}}).status == 400
    assert admin.ok("GET", path)["provider"] == "luks"
    assert admin.ok("PUT", f"{path}/{made['encryption_id']}", {"encryption": {"key_size": 256}})
    assert admin.ok("GET", path + "/key_size") == {"key_size": 256}
    assert admin.call("DELETE", f"{path}/{made['encryption_id']}").status == 202
    assert admin.ok("GET", path) == {}
    admin.call("DELETE", f"/types/{kind}")


def test_qos(volumes, admin):
    name = unique("qos")
    made = admin.ok("POST", "/qos-specs", {"qos_specs": {"name": name, "consumer": "front-end", "iops": "5"}})
    qos = made["qos_specs"]["id"]
    assert admin.call("POST", "/qos-specs", {"qos_specs": {"name": name}}).status == 409
    assert admin.ok("PUT", f"/qos-specs/{qos}", {"qos_specs": {"more": "1"}}) == {"qos_specs": {"more": "1"}}
    assert admin.call("PUT", f"/qos-specs/{qos}/delete_keys", {"keys": ["more"]}).status == 202
    assert admin.ok("GET", f"/qos-specs/{qos}")["qos_specs"]["specs"] == {"iops": "5"}
    kind = admin.ok("POST", "/types", {"volume_type": {"name": unique("type")}})["volume_type"]["id"]
    assert admin.call("GET", f"/qos-specs/{qos}/associate?vol_type_id={kind}").status == 202
    assert [a["id"] for a in admin.ok("GET", f"/qos-specs/{qos}/associations")["qos_associations"]] == [kind]
    assert admin.call("DELETE", f"/qos-specs/{qos}").status == 400
    assert admin.call("GET", f"/qos-specs/{qos}/disassociate").status == 400
    assert admin.call("GET", f"/qos-specs/{qos}/disassociate?vol_type_id={NOBODY}").status == 404
    assert volumes.call("GET", f"/qos-specs/{qos}/disassociate?vol_type_id={kind}").status == 403
    assert admin.call("GET", f"/qos-specs/{qos}/disassociate?vol_type_id={kind}").status == 202
    assert admin.ok("GET", f"/qos-specs/{qos}/associations")["qos_associations"] == []
    assert admin.ok("GET", f"/types/{kind}")["volume_type"]["qos_specs_id"] is None
    assert admin.call("GET", f"/qos-specs/{qos}/associate?vol_type_id={kind}").status == 202
    assert admin.call("GET", f"/qos-specs/{qos}/disassociate_all").status == 202
    assert admin.call("DELETE", f"/qos-specs/{qos}").status == 202
    assert volumes.call("GET", "/qos-specs").status == 403
    admin.call("DELETE", f"/types/{kind}")


def test_quotas(volumes, admin, other):
    project = other.api.project_id
    path = f"/os-quota-sets/{project}"
    assert admin.ok("PUT", path, {"quota_set": {"volumes": 2, "gigabytes": "5"}})["quota_set"]["volumes"] == 2
    assert admin.call("PUT", path, {"quota_set": {"volumes": -2}}).status == 400
    assert admin.call("PUT", path, {"quota_set": {"horses": 2}}).status == 400
    assert volumes.call("GET", path).status == 403
    try:
        first = other.create(size=3)
        answer = other.call("POST", "/volumes", {"volume": {"size": 3}})
        assert answer.status == 413
        assert answer.body["overLimit"]["message"].startswith("Requested volume or snapshot exceeds allowed gigabytes")
        usage = other.ok("GET", f"{path}?usage=true")["quota_set"]
        assert usage["gigabytes"] == {"limit": 5, "in_use": 3, "reserved": 0, "allocated": 0}
        assert other.action(first, "os-extend", {"new_size": 6}).status == 413
        results = []

        def create():
            answer = other.cloud.api("other").post("volume", "/volumes", {"volume": {"size": 1}})
            results.append(answer.status)
            if answer.status == 202:
                other.made.append(answer["volume"]["id"])

        threads = [threading.Thread(target=create) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(results) == [202, 413, 413, 413, 413, 413]
        absolute = other.ok("GET", "/limits")["limits"]["absolute"]
        assert (absolute["maxTotalVolumes"], absolute["totalVolumesUsed"]) == (2, 2)
    finally:
        assert admin.call("DELETE", path).status == 200
    assert admin.ok("GET", path)["quota_set"]["volumes"] == 10
    classes = "/os-quota-class-sets/default"
    assert admin.ok("GET", classes)["quota_class_set"]["volumes"] == 10
    assert admin.ok("PUT", classes, {"quota_class_set": {"volumes": 11}})["quota_class_set"]["volumes"] == 11
    assert admin.ok("GET", path + "/defaults")["quota_set"]["volumes"] == 11
    admin.ok("PUT", classes, {"quota_class_set": {"volumes": 10}})


def test_what_is_said_of_the_service(cloud, volumes, admin):
    services = admin.ok("GET", "/os-services")["services"]
    assert {row["binary"] for row in services} == {"cinder-scheduler", "cinder-volume", "cinder-backup"}
    assert {row["state"] for row in services} == {"up"}
    assert volumes.call("GET", "/os-services").status == 403
    pools = admin.ok("GET", "/scheduler-stats/get_pools?detail=true")["pools"]
    assert pools[0]["capabilities"]["total_capacity_gb"] > 0
    host = pools[0]["name"]
    assert admin.ok("GET", f"/capabilities/{host.partition('#')[0]}")["storage_protocol"] == "nbd"
    assert admin.call("GET", "/capabilities/nowhere@x").status == 404
    listed = {(row["service"], row["host_name"]) for row in admin.ok("GET", "/os-hosts")["hosts"]}
    assert {("cinder-scheduler", "fake-1"), ("cinder-volume", "fake-1@file"), ("cinder-backup", "fake-1")} <= listed
    assert admin.ok("GET", "/os-hosts?zone=elsewhere")["hosts"] == []
    assert admin.ok("GET", f"/os-hosts/{host.partition('#')[0]}")["host"][0]["resource"]["project"] == "(total)"
    assert volumes.ok("GET", "/os-availability-zone")["availabilityZoneInfo"][0]["zoneName"] == "nova"
    extensions = volumes.ok("GET", "/extensions")["extensions"]
    assert {"alias", "name", "description", "updated", "links"} == set(extensions[0])
    for one in (extensions[0], extensions[-1]):
        assert volumes.ok("GET", f"/extensions/{one['alias']}") == {"extension": one}
    assert volumes.call("GET", "/extensions/warp-drive").status == 404
    assert volumes.ok("GET", "/resource_filters?resource=volume")["resource_filters"][0]["resource"] == "volume"
    root = volumes.api._session.get(f"{cloud.url}/volume/", timeout=10)
    assert root.status_code == 300
    assert root.json()["versions"][0]["version"] == "3.71"


def test_services_are_disabled_and_frozen(cloud, volumes, admin):
    backend = f"{next(iter(cloud.hosts))}@file"

    def shown():
        (found,) = admin.ok("GET", f"/os-services?host={backend}&binary=cinder-volume")["services"]
        return found["status"], found["disabled_reason"], found["frozen"]

    named = {"binary": "cinder-volume", "host": backend}
    assert shown() == ("enabled", None, False)
    try:
        for word in ("disable", "enable", "freeze", "thaw"):
            assert volumes.call("PUT", f"/os-services/{word}", {"host": backend}).status == 403
        answer = admin.call("PUT", "/os-services/disable", named)
        assert answer.status == 200, answer.text
        assert {**named, "service": "cinder-volume", "disabled": True, "status": "disabled"} == answer.body
        assert shown() == ("disabled", None, False)
        assert admin.call("PUT", "/os-services/disable", {"host": backend}).status == 400
        assert admin.call("PUT", "/os-services/disable", {**named, "host": "nowhere@file"}).status == 404
        assert admin.ok("PUT", "/os-services/enable", named)["status"] == "enabled"
        frozen = admin.call("PUT", "/os-services/freeze", {"host": backend})
        assert (frozen.status, frozen.text) == (200, "")
        assert shown() == ("disabled", "frozen", True)
        assert admin.call("PUT", "/os-services/freeze", {"host": "nowhere@file"}).status == 400
        thawed = admin.call("PUT", "/os-services/thaw", {"host": backend})
        assert (thawed.status, thawed.text) == (200, "")
        assert shown() == ("enabled", None, False)
    finally:
        admin.call("PUT", "/os-services/thaw", {"host": backend})
        admin.call("PUT", "/os-services/enable", named)


def test_group_types(volumes, admin):
    name = unique("group-type")
    body = {"group_type": {"name": name, "group_specs": {"a": "b"}}}
    made = admin.call("POST", "/group_types", body)
    assert made.status == 202, made.text
    path = f"/group_types/{made['group_type']['id']}"
    assert admin.call("POST", "/group_types", body).status == 409
    assert volumes.call("POST", "/group_types", body).status == 403
    assert volumes.call("GET", path, version="3.10").status == 404
    assert "group_specs" not in volumes.ok("GET", path)["group_type"]
    assert name in [one["name"] for one in volumes.ok("GET", "/group_types")["group_types"]]
    assert admin.ok("PUT", path, {"group_type": {"description": "d"}})["group_type"]["description"] == "d"
    assert admin.ok("POST", path + "/group_specs", {"group_specs": {"c": "d"}}) == {"group_specs": {"c": "d"}}
    assert admin.ok("PUT", path + "/group_specs/c", {"c": "e"}) == {"c": "e"}
    assert admin.ok("GET", path + "/group_specs") == {"group_specs": {"a": "b", "c": "e"}}
    assert admin.ok("GET", path + "/group_specs/c") == {"c": "e"}
    assert volumes.call("GET", path + "/group_specs/c").status == 403
    assert admin.call("GET", path + "/group_specs/c", version="3.10").status == 404
    assert admin.call("DELETE", path + "/group_specs/c").status == 202
    assert admin.call("GET", path + "/group_specs/c").status == 404
    assert admin.call("DELETE", path).status == 202
    assert admin.call("GET", path).status == 404


def test_default_quotas_are_the_settings(new_cloud) -> None:
    def configure(settings) -> None:
        settings.quota.volumes, settings.quota.gigabytes, settings.quota.snapshots = 1, 7, -1

    api = new_cloud(configure=configure).api("demo")
    quota = api.get("volume", f"/os-quota-sets/{api.project_id}")["quota_set"]
    assert (quota["volumes"], quota["gigabytes"], quota["snapshots"], quota["backups"]) == (1, 7, -1, 10)
    assert api.post("volume", "/volumes", {"volume": {"size": 1}}).status == 202
    assert api.post("volume", "/volumes", {"volume": {"size": 1}}).status == 413
