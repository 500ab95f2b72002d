"""Floating IPs by way of the compute API's old calls."""

from collections.abc import Callable
from typing import Any

from tests.network.conftest import Net
from tests.support.cloud import Cloud

Make = Callable[..., Any]


def test_floating_ips_through_compute(cloud: Cloud, demo: Net, other: Net, outside: Any) -> None:
    pool = outside[0]["name"]
    pools = demo.api.get("compute", "/os-floating-ip-pools")["floating_ip_pools"]
    assert {"name": pool} in pools
    assert demo.api.post("compute", "/os-floating-ips", {"pool": "no-such"}).status == 404
    made = demo.api.post("compute", "/os-floating-ips", {"pool": pool})
    assert made.status == 200
    floating = made["floating_ip"]
    assert (floating["pool"], floating["instance_id"], floating["fixed_ip"]) == (pool, None, None)
    assert demo.api.get("compute", f"/os-floating-ips/{floating['id']}")["floating_ip"] == floating
    assert floating in demo.api.get("compute", "/os-floating-ips")["floating_ips"]
    assert other.api.get("compute", f"/os-floating-ips/{floating['id']}").status == 404
    assert demo.api.get("compute", "/os-floating-ips", version="2.36").status == 404
    assert demo.api.delete("compute", f"/os-floating-ips/{floating['id']}").status == 202
    assert demo.api.delete("compute", f"/os-floating-ips/{floating['id']}").status == 404
