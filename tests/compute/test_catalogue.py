"""Flavors, key pairs, groups, quotas, limits and what operators see."""

from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from tests.compute.helpers import Nova
from tests.support.cloud import unique

ZONE = {"availability_zone": "mars"}


def test_flavors(nova: Nova) -> None:
    admin = nova.as_user("admin")
    name = unique("flavor")
    body = {"name": name, "ram": "128", "vcpus": 2, "disk": 0, "OS-FLV-EXT-DATA:ephemeral": 1, "swap": 64}
    assert nova.post("/flavors", {"flavor": body}).status == 403
    made = admin.post("/flavors", {"flavor": body})
    assert made.status == 200, made.text
    flavor = made["flavor"]
    assert (flavor["ram"], flavor["swap"], flavor["os-flavor-access:is_public"]) == (128, 64, True)
    assert flavor["extra_specs"] == {}
    path = f"/flavors/{flavor['id']}"
    assert admin.post("/flavors", {"flavor": body}).status == 409
    for wrong in ({"ram": 0}, {"vcpus": "x"}, {"name": ""}, {"extra": 1}, {"disk": -1}, {"id": "a/b"}):
        assert admin.post("/flavors", {"flavor": {**body, "name": unique("f"), **wrong}}).status == 400, wrong
    assert nova.get(path)["flavor"]["name"] == name
    assert nova.get(path, version="2.60")["flavor"].keys().isdisjoint({"extra_specs"})
    assert nova.get(path, version="2.1")["flavor"]["vcpus"] == 2
    assert admin.put(path, {"flavor": {"description": "d"}})["flavor"]["description"] == "d"
    specs = path + "/os-extra_specs"
    assert admin.post(specs, {"extra_specs": {"hw:cpu_policy": "shared", "n": "1"}}).status == 200
    assert admin.put(specs + "/n", {"n": "2"})["n"] == "2"
    assert admin.put(specs + "/n", {"m": "2"}).status == 400
    assert nova.get(specs)["extra_specs"] == {"hw:cpu_policy": "shared", "n": "2"}
    assert nova.get(specs + "/n").body == {"n": "2"}
    assert admin.delete(specs + "/n").status == 200
    assert admin.delete(specs + "/n").status == 404
    assert name in [f["name"] for f in nova.get("/flavors")["flavors"]]
    assert name in [f["name"] for f in nova.get("/flavors/detail?minRam=100")["flavors"]]
    assert name not in [f["name"] for f in nova.get("/flavors/detail?minRam=4000")["flavors"]]
    page = nova.get("/flavors?limit=1")
    assert len(page["flavors"]) == 1
    assert "marker=" in page["flavors_links"][0]["href"]
    assert nova.get("/flavors?marker=none").status == 400
    assert nova.get(path + "/os-flavor-access").status == 403
    assert admin.get(path + "/os-flavor-access").status == 404
    assert admin.delete(path).status == 202
    assert nova.get(path).status == 404


def test_private_flavors(nova: Nova) -> None:
    admin = nova.as_user("admin")
    flavor = nova.new_flavor(**{"os-flavor-access:is_public": False})
    path = f"/flavors/{flavor}"
    assert nova.get(path).status == 404
    project = nova.cloud.api("demo").project_id
    added = admin.post(path + "/action", {"addTenantAccess": {"tenant": project}})
    assert added.status == 200, added.text
    assert {"flavor_id": flavor, "tenant_id": project} in added["flavor_access"]
    listed = admin.get(path + "/os-flavor-access")
    assert (listed.status, listed.body) == (200, {"flavor_access": [{"flavor_id": flavor, "tenant_id": project}]})
    assert nova.get(path + "/os-flavor-access").status == 403
    assert admin.post(path + "/action", {"addTenantAccess": {"tenant": project}}).status == 409
    assert admin.post(path + "/action", {"addTenantAccess": {"tenant": "nobody"}}).status == 400
    assert nova.get(path).status == 200
    assert admin.post(path + "/action", {"removeTenantAccess": {"tenant": project}}).status == 200
    assert admin.post(path + "/action", {"removeTenantAccess": {"tenant": project}}).status == 404
    assert nova.get(path).status == 404
    assert admin.delete(path).status == 202


def test_keypairs(nova: Nova) -> None:
    key = ed25519.Ed25519PrivateKey.generate().public_key()
    public = key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()
    name = unique("key")
    made = nova.post("/os-keypairs", {"keypair": {"name": name, "public_key": public + " me"}})
    assert made.status == 201, made.text
    assert "private_key" not in made["keypair"]
    assert len(made["keypair"]["fingerprint"].split(":")) == 16
    assert nova.post("/os-keypairs", {"keypair": {"name": name, "public_key": public}}).status == 409
    assert nova.post("/os-keypairs", {"keypair": {"name": unique("k")}}).status == 400
    assert nova.post("/os-keypairs", {"keypair": {"name": "a/b", "public_key": public}}).status == 400
    assert nova.post("/os-keypairs", {"keypair": {"name": unique("k"), "public_key": "ssh-rsa AAAA"}}).status == 400
    shown = nova.get(f"/os-keypairs/{name}")["keypair"]
    assert shown["public_key"] == public + " me"
    assert shown["user_id"] == nova.cloud.api("demo").user_id
    assert name in [item["keypair"]["name"] for item in nova.get("/os-keypairs")["keypairs"]]
    assert nova.as_user("member").get(f"/os-keypairs/{name}").status == 404
    assert nova.as_user("admin").get(f"/os-keypairs/{name}?user_id={shown['user_id']}").status == 200
    server = nova.boot(key_name=name)
    assert nova.show(server)["key_name"] == name
    nova.remove(server)
    assert nova.delete(f"/os-keypairs/{name}").status == 204
    assert nova.delete(f"/os-keypairs/{name}").status == 404
    for kind in ("ssh", "x509"):
        made = nova.post("/os-keypairs", {"keypair": {"name": name, "type": kind}}, version="2.2")
        assert made.status == 201, made.text
        assert "PRIVATE KEY" in made["keypair"]["private_key"]
        assert nova.delete(f"/os-keypairs/{name}", version="2.1").status == 202


def test_server_groups(nova: Nova) -> None:
    body = {"name": unique("group"), "policy": "anti-affinity", "rules": {"max_server_per_host": "1"}}
    made = nova.post("/os-server-groups", {"server_group": body})
    assert made.status == 200, made.text
    group = made["server_group"]
    assert group["rules"] == {"max_server_per_host": 1}
    old = {"name": unique("group"), "policies": ["affinity"]}
    assert nova.post("/os-server-groups", {"server_group": old}).status == 400
    assert nova.post("/os-server-groups", {"server_group": old}, version="2.63")["server_group"]["policies"] == [
        "affinity"
    ]
    body = {"server": nova.server_body(min_count=2), "os:scheduler_hints": {"group": group["id"]}}
    assert nova.post("/servers", body).status == 202
    members = nova.get(f"/os-server-groups/{group['id']}")["server_group"]["members"]
    assert len(members) == 2
    hosts = {nova.wait(server, "ACTIVE")["hostId"] for server in members}
    assert len(hosts) == 2
    assert nova.show(members[0])["server_groups"] == [group["id"]]
    for server in members:
        nova.remove(server)
    assert nova.as_user("other").get(f"/os-server-groups/{group['id']}").status == 404
    assert nova.delete(f"/os-server-groups/{group['id']}").status == 204
    hints = {"group": group["id"]}
    assert nova.post("/servers", {"server": nova.server_body(), "os:scheduler_hints": hints}).status == 400


def test_quotas_and_limits(nova: Nova) -> None:
    admin = nova.as_user("admin")
    project = nova.cloud.api("other").project_id
    path = f"/os-quota-sets/{project}"
    first = admin.get(path)["quota_set"]
    assert (first["instances"], first["id"]) == (10, project)
    assert "injected_files" not in first
    assert "floating_ips" in admin.get(path, version="2.1")["quota_set"]
    assert nova.get(path).status == 403
    assert admin.put(path, {"quota_set": {"instances": "7"}})["quota_set"]["instances"] == 7
    assert admin.put(path, {"quota_set": {"instances": -2}}).status == 400
    assert admin.put(path, {"quota_set": {"nothing": 1}}).status == 400
    assert admin.get(path + "/defaults")["quota_set"]["instances"] == 10
    other = nova.as_user("other")
    assert other.get("/limits")["limits"]["absolute"]["maxTotalInstances"] == 7
    assert other.get(path + "/detail")["quota_set"]["cores"]["in_use"] == 0
    assert admin.delete(path).status == 202
    assert admin.get(path)["quota_set"]["instances"] == 10
    classes = "/os-quota-class-sets/default"
    assert admin.get(classes)["quota_class_set"]["cores"] == 20
    assert nova.put(classes, {"quota_class_set": {"cores": 21}}).status == 403
    for wrong in ({"cores": -2}, {"nothing": 1}, {"cores": "x"}):
        assert admin.put(classes, {"quota_class_set": wrong}).status == 400, wrong
    changed = admin.put(classes, {"quota_class_set": {"cores": "21"}})
    try:
        assert changed.status == 200, changed.text
        assert changed["quota_class_set"]["cores"] == 21
        assert "id" not in changed["quota_class_set"]
        assert admin.get(classes)["quota_class_set"] == {**changed["quota_class_set"], "id": "default"}
        assert admin.get(path + "/defaults")["quota_set"]["cores"] == 21
        assert admin.get(path)["quota_set"]["cores"] == 21
        assert "floating_ips" in admin.put(classes, {"quota_class_set": {}}, version="2.1")["quota_class_set"]
    finally:
        assert admin.put(classes, {"quota_class_set": {"cores": 20}})["quota_class_set"]["cores"] == 20
    assert admin.get("/os-quota-sets/nobody").status == 400
    assert other.get("/limits", version="2.35")["limits"]["absolute"]["maxSecurityGroups"] == 10


def test_hosts(nova: Nova) -> None:
    admin = nova.as_user("admin")
    assert nova.get("/os-hypervisors").status == 403
    found = admin.get("/os-hypervisors/detail")["hypervisors"]
    assert {item["hypervisor_hostname"] for item in found} == {"fake-1", "fake-2"}
    old = admin.get("/os-hypervisors/detail", version="2.1")["hypervisors"][0]
    assert isinstance(old["id"], int)
    assert isinstance(old["cpu_info"], str)
    assert admin.get(f"/os-hypervisors/{found[0]['id']}")["hypervisor"]["state"] == "up"
    assert admin.get("/os-hypervisors/1").status == 400
    assert admin.get("/os-hypervisors/statistics", version="2.1")["hypervisor_statistics"]["count"] == 2
    assert admin.get("/os-hypervisors/statistics").status == 404
    services = admin.get("/os-services")["services"]
    assert {item["binary"] for item in services} == {"nova-compute", "nova-conductor", "nova-scheduler"}
    mine = next(item for item in services if item["host"] == "fake-2" and item["binary"] == "nova-compute")
    path = f"/os-services/{mine['id']}"
    off = admin.put(path, {"status": "disabled", "disabled_reason": "rest"})["service"]
    assert (off["status"], off["disabled_reason"]) == ("disabled", "rest")
    old_way = {"host": "fake-2", "binary": "nova-compute"}
    assert admin.put("/os-services/enable", old_way, version="2.1")["service"]["status"] == "enabled"
    assert admin.put(path, {}).status == 400
    zones = nova.get("/os-availability-zone")["availabilityZoneInfo"]
    assert zones == [{"zoneName": "nova", "zoneState": {"available": True}, "hosts": None}]
    whole = admin.get("/os-availability-zone/detail")["availabilityZoneInfo"]
    assert "fake-1" in next(zone for zone in whole if zone["zoneName"] == "nova")["hosts"]
    assert admin.get("/os-migrations")["migrations"] == []


def test_hypervisors_in_every_version(nova: Nova) -> None:
    admin = nova.as_user("admin")
    server = nova.boot()
    name = admin.show(server)["OS-EXT-SRV-ATTR:host"]
    listed = admin.get("/os-hypervisors")
    assert listed.status == 200
    assert {item["hypervisor_hostname"] for item in listed["hypervisors"]} == {"fake-1", "fake-2"}
    assert listed["hypervisors"][0].keys() == {"id", "hypervisor_hostname", "state", "status"}
    (found,) = admin.get(f"/os-hypervisors?hypervisor_hostname_pattern={name}&with_servers=true")["hypervisors"]
    assert server in [one["uuid"] for one in found["servers"]]
    assert admin.get("/os-hypervisors?hypervisor_hostname_pattern=nowhere").status == 404
    assert admin.get("/os-hypervisors?limit=x").status == 400
    page = admin.get("/os-hypervisors?limit=1")
    assert (len(page["hypervisors"]), page["hypervisors_links"][0]["rel"]) == (1, "next")

    def old(end: str, version: str = "2.52") -> Any:
        return admin.get("/os-hypervisors/" + end, version=version)

    (match,) = old(f"{name}/search")["hypervisors"]
    assert match.keys() == {"id", "hypervisor_hostname", "state", "status"}
    assert len(old("fake/search")["hypervisors"]) == 2
    (match,) = old(f"{name}/servers")["hypervisors"]
    assert (match["hypervisor_hostname"], isinstance(match["id"], int)) == (name, True)
    assert server in [one["uuid"] for one in match["servers"]]
    up = old(f"{match['id']}/uptime")
    assert up.status == 200
    assert up["hypervisor"].keys() == {"id", "hypervisor_hostname", "state", "status", "uptime"}
    assert old(f"{found['id']}/uptime", "2.87")["hypervisor"]["hypervisor_hostname"] == name
    for end in ("nowhere/search", "nowhere/servers", "999/uptime"):
        assert old(end).status == 404, end
    for end, version in ((f"{name}/search", "2.53"), (f"{name}/servers", "2.53"), (f"{found['id']}/uptime", "2.88")):
        assert old(end, version).status == 404, end
    assert nova.get(f"/os-hypervisors/{name}/servers", version="2.1").status == 403
    nova.remove(server)


def test_a_compute_service_is_deleted(own_cloud: Any) -> None:
    nova, admin = Nova(own_cloud), Nova(own_cloud, "admin")
    (found,) = admin.get("/os-services?binary=nova-compute")["services"]
    path = f"/os-services/{found['id']}"
    (scheduler,) = admin.get("/os-services?binary=nova-scheduler")["services"]
    assert nova.delete(path).status == 403
    assert admin.delete("/os-services/1").status == 400
    assert admin.delete("/os-services/00000000-0000-0000-0000-000000000000").status == 404
    assert admin.delete(f"/os-services/{scheduler['id']}").status == 400
    server = nova.boot()
    assert admin.delete(path).status == 409
    nova.remove(server)
    own_cloud.host.lose()
    deleted = admin.delete(path)
    assert (deleted.status, deleted.text) == (204, "")
    assert admin.delete(path).status == 404
    assert admin.get("/os-services?binary=nova-compute")["services"] == []
    assert admin.get("/os-hypervisors")["hypervisors"] == []
    providers = own_cloud.api("admin").get("placement", "/resource_providers")["resource_providers"]
    assert providers == []


def test_aggregates(nova: Nova) -> None:
    admin = nova.as_user("admin")
    made = admin.post("/os-aggregates", {"aggregate": {"name": unique("agg"), "availability_zone": "mars"}})
    assert made.status == 200, made.text
    path = f"/os-aggregates/{made['aggregate']['id']}"
    shown = admin.get(path)
    assert (shown.status, shown["aggregate"]) == (200, made["aggregate"] | {"hosts": [], "metadata": ZONE})
    assert shown["aggregate"] in admin.get("/os-aggregates")["aggregates"]
    assert "uuid" not in admin.get(path, version="2.40")["aggregate"]
    assert nova.get("/os-aggregates").status == 403
    assert nova.get(path).status == 403
    assert admin.get("/os-aggregates/x").status == 400
    assert admin.post(path + "/action", {"add_host": {"host": "nowhere"}}).status == 404
    added = admin.post(path + "/action", {"add_host": {"host": "fake-2"}})
    assert added["aggregate"]["hosts"] == ["fake-2"]
    assert admin.post(path + "/action", {"add_host": {"host": "fake-2"}}).status == 409
    assert admin.get(path)["aggregate"]["hosts"] == ["fake-2"]
    server = nova.boot(availability_zone="mars")
    shown = admin.show(server)
    assert shown["OS-EXT-AZ:availability_zone"] == "mars"
    assert shown["OS-EXT-SRV-ATTR:host"] == "fake-2"
    assert admin.put(path, {"aggregate": {"availability_zone": "venus"}}).status == 400
    nova.remove(server)
    assert admin.post(path + "/action", {"set_metadata": {"metadata": {"x": "y"}}})["aggregate"]["metadata"]["x"] == "y"
    assert admin.delete(path).status == 400
    assert admin.post(path + "/action", {"remove_host": {"host": "fake-2"}})["aggregate"]["hosts"] == []
    assert admin.put(path, {"aggregate": {"name": unique("agg")}}).status == 200
    assert admin.delete(path).status == 200
    assert admin.get(path).status == 404


def test_usage_and_other_lists(nova: Nova) -> None:
    project = nova.cloud.api("demo").project_id
    server = nova.boot()
    usage = nova.get(f"/os-simple-tenant-usage/{project}")["tenant_usage"]
    assert server in [item["instance_id"] for item in usage["server_usages"]]
    assert nova.get("/os-simple-tenant-usage").status == 403
    everyone = nova.as_user("admin").get("/os-simple-tenant-usage?detailed=1")["tenant_usages"]
    assert project in [item["tenant_id"] for item in everyone]
    assert nova.get(f"/os-simple-tenant-usage/{project}?start=nonsense").status == 400
    assert nova.get("/extensions")["extensions"]
    assert nova.get("/extensions/os-keypairs")["extension"]["name"] == "Keypairs"
    event = {"name": "network-changed", "server_uuid": server}
    assert nova.post("/os-server-external-events", {"events": [event]}).status == 403
    told = nova.as_user("admin").post("/os-server-external-events", {"events": [event]})
    assert told["events"][0]["code"] == 200
    nova.remove(server)


def test_versions(nova: Nova) -> None:
    import requests

    url = nova.cloud.url + "/compute"
    listed: dict[str, Any] = requests.get(url + "/", timeout=10).json()
    assert [(v["id"], v["version"]) for v in listed["versions"]] == [("v2.0", ""), ("v2.1", "2.96")]
    assert requests.get(url + "/v2/", timeout=10).json()["version"]["id"] == "v2.0"
    for path in ("/v2.1", "/v2.1/"):
        shown = requests.get(url + path, timeout=10).json()["version"]
        assert (shown["id"], shown["min_version"]) == ("v2.1", "2.1")
    refused = requests.get(url + "/v2.1/servers", timeout=10)
    assert refused.status_code == 401
