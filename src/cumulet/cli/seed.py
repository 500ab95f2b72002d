"""What a fresh cloud is given, through its own APIs: projects, users, flavors, image, networks, security group, key.

Every function looks first and creates only what is missing, so that it may run again, or be killed half-way.
"""

import ipaddress
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cumulet.cli.client import Cloud, wait_for
from cumulet.cli.output import Problem
from cumulet.cli.server import KEY

# name, vCPUs, MiB, GiB of root disk
FLAVORS = [
    ("m1.nano", 1, 128, 1),
    ("m1.micro", 1, 256, 1),
    ("m1.tiny", 1, 512, 1),
    ("m1.small", 1, 2048, 20),
    ("m1.medium", 2, 4096, 40),
    ("m1.large", 4, 8192, 80),
]
EXTERNAL_RANGES = ("172.24.4.0/24", "172.24.5.0/24", "172.24.6.0/24", "10.224.4.0/24", "192.168.224.0/24")
IMAGE = "cumulet-tiny"
IMAGE_PROPERTIES = {"os_type": "linux", "os_distro": "debian", "os_admin_user": "cirros", "hw_rng_model": "virtio"}
PRIVATE_RANGE = "10.64.0.0/24"
SECURITY_GROUP = "cumulet-ssh"


def free_external_range() -> str:
    """A range that no address or route of this machine touches. Problem when all candidates are in use."""
    used: list[ipaddress.IPv4Network] = []
    for argv in (["ip", "-j", "-4", "addr"], ["ip", "-j", "-4", "route"]):
        for entry in json.loads(subprocess.run(argv, capture_output=True, text=True, check=True).stdout or "[]"):
            for info in entry.get("addr_info", []):
                used.append(ipaddress.ip_interface(f"{info['local']}/{info['prefixlen']}").network)  # type: ignore[arg-type]
            if entry.get("dst") not in (None, "default"):
                used.append(ipaddress.IPv4Network(entry["dst"], strict=False))
    for candidate in EXTERNAL_RANGES:
        if not any(ipaddress.IPv4Network(candidate).overlaps(other) for other in used):
            return candidate
    raise Problem("no free address range for the external network", "set [network] external_cidr in the settings")


def resolvers() -> list[str]:
    """The name servers that this machine asks, as far as its guests can ask them too."""
    try:
        lines = Path("/etc/resolv.conf").read_text().splitlines()
    except OSError:
        return []
    words = [line.split() for line in lines]
    asked = [word[1].partition("%")[0] for word in words if len(word) > 1 and word[0] == "nameserver"]
    return [address for address in asked if not ipaddress.ip_address(address).is_loopback]


def project_and_user(admin: Cloud, project: str, user: str, password: str) -> None:
    found = admin.find("identity", "projects", project)
    if found is None:
        found = admin.post("identity", "/projects", {"project": {"name": project, "domain_id": "default"}})["project"]
    member = admin.find("identity", "users", user)
    if member is None:
        body = {"user": {"name": user, "password": password, "domain_id": "default", "default_project_id": found["id"]}}
        member = admin.post("identity", "/users", body)["user"]
    for role_name in ("member",):
        role = admin.find("identity", "roles", role_name)
        if role is None:
            raise Problem(f"the cloud has no role {role_name!r}", "cumulet doctor")
        admin.put("identity", f"/projects/{found['id']}/users/{member['id']}/roles/{role['id']}")


def flavors(admin: Cloud) -> None:
    have = {f["name"] for f in admin.get("compute", "/flavors?is_public=None")["flavors"]}
    for name, vcpus, ram, disk in FLAVORS:
        if name not in have:
            body = {"flavor": {"name": name, "vcpus": vcpus, "ram": ram, "disk": disk}}
            admin.post("compute", "/flavors", body)


def image(admin: Cloud, built: Callable[[], Path]) -> Any:
    """Upload the tiny guest as a public image; ``built`` is called when there is none."""
    found = admin.find("image", "images", IMAGE)
    if found is not None and found["status"] == "active":
        return found
    if found is not None:  # a first run was killed during the upload
        admin.delete("image", f"/images/{found['id']}")
    path = built()
    body = {"name": IMAGE, "disk_format": "qcow2", "container_format": "bare", "visibility": "public", "min_disk": 1}
    made = admin.post("image", "/images", {**body, "min_ram": 96, **IMAGE_PROPERTIES})
    with open(path, "rb") as data:
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(path.stat().st_size)}
        admin.put("image", f"/images/{made['id']}/file", data, headers=headers)
    return wait_for(
        "the image becoming active",
        lambda: (i := admin.get("image", f"/images/{made['id']}"))["status"] == "active" and i,
        seconds=60,
        pause=0.05,
    )


def external_network(admin: Cloud, cidr: str) -> Any:
    network = admin.find("network", "networks", "public")
    if network is None:
        body = {
            "name": "public",
            "router:external": True,
            "provider:network_type": "flat",
            "provider:physical_network": "public",
        }
        network = admin.post("network", "/networks", {"network": body})["network"]
    if not network["subnets"]:
        hosts = list(ipaddress.ip_network(cidr).hosts())
        subnet = {
            "network_id": network["id"],
            "name": "public-subnet",
            "ip_version": 4,
            "cidr": cidr,
            "gateway_ip": str(hosts[0]),
            "enable_dhcp": False,
            "allocation_pools": [{"start": str(hosts[9]), "end": str(hosts[-1])}],
        }
        admin.post("network", "/subnets", {"subnet": subnet})
    return network


def private_network(cloud: Cloud, external_id: str) -> Any:
    """A network, its subnet and a router to the outside, of the caller's project."""
    network = cloud.find("network", "networks", "private")
    if network is None:
        network = cloud.post("network", "/networks", {"network": {"name": "private"}})["network"]
    subnet = cloud.find("network", "subnets", "private-subnet")
    if subnet is None:
        body = {"network_id": network["id"], "name": "private-subnet", "ip_version": 4, "cidr": PRIVATE_RANGE}
        subnet = cloud.post("network", "/subnets", {"subnet": body})["subnet"]
    router = cloud.find("network", "routers", "router1")
    if router is None:
        body = {"name": "router1", "external_gateway_info": {"network_id": external_id}}
        router = cloud.post("network", "/routers", {"router": body})["router"]
    legs = cloud.get("network", f"/ports?device_id={router['id']}")["ports"]
    if not any(f["subnet_id"] == subnet["id"] for p in legs for f in p["fixed_ips"]):
        cloud.put("network", f"/routers/{router['id']}/add_router_interface", {"subnet_id": subnet["id"]})
    return network


def security_group(cloud: Cloud) -> None:
    group = cloud.find("network", "security-groups", SECURITY_GROUP, key="security_groups")
    if group is None:
        body = {"name": SECURITY_GROUP, "description": "SSH and ping from anywhere"}
        group = cloud.post("network", "/security-groups", {"security_group": body})["security_group"]
    have = {(r["protocol"], r["port_range_min"]) for r in group["security_group_rules"] if r["direction"] == "ingress"}
    for protocol, port in (("tcp", 22), ("icmp", None)):
        if (protocol, port) not in have:
            rule = {
                "security_group_id": group["id"],
                "direction": "ingress",
                "protocol": protocol,
                "port_range_min": port,
                "port_range_max": port,
            }
            cloud.post("network", "/security-group-rules", {"security_group_rule": rule})


def key_pair(cloud: Cloud) -> None:
    """The key of this user on this machine, made if there is none, known to the cloud as ``cumulet``."""
    path = KEY.expanduser()
    if not path.exists():
        path.parent.mkdir(mode=0o700, exist_ok=True)
        argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "cumulet", "-f", str(path)]
        subprocess.run(argv, check=True, capture_output=True)
    public = path.with_suffix(".pub").read_text().strip()
    have = {k["keypair"]["name"]: k["keypair"] for k in cloud.get("compute", "/os-keypairs")["keypairs"]}
    if "cumulet" in have and have["cumulet"]["public_key"].split()[:2] != public.split()[:2]:
        cloud.delete("compute", "/os-keypairs/cumulet")
        del have["cumulet"]
    if "cumulet" not in have:
        cloud.post("compute", "/os-keypairs", {"keypair": {"name": "cumulet", "public_key": public}})
