"""Restarts, kills at any moment, and clean-up: no packet cut, nothing left."""

import random
import subprocess
import time

import pytest

from cumulet.agent.contract import (
    FloatingIpDoc,
)

from .conftest import ENV, NET, SUBNET, Guest, Host, port
from .documents import (
    EGRESS,
    PING,
    network_doc,
    router_doc,
)
from .steps import killed_at_every_step

pytestmark = pytest.mark.host


def test_kill_and_restart_cut_no_packet(host: Host, external: str) -> None:
    worker = host.start(bridge_mappings={"public": "br-ex"})
    one = port("one", "10.9.0.11", rules=[*EGRESS, PING])
    guest = Guest(host, one)
    docs = [one, network_doc([one]), router_doc(
        floating_ips=[FloatingIpDoc(id="f", floating_ip_address="172.31.9.30", fixed_ip_address="10.9.0.11")]
    )]  # fmt: skip
    for doc in docs:
        worker.apply(doc)
    guest.set_address(SUBNET)
    pid = host.sh(f"cat /run/cumulet-test/dhcp/{NET}/pid")
    assert guest.ping(external)
    pinging = subprocess.Popen(
        [*host.enter, "ip", "netns", "exec", guest.ns, "ping", "-q", "-i0.01", "-c250", "-W1", external],
        stdout=subprocess.PIPE, text=True, env=ENV,
    )  # fmt: skip
    time.sleep(0.3)
    worker = host.restart()
    for doc in docs:
        worker.apply(doc)
        assert [c for c in worker.changes() if c[0] in ("ip", "dnsmasq")] == []
    out = pinging.communicate()[0]
    assert "250 received" in out, out
    assert host.sh(f"cat /run/cumulet-test/dhcp/{NET}/pid") == pid
    # everything again after someone threw our tables away
    host.sh("nft flush ruleset")
    for doc in docs:
        worker.apply(doc)
    assert f"o-{one.tap}" in host.sh("nft list ruleset")
    assert "cumulet_track" in host.sh("nft list tables")
    assert guest.ping(external)


def test_cleanup_leaves_nothing(host: Host, external: str) -> None:
    host.sh("ip link add foreign0 type bridge; ip netns add qdhcp-foreign; nft add table inet foreign")
    before = host.sh("ip -br link | cut -d@ -f1 | awk '{print $1}' | sort; ip netns list; nft list tables")
    worker = host.start(bridge_mappings={"public": "br-ex"})
    one = port("one", "10.9.0.11", rules=EGRESS)
    worker.apply(one)
    worker.apply(network_doc([one], subnets=[SUBNET]))
    worker.apply(router_doc())
    assert host.good("pgrep dnsmasq")
    assert host.sh("nft list tables") != "table inet foreign\n"
    worker("cleanup_all")
    after = host.sh("ip -br link | cut -d@ -f1 | awk '{print $1}' | sort; ip netns list; nft list tables")
    assert after == before
    assert not host.good("pgrep dnsmasq")
    assert host.sh("find /run/cumulet-test /var/lib/cumulet-test -type f") == ""
    worker("cleanup_all")
    # and it can begin again
    worker = host.restart()
    worker.apply(one)
    assert worker("list", "port") == [one.id]


@pytest.mark.parametrize("seed", range(3))
def test_killed_anywhere_it_gets_there_and_leaves_nothing(host: Host, external: str, seed: int) -> None:
    chance = random.Random(seed)
    before = host.sh("ip -br link | cut -d@ -f1 | awk '{print $1}' | sort; ip netns list; nft list tables")
    config = {"bridge_mappings": {"public": "br-ex"}}
    worker = host.start(**config)
    one = port("one", "10.9.0.11", rules=[*EGRESS, PING])
    docs = [one, network_doc([one]), router_doc()]
    for doc in docs:
        worker.kill_soon(chance.uniform(0.0, 0.12))
        worker.try_call("apply", doc.kind, doc)
        worker = host.restart()
    for doc in docs:
        worker.apply(doc)
    guest = Guest(host, one, adopt=True)
    assert guest.dhcp()["ip"] == "10.9.0.11"
    guest.set_address(SUBNET)
    assert guest.ping(external)
    for kind, id in (("network", NET), ("router", docs[2].id), ("port", one.id)):
        worker.kill_soon(chance.uniform(0.0, 0.12))
        worker.try_call("remove", kind, id, 9)
        worker = host.restart()
        worker("remove", kind, id, 9)
    worker("cleanup_all")
    host.sh(f"ip netns del {guest.ns}")
    after = host.sh("ip -br link | cut -d@ -f1 | awk '{print $1}' | sort; ip netns list; nft list tables")
    assert after == before
    assert not host.good("pgrep dnsmasq")


@pytest.mark.parametrize("of", ["apply", "remove"])
def test_killed_before_any_step_the_next_life_does_the_rest(host: Host, external: str, of: str) -> None:
    host.start(bridge_mappings={"public": "br-ex"})
    one = port("one", "10.9.0.11", rules=[*EGRESS, PING])
    assert killed_at_every_step(host, [one, network_doc([one]), router_doc()], of=of) > 20
