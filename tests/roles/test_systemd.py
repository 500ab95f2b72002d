"""A control node and a host under systemd itself, set up as the operator's guide says: users, directories, units,
`cumulet join`. Each role killed comes back by its unit, and what an agent started outlives it.

systemd is process 1 of two pretend hosts, over this machine's root, with PostgreSQL, RabbitMQ and libvirt as their
packages' units run them.
"""

import json
import shlex
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from fcntl import LOCK_EX, flock
from pathlib import Path
from typing import Any

import pytest

from tests.hosts.machines import eventually
from tests.support.cloud import Clients
from tests.support.pretend import PretendHosts

pytestmark = [pytest.mark.host, pytest.mark.timeout(900)]
_REPOSITORY = Path(__file__).parents[2]
_CONTROL, _HOST = "h1", "h2"
_CONTROL_IP = "10.77.0.1"
_SETTINGS = f"""
[host]
name = "c1"
[api]
bind = "{_CONTROL_IP}"
[database]
url = "postgresql://cumulet:secret@127.0.0.1:5432/cumulet"
[bus]
url = "amqp://cumulet:secret@{_CONTROL_IP}:5672/%2F"
management_url = "http://cumulet:secret@{_CONTROL_IP}:15672"
[tls]
host_certificate_days = 0.02  # two thirds are over at once: it counts from an hour earlier
"""
_HOST_SETTINGS = """
[host]
heartbeat_seconds = 1
[compute]
virt_type = "qemu"
[network]
mechanism = "linuxbridge"
"""
_USERS = """
cp /opt/cumulet/setup/systemd/cumulet.sysusers /usr/lib/sysusers.d/cumulet.conf && systemd-sysusers
cp /opt/cumulet/setup/systemd/cumulet.tmpfiles /usr/lib/tmpfiles.d/cumulet.conf && systemd-tmpfiles --create
cp /opt/cumulet/setup/systemd/cumulet-{api,conductor}.service /etc/systemd/system
"""
_DATABASE = """
runuser -u postgres -- psql -qc "create role cumulet login password 'secret'"
runuser -u postgres -- createdb -O cumulet cumulet
"""
_BROKER = """
rabbitmqctl -q add_user cumulet secret
rabbitmqctl -q set_user_tags cumulet administrator
rabbitmqctl -q set_permissions cumulet '.*' '.*' '.*'
"""


class Machines(Clients):
    def __init__(self) -> None:
        super().__init__()
        self.hosts = PretendHosts("sd", 2, systemd=True)
        self.url = f"http://{_CONTROL_IP}:8774"

    def sh(self, host: str, script: str) -> str:
        command = self.hosts.command(host, "bash", "-ec", script)
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, f"{host}: {script}\n{done.stdout}{done.stderr}"
        return done.stdout

    def show(self, host: str, unit: str, name: str) -> str:
        return self.sh(host, f"systemctl show --value -p {name} {unit}").strip()

    def journal(self, host: str, unit: str) -> list[dict[str, Any]]:
        text = self.sh(host, f"journalctl --no-pager -o json -u {unit}")
        return [json.loads(line) for line in text.splitlines()]

    def auth(self, user: str) -> dict[str, str]:
        password = self.sh(_CONTROL, "cat /var/lib/cumulet/admin-password").strip()
        return {**super().auth(user), "password": password}

    def state(self, host: str) -> str:
        """Of the machine: "offline" until systemd answers at all."""
        return self.sh(host, "systemctl is-system-running || true").strip()

    def answers(self) -> bool:
        try:
            return self.sh(_CONTROL, f"wget -qO- {self.url}/identity/v3") != ""
        except AssertionError:
            return False

    def up(self, host: str = _HOST) -> bool:
        listed = self.api("admin").get("operator", "/v1/hosts")["hosts"]
        return any(one["name"] == host and one["up"] for one in listed)

    def made(self, service: str, path: str, body: Any) -> Any:
        answer = self.api("admin").post(service, path, body)
        assert answer.status in (200, 201, 202), answer.text
        return answer.body

    def checkout(self, host: str) -> None:
        """/opt/cumulet and /usr/local/bin/cumulet, as `setup/install` there would make them: with an interpreter that
        other users may run, which the tests' own, in root's home perhaps, is not."""
        python = Path(sys.executable).resolve()
        if python.is_relative_to("/root") or python.is_relative_to("/home"):
            python = Path(f"/usr/bin/python3.{sys.version_info.minor}")
        words = f'PYTHONPATH=/opt/cumulet/src:/opt/packages exec {python} -m cumulet "$@"'
        self.sh(host, f"""
            mkdir -p /opt/cumulet /opt/packages
            mount --bind {_REPOSITORY} /opt/cumulet
            mount --bind {sysconfig.get_path("purelib")} /opt/packages
            printf '#!/bin/sh\\n%s\\n' {shlex.quote(words)} >/usr/local/bin/cumulet
            chmod +x /usr/local/bin/cumulet
        """)  # fmt: skip


@pytest.fixture(scope="module")
def machines() -> Iterator[Machines]:
    """The control plane is asked to start before its database and its broker are there."""
    made = Machines()
    with open(Path(tempfile.gettempdir()) / "guest.lock", "w") as lock:
        flock(lock, LOCK_EX)
        try:
            made.hosts.up()
            for host in (_CONTROL, _HOST):
                eventually(f"systemd runs on {host}", lambda host=host: made.state(host) == "running")
                made.checkout(host)
            made.sh(_CONTROL, _USERS)
            made.sh(_CONTROL, f"install -m 640 -g cumulet /dev/stdin /etc/cumulet/cumulet.toml <<'END'{_SETTINGS}END")
            made.sh(_CONTROL, "systemctl daemon-reload; systemctl enable --now cumulet-api cumulet-conductor")
            made.sh(_CONTROL, "rabbitmq-plugins enable -q --offline rabbitmq_management")
            made.sh(_CONTROL, "systemctl start --no-block rabbitmq-server")
            yield made
        finally:
            made.hosts.down()


@pytest.fixture(scope="module")
def control(machines: Machines) -> Iterator[Machines]:
    """While this runs, this thread is in the control node's network."""
    eventually("restarts", lambda: int(machines.show(_CONTROL, "cumulet-api", "NRestarts")) > 5)
    machines.sh(_CONTROL, "systemctl start postgresql rabbitmq-server")
    machines.sh(_CONTROL, _DATABASE)
    machines.sh(_CONTROL, _BROKER)
    with machines.hosts.inside(_CONTROL):
        eventually("the API answers", machines.answers)
        yield machines


def test_the_control_plane_waits_for_its_database(control: Machines) -> None:
    """However long it is away: a unit that gave up would need someone. Each try is a line in the journal, no trace."""
    for role in ("api", "conductor"):
        assert control.show(_CONTROL, f"cumulet-{role}", "ActiveState") == "active"
        after = control.show(_CONTROL, f"cumulet-{role}", "After").split()
        assert {"postgresql.service", "rabbitmq-server.service"} <= set(after)
        ours = [line["MESSAGE"] for line in control.journal(_CONTROL, f"cumulet-{role}") if line["_PID"] != "1"]
        assert ours
        others = {line for line in ours if "the database does not answer" not in line}
        broker = ("the message broker is away", "The message broker's management API")
        assert all(any(words in line for words in broker) for line in others), others


def test_each_role_is_a_user_of_its_own(control: Machines) -> None:
    for role in ("api", "conductor"):
        pid = control.show(_CONTROL, f"cumulet-{role}", "MainPID")
        assert control.sh(_CONTROL, f"ps -o user:32=,group:32= -p {pid}").split() == [f"cumulet-{role}", "cumulet"]
        assert "CapEff:\t0000000000000000" in control.sh(_CONTROL, f"cat /proc/{pid}/status")


@pytest.fixture(scope="module")
def joined(control: Machines) -> Machines:
    """The host joins: what it needs is there, its own settings stay, its agent is a unit."""
    control.sh(_HOST, "systemctl enable -q --now libvirtd")
    control.sh(_HOST, f"mkdir -p /etc/cumulet; cat >/etc/cumulet/cumulet.toml <<'END'{_HOST_SETTINGS}END")
    token = control.made("operator", "/v1/host-tokens", {})["token"]["token"]
    options = "--insecure --no-install --roles compute,network,storage --tunnel-ip 10.78.0.2"
    said = control.sh(_HOST, f"cumulet join {control.url} --token {token} {options}")
    assert "systemd runs cumulet-agent.service" in said
    eventually("the host is up", control.up, 60)
    return control


def test_joining_enables_the_unit(joined: Machines) -> None:
    assert joined.sh(_HOST, "systemctl is-enabled cumulet-agent").strip() == "enabled"


def test_the_agent_renews_its_certificate(joined: Machines) -> None:
    eventually("renewed", lambda: "was renewed" in joined.sh(_HOST, "cat /var/log/cumulet/agent.json.log"))
    about = joined.sh(_HOST, "stat -c '%a %U %G' /etc/cumulet/pki/server-cert.pem").split()
    assert about == ["640", "root", "libvirt-qemu"], "QEMU reads it"


@pytest.fixture(scope="module")
def server(joined: Machines) -> dict[str, Any]:
    """A server with a disk of nothing, a network with DHCP and a volume: each has a process on the host."""
    network = joined.made("network", "/networks", {"network": {"name": "n"}})["network"]["id"]
    subnet = {"network_id": network, "cidr": "10.9.0.0/24", "ip_version": 4}
    joined.made("network", "/subnets", {"subnet": subnet})
    image = joined.made("image", "/images", {"name": "i", "disk_format": "raw", "container_format": "bare"})["id"]
    headers = {"content-type": "application/octet-stream"}
    sent = joined.api("admin").put("image", f"/images/{image}/file", data=bytes(1 << 20), headers=headers)
    assert sent.status == 204, sent.text
    flavor = {"flavor": {"name": "f", "vcpus": 1, "ram": 64, "disk": 1}}
    flavor_id = joined.made("compute", "/flavors", flavor)["flavor"]["id"]
    body = {"name": "s", "imageRef": image, "flavorRef": flavor_id, "networks": [{"uuid": network}]}
    server_id = joined.made("compute", "/servers", {"server": body})["server"]["id"]
    volume = joined.made("volume", "/volumes", {"volume": {"size": 1}})["volume"]["id"]

    def status(service: str, path: str, noun: str) -> str:
        shown = joined.api("admin").get(service, path)[noun]
        assert "error" not in shown["status"].lower(), shown
        return str(shown["status"])

    eventually("ACTIVE", lambda: status("compute", f"/servers/{server_id}", "server") == "ACTIVE", 60)
    eventually("available", lambda: status("volume", f"/volumes/{volume}", "volume") == "available")
    attachment = {"volumeAttachment": {"volumeId": volume}}
    joined.made("compute", f"/servers/{server_id}/os-volume_attachments", attachment)
    eventually("in-use", lambda: status("volume", f"/volumes/{volume}", "volume") == "in-use", 60)
    found: dict[str, Any] = joined.api("admin").get("compute", f"/servers/{server_id}")["server"]
    return found


_GUESTS_NEED = ("qemu-system-x86_64", "qemu-storage-daemon", "dnsmasq", "libvirtd")


def lives(machines: Machines) -> int:
    """How often an agent has begun to work there."""
    return int(machines.sh(_HOST, "grep -c 'role agent works' /var/log/cumulet/agent.json.log"))


def living(machines: Machines) -> dict[str, str]:
    """Each process on the host that guests hang on: its number and when it began."""
    listed = [line.split(None, 2) for line in machines.sh(_HOST, "ps -eo pid=,lstart=,args=").splitlines()]
    return {pid: rest for pid, *rest in listed if any(name in " ".join(rest) for name in _GUESTS_NEED)}  # type: ignore[misc]


@pytest.mark.parametrize("role", ["api", "conductor"])
def test_a_control_role_killed_is_started_again(server: dict[str, Any], joined: Machines, role: str) -> None:
    unit = f"cumulet-{role}"
    before = int(joined.show(_CONTROL, unit, "NRestarts"))
    joined.sh(_CONTROL, f"systemctl kill -s KILL {unit}")
    eventually("a restart", lambda: int(joined.show(_CONTROL, unit, "NRestarts")) == before + 1)
    eventually("the API answers", joined.answers)
    eventually("the host is up", joined.up)


@pytest.mark.parametrize("verb", ["kill -s KILL", "restart", "stop"])
def test_an_agent_that_ends_leaves_guests_alone(server: dict[str, Any], joined: Machines, verb: str) -> None:
    before = living(joined)
    assert {name for name in _GUESTS_NEED if any(name in str(rest) for rest in before.values())} == set(_GUESTS_NEED)
    earlier = lives(joined)
    joined.sh(_HOST, f"systemctl {verb} cumulet-agent")
    if verb == "stop":
        assert living(joined) == before
        joined.sh(_HOST, "systemctl start cumulet-agent")
    eventually("another agent works", lambda: lives(joined) > earlier)
    assert living(joined) == before
    shown = joined.api("admin").get("compute", f"/servers/{server['id']}")["server"]
    assert shown["status"] == "ACTIVE"


def test_down_and_destroy_know_units(server: dict[str, Any], joined: Machines) -> None:
    """A process that is only ended would be started again; of a host that leaves, nothing stays."""
    assert "agent" in joined.sh(_HOST, "cumulet down")
    assert joined.show(_HOST, "cumulet-agent", "ActiveState") == "inactive"
    earlier = lives(joined)
    joined.sh(_HOST, "systemctl start cumulet-agent")
    eventually("it works again", lambda: lives(joined) > earlier)
    joined.sh(_HOST, "cumulet destroy --yes")
    assert joined.show(_HOST, "cumulet-agent", "LoadState") == "not-found"
    assert joined.sh(_HOST, "ls -d /etc/cumulet /etc/pki/qemu /var/lib/cumulet /run/cumulet 2>/dev/null || true") == ""
    assert {name for name in _GUESTS_NEED if any(name in str(one) for one in living(joined).values())} == {"libvirtd"}
