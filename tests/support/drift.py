"""Plants drift by hand on a real host, as mishaps and people do; prints what a doctor must find then.

    python drift.py SETTINGS FACTS KIND…

FACTS: as JSON, ids of what may be tampered with (``server`` with its ``port``, ``network``, ``router``, ``mechanism``).
Runs on the host, as root; imports nothing of the tests. The answer: a list of [code, object id].
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cumulet.agent.network import names
from cumulet.agent.volume.qmp import Qmp
from cumulet.kernel.ids import new_uuid
from cumulet.settings import Settings, load

Found = tuple[str, str]
KINDS: dict[str, Callable[["Host"], Found]] = {}


class Host:
    def __init__(self, settings: Settings, facts: dict[str, str]) -> None:
        self.settings = settings
        self.server, self.port = facts["server"], facts["port"]
        self.network, self.router = facts["network"], facts["router"]
        self.tap = names.tap(self.port)
        self.dhcp = settings.run_dir / "network" / "dhcp" / self.network
        self.servers = settings.state_dir / "compute" / "servers"

    def sh(self, command: str) -> str:
        return subprocess.run(["sh", "-ec", command], check=True, capture_output=True, text=True).stdout

    def libvirt(self) -> Any:
        import libvirt

        socket = self.settings.run_dir / "compute" / "libvirt" / "libvirt-sock"
        return libvirt.open(f"qemu+unix:///system?socket={socket}")

    def mark_namespace(self, name: str) -> None:
        (self.settings.run_dir / "network" / "namespaces" / name).touch()


def kind(function: Callable[[Host], Found]) -> Callable[[Host], Found]:
    KINDS[function.__name__] = function
    return function


# -- servers ----------------------------------------------------------------------------------------------------------


@kind
def domain_of_nobody(host: Host) -> Found:
    nobody, connection = new_uuid(), host.libvirt()
    xml = connection.lookupByUUIDString(host.server).XMLDesc(2)
    xml = re.sub(r"<name>.*?</name>", "<name>stranger</name>", xml)
    connection.defineXML(re.sub(f"{host.server}(</uuid>|</entry>)", rf"{nobody}\1", xml))
    return "domain-without-row", nobody


@kind
def definition_gone(host: Host) -> Found:
    """The guest runs on, and would be forgotten with its end."""
    host.libvirt().lookupByUUIDString(host.server).undefine()
    return "definition-missing", host.server


@kind
def disk_of_nobody(host: Host) -> Found:
    nobody = new_uuid()
    (host.servers / nobody).mkdir()
    (host.servers / nobody / "disk").write_text("the only copy of something")
    return "disk-without-server", nobody


@kind
def tap_of_nobody(host: Host) -> Found:
    nobody = new_uuid()
    tap = names.tap(nobody)
    host.sh(f"ip tuntap add dev {tap} mode tap; ip link set dev {tap} alias cumulet:port:{nobody}")
    return "tap-without-port", nobody


# -- volumes ----------------------------------------------------------------------------------------------------------


@kind
def volume_of_nobody(host: Host) -> Found:
    nobody = new_uuid()
    host.sh(f"qemu-img create -q -f qcow2 {host.settings.volume_dir}/volumes/{nobody}.qcow2 1G")
    return "volume-without-row", nobody


@kind
def backup_of_nobody(host: Host) -> Found:
    nobody = new_uuid()
    place = host.settings.volume_dir / "backups" / nobody
    place.mkdir()
    (place / "manifest.json").write_text(json.dumps({"volume_id": nobody, "size": 0, "chunks": []}))
    return "backup-without-row", nobody


@kind
def export_of_nobody(host: Host) -> Found:
    """Of a file that is no volume at all."""
    path = host.settings.state_dir / "stolen.qcow2"
    host.sh(f"qemu-img create -q -f qcow2 {path} 1M")
    with Qmp(host.settings.run_dir / "volume" / "qsd.qmp") as qmp:
        file = {"driver": "file", "filename": str(path)}
        qmp.execute("blockdev-add", driver="qcow2", file=file, **{"node-name": "stolen"})
        qmp.execute("block-export-add", type="nbd", id="stolen", name="stolen", **{"node-name": "stolen"})
    return "export-unknown", "stolen"


@kind
def record_of_no_attachment(host: Host) -> Found:
    """An export that an earlier life of a volume left, with its record."""
    nobody = new_uuid()
    records = host.settings.volume_dir / "exports"
    volume = json.loads(next(iter(records.glob("*.json"))).read_text())["volume_id"]
    with Qmp(host.settings.run_dir / "volume" / "qsd.qmp") as qmp:
        node, name = "v" + volume.replace("-", "")[:30], "e" + nobody.replace("-", "")[:30] + ".1"
        qmp.execute("block-export-add", type="nbd", id=name, name=f"{nobody}.1", **{"node-name": node})
    record = {"volume_id": volume, "attachment_id": nobody, "generation": 1, "host": host.settings.host_name}
    (records / f"{nobody}.json").write_text(json.dumps(record))
    return "export-without-attachment", f"{volume}/{nobody}"


# -- networks ---------------------------------------------------------------------------------------------------------


@kind
def dnsmasq_host_gone(host: Host) -> Found:
    lines = (host.dhcp / "host").read_text().splitlines(keepends=True)
    (host.dhcp / "host").write_text("".join(lines[1:]))
    return "dhcp-host-different", host.network


@kind
def dnsmasq_dead(host: Host) -> Found:
    """And another process has its number by now."""
    pid = int((host.dhcp / "pid").read_text())
    os.kill(pid, signal.SIGKILL)
    while Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes():
        time.sleep(0.02)
    (host.dhcp / "pid").write_text(f"{os.getpid()}\n")
    return "dnsmasq-missing", host.network


@kind
def lease_expired(host: Host) -> Found:
    with (host.dhcp / "leases").open("a") as leases:
        leases.write("1000 fa:16:3e:00:00:98 10.64.0.250 old *\n")
    return "lease-expired", f"{host.network}/fa:16:3e:00:00:98"


@kind
def chain_emptied(host: Host) -> Found:
    host.sh(f"nft flush chain bridge cumulet_sg i-{host.tap}")
    return "chain-different", host.port


@kind
def chain_of_nobody(host: Host) -> Found:
    host.sh("nft add chain bridge cumulet_sg evil; nft add rule bridge cumulet_sg evil accept")
    return "chain-unknown", "evil"


@kind
def router_translates_elsewhere(host: Host) -> Found:
    inside = f"ip netns exec qrouter-{host.router} nft"
    host.sh(f"{inside} flush map ip cumulet_router floating_in; {inside} flush chain ip cumulet_router postrouting")
    return "translation-different", host.router


@kind
def router_forwards_nothing(host: Host) -> Found:
    inside = f"ip netns exec qrouter-{host.router}"
    host.sh(f"{inside} sysctl -qw net.ipv4.ip_forward=0; {inside} ip route del default")
    return "namespace-different", f"qrouter-{host.router}"


@kind
def namespace_gone(host: Host) -> Found:
    host.sh(f"ip netns del qdhcp-{host.network}")
    return "namespace-missing", f"qdhcp-{host.network}"


@kind
def namespace_of_nobody(host: Host) -> Found:
    name = f"qrouter-{new_uuid()}"
    host.sh(f"ip netns add {name}")
    host.mark_namespace(name)
    return "namespace-unknown", name


@kind
def stray_device_on_a_bridge(host: Host) -> Found:
    host.sh(f"ip link add evil type veth peer name evil2; ip link set evil master {names.bridge(host.network)}")
    return "device-unknown", "evil"


@kind
def filters_see_no_connections(host: Host) -> Found:
    bridge = names.bridge(host.network)
    Path(f"/sys/class/net/{bridge}/bridge/nf_call_iptables").write_text("0")
    return "filter-table-different", bridge


# -- Open vSwitch -----------------------------------------------------------------------------------------------------


def tag_of(host: Host) -> str:
    return host.sh(f"ovs-vsctl get Port {names.hybrid_outer(host.port)} tag").strip()


@kind
def flow_gone(host: Host) -> Found:
    """What is sent to all goes nowhere."""
    tag = tag_of(host)
    host.sh(f"ovs-ofctl -O OpenFlow14 --strict del-flows br-tun table=22,priority=1,dl_vlan={tag}")
    return "flow-missing", f"br-tun table=22 priority=1,dl_vlan={tag}"


@kind
def flow_of_nobody(host: Host) -> Found:
    match = "priority=99,dl_src=fa:16:3e:00:00:66"
    host.sh(f"ovs-ofctl -O OpenFlow14 add-flow br-int {match},actions=drop")
    return "flow-unknown", f"br-int {match}"


@kind
def provider_flow_gone(host: Host) -> Found:
    host.sh("ovs-ofctl -O OpenFlow14 --strict del-flows br-ex table=0,priority=2,in_port=phy-br-ex")
    return "flow-missing", 'br-ex priority=2,in_port="phy-br-ex"'


@kind
def tag_changed(host: Host) -> Found:
    host.sh(f"ovs-vsctl set Port {names.hybrid_outer(host.port)} tag=99")
    return "forwarding-different", host.port


@kind
def tunnel_of_nobody(host: Host) -> Found:
    host.sh(
        "ovs-vsctl add-port br-tun vxlan-c0000242 -- set Interface vxlan-c0000242 type=vxlan options:key=flow"
        " options:remote_ip=192.0.2.66"
    )
    return "tunnel-unknown", "vxlan-c0000242"


@kind
def stranger_in_the_switch(host: Host) -> Found:
    host.sh("ip link add evil type veth peer name evil2; ovs-vsctl add-port br-int evil")
    return "switch-port-unknown", "evil"


# -- rows, where the database is on this host -------------------------------------------------------------------------


def _rows(host: Host, *statements: Any) -> None:
    from cumulet.db import Database

    db = Database(host.settings.database_url)

    def work(tx: Any) -> None:
        for statement in statements:
            tx.run(statement)

    db.write(work)
    db.close()


@kind
def allocation_of_nobody(host: Host) -> Found:
    from sqlalchemy import insert, select

    from cumulet.conductor.tables import HOSTS
    from cumulet.services.placement import tables as pt

    nobody = new_uuid()
    provider = select(HOSTS.c.uuid).where(HOSTS.c.name == host.settings.host_name).scalar_subquery()
    consumer = {
        "uuid": nobody, "project_id": "p", "user_id": "u", "consumer_type": "INSTANCE", "generation": 1,
        "updated_at": 1,
    }  # fmt: skip
    held = {"consumer_uuid": nobody, "provider_uuid": provider, "resource_class": "VCPU", "used": 1, "updated_at": 1}
    _rows(host, insert(pt.CONSUMERS).values(consumer), insert(pt.ALLOCATIONS).values(held))
    return "allocation-without-server", nobody


@kind
def attachment_of_nothing(host: Host) -> Found:
    from sqlalchemy import insert

    from cumulet.services.volume import tables as vt

    row = {
        "id": new_uuid(), "volume_id": new_uuid(), "project_id": "p", "server_id": host.server, "status": "attached",
        "generation": 1, "host": host.settings.host_name, "created_at": 1,
    }  # fmt: skip
    _rows(host, insert(vt.ATTACHMENTS).values(row))
    return "attachment-without-volume", row["id"]


@kind
def port_on_a_dead_host(host: Host) -> Found:
    """A spare one: the server's own would lose its tap with its document."""
    from sqlalchemy import update

    from cumulet.services.network import tables as nt

    spare = os.environ["SPARE_PORT"]
    _rows(host, update(nt.PORTS).where(nt.PORTS.c.id == spare).values(host="burnt"))
    return "port-on-unknown-host", spare


if __name__ == "__main__":
    planted_on = Host(load(Path(sys.argv[1])), json.loads(sys.argv[2]))
    print(json.dumps([KINDS[name](planted_on) for name in sys.argv[3:]]))
