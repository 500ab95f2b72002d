"""What the tests of this folder stand on: a network over three hosts, a server on each, pings between them."""

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

from tests.hosts.machines import HOSTS, OUTSIDE, Machines, eventually
from tests.support.cloud import Api, unique

BOOT_SECONDS = 300  # three emulated guests at once on a busy machine


class World:
    """One network over three hosts with a server on each; the one on h2 has a floating IP."""

    def __init__(self, machines: Machines, image: Path, key: Path) -> None:
        self.machines = machines
        self.admin: Api = machines.api("admin")
        self.key = key
        self.network, self.router = self._networks()
        self._open_security_group()
        flavor = {"name": unique("nano"), "vcpus": 1, "ram": 128, "disk": 1}
        self.flavor = self.made("compute", "/flavors", {"flavor": flavor})["flavor"]["id"]
        self.image = self.upload(image)
        pair = {"name": unique("key"), "public_key": key.with_suffix(".pub").read_text().strip()}
        self.made("compute", "/os-keypairs", {"keypair": pair})
        self.keypair = pair["name"]
        self.servers = {host: self.create(host) for host in HOSTS}
        self.addresses = {host: self.active(server_id, host) for host, server_id in self.servers.items()}
        self.floating_ip = self._floating_ip(self.servers["h2"])

    def made(self, service: str, path: str, body: Any, version: str | None = None) -> Any:
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
        self.public = self.made("network", "/networks", {"network": public})["network"]["id"]
        outer = {
            "network_id": self.public,
            "cidr": "172.31.9.0/24",
            "ip_version": 4,
            "gateway_ip": OUTSIDE,
            "enable_dhcp": False,
            "allocation_pools": [{"start": "172.31.9.20", "end": "172.31.9.60"}],
        }
        self.made("network", "/subnets", {"subnet": outer})
        network = self.made("network", "/networks", {"network": {"name": "private"}})["network"]["id"]
        inner = {"network_id": network, "cidr": "10.9.0.0/24", "ip_version": 4}
        subnet = self.made("network", "/subnets", {"subnet": inner})["subnet"]["id"]
        router = {"name": "router", "external_gateway_info": {"network_id": self.public}}
        router_id = self.made("network", "/routers", {"router": router})["router"]["id"]
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
            self.made("network", "/security-group-rules", {"security_group_rule": rule})

    def upload(self, path: Path) -> str:
        body = {"name": unique("tiny"), "disk_format": "qcow2", "container_format": "bare"}
        image = self.made("image", "/images", body)["id"]
        headers = {"content-type": "application/octet-stream"}
        sent = self.admin.put("image", f"/images/{image}/file", data=path.read_bytes(), headers=headers)
        assert sent.status == 204, sent.text
        return str(image)

    def create(self, host: str, image: str | None = None) -> str:
        body = {
            "name": f"on-{host}",
            "imageRef": image or self.image,
            "flavorRef": self.flavor,
            "key_name": self.keypair,
            "networks": [{"uuid": self.network}],
            "availability_zone": f"nova:{host}",
        }
        return str(self.made("compute", "/servers", {"server": body})["server"]["id"])

    def show(self, server_id: str) -> Any:
        answer = self.admin.get("compute", f"/servers/{server_id}")
        return None if answer.status == 404 else answer["server"]

    def active(self, server_id: str, host: str) -> str:
        """Its address, when it is."""

        def look() -> Any:
            server = self.show(server_id)
            assert server["status"] != "ERROR", server.get("fault")
            return server["status"] == "ACTIVE" and server

        server = eventually(f"the server on {host} is ACTIVE", look)
        assert server["OS-EXT-SRV-ATTR:host"] == host
        return str(server["addresses"]["private"][0]["addr"])

    def _floating_ip(self, server_id: str) -> str:
        (port,) = self.admin.get("network", f"/ports?device_id={server_id}")["ports"]
        body = {"floating_network_id": self.public, "port_id": port["id"]}
        return str(self.made("network", "/floatingips", {"floatingip": body})["floatingip"]["floating_ip_address"])

    def ssh(self, command: str) -> list[str]:
        """The command line that runs a command in the guest on h2, through its floating IP."""
        options = "-oStrictHostKeyChecking=no -oUserKnownHostsFile=/dev/null -oLogLevel=ERROR -oConnectTimeout=10"
        return ["ssh", "-i", str(self.key), *options.split(), f"cirros@{self.floating_ip}", command]

    def says(self, command: str) -> str | None:
        done = subprocess.run(self.ssh(command), capture_output=True, text=True, timeout=60, check=False)
        return done.stdout if done.returncode == 0 else None

    def act(self, server_id: str, action: dict[str, Any], version: str | None = None) -> None:
        answer = self.admin.post("compute", f"/servers/{server_id}/action", action, version=version)
        assert answer.status in (200, 202, 204), answer.text

    def is_at(self, server_id: str, host: str, status: str) -> Any:
        """Is it of this status on this host, with nothing going on?"""
        server = self.show(server_id)
        assert status == "ERROR" or server["status"] != "ERROR", server.get("fault")
        there = (server["OS-EXT-SRV-ATTR:host"], server["status"], server["OS-EXT-STS:task_state"])
        return there == (host, status, None)

    def delete(self, server_id: str) -> None:
        assert self.admin.delete("compute", f"/servers/{server_id}").status == 204
        eventually("the server is gone", lambda: self.show(server_id) is None)


def make_world(machines: Machines, image: Path, directory: Path) -> World:
    """When this returns the guests are up; ``directory`` keeps the key that they let in."""
    key = directory / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    made = World(machines, image, key)
    eventually("SSH by the floating IP", lambda: made.says("true") is not None, BOOT_SECONDS)
    return made


class Pings:
    """From the guest on h2 to one address, kept by the guest: an SSH connection that breaks costs none of them."""

    def __init__(self, world: World, address: str) -> None:
        self._world, self.address = world, address
        self._log = f"/tmp/{address}"
        ping = f"echo $$ >{self._log}.pid; exec ping -i 0.2 {shlex.quote(address)}"
        assert world.says(f"sudo sh -c {shlex.quote(ping)} >{self._log} 2>&1 </dev/null &") is not None

    def end(self) -> tuple[int, set[int]]:
        """How many were sent, and which of them were not answered; a last one that was under way does not count."""
        script = f"sudo kill -INT $(cat {self._log}.pid); sleep 1; cat {self._log}"
        said = eventually("the guest on h2 answers", lambda: self._world.says(script))
        sent = re.search(r"(\d+) packets transmitted", said)
        assert sent, said[-500:]
        answered = [int(number) for number in re.findall(r"seq=(\d+)", said)]
        self.doubled = len(answered) - len(set(answered))  # a switch that starts floods until it has learned
        return int(sent[1]), set(range(int(sent[1]) - 1)) - set(answered)

    def stop(self) -> None:
        self._world.says(f"sudo kill $(cat {self._log}.pid)")
