"""What the fuzzed cloud holds: one of each noun, in two projects, so that requests get past "no such thing"."""

import contextlib
from collections.abc import Callable
from typing import Any

from tests.fuzz.values import Pools
from tests.support.cloud import Api, Cloud, unique

# Bodies for operations whose document has no schema: the handler checks the body itself.
EXAMPLES: dict[tuple[str, str], Any] = {
    ("POST", "/image/v2/images"): {"name": "fuzz", "disk_format": "raw", "container_format": "bare", "min_ram": 0,
                                   "visibility": "private", "tags": ["a"], "protected": False, "property": "value"},
    ("PATCH", "/image/v2/images/{image_id}"): [
        {"op": "replace", "path": "/name", "value": "new"}, {"op": "add", "path": "/property", "value": "x"},
        {"op": "remove", "path": "/property"}, {"op": "replace", "path": "/tags", "value": ["a"]}],
    ("POST", "/image/v2/images/{image_id}/import"): {"method": {"name": "glance-direct"}},
    ("POST", "/image/v2/images/{image_id}/members"): {"member": "projects"},
    ("PUT", "/image/v2/images/{image_id}/members/{member_id}"): {"status": "accepted"},
    ("POST", "/image/v2/tasks"): {"type": "import", "input": {"import_from": "http://example.test/x",
                                  "import_from_format": "raw", "image_properties": {"name": "x"}}},
    ("POST", "/image/v2/metadefs/namespaces"): {
        "namespace": "Fuzz::One", "display_name": "One", "visibility": "public", "protected": False,
        "resource_type_associations": [{"name": "OS::Nova::Flavor"}], "tags": [{"name": "t"}],
        "properties": {"p": {"title": "P", "type": "string"}}, "objects": [{"name": "o", "properties": {}}]},
    ("PUT", "/image/v2/metadefs/namespaces/{namespace}"): {"namespace": "Fuzz::One", "visibility": "private"},
    ("POST", "/image/v2/metadefs/namespaces/{namespace}/resource_types"): {"name": "OS::Nova::Flavor", "prefix": "a"},
    ("POST", "/image/v2/metadefs/namespaces/{namespace}/properties"): {
        "name": "p1", "title": "P", "type": "string", "enum": ["a"], "minLength": 1},
    ("PUT", "/image/v2/metadefs/namespaces/{namespace}/properties/{name}"): {"name": "p1", "title": "P",
                                                                           "type": "integer", "minimum": 1},
    ("POST", "/image/v2/metadefs/namespaces/{namespace}/objects"): {
        "name": "o1", "description": "d", "required": ["a"], "properties": {"a": {"title": "A", "type": "string"}}},
    ("PUT", "/image/v2/metadefs/namespaces/{namespace}/objects/{name}"): {"name": "o1", "properties": {}},
    ("POST", "/image/v2/metadefs/namespaces/{namespace}/tags"): {"tags": [{"name": "a"}, {"name": "b"}]},
    ("PUT", "/image/v2/metadefs/namespaces/{namespace}/tags/{name}"): {"name": "c"},
}  # fmt: skip

JSON_PATCH = "application/openstack-images-v2.1-json-patch"
QUERY_NAMES: dict[str, tuple[str, ...]] = {
    "identity": ("limit", "marker", "name", "domain_id", "enabled", "parent_id", "tags", "not-tags", "sort_key",
                 "expires_at", "effective", "include_names", "user.id", "scope.project.id", "allow_expired",
                 "password_expires_at", "subtree_as_ids", "parents_as_list", "region_id", "service_id"),
    "image": ("limit", "marker", "sort", "sort_key", "sort_dir", "status", "visibility", "tag", "size_min", "size_max",
              "created_at", "updated_at", "name", "member_status", "owner", "os_hidden", "protected", "id", "any"),
    "placement": ("limit", "name", "uuid", "member_of", "resources", "required", "in_tree", "group_policy",
                  "resources1", "required1", "member_of1", "same_subtree", "root_required", "project_id", "user_id",
                  "consumer_type", "associated"),
    "network": ("limit", "marker", "page_reverse", "sort_key", "sort_dir", "fields", "id", "name", "status", "tags",
                "tags-any", "not-tags", "fixed_ips", "cidr", "admin_state_up", "device_id", "router:external",
                "network_id", "ip_version", "changed_since", "project_id", "shared", "mtu"),
    "volume": ("limit", "marker", "offset", "sort", "sort_key", "sort_dir", "all_tenants", "status", "name", "metadata",
               "bootable", "created_at", "with_count", "project_id", "usage", "force", "cascade", "is_public",
               "glance_metadata", "volume_id", "reserved", "host"),
    "compute": ("limit", "marker", "sort_key", "sort_dir", "status", "name", "changes-since", "changes-before",
                "all_tenants", "ip", "ip6", "flavor", "image", "host", "tags", "tags-any", "not-tags", "locked",
                "minDisk", "minRam", "is_public", "start", "end", "detailed", "user_id", "reservation_id",
                "power_state", "created_at", "vm_state"),
    "operator": ("limit", "marker"),
}  # fmt: skip
QUERY_VALUES = (
    "", "0", "-1", "1", "2", "1000000000000000000000000", "abc", "None", "null", "true", "asc", "desc", "name",
    "name:asc",
    "name:sideways", "id,name", "in:a,b", "in:", "in:\"a", "gt:2020-01-01", "gt:", "neq:x", "2020-01-01",
    "2020-13-01T00:00:00Z",
    "VCPU:1", "VCPU:0", "VCPU:x", "VCPU", "CUSTOM_X:1", "!STORAGE", "in:!a", "ip_address=10.0.0.1",
    "ip_address_substr=1",
    "subnet_id=x", "x=y", "{'a': 'b'}", "{", "[", "(", "*", "%", "_", "%zz", "[0-9", "a" * 300, "\u00e9",
    "10.0.0.0/8", ".*",
    "'", "\"", ";", "\\", "ACTIVE", "active", "available", "2030-01-01T00:00:00+02:00",
)  # fmt: skip


class World:
    """Makes and remakes the objects; their ids go to the pools."""

    def __init__(self, cloud: Cloud, pools: Pools) -> None:
        self.cloud = cloud
        self.pools = pools
        self.admin = cloud.api("admin")
        self.demo = cloud.api("demo")

    def fill(self) -> None:
        self.pools.add("projects", self.demo.project_id, self.cloud.api("other").project_id)
        for fill in self._fillers():
            fill()

    def refill(self) -> None:
        """After a while of fuzzing: what its quotas, policies and states still allow."""
        for fill in self._fillers():
            with contextlib.suppress(AssertionError, KeyError, StopIteration):
                fill()

    def _fillers(self) -> list[Callable[[], None]]:
        return [self._identity, self._image, self._network, self._volume, self._compute, self._placement]

    def make(self, api: Api, service: str, path: str, key: str, body: Any, kinds: str = "", **more: Any) -> Any:
        """POST; the id of what came goes to the pools ``kinds`` (default: the path's first word)."""
        version = {"compute": "2.96", "volume": "3.71", "placement": "1.39"}.get(service)
        if service == "compute" and path == "/os-security-groups":
            version = None
        answer = api.post(service, path, {key: body} if key else body, version=version, **more)
        assert answer.status < 300, f"{path}: {answer.text}"
        made = answer.body[key] if key else answer.body
        for kind in (kinds or path.strip("/").split("/")[-1]).split():
            self.pools.add(kind, made.get("id"))
        return made

    def _identity(self) -> None:
        make, admin = self.make, self.admin
        domain = make(admin, "identity", "/domains", "domain", {"name": unique("fuzz")})["id"]
        project = make(admin, "identity", "/projects", "project", {"name": unique("fuzz"), "domain_id": domain})["id"]
        user = {"name": unique("fuzz"), "password": "a-secret", "default_project_id": project}
        user_id = make(admin, "identity", "/users", "user", user)["id"]
        make(admin, "identity", "/groups", "group", {"name": unique("fuzz")})
        role = make(admin, "identity", "/roles", "role", {"name": unique("fuzz")})["id"]
        make(admin, "identity", "/roles", "role", {"name": unique("fuzz")}, "roles implies")
        make(admin, "identity", "/regions", "region", {"id": unique("fuzz")})
        service = make(admin, "identity", "/services", "service", {"type": unique("fuzz"), "name": "fuzz"})["id"]
        endpoint = {"service_id": service, "interface": "public", "url": "http://example.test/"}
        make(admin, "identity", "/endpoints", "endpoint", endpoint)
        credential = {"type": "cert", "blob": "x", "user_id": user_id}
        make(admin, "identity", "/credentials", "credential", credential, "credentials OS-EC2")
        make(admin, "identity", "/policies", "policy", {"type": "text/plain", "blob": "x"})
        limit = {"service_id": service, "resource_name": unique("fuzz"), "default_limit": 5}
        many = admin.post("identity", "/registered_limits", {"registered_limits": [limit]})
        assert many.status == 201, many.text
        self.pools.add("registered_limits", many["registered_limits"][0]["id"])
        limit = {"service_id": service, "resource_name": limit["resource_name"], "resource_limit": 3}
        many = admin.post("identity", "/limits", {"limits": [{**limit, "project_id": project}]})
        assert many.status == 201, many.text
        self.pools.add("limits", many["limits"][0]["id"])
        demo = self.demo
        self.pools.add("users", demo.user_id)
        rule = {"path": "/v2.1/servers", "method": "GET", "service": "compute"}
        app = {"name": unique("fuzz"), "access_rules": [rule]}
        path = f"/users/{demo.user_id}/application_credentials"
        made = make(demo, "identity", path, "application_credential", app, "application_credentials")
        self.pools.add("access_rules", made["access_rules"][0]["id"])
        trust = {"trustor_user_id": demo.user_id, "trustee_user_id": user_id, "project_id": demo.project_id,
                 "impersonation": False, "roles": [{"name": "member"}]}  # fmt: skip
        make(demo, "identity", "/OS-TRUST/trusts", "trust", trust, "trusts")
        self.pools.add("tags", "fuzz-tag")
        granted = admin.put("identity", f"/projects/{project}/users/{user_id}/roles/{role}")
        assert granted.status == 204, granted.text

    def _image(self) -> None:
        image = {"disk_format": "raw", "container_format": "bare", "tags": ["fuzz-tag"]}
        for api in (self.admin, self.demo):
            self.make(api, "image", "/images", "", {"name": unique("queued"), **image}, "images signed")
            made = self.make(api, "image", "/images", "", {"name": unique("fuzz"), **image}, "images signed")["id"]
            data = {"data": b"\0" * 512, "headers": {"content-type": "application/octet-stream"}}
            assert api.request("PUT", "image", f"/images/{made}/file", **data).status == 204
        shared = self.make(self.demo, "image", "/images", "", {**image, "visibility": "shared"}, "images")["id"]
        other = self.cloud.api("other").project_id
        assert self.demo.post("image", f"/images/{shared}/members", {"member": other}).status == 200
        self.pools.add("members", other)
        name = unique("Fuzz")
        body = {"namespace": name, "resource_type_associations": [{"name": "OS::Nova::Flavor"}],
                "properties": {"p1": {"title": "P", "type": "string"}}, "tags": [{"name": "t1"}],
                "objects": [{"name": "o1", "properties": {}}]}  # fmt: skip
        self.make(self.admin, "image", "/metadefs/namespaces", "", body)
        self.pools.add("namespaces", name)
        self.pools.add("properties", "p1")
        self.pools.add("objects", "o1")
        self.pools.add("resource_types", "OS::Nova::Flavor")
        self.pools.add("tags", "t1")
        self.pools.add("schemas", "image", "images", "metadefs")

    def _network(self) -> None:
        for api in (self.admin, self.demo):
            net = self.make(api, "network", "/networks", "network", {"name": unique("fuzz")}, "networks dhcp-networks")
            subnet = {"network_id": net["id"], "ip_version": 4, "cidr": "10.9.0.0/24"}
            subnet = self.make(api, "network", "/subnets", "subnet", subnet)
            self.make(api, "network", "/ports", "port", {"network_id": net["id"]}, "ports os-interface")
            router = self.make(api, "network", "/routers", "router", {"name": unique("fuzz")}, "routers l3-routers")
            added = api.put("network", f"/routers/{router['id']}/add_router_interface", {"subnet_id": subnet["id"]})
            assert added.status == 200, added.text
            group = {"name": unique("fuzz")}
            kinds = "security-groups security_groups os-security-groups"
            group = self.make(api, "network", "/security-groups", "security_group", group, kinds)
            rule = {"security_group_id": group["id"], "direction": "ingress", "protocol": "tcp"}
            kinds = "security-group-rules security_group_rules os-security-group-rules"
            self.make(api, "network", "/security-group-rules", "security_group_rule", rule, kinds)
            pool = {"name": unique("fuzz"), "prefixes": ["10.20.0.0/16"], "default_prefixlen": 24}
            self.make(api, "network", "/subnetpools", "subnetpool", pool)
        outside = {"name": unique("outside"), "router:external": True}
        outside = self.make(self.admin, "network", "/networks", "network", outside)["id"]
        subnet = {"network_id": outside, "ip_version": 4, "cidr": "203.0.113.0/24", "enable_dhcp": False}
        self.make(self.admin, "network", "/subnets", "subnet", subnet)
        body = {"floating_network_id": outside}
        self.make(self.demo, "network", "/floatingips", "floatingip", body, "floatingips os-floating-ips")
        for agent in self.admin.get("network", "/agents")["agents"]:
            self.pools.add("agents", agent["id"])
        self.pools.add("network-ip-availabilities", outside)
        self.pools.add("extensions", "router", "os-keypairs")

    def _volume(self) -> None:
        make, admin = self.make, self.admin
        kind = make(admin, "volume", "/types", "volume_type", {"name": unique("fuzz")}, "types default-types")["id"]
        assert admin.post("volume", f"/types/{kind}/extra_specs", {"extra_specs": {"k": "v"}}).status == 200
        make(admin, "volume", "/group_types", "group_type", {"name": unique("fuzz")})
        make(admin, "volume", "/qos-specs", "qos_specs", {"name": unique("fuzz"), "consumer": "front-end"}, "qos-specs")
        for name in ("k", "key", "metadata"):
            self.pools.add(name, "k")
        self.pools.add("extra_specs", "k")
        self.pools.add("group_specs", "k")
        for api in (admin, self.demo):
            ids = [make(api, "volume", "/volumes", "volume", {"size": 1, "metadata": {"k": "v"}})["id"] for _ in "123"]
            for id in ids:
                self._until(api, "volume", f"/volumes/{id}", "volume", "available")
            self.pools.add("os-volume_attachments", *ids)
            made = make(api, "volume", "/snapshots", "snapshot", {"volume_id": ids[0]})["id"]
            self._until(api, "volume", f"/snapshots/{made}", "snapshot", "available")
            make(api, "volume", "/backups", "backup", {"volume_id": ids[0]})
            kinds = "volume-transfers os-volume-transfer"
            make(api, "volume", "/volume-transfers", "transfer", {"volume_id": ids[1], "name": "x"}, kinds)
            make(api, "volume", "/attachments", "attachment", {"volume_uuid": ids[2], "instance_uuid": ids[2]})
        self.pools.add("os-quota-sets", self.demo.project_id)
        self.pools.add("default-types", self.demo.project_id)
        self.pools.add("os-quota-class-sets", "default")
        self.pools.add("os-hosts", "fake-1")
        self.pools.add("capabilities", "fake-1")

    def _compute(self) -> None:
        make, admin = self.make, self.admin
        flavor = make(admin, "compute", "/flavors", "flavor", {"name": unique("fuzz"), "ram": 1, "vcpus": 1, "disk": 1})
        specs = {"extra_specs": {"hw:cpu_policy": "shared"}}
        assert admin.post("compute", f"/flavors/{flavor['id']}/os-extra_specs", specs).status == 200
        self.pools.add("os-extra_specs", "hw:cpu_policy")
        made = make(admin, "compute", "/os-aggregates", "aggregate", {"name": unique("fuzz")})["id"]
        assert admin.post("compute", f"/os-aggregates/{made}/action", {"add_host": {"host": "fake-1"}}).status == 200
        image = next(image["id"] for image in self.demo.get("image", "/images?status=active")["images"])
        for api in (admin, self.demo):
            name = unique("fuzz")
            key = "ssh-rsa " + "A" * 8
            made_key = api.post("compute", "/os-keypairs", {"keypair": {"name": name, "public_key": key}})
            assert made_key.status in (200, 400), made_key.text
            self.pools.add("os-keypairs", name)
            make(api, "compute", "/os-server-groups", "server_group", {"name": unique("fuzz"), "policy": "affinity"})
            body = {"name": "fuzz", "imageRef": image, "flavorRef": flavor["id"], "networks": "none"}
            body["metadata"] = {"k": "v"}
            server = make(api, "compute", "/servers", "server", body)["id"]
            self._until(api, "compute", f"/servers/{server}", "server", "ACTIVE")
            actions = api.get("compute", f"/servers/{server}/os-instance-actions", version="2.96")["instanceActions"]
            self.pools.add("os-instance-actions", actions[0]["request_id"])
        self.pools.add("os-simple-tenant-usage", self.demo.project_id)
        self.pools.add("ips", "private")
        for version in ("2.96", "2.1"):
            for row in admin.get("compute", "/os-services", version=version)["services"]:
                self.pools.add("os-services", row["id"])
            for row in admin.get("compute", "/os-hypervisors", version=version)["hypervisors"]:
                self.pools.add("os-hypervisors", row["id"])
        self.pools.add("hosts", "fake-1")

    def give_back_claims(self) -> None:
        """An administrator may take away what a server has claimed, and was made to. What loses a claim after this, the
        doctor is to find in the end."""
        assert self.cloud.settle()
        self.cloud.control.operator.audit(fix=True, only={"server-without-allocation"})

    def _placement(self) -> None:
        made = self.make(self.admin, "placement", "/resource_providers", "", {"name": unique("fuzz")})
        uuid = made["uuid"]
        inventories = {
            "resource_provider_generation": 0,
            "inventories": {"VCPU": {"total": 8}, "MEMORY_MB": {"total": 9}},
        }
        put = self.admin.put("placement", f"/resource_providers/{uuid}/inventories", inventories, version="1.39")
        assert put.status == 200, put.text
        self.pools.add("resource_providers", uuid)
        self.pools.add("allocations", *self.pools.some("servers"))
        self.pools.add("inventories", "VCPU", "MEMORY_MB")
        self.pools.add("resource_classes", "VCPU", "CUSTOM_FUZZ", unique("CUSTOM").upper().replace("-", "_"))
        self.pools.add("traits", "COMPUTE_NODE", "CUSTOM_FUZZ")

    def _until(self, api: Api, service: str, path: str, key: str, status: str) -> None:
        self.cloud.wait(lambda: api.get(service, path)[key]["status"] == status)
