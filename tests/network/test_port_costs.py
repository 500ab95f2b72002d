"""What a port costs in SQL: more when it is bound at once to a host where its network is new, as all others are told.

How often other tests meet that depends on where DHCP servers came to stand.
"""

from typing import Any

import pytest

from tests.support import budgets
from tests.support.cloud import unique


@pytest.mark.skipif("config.getoption('--database') != 'sqlite'", reason="budgets are SQLite's")
def test_a_port_and_one_that_is_bound_at_once(new_cloud: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    cloud = new_cloud(hosts=2)
    meter, api = budgets.Meter(cloud, monkeypatch), cloud.api("admin")
    network = api.post("network", "/networks", {"network": {"name": unique("net")}})["network"]["id"]
    subnet = {"network_id": network, "cidr": "10.3.0.0/24", "ip_version": 4}
    assert api.post("network", "/subnets", {"subnet": subnet}).status == 201

    def post(**more: Any) -> Any:
        return api.post("network", "/ports", {"port": {"network_id": network, **more}})

    assert meter.cheapest(post) <= 16
    for host in cloud.hosts:
        assert meter.of(post(**{"binding:host_id": host})) <= 25
        assert meter.of(post(**{"binding:host_id": host})) <= 25
