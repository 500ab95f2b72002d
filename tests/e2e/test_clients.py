"""What OpenStack's own clients do all day, on the running cloud: most servers here are a boot sector in a real QEMU
process, which is all that these claims need. Every test removes what it made."""

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import pytest

from cumulet.guest import boot_sector_qcow2
from tests.e2e.conftest import CloudHost, eventually

pytestmark = [pytest.mark.host, pytest.mark.timeout(900)]


class Cli:
    """The unmodified ``openstack`` command, as the administrator unless said otherwise."""

    def __init__(self, host: CloudHost) -> None:
        self.host = host

    def __call__(self, command: str, *more: str, cloud: str = "cumulet-admin") -> str:
        return self.host.openstack(*command.split(), *more, cloud=cloud)

    def show(self, command: str, *more: str, cloud: str = "cumulet-admin") -> Any:
        return json.loads(self(command, *more, "-f", "json", cloud=cloud))

    def names(self, command: str, *more: str, cloud: str = "cumulet-admin") -> list[str]:
        return self(command, *more, "-f", "value", "-c", "Name", cloud=cloud).splitlines()


@pytest.fixture(scope="module")
def cli(cloud_host: CloudHost, quickstart: str) -> Cli:
    return Cli(cloud_host)


@pytest.fixture
def sector(admin: Any) -> Iterator[Any]:
    """The boot sector as an image."""
    data = boot_sector_qcow2()
    image = admin.image.create_image(
        name="sector", disk_format="qcow2", container_format="bare", visibility="public", data=data, min_disk=0
    )
    yield image
    admin.image.delete_image(image.id)


def test_identity(cli: Cli) -> None:
    token = cli("token issue -f value -c id")
    cli("token revoke", token)
    assert {"nova", "neutron", "glance", "cinderv3", "keystone", "placement"} <= set(cli.names("catalog list"))
    cli("domain create --description d tales")
    cli("project create --domain tales p1")
    cli("user create --domain tales --password s3cret --project p1 --project-domain tales u1")
    cli("role create teller")
    cli("role add --user u1 --user-domain tales --project p1 --project-domain tales teller")
    listed = cli.show("role assignment list --names --user u1 --user-domain tales")
    assert [(a["Role"], a["Project"]) for a in listed] == [("teller", "p1@tales")]
    cli("user set --email u1@example.org --domain tales u1")
    assert cli.show("user show --domain tales u1")["email"] == "u1@example.org"
    cli("project set --description new --domain tales p1")
    cli("role remove --user u1 --user-domain tales --project p1 --project-domain tales teller")
    cli("role delete teller")
    cli("service create --name tell telling")
    cli("endpoint create --region RegionOne telling public http://127.0.0.1:1")
    endpoint = cli.show("endpoint list --service telling")[0]["ID"]
    cli("endpoint set --url http://127.0.0.1:2", endpoint)
    cli("endpoint delete", endpoint)
    cli("service delete tell")
    cli("user delete --domain tales u1")
    cli("project delete --domain tales p1")
    cli("domain set --disable tales")
    cli("domain delete tales")


def test_images(cli: Cli, cloud_host: CloudHost) -> None:
    cloud_host.sh("head -c 3000000 /dev/urandom > /var/tmp/noise.raw")
    cli("image create --disk-format raw --container-format bare --file /var/tmp/noise.raw noise")
    cli("image set --property a=b --min-disk 1 --name louder noise")
    shown = cli.show("image show louder")
    assert shown["properties"]["a"] == "b"
    assert shown["min_disk"] == 1
    cli("image save --file /var/tmp/noise.out louder")
    same = cloud_host.sh("cmp /var/tmp/noise.raw /var/tmp/noise.out && md5sum /var/tmp/noise.out")
    assert same.split()[0] == shown["checksum"]
    cli("image delete louder")
    assert "louder" not in cli.names("image list")
    cloud_host.sh("rm /var/tmp/noise.*")


def test_flavors_keys_and_quotas(cli: Cli) -> None:
    cli("flavor create --vcpus 1 --ram 64 --disk 1 --property hw:cpu_policy=shared odd")
    assert cli.show("flavor show odd")["properties"] == {"hw:cpu_policy": "shared"}
    cli("flavor unset --property hw:cpu_policy odd")
    cli("flavor delete odd")
    private = cli("keypair create made")
    assert "PRIVATE KEY" in private
    cli("keypair delete made")
    cli("keypair create --public-key /root/.ssh/cumulet_ed25519.pub taken")
    assert cli.show("keypair show taken")["type"] == "ssh"
    cli("keypair delete taken")
    cli("quota set --instances 7 --volumes 6 --networks 5 demo")
    rows = {row["Resource"]: row["Limit"] for row in cli.show("quota show demo")}
    assert (rows["instances"], rows["volumes"], rows["networks"]) == (7, 6, 5)
    cli("quota set --instances 10 --volumes 10 --networks 100 demo")


def test_networks(cli: Cli) -> None:
    demo = {"cloud": "cumulet"}
    cli("network create n1", **demo)
    cli("network set --description d --name n2 n1", **demo)
    cli("subnet create --network n2 --subnet-range 10.99.0.0/24 --dns-nameserver 192.0.2.1 s1", **demo)
    cli("subnet set --name s2 s1", **demo)
    cli("router create r1", **demo)
    cli("router add subnet r1 s2", **demo)
    cli("router set --external-gateway public r1", **demo)
    cli("port create --network n2 --fixed-ip ip-address=10.99.0.50 p1", **demo)
    cli("port set --name p2 p1", **demo)
    assert "10.99.0.50" in str(cli.show("port show p2", **demo)["fixed_ips"])
    cli("security group create g1", **demo)
    cli("security group rule create --protocol tcp --dst-port 80 g1", **demo)
    rule = next(r for r in cli.show("security group rule list g1", **demo) if r["Port Range"] == "80:80")
    cli("security group rule delete", rule["ID"], **demo)
    cli("port set --security-group g1 p2", **demo)
    address = cli.show("floating ip create public --port p2", **demo)["floating_ip_address"]
    assert cli.show("floating ip show", address, **demo)["fixed_ip_address"] == "10.99.0.50"
    cli("floating ip unset --port", address, **demo)
    cli("floating ip delete", address, **demo)
    cli("port delete p2", **demo)
    cli("security group delete g1", **demo)
    cli("router remove subnet r1 s2", **demo)
    cli("router delete r1", **demo)
    cli("subnet delete s2", **demo)
    cli("network delete n2", **demo)


def test_hosts_and_services(cli: Cli) -> None:
    assert [h["State"] for h in cli.show("hypervisor list")] == ["up"]
    assert {"nova-compute", "nova-conductor", "nova-scheduler"} <= {
        s["Binary"] for s in cli.show("compute service list")
    }
    agents = {a["Binary"] for a in cli.show("network agent list")}
    assert {"neutron-dhcp-agent", "neutron-l3-agent", "neutron-metadata-agent"} <= agents
    assert {"cinder-volume", "cinder-scheduler"} <= {s["Binary"] for s in cli.show("volume service list")}


def test_volumes(cli: Cli) -> None:
    demo = {"cloud": "cumulet"}
    cli("volume create --size 1 --description d v1", **demo)
    eventually("available", lambda: cli.show("volume show v1", **demo)["status"] == "available")
    cli("volume set --name v2 --property k=v v1", **demo)
    cli("volume set --size 2 v2", **demo)
    eventually("grown", lambda: cli.show("volume show v2", **demo)["size"] == 2)
    assert cli.show("volume list", **demo)[0]["Name"] == "v2"
    eventually("available", lambda: cli.show("volume show v2", **demo)["status"] == "available")
    cli("volume delete v2", **demo)
    eventually("gone", lambda: cli.names("volume list", **demo) == [])


def taps(host: CloudHost) -> set[str]:
    return set(host.sh("ls /sys/class/net | grep ^tap").split())


def test_servers(cli: Cli, cloud_host: CloudHost, demo: Any, sector: Any) -> None:
    taps_before = taps(cloud_host)  # demo-1's, the DHCP server's, the router's
    network = demo.network.find_network("private")
    flavor = demo.compute.find_flavor("m1.nano")
    port = demo.network.create_port(network_id=network.id, name="given")

    def create(name: str, **more: Any) -> Any:
        return demo.compute.create_server(name=name, image_id=sector.id, flavor_id=flavor.id, **more)

    several = create("many", networks=[{"uuid": network.id}], min_count=2, max_count=2)
    by_port = create("by-port", networks=[{"port": port.id}])
    by_address = create("by-address", networks=[{"uuid": network.id, "fixed_ip": "10.64.0.77"}])
    for server in (several, by_port, by_address):
        demo.compute.wait_for_server(server, wait=120)
    found = eventually("both are there", lambda: len(s := list(demo.compute.servers(name="many"))) == 2 and s)
    assert {s.name for s in found} == {"many-1", "many-2"}
    shown = demo.compute.get_server(by_address.id)
    assert [a["addr"] for a in shown.addresses["private"]] == ["10.64.0.77"]
    assert demo.network.get_port(port.id).device_id == by_port.id
    assert cloud_host.sh("pgrep -xc qemu-system-x86").strip() == "5"  # demo-1 and four

    # lists: filters, pages, order
    assert [s.name for s in demo.compute.servers(status="ACTIVE", sort_key="display_name", sort_dir="asc")] == [
        "by-address", "by-port", "demo-1", "many-1", "many-2",
    ]  # fmt: skip
    assert len(list(demo.compute.servers(limit=2))) == 5

    # set, security groups, ports, addresses
    cli("server set --name renamed --property k=v by-port", cloud="cumulet")
    assert cli.show("server show renamed", cloud="cumulet")["properties"] == {"k": "v"}
    cli("server add security group renamed cumulet-ssh", cloud="cumulet")
    cli("server remove security group renamed cumulet-ssh", cloud="cumulet")
    extra = demo.network.create_port(network_id=network.id, name="extra")
    cli("server add port renamed extra", cloud="cumulet")
    eventually("the port is the server's", lambda: demo.network.get_port(extra.id).device_id == by_port.id)
    cli("server remove port renamed extra", cloud="cumulet")
    eventually("the port is let go", lambda: demo.network.find_port("extra") is None
               or demo.network.get_port(extra.id).device_id == "")  # fmt: skip
    address = cli.show("floating ip create public", cloud="cumulet")["floating_ip_address"]
    cli("server add floating ip renamed", address, cloud="cumulet")
    assert address in str(cli.show("server show renamed", cloud="cumulet")["addresses"])
    cli("server remove floating ip renamed", address, cloud="cumulet")
    cli("floating ip delete", address, cloud="cumulet")

    # life
    cli("server stop by-address", cloud="cumulet")
    demo.compute.wait_for_server(demo.compute.get_server(by_address.id), status="SHUTOFF", wait=120)
    cli("server start by-address", cloud="cumulet")
    demo.compute.wait_for_server(demo.compute.get_server(by_address.id), wait=60)
    cli("server reboot --hard --wait by-address", cloud="cumulet")
    events = cli.show("server event list by-address", cloud="cumulet")
    assert {"create", "stop", "start", "reboot"} <= {e["Action"] for e in events}
    story = cli.show("server event show by-address", events[0]["Request ID"], cloud="cumulet")
    assert story["action"] == events[0]["Action"]

    # one is deleted while it is built; nothing of any is left
    hasty = create("hasty", networks=[{"uuid": network.id}])
    for server in (*found, by_port, by_address, hasty):
        demo.compute.delete_server(server.id)
    for server in (*found, by_port, by_address, hasty):
        demo.compute.wait_for_delete(server, wait=120)
    demo.network.delete_port(port.id)
    if demo.network.find_port("extra") is not None:
        demo.network.delete_port(extra.id)
    assert [p.device_id for p in demo.network.ports(device_owner="compute:nova")] == [
        demo.compute.find_server("demo-1").id
    ]
    eventually("one QEMU is left", lambda: cloud_host.sh("pgrep -xc qemu-system-x86").strip() == "1")
    eventually("no tap is left of them", lambda: taps(cloud_host) == taps_before)


def test_a_refusal_names_what_was_missing_to_the_administrator(cli: Cli, admin: Any, demo: Any, sector: Any) -> None:
    huge = admin.compute.create_flavor(name="huge", vcpus=1, ram=900_000, disk=1)
    cli("quota set --ram -1 demo")
    network = demo.network.find_network("private")
    server = demo.compute.create_server(
        name="too-big", image_id=sector.id, flavor_id=huge.id, networks=[{"uuid": network.id}]
    )
    failed = eventually(
        "it fails", lambda: (s := demo.compute.get_server(server.id)).status == "ERROR" and s, 60
    )  # fmt: skip
    assert "No valid host" in failed.fault["message"]
    demo.compute.delete_server(server.id)
    demo.compute.wait_for_delete(server, wait=60)
    cli("quota set --ram 51200 demo")
    admin.compute.delete_flavor(huge.id)


def test_uploads_keep_their_bytes(admin: Any) -> None:
    data = boot_sector_qcow2()
    image = admin.image.create_image(name="bytes", disk_format="qcow2", container_format="bare", data=data)
    got = admin.image.download_image(image.id)
    assert hashlib.sha512(got.content).hexdigest() == admin.image.get_image(image.id).hash_value
    admin.image.delete_image(image.id)
