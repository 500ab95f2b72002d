"""What an audit finds on a real host when things are taken away or planted by hand, and that it is mended."""

from typing import Any

import msgspec
import pytest

from cumulet.agent.contract import PortDoc, Segment

from .conftest import NET, Host, Worker, port
from .documents import EGRESS, PING, network_doc, router_doc, until

pytestmark = pytest.mark.host
TUNNEL = Segment(network_type="vxlan", segmentation_id=5001, mtu=1450, peers=["10.78.0.1", "10.78.0.2"])


def audit(worker: Worker, **documents: list[Any]) -> list[dict[str, Any]]:
    plain = {kind: msgspec.to_builtins(some) for kind, some in documents.items()}
    found: list[dict[str, Any]] = worker("audit", plain).get("drift", [])
    return found


def kinds(found: list[dict[str, Any]]) -> list[str]:
    return [f"{one['kind']}-{one['problem']}" for one in found]


def mend(worker: Worker, one: dict[str, Any]) -> Any:
    item = {"kind": one["kind"], "id": one["id"], "problem": one["problem"], "generation": 1 << 62}
    return worker("mend", item)


def test_networks_filters_and_wires(host: Host) -> None:
    worker = host.start()
    guest: PortDoc = port("one", "10.9.0.11", rules=[*EGRESS, PING], segment=TUNNEL)
    worker("plug", guest)
    network = network_doc([guest], TUNNEL)
    worker.apply(network)
    documents: dict[str, list[Any]] = {"port": [guest], "network": [network], "router": []}
    directory = f"/run/cumulet-test/dhcp/{NET}"
    assert audit(worker, **documents) == []

    host.sh(f"nft flush chain bridge cumulet_sg o-{guest.tap}")
    assert kinds(audit(worker, **documents)) == ["chain-missing"]
    worker("plug", guest)
    assert audit(worker, **documents) == []

    host.sh("bridge fdb append 00:00:00:00:00:00 dev vxlan-5001 dst 192.0.2.66")
    assert kinds(audit(worker, **documents)) == ["forwarding-different"]
    worker("plug", guest)
    assert audit(worker, **documents) == []
    assert "192.0.2.66" not in host.sh("bridge fdb show dev vxlan-5001")

    host.sh(f"echo fa:16:3e:de:ad:00,evil,10.9.0.66 >> {directory}/host")
    assert kinds(audit(worker, **documents)) == ["dhcp-host-different"]
    worker.apply(network)
    assert audit(worker, **documents) == []

    host.sh(f"echo '1000 fa:16:3e:00:00:98 10.9.0.98 old *' >> {directory}/leases")
    (lease,) = audit(worker, **documents)
    assert kinds([lease]) == ["lease-expired"]
    mend(worker, lease)
    assert audit(worker, **documents) == []

    host.sh(f"kill -9 $(cat {directory}/pid)")
    until(lambda: kinds(audit(worker, **documents)) == ["dnsmasq-missing"])
    worker.apply(network)
    assert audit(worker, **documents) == []

    host.sh(f"kill -9 $(cat {directory}/pid); ip netns del qdhcp-{NET}")
    assert "namespace-missing" in kinds(audit(worker, **documents))
    worker.apply(network)
    assert audit(worker, **documents) == []


def test_what_no_document_asks_for_is_told_and_goes_by_an_operators_word(host: Host) -> None:
    worker = host.start()
    guest = port("one", "10.9.0.11", rules=EGRESS)
    worker("plug", guest)
    network = network_doc([guest])
    worker.apply(network)
    worker.apply(router_doc(gateway=None))
    found = audit(worker, port=[guest], network=[], router=[])
    assert sorted(kinds(found)) == ["dnsmasq-unknown", "namespace-unknown", "namespace-unknown"]
    names = host.sh("ip netns list")
    assert f"qdhcp-{NET}" in names  # looking removes nothing
    for one in found:
        assert mend(worker, one)
    assert "qdhcp-" not in host.sh("ip netns list")
    assert "qrouter-" not in host.sh("ip netns list")
    assert audit(worker, port=[guest], network=[], router=[]) == []
