"""What a list costs in SQL statements does not grow with what is in it: every list of every service, found by its
route, before and after there is more of everything."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.compute.helpers import Nova
from tests.support.budgets import Meter
from tests.support.cloud import Answer, unique

from cumulet.http.route import Route

_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHgBnyvcPSqoNFNuWkTdSuuCFJ3jDDkTgCe2yyKoDPRc"
MORE = 3


def _lists(cloud: Any) -> dict[str, Callable[[], Answer]]:
    """Every GET without an object in its path, as an administrator asks it at the newest version."""
    admin = cloud.api("admin")
    found: dict[str, Callable[[], Answer]] = {}
    for api in cloud.control.http.apis.values():
        for route in api.routes:
            if route.method == "GET" and "{" not in route.path and route.refusal is None and route.auth:
                found[f"{api.name} {route.path}"] = _asking(admin, api.name, route)
    return found


def _asking(admin: Any, service: str, route: Route) -> Callable[[], Answer]:
    version = "latest" if service in ("compute", "placement", "volume") and route.max_version is None else None
    path = f"/v1{route.path}" if service == "operator" else route.path
    if path.startswith(("/servers", "/volumes", "/snapshots")):
        path += "?all_tenants=1"
    headers = {"X-Subject-Token": admin.token} if path == "/auth/tokens" else {}
    return lambda: admin.request("GET", service, path, version=version, headers=headers)


@pytest.fixture
def more(cloud: Any) -> Iterator[Callable[[], None]]:
    """Makes a few more of each noun; all of it goes at the end."""
    admin, nova, undo = cloud.api("admin"), Nova(cloud), []

    def make(service: str, path: str, key: str, body: dict[str, Any]) -> Any:
        answer = admin.post(service, path, {key: body} if key else body)
        assert answer.status < 300, answer.text
        made = answer.body[key] if key else answer.body
        undo.append((service, f"{path}/{made['name'] if key == 'keypair' else made['id']}"))
        return made

    def some() -> None:
        for number in range(MORE):
            project = make("identity", "/projects", "project", {"name": unique("p")})["id"]
            user = make("identity", "/users", "user", {"name": unique("u"), "password": "x" * 12})["id"]
            role = make("identity", "/roles", "role", {"name": unique("r")})["id"]
            assert admin.put("identity", f"/projects/{project}/users/{user}/roles/{role}").status == 204
            make("identity", "/groups", "group", {"name": unique("g")})
            make("identity", "/regions", "region", {"id": unique("region")})
            service = make("identity", "/services", "service", {"type": unique("t"), "name": unique("s")})["id"]
            point = {"service_id": service, "interface": "public", "url": "http://x/"}
            make("identity", "/endpoints", "endpoint", point)
            make("identity", "/credentials", "credential", {"type": "x", "blob": "{}", "user_id": user})
            network = make("network", "/networks", "network", {"name": unique("n"), "shared": True})["id"]
            subnet = {"network_id": network, "cidr": "10.9.0.0/24", "ip_version": 4}
            make("network", "/subnets", "subnet", subnet)
            make("network", "/ports", "port", {"network_id": network})
            make("network", "/routers", "router", {"name": unique("r")})
            group = make("network", "/security-groups", "security_group", {"name": unique("g")})["id"]
            rule = {"security_group_id": group, "direction": "ingress", "protocol": "tcp"}
            make(
                "network",
                "/security-group-rules",
                "security_group_rule",
                {**rule, "port_range_min": 1, "port_range_max": 2},
            )
            make(
                "network",
                "/subnetpools",
                "subnetpool",
                {"name": unique("p"), "prefixes": [f"10.{100 + number}.0.0/16"]},
            )
            volume = make("volume", "/volumes", "volume", {"name": unique("v"), "size": 1})["id"]
            cloud.wait(lambda v=volume: admin.get("volume", f"/volumes/{v}")["volume"]["status"] == "available")
            make("volume", "/snapshots", "snapshot", {"name": unique("s"), "volume_id": volume})
            make("volume", "/types", "volume_type", {"name": unique("t")})
            make("volume", "/qos-specs", "qos_specs", {"name": unique("q")})
            make("image", "/images", "", {"name": unique("i"), "disk_format": "raw", "container_format": "bare"})
            make("compute", "/flavors", "flavor", {"name": unique("f"), "vcpus": 1, "ram": 16, "disk": 1})
            make("compute", "/os-keypairs", "keypair", {"name": unique("k"), "public_key": _KEY})
            make("compute", "/os-aggregates", "aggregate", {"name": unique("a")})
            make("compute", "/os-server-groups", "server_group", {"name": unique("g"), "policies": ["affinity"]})
            undo.append(("server", nova.boot(networks=[{"uuid": network}])))
            provider = admin.post("placement", "/resource_providers", {"name": unique("rp")}, version="1.20")
            undo.append(("placement", f"/resource_providers/{provider['uuid']}"))

    yield some
    for service, what in reversed(undo):
        if service == "server":
            nova.remove(what)
            continue
        cloud.wait(lambda s=service, w=what: admin.delete(s, w).status in (200, 202, 204, 404))


def test_lists_cost_the_same_whatever_is_in_them(
    cloud: Any, more: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    lists = _lists(cloud)
    assert len(lists) > 80
    meter = Meter(cloud, monkeypatch)
    more()  # the first of a kind may cost a statement that none did not
    before = {name: meter.cheapest(ask) for name, ask in lists.items() if ask().status == 200}
    assert len(before) > len(lists) * 0.9, sorted(lists.keys() - before.keys())
    more()
    after = {name: meter.cheapest(lists[name]) for name in before}
    assert {name: (before[name], after[name]) for name in before if after[name] > before[name]} == {}
