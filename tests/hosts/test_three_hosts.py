"""Three hosts under one control plane: servers on each, one network over all, and every process killed in turn."""

import json
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from cumulet import guest
from tests.hosts.machines import HOSTS, OUTSIDE, Machines, eventually
from tests.support.cloud import Api, unique

pytestmark = [pytest.mark.host, pytest.mark.timeout(900)]
_DRIFT = Path(__file__).parents[1] / "support" / "drift.py"
_BOOT_SECONDS = 300  # three emulated guests at once on a busy machine


class World:
    """One network over three hosts with a server on each; the one on h2 has a floating IP."""

    def __init__(self, machines: Machines, image: Path, key: Path) -> None:
        self.machines = machines
        self.admin: Api = machines.api("admin")
        self.key = key
        self.network, self.router = self._networks()
        self._open_security_group()
        flavor = {"name": unique("nano"), "vcpus": 1, "ram": 128, "disk": 1}
        self.flavor = self._made("compute", "/flavors", {"flavor": flavor})["flavor"]["id"]
        self.image = self._upload(image)
        pair = {"name": unique("key"), "public_key": key.with_suffix(".pub").read_text().strip()}
        self._made("compute", "/os-keypairs", {"keypair": pair})
        self.keypair = pair["name"]
        self.servers = {host: self.create(host) for host in HOSTS}
        self.addresses = {host: self.active(server_id, host) for host, server_id in self.servers.items()}
        self.floating_ip = self._floating_ip(self.servers["h2"])

    def _made(self, service: str, path: str, body: Any, version: str | None = None) -> Any:
        answer = self.admin.post(service, path, body, version=version)
        assert answer.status in (200, 201, 202), answer.text
        return answer.body

    def _networks(self) -> tuple[str, str]:
        public = {
            "name": "public",
            "router:external": True,
            "provider:network_type": "flat",
            "provider:physical_network": "public",
        }
        self.public = self._made("network", "/networks", {"network": public})["network"]["id"]
        outer = {
            "network_id": self.public,
            "cidr": "172.31.9.0/24",
            "ip_version": 4,
            "gateway_ip": OUTSIDE,
            "enable_dhcp": False,
            "allocation_pools": [{"start": "172.31.9.20", "end": "172.31.9.60"}],
        }
        self._made("network", "/subnets", {"subnet": outer})
        network = self._made("network", "/networks", {"network": {"name": "private"}})["network"]["id"]
        inner = {"network_id": network, "cidr": "10.9.0.0/24", "ip_version": 4}
        subnet = self._made("network", "/subnets", {"subnet": inner})["subnet"]["id"]
        router = {"name": "router", "external_gateway_info": {"network_id": self.public}}
        router_id = self._made("network", "/routers", {"router": router})["router"]["id"]
        plugged = self.admin.put("network", f"/routers/{router_id}/add_router_interface", {"subnet_id": subnet})
        assert plugged.status == 200, plugged.text
        return network, router_id

    def _open_security_group(self) -> None:
        groups = self.admin.get("network", f"/security-groups?name=default&project_id={self.admin.project_id}")
        (group,) = groups["security_groups"]
        for protocol, port in (("icmp", None), ("tcp", 22)):
            rule = {"security_group_id": group["id"], "direction": "ingress", "protocol": protocol}
            if port:
                rule |= {"port_range_min": port, "port_range_max": port}
            self._made("network", "/security-group-rules", {"security_group_rule": rule})

    def _upload(self, path: Path) -> str:
        body = {"name": unique("tiny"), "disk_format": "qcow2", "container_format": "bare"}
        image = self._made("image", "/images", body)["id"]
        headers = {"content-type": "application/octet-stream"}
        sent = self.admin.put("image", f"/images/{image}/file", data=path.read_bytes(), headers=headers)
        assert sent.status == 204, sent.text
        return str(image)

    def create(self, host: str) -> str:
        body = {
            "name": f"on-{host}",
            "imageRef": self.image,
            "flavorRef": self.flavor,
            "key_name": self.keypair,
            "networks": [{"uuid": self.network}],
            "availability_zone": f"nova:{host}",
        }
        return str(self._made("compute", "/servers", {"server": body})["server"]["id"])

    def show(self, server_id: str) -> Any:
        answer = self.admin.get("compute", f"/servers/{server_id}")
        return None if answer.status == 404 else answer["server"]

    def active(self, server_id: str, host: str) -> str:
        """Its address, when it is."""

        def look() -> Any:
            server = self.show(server_id)
            assert server["status"] != "ERROR", server.get("fault")
            return server["status"] == "ACTIVE" and server

        server = eventually(f"the server on {host} is ACTIVE", look, 120)
        assert server["OS-EXT-SRV-ATTR:host"] == host
        return str(server["addresses"]["private"][0]["addr"])

    def _floating_ip(self, server_id: str) -> str:
        (port,) = self.admin.get("network", f"/ports?device_id={server_id}")["ports"]
        body = {"floating_network_id": self.public, "port_id": port["id"]}
        return str(self._made("network", "/floatingips", {"floatingip": body})["floatingip"]["floating_ip_address"])

    def ssh(self, command: str) -> list[str]:
        """The command line that runs a command in the guest on h2, through its floating IP."""
        options = "-oStrictHostKeyChecking=no -oUserKnownHostsFile=/dev/null -oLogLevel=ERROR -oConnectTimeout=10"
        return ["ssh", "-i", str(self.key), *options.split(), f"cirros@{self.floating_ip}", command]

    def says(self, command: str) -> str | None:
        done = subprocess.run(self.ssh(command), capture_output=True, text=True, timeout=60, check=False)
        return done.stdout if done.returncode == 0 else None

    def delete(self, server_id: str) -> None:
        assert self.admin.delete("compute", f"/servers/{server_id}").status == 204
        eventually("the server is gone", lambda: self.show(server_id) is None, 60)


@pytest.fixture(scope="module")
def world(machines: Machines, built: guest.GuestImage, tmp_path_factory: pytest.TempPathFactory) -> World:
    key = tmp_path_factory.mktemp("key") / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    made = World(machines, built.disk, key)
    eventually("SSH by the floating IP", lambda: made.says("true") is not None, _BOOT_SECONDS)
    return made


class Pings:
    """From the guest on h2 to one address, and what came of it."""

    def __init__(self, world: World, address: str) -> None:
        command = f"sudo ping -i 0.2 {shlex.quote(address)} & echo $! >/tmp/{address}; wait"
        self._world, self.address = world, address
        self._process = subprocess.Popen(world.ssh(command), stdout=subprocess.PIPE, text=True)

    def end(self) -> None:
        """Every packet was answered, but for a first one that looked for its way, before anything was disturbed, and
        a last one that was still under way."""
        self._world.says(f"sudo kill -INT $(cat /tmp/{self.address})")
        try:
            said = self._process.communicate(timeout=30)[0]
        finally:
            self.stop()
        found = re.search(r"(\d+) packets transmitted", said)
        assert found, said[-500:]
        answered = [int(number) for number in re.findall(r"seq=(\d+)", said)]
        assert len(answered) > 4
        first, last = answered[0], answered[-1]
        assert answered == list(range(first, last + 1)), f"lost or doubled on the way to {self.address}"
        assert first <= 1
        assert int(found[1]) - last <= 2

    def stop(self) -> None:
        self._process.kill()
        self._process.wait(10)


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
            one.end()
    finally:
        for one in pings:
            one.stop()
    assert {host: world.machines.guests(host) for host in HOSTS} == before


def test_guests_of_different_hosts_reach_each_other(world: World) -> None:
    for host in ("h1", "h3"):
        pinged = eventually("a reply", lambda host=host: world.says(f"ping -c 3 {world.addresses[host]}"), 60)
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
    eventually("a new libvirtd", lambda: machines.libvirtd("h2") not in (0, old), 60)
    eventually("it answers", lambda: world.says("true") is not None)
    assert world.show(world.servers["h2"])["status"] == "ACTIVE"


def test_broker_and_database_restart(world: World, undisturbed: None) -> None:
    machines = world.machines
    assert machines.rabbit is not None
    assert machines.postgres is not None
    machines.rabbit.kill()
    machines.rabbit.start()
    machines.postgres.restart()
    eventually("all hosts are up", lambda: sorted(machines.nodes["c1"].hosts_up()) == sorted(HOSTS), 60)
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
    volume = world._made("volume", "/volumes", {"volume": {"size": 1, "name": unique("volume")}})["volume"]["id"]

    def is_now(status: str) -> bool:
        shown = world.admin.get("volume", f"/volumes/{volume}")["volume"]
        assert not shown["status"].startswith("error"), shown
        return bool(shown["status"] == status)

    eventually("the volume is made", lambda: is_now("available"))
    server = world.servers["h2"]
    attach = {"volumeAttachment": {"volumeId": volume}}
    world._made("compute", f"/servers/{server}/os-volume_attachments", attach)
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
    generation = json.loads((records / f"{attachment['id']}.json").read_text())["generation"]
    export = f"{attachment['id']}.{generation}"
    assert "virtual size: 1 GiB" in qemu_img(world, "h2", export, certificate=True)
    assert "TLS" in qemu_img(world, "h2", export, certificate=False)
    assert "virtual size" not in qemu_img(world, "h3", export, certificate=True), (
        "h3 has a certificate, and nothing here"
    )
    world._made("volume", f"/volumes/{volume}/action", {"os-extend": {"new_size": 2}}, "3.42")
    grown = f"test $(cat /sys/block/vdb/size) = {2 << 21}"
    eventually("the guest sees it grow", lambda: world.says(grown) is not None, 60)
    detached = world.admin.delete("compute", f"/servers/{server}/os-volume_attachments/{volume}")
    assert detached.status == 202, detached.text
    eventually("it is detached", lambda: is_now("available"), 60)
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
    eventually("nothing is found", lambda: named(audit()) <= known, 60)
    assert {host: machines.guests(host) for host in HOSTS} == before
    assert eventually("SSH by the floating IP", lambda: world.says("hostname"), 60)
    for host in ("h1", "h3"):
        assert world.says(f"ping -c 3 {world.addresses[host]}")
    assert world.says(f"ping -c 1 {OUTSIDE}")


def test_power_lost_on_one_host(world: World) -> None:
    """The last one: what h3 ran is off until someone starts it; the others notice nothing."""
    machines = world.machines
    before = {host: machines.guests(host) for host in ("h1", "h2")}
    pings = Pings(world, world.addresses["h1"])
    machines.power_off("h3")
    eventually("h3 is down", lambda: sorted(machines.nodes["c1"].hosts_up()) == ["h1", "h2"])
    pings.end()
    machines.power_on("h3")
    machines.start_agents("h3")
    server_id = world.servers["h3"]
    eventually("the server is off", lambda: world.show(server_id)["status"] == "SHUTOFF")
    started = world.admin.post("compute", f"/servers/{server_id}/action", {"os-start": None})
    assert started.status == 202, started.text
    world.active(server_id, "h3")
    address = world.addresses["h3"]
    eventually("it answers again", lambda: world.says(f"ping -c 1 -W 2 {address}"), _BOOT_SECONDS)
    assert {host: machines.guests(host) for host in before} == before
    for server in world.servers.values():
        world.delete(server)
    assert all(machines.guests(host) == [] for host in HOSTS)
