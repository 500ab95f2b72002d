"""Commands about one server, through the plain OpenStack APIs: launch, ssh, logs."""

import os
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import click

from cumulet.cli.client import ApiError, Cloud, wait_for
from cumulet.cli.output import Problem

KEY = Path("~/.ssh/cumulet_ed25519")
COMPUTE_VERSION = "2.1"
cloud_option = click.option("--os-cloud", "cloud_name", default=None, help="Entry of clouds.yaml (default: cumulet).")


@click.command(help="Create a server and wait until it is reachable.")
@click.argument("name")
@click.option("--image", default=None, help="Name or id (default: the newest public image).")
@click.option("--flavor", default=None, help="Name or id (default: the smallest that fits the image).")
@click.option("--network", default=None, help="Name or id (default: the project's only network).")
@click.option("--no-floating-ip", is_flag=True, help="Do not give it an address outside.")
@cloud_option
def launch(
    name: str, image: str | None, flavor: str | None, network: str | None, no_floating_ip: bool, cloud_name: str | None
) -> None:
    cloud = Cloud.named(cloud_name)
    server = create(cloud, name, image=image, flavor=flavor, network=network)
    click.echo(f"{name}: {server['id']} accepted")
    wait_active(cloud, server["id"])
    click.echo(f"{name}: ACTIVE")
    if not no_floating_ip:
        address = ensure_floating_ip(cloud, server["id"])
        click.echo(f"{name}: {address}")
        wait_ssh(cloud, server["id"], address, seconds=180)
        click.echo(f"{name}: answers SSH; cumulet ssh {name}")


@click.command(
    help="Open a shell in a server, or run a command there.",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@click.argument("name")
@click.argument("command", nargs=-1)
@click.option("--user", default=None, help="Login (default: the image's os_admin_user, else cirros).")
@cloud_option
def ssh(name: str, command: tuple[str, ...], user: str | None, cloud_name: str | None) -> None:
    cloud = Cloud.named(cloud_name)
    server = find_server(cloud, name)
    address = reachable_address(server)
    argv = [*ssh_argv(address, user or login_user(cloud, server)), *command]
    os.execvp(argv[0], argv)


@click.command(help="Print a server's console log.")
@click.argument("name")
@click.option("--lines", type=int, default=None)
@cloud_option
def logs(name: str, lines: int | None, cloud_name: str | None) -> None:
    cloud = Cloud.named(cloud_name)
    server = find_server(cloud, name)
    body = {"os-getConsoleOutput": {} if lines is None else {"length": lines}}
    click.echo(cloud.post("compute", f"/servers/{server['id']}/action", body)["output"])


# -- what the commands and the quickstart share ---------------------------------------------------------------


def find_server(cloud: Cloud, name: str) -> Any:
    server = cloud.find("compute", "servers/detail", name, key="servers")
    if server is None:
        raise Problem(f"no server {name!r}", "openstack --os-cloud cumulet server list")
    return server


def create(
    cloud: Cloud,
    name: str,
    *,
    image: str | None = None,
    flavor: str | None = None,
    network: str | None = None,
    security_groups: list[str] | None = None,
    key_name: str | None = "cumulet",
) -> Any:
    """POST the server; what is not given is chosen: newest public image, smallest fitting flavor, only network."""
    if image:
        chosen = cloud.find("image", "images", image)
    else:
        listed = cloud.get("image", "/images?status=active&sort=created_at:desc")["images"]
        chosen = listed[0] if listed else None
    if chosen is None:
        raise Problem(f"no image {image or ''}".rstrip(), "cumulet image import URL")
    if flavor:
        picked = cloud.find("compute", "flavors/detail", flavor, key="flavors")
    else:
        picked = min(
            (
                f
                for f in cloud.get("compute", "/flavors/detail")["flavors"]
                if f["ram"] >= (chosen.get("min_ram") or 0) and f["disk"] >= (chosen.get("min_disk") or 0)
            ),
            key=lambda f: (f["ram"], f["disk"]),
            default=None,
        )
    if picked is None:
        raise Problem(f"no flavor {flavor or ''}".rstrip(), "openstack flavor list")
    server: dict[str, Any] = {"name": name, "imageRef": chosen["id"], "flavorRef": picked["id"]}
    if network:
        found = cloud.find("network", "networks", network)
        if found is None:
            raise Problem(f"no network {network!r}", "openstack network list")
        server["networks"] = [{"uuid": found["id"]}]
    if key_name and any(
        k["keypair"]["name"] == key_name for k in cloud.get("compute", "/os-keypairs").get("keypairs", [])
    ):
        server["key_name"] = key_name
    groups = security_groups
    if groups is None and cloud.find("network", "security-groups", "cumulet-ssh", key="security_groups"):
        groups = ["cumulet-ssh"]
    if groups:
        server["security_groups"] = [{"name": g} for g in groups]
    return cloud.post("compute", "/servers", {"server": server})["server"]


def wait_active(cloud: Cloud, server_id: str, seconds: float = 180) -> Any:
    def look() -> Any:
        server = cloud.get("compute", f"/servers/{server_id}")["server"]
        if server["status"] == "ERROR":
            why = (server.get("fault") or {}).get("message", "no reason given")
            raise Problem(f"{server['name']} failed: {why}", f"cumulet explain server {server['name']}")
        return server if server["status"] == "ACTIVE" else None

    return wait_for("the server becoming ACTIVE", look, seconds=seconds, pause=0.2)


def ensure_floating_ip(cloud: Cloud, server_id: str) -> str:
    """The server's floating address; gives it one from the external network if it has none."""
    ports = cloud.get("network", f"/ports?device_id={server_id}")["ports"]
    if not ports:
        raise Problem("the server has no port", "openstack server add network")
    for port in ports:
        for existing in cloud.get("network", f"/floatingips?port_id={port['id']}")["floatingips"]:
            address: str = existing["floating_ip_address"]
            return address
    free = [
        f
        for f in cloud.get("network", "/floatingips")["floatingips"]
        if f["port_id"] is None and f["project_id"] == cloud.project_id
    ]
    if free:
        update = {"floatingip": {"port_id": ports[0]["id"]}}
        made = cloud.put("network", f"/floatingips/{free[0]['id']}", update)["floatingip"]
    else:
        external = cloud.get("network", "/networks?router:external=true")["networks"]
        if not external:
            raise Problem("the cloud has no external network", "openstack network create --external …")
        body = {"floatingip": {"floating_network_id": external[0]["id"], "port_id": ports[0]["id"]}}
        made = cloud.post("network", "/floatingips", body)["floatingip"]
    return str(made["floating_ip_address"])


def reachable_address(server: Any) -> str:
    addresses = [a for network in server["addresses"].values() for a in network]
    for a in addresses:
        if a.get("OS-EXT-IPS:type") == "floating":
            return str(a["addr"])
    raise Problem(
        f"{server['name']} has no floating IP",
        f"cumulet launch, or openstack server add floating ip {server['name']} …",
    )


def login_user(cloud: Cloud, server: Any) -> str:
    image = server.get("image") or {}
    if image.get("id"):
        try:
            return str(cloud.get("image", f"/images/{image['id']}").get("os_admin_user") or "cirros")
        except ApiError as error:
            if error.status != 404:
                raise
    return "cirros"


def ssh_argv(address: str, user: str) -> list[str]:
    """Guests come and go on the same addresses, so host keys are not remembered."""
    options = ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR", "ConnectTimeout=5"]
    argv = ["ssh", *(part for o in options for part in ("-o", o))]
    key = KEY.expanduser()
    if key.exists():
        argv += ["-i", str(key), "-o", "IdentitiesOnly=yes"]
    return [*argv, f"{user}@{address}"]


def wait_ssh(cloud: Cloud, server_id: str, address: str, *, seconds: float) -> str:
    """Wait until a command runs in the guest over SSH with the key; what ``hostname; uptime`` printed."""
    server = cloud.get("compute", f"/servers/{server_id}")["server"]
    argv = [*ssh_argv(address, login_user(cloud, server)), "hostname; uptime"]
    end = time.monotonic() + seconds
    last = ""
    while time.monotonic() < end:
        if _port_open(address):
            done = subprocess.run(
                argv, capture_output=True, text=True, timeout=30, stdin=subprocess.DEVNULL, check=False
            )
            if done.returncode == 0:
                return done.stdout.strip()
            last = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else ""
        time.sleep(0.2)
    raise Problem(
        f"no SSH from {address} within {seconds:.0f} s{': ' + last if last else ''}",
        f"cumulet logs {server['name']}; cumulet doctor",
    )


def _port_open(address: str) -> bool:
    try:
        with socket.create_connection((address, 22), timeout=1):
            return True
    except OSError:
        return False
