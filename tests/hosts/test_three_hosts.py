"""Three hosts under one control plane: servers on each, one network over all, and every process killed in turn."""

import json
import shlex
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.hosts.machines import HOSTS, OUTSIDE, eventually
from tests.hosts.world import BOOT_SECONDS, Pings, World
from tests.support.cloud import unique

pytestmark = [pytest.mark.host, pytest.mark.timeout(1800)]
_DRIFT = Path(__file__).parents[1] / "support" / "drift.py"


def assert_none_lost(pings: Pings) -> None:
    """But for a first one that looked for its way, before anything was disturbed."""
    sent, lost = pings.end()
    assert sent > 4
    assert lost <= {0}, f"{len(lost)} of {sent} lost on the way to {pings.address}"
    assert pings.doubled == 0, f"{pings.doubled} of {sent} doubled on the way to {pings.address}"


@pytest.fixture
def undisturbed(world: World) -> Iterator[None]:
    """Nothing that a test does stops a guest or cuts a packet between guests of different hosts."""
    before = {host: world.machines.guests(host) for host in HOSTS}
    assert all(len(guests) == 1 for guests in before.values())
    pings = [Pings(world, world.addresses[host]) for host in ("h1", "h3")]
    time.sleep(2)
    try:
        yield
        for one in pings:
            assert_none_lost(one)
    finally:
        for one in pings:
            one.stop()
    assert {host: world.machines.guests(host) for host in HOSTS} == before


def test_guests_of_different_hosts_reach_each_other(world: World) -> None:
    for host in ("h1", "h3"):
        pinged = eventually("a reply", lambda host=host: world.says(f"ping -c 3 {world.addresses[host]}"))
        assert "3 packets received" in pinged
    assert world.says(f"ping -c 1 {OUTSIDE}"), "by the router on h1, to the world"


def test_only_a_network_host_has_the_external_bridge(world: World) -> None:
    bridges = {host: world.machines.sh(host, "ovs-vsctl list-br").split() for host in HOSTS}
    assert {host for host, names in bridges.items() if "br-ex" in names} == {"h1"}
    assert all({"br-int", "br-tun"} <= set(names) for names in bridges.values())
    agents = world.admin.get("network", "/agents")["agents"]
    assert {a["host"] for a in agents if a["agent_type"] == "L3 agent"} == {"h1"}


def test_no_host_knows_the_database(world: World) -> None:
    for host in HOSTS:
        settings = world.machines.nodes[host].settings
        assert settings.database.url is None
        assert "postgres" not in (world.machines.nodes[host].directory / "cumulet.toml").read_text()


def test_each_role_killed(world: World, undisturbed: None) -> None:
    nodes = world.machines.nodes
    for name, role in (("c1", "conductor"), ("c1", "api"), ("c2", "conductor"), ("h2", "agent"), ("h1", "agent")):
        nodes[name].kill(role)
        time.sleep(1)
        nodes[name].start(role, seconds=120)
    eventually("all hosts are up", lambda: sorted(nodes["c2"].hosts_up()) == sorted(HOSTS))


def test_the_other_control_node_goes_on(world: World, undisturbed: None) -> None:
    """All of one control node dies in the middle of a create; the other ends it."""
    nodes = world.machines.nodes
    server_id = world.create("h3")
    for role in ("api", "conductor"):
        nodes["c1"].kill(role)
    try:
        world.active(server_id, "h3")
    finally:
        nodes["c1"].start("api", "conductor")
    world.delete(server_id)


def test_libvirtd_killed(world: World, undisturbed: None) -> None:
    machines = world.machines
    old = machines.libvirtd("h2")
    machines.sh("h2", f"kill -{signal.SIGKILL.value} {old}")
    eventually("a new libvirtd", lambda: machines.libvirtd("h2") not in (0, old))
    eventually("it answers", lambda: world.says("true") is not None)
    assert world.show(world.servers["h2"])["status"] == "ACTIVE"


def test_broker_and_database_restart(world: World, undisturbed: None) -> None:
    machines = world.machines
    assert machines.rabbit is not None
    assert machines.postgres is not None
    machines.rabbit.kill()
    machines.rabbit.start()
    machines.postgres.restart()
    eventually("all hosts are up", lambda: sorted(machines.nodes["c1"].hosts_up()) == sorted(HOSTS))
    server_id = world.create("h3")
    world.active(server_id, "h3")
    world.delete(server_id)


def qemu_img(world: World, host: str, export: str, *, certificate: bool) -> str:
    """What a client on a host is told of a volume of h1."""
    source = f"driver=nbd,host=10.77.0.1,port=10809,export={export}"
    credentials = ""
    if certificate:
        pki = world.machines.nodes[host].directory / "pki"
        credentials = f"--object tls-creds-x509,id=t,dir={pki},endpoint=client"
        source += ",tls-creds=t"
    return world.machines.sh(host, f"qemu-img info --force-share {credentials} --image-opts {source} 2>&1; true")


def test_a_volume_of_another_host(world: World, undisturbed: None) -> None:
    """By NBD with both sides' certificates; only a host with an attachment is let in."""
    volume = world.made("volume", "/volumes", {"volume": {"size": 1, "name": unique("volume")}})["volume"]["id"]

    def is_now(status: str) -> bool:
        shown = world.admin.get("volume", f"/volumes/{volume}")["volume"]
        assert not shown["status"].startswith("error"), shown
        return bool(shown["status"] == status)

    eventually("the volume is made", lambda: is_now("available"))
    server = world.servers["h2"]
    attach = {"volumeAttachment": {"volumeId": volume}}
    world.made("compute", f"/servers/{server}/os-volume_attachments", attach)
    eventually("it is attached", lambda: is_now("in-use"))
    device = "/dev/vdb"
    eventually("the guest sees it", lambda: world.says(f"test -b {device}") is not None)
    assert world.says(f"echo written on h1 | sudo dd of={device} conv=sync 2>/dev/null; sync") is not None
    world.machines.nodes["h1"].kill("agent")
    read = world.says(f"sudo dd if={device} bs=512 count=1 iflag=direct 2>/dev/null | head -c 13")
    world.machines.nodes["h1"].start("agent", seconds=120)
    assert read == "written on h1"
    (attachment,) = world.admin.get("volume", f"/attachments?volume_id={volume}", version="3.27")["attachments"]
    records = world.machines.nodes["h1"].settings.volume_dir / "exports"
    record = world.machines.sh("h1", f"cat {records}/{attachment['id']}.json")  # a file system of h1's own
    generation = json.loads(record)["generation"]
    export = f"{attachment['id']}.{generation}"
    assert "virtual size: 1 GiB" in qemu_img(world, "h2", export, certificate=True)
    assert "TLS" in qemu_img(world, "h2", export, certificate=False)
    assert "virtual size" not in qemu_img(world, "h3", export, certificate=True), (
        "h3 has a certificate, and nothing here"
    )
    world.made("volume", f"/volumes/{volume}/action", {"os-extend": {"new_size": 2}}, "3.42")
    grown = f"test $(cat /sys/block/vdb/size) = {2 << 21}"
    eventually("the guest sees it grow", lambda: world.says(grown) is not None)
    detached = world.admin.delete("compute", f"/servers/{server}/os-volume_attachments/{volume}")
    assert detached.status == 202, detached.text
    eventually("it is detached", lambda: is_now("available"))
    assert "virtual size" not in qemu_img(world, "h2", export, certificate=True)
    assert world.admin.delete("volume", f"/volumes/{volume}").status == 202


ON_SWITCHES = {
    "h1": ("provider_flow_gone", "router_translates_elsewhere", "router_forwards_nothing", "dnsmasq_host_gone",
           "lease_expired", "namespace_of_nobody", "tunnel_of_nobody"),
    "h2": ("flow_gone", "flow_of_nobody", "tag_changed", "stranger_in_the_switch", "chain_emptied", "definition_gone",
           "domain_of_nobody", "disk_of_nobody", "tap_of_nobody"),
}  # fmt: skip


def test_planted_drift(world: World) -> None:
    """Found on each host, by name and nothing else; repaired by an operator's word; no guest ends."""
    machines = world.machines
    before = {host: machines.guests(host) for host in HOSTS}

    def audit(**body: Any) -> list[dict[str, Any]]:
        answer = requests.post(
            f"{machines.nodes['c1'].url}/operator/v1/audit", json={"audit": body}, timeout=60,
            headers={"X-Auth-Token": world.admin.token}, verify=str(machines.nodes["c1"].tls),
        )  # fmt: skip
        assert answer.status_code == 200, answer.text
        return [one for one in answer.json()["findings"] if one["severity"] != "info"]

    def named(found: list[dict[str, Any]]) -> set[tuple[str, ...]]:
        return {(one["host"], one["code"], one["object_id"]) for one in found}

    known = named(audit())
    planted: set[tuple[str, ...]] = set()
    for host, kinds in ON_SWITCHES.items():
        server = world.servers[host]
        (port,) = world.admin.get("network", f"/ports?device_id={server}")["ports"]
        facts = {"server": server, "port": port["id"], "network": world.network, "router": world.router}
        words = [sys.executable, str(_DRIFT), str(machines.nodes[host].directory / "cumulet.toml"), json.dumps(facts)]
        planted |= {(host, *found) for found in json.loads(machines.sh(host, shlex.join([*words, *kinds])))}
    assert named(audit()) - known == planted
    repaired = audit(fix=True)
    assert [one for one in repaired if not one["repaired"] and one["code"] in {code for _, code, _ in planted}] == []
    eventually("nothing is found", lambda: named(audit()) <= known)
    assert {host: machines.guests(host) for host in HOSTS} == before
    assert eventually("SSH by the floating IP", lambda: world.says("hostname"))
    for host in ("h1", "h3"):
        assert world.says(f"ping -c 3 {world.addresses[host]}")
    assert world.says(f"ping -c 1 {OUTSIDE}")


def test_power_lost_on_one_host(world: World, sector: str) -> None:
    """The last one: what h3 ran is off until someone starts it, or is built anew elsewhere; the others notice nothing.
    What was evacuated is taken from h3 when that is back."""
    machines = world.machines
    refugee = world.create("h3", sector)
    world.active(refugee, "h3")
    before = {host: machines.guests(host) for host in ("h1", "h2")}
    pings = Pings(world, world.addresses["h1"])
    machines.power_off("h3")
    eventually("h3 is down", lambda: sorted(machines.nodes["c1"].hosts_up()) == ["h1", "h2"])
    assert_none_lost(pings)
    world.act(refugee, {"evacuate": {"host": "h1"}}, "2.79")
    eventually("it was evacuated", lambda: world.is_at(refugee, "h1", "ACTIVE"))
    left = machines.nodes["h3"].settings.state_dir / "compute" / "servers" / refugee
    assert left.exists()
    machines.power_on("h3")
    machines.start_agents("h3")
    server_id = world.servers["h3"]
    eventually("what was evacuated is gone from it", lambda: not left.exists())
    world.delete(refugee)
    eventually("the server is off", lambda: world.show(server_id)["status"] == "SHUTOFF")
    started = world.admin.post("compute", f"/servers/{server_id}/action", {"os-start": None})
    assert started.status == 202, started.text
    world.active(server_id, "h3")
    address = world.addresses["h3"]
    eventually("it answers again", lambda: world.says(f"ping -c 1 -W 2 {address}"), BOOT_SECONDS)
    assert {host: machines.guests(host) for host in before} == before
    for server in world.servers.values():
        world.delete(server)
    assert all(machines.guests(host) == {} for host in HOSTS)
