"""Two control nodes and three pretend hosts, as an operator would set them up: each role a process of its own, the
database and the broker where the control nodes are, Open vSwitch, libvirt and the agent on every host. Everything
between machines goes over TLS, by the site's own authority; hosts become hosts by `cumulet join`. Messages are harmed
as long as `harm` says so; h1's volumes have a file system of their own, which can be filled.

The control plane lives in the underlay's namespace, at 10.77.0.254; hosts reach it by their management NIC. PostgreSQL
listens on the loopback there: no host can reach it. h1 is compute, network and storage, h2 and h3 are only compute.
"""

import fcntl
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import requests

from cumulet import guest
from cumulet.settings import load, to_toml
from tests.support import leftovers
from tests.support.certificates import Site
from tests.support.cloud import Api, unique
from tests.support.ports import free_ports
from tests.support.postgres import PostgresServer
from tests.support.pretend import PretendHosts
from tests.support.processes import Processes
from tests.support.rabbit import RabbitServer

CONTROL = "10.77.0.254"
OUTSIDE = "172.31.9.1"  # the world's address on the provider network
COMPARE_S = 15.0  # hosts compare what they have with the control plane so often
HOSTS = {"h1": ["compute", "network", "storage"], "h2": ["compute"], "h3": ["compute"]}
_VOLUMES_GB = 40
_SWITCH = Path(__file__).parents[1] / "hostnetwork" / "ovs-start.sh"


def eventually(what: str, holds: Callable[[], Any], seconds: float = 300.0) -> Any:
    end = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < end, f"not within {seconds:g} s: {what}"
        time.sleep(0.1)
    return found


class Machines:
    """``learned``: what earlier runs found out of QEMU, kept for the next ones."""

    def __init__(self, learned: Path) -> None:
        self.hosts = PretendHosts("mh", len(HOSTS))
        self._learned = learned
        self.directory = leftovers.directory("cumulet-hosts-")
        self.directory.chmod(0o755)  # QEMU's own user passes through
        self.harm = self.directory / "harm.json"
        self.nodes: dict[str, Processes] = {}
        self.postgres: PostgresServer | None = None
        self.rabbit: RabbitServer | None = None
        self._haproxy: subprocess.Popen[bytes] | None = None

    @contextmanager
    def running(self) -> Iterator["Machines"]:
        """While this runs, the calling thread is in the control nodes' network."""
        try:
            self.hosts.up()
            with self.hosts.inside("ul"):
                self._outside()
                self._services()
                self._control_nodes()
                for number, name in enumerate(HOSTS, 1):
                    self._host(name, number)
                self.join("h1", "h2")
                self.start_agents("h1", "h2")
                self.join("h3", start=True)
                yield self
        finally:
            self._down()

    def start_agents(self, *names: str) -> None:
        for name in names:
            self.nodes[name].launch("agent")
        for name in names:
            self.nodes[name].wait_ready("agent", seconds=180)

    # -- parts -------------------------------------------------------------------------------------------------------

    def _outside(self) -> None:
        subprocess.run(["ip", "addr", "replace", f"{OUTSIDE}/24", "dev", "sw-eth2"], check=True)
        # a real NIC's frames are whole
        subprocess.run(["ethtool", "-K", "sw-eth2", "tx", "off"], check=True, capture_output=True)

    def _services(self) -> None:
        self._site = Site(self.directory / "site")
        server = self._site.issue("server", CONTROL, "127.0.0.1")
        self.postgres, self.rabbit = PostgresServer(server), RabbitServer(CONTROL, management=True, tls=server)
        self.postgres.start()
        self.rabbit.start()
        self._urls = {
            "database_url": self.postgres.new_database(),
            "bus_url": f"{self.rabbit.url}?prefix={unique('many')}&chaos={self.harm}",
        }

    def _control_nodes(self) -> None:
        (port,) = free_ports(1)
        for name in ("c1", "c2"):
            node = self.nodes[name] = Processes(self.directory / name, address=CONTROL, tls=self._site.ca, **self._urls)
            own = self._site.issue(name, CONTROL)
            own.key.chmod(0o600)
            node.settings.tls.ca, node.settings.tls.certificate, node.settings.tls.key = map(str, own)
            node.settings.api.certificate, node.settings.api.key = str(own.certificate), str(own.key)
            assert self.rabbit is not None
            node.settings.bus.management_url = self.rabbit.management_url
            node.settings.host.name = name
            node.settings.storage.image_directory = str(self.directory / "images")  # both nodes' share
            node.settings.api.public_url = node.url = f"https://{CONTROL}:{port}"
            node.start("api", "conductor")
        self._balancer(port)
        self.nodes["c1"].make_accounts()

    def _balancer(self, port: int) -> None:
        """What the catalog names: HAProxy in front of the API of both nodes."""
        servers = [
            f"  server {name} {CONTROL}:{self.nodes[name].settings.api.port} check check-ssl verify none"
            " inter 500ms fall 1 rise 1"
            for name in ("c1", "c2")
        ]
        config = self.directory / "haproxy.cfg"
        config.write_text(
            "\n".join(
                [
                    "defaults",
                    "  mode tcp",
                    "  timeout connect 2s",
                    "  timeout client 120s",
                    "  timeout server 120s",
                    "  retries 3",
                    "  option redispatch 1",
                    "frontend api",
                    f"  bind {CONTROL}:{port}",
                    "  default_backend api",
                    "backend api",
                    "  option httpchk GET /identity/v3",
                    *servers,
                    "",
                ]
            )
        )
        haproxy = shutil.which("haproxy", path="/usr/sbin:/usr/bin") or "haproxy"
        self._haproxy = subprocess.Popen([haproxy, "-db", "-f", str(config)], stdout=subprocess.DEVNULL)

    def _boot(self, name: str) -> None:
        """What an init system does, and what an operator made for good."""
        self.sh(name, f"bash {_SWITCH}")
        if "network" in HOSTS[name]:
            self.sh(
                name,
                "ovs-vsctl add-br br-ex -- set bridge br-ex datapath_type=netdev -- add-port br-ex eth2;"
                "ip link set eth2 up",
            )
        if "storage" in HOSTS[name]:
            disk, place = self.directory / f"{name}.disk", self.directory / name / "volumes"
            make = f"test -e {disk} || {{ truncate -s {_VOLUMES_GB}G {disk} && mkfs.ext4 -q -m 0 {disk}; }}"
            self.sh(name, f"{make}; mkdir -p {place} && mount -o loop {disk} {place} && chmod 755 {place}")

    def start_switch(self, name: str) -> None:
        """ovs-vswitchd, after it died."""
        self.sh(name, f"bash {_SWITCH} start-switch")

    def power_off(self, name: str) -> None:
        self.hosts.power_off(name)
        self.nodes[name].forget("agent")
        shutil.rmtree(self.nodes[name].settings.run_dir)  # it is in memory

    def power_on(self, name: str) -> None:
        self.hosts.power_on(name)
        self._boot(name)

    def _host(self, name: str, number: int) -> None:
        self._boot(name)

        def within(*command: str) -> list[str]:
            return self.hosts.command(name, *command)

        node = self.nodes[name] = Processes(self.directory / name, within=within)
        settings = node.settings
        settings.conductor.host_timeout_seconds = 8
        settings.host.compare_seconds = settings.host.inventory_seconds = COMPARE_S
        settings.compute.driver = "libvirt"
        settings.compute.virt_type = "qemu"
        settings.network.driver = "real"
        settings.network.mechanism = "openvswitch"
        settings.network.tunnel_nic = "eth1"
        settings.network.dns_servers = [CONTROL]
        settings.storage.driver = "file"
        settings.storage.directory = str(node.directory / "volumes")
        compute = node.directory / "compute"
        compute.mkdir(parents=True)
        if (self._learned / "libvirt").is_dir():
            shutil.copytree(self._learned / "libvirt", compute / "libvirt" / "cache")
        if (self._learned / "kvm.json").exists():
            shutil.copy(self._learned / "kvm.json", compute)

    def join(self, *names: str, start: bool = False) -> None:
        """As an operator does: a token from the control plane, the command on the machine. Its settings file has what
        is particular to these machines; joining adds the rest. ``start``: joining starts the agent, too."""
        started = []
        for name in names:
            node = self.nodes[name]
            own = msgspec.to_builtins(node.settings)
            for section, names_ in (("host", ("name", "roles", "ip", "tunnel_ip")), ("bus", ("url",))):
                own[section] = {key: value for key, value in own[section].items() if key not in names_}
            own["database"] = {}
            config = node.directory / "cumulet.toml"
            config.write_text(to_toml(own))
            token = self.token(host=name, roles=HOSTS[name])
            words = [sys.executable, "-m", "cumulet", "join", self.nodes["c1"].url, "--token", token]
            words += ["--name", name, "--roles", ",".join(HOSTS[name]), "--ca", str(self._site.ca), "--no-install"]
            words += ["--tunnel-ip", f"10.78.0.{name[1:]}", "--config", str(config)]
            words += [] if start else ["--no-start"]
            command = self.hosts.command(name, *words)
            started.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
        for name, process in zip(names, started, strict=True):
            said = process.communicate(timeout=200)[0]
            assert process.returncode == 0, f"{name}: {said}"
            node = self.nodes[name]
            node.settings = load(node.directory / "cumulet.toml", {})
            if start:
                eventually(f"{name} works", (node.settings.run_dir / "agent.ready").exists)
                self.sh(name, f"kill $(cat {node.settings.run_dir}/agent.pid)")
                node.start("agent", seconds=120)  # from here on as a child of these tests

    def token(self, **wanted: Any) -> str:
        return str(self.operator("/host-tokens", wanted)["token"]["token"])

    def operator(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """The operator API: a look, or with ``body`` a POST."""
        url, headers = f"{self.nodes['c1'].url}/operator/v1{path}", {"X-Auth-Token": self.api("admin").token}
        verb = "GET" if body is None else "POST"
        answer = requests.request(verb, url, json=body, headers=headers, timeout=30, verify=str(self._site.ca))
        assert answer.status_code in (200, 201, 202), answer.text
        return answer.json()

    def _down(self) -> None:
        if self._haproxy is not None:
            self._haproxy.kill()
            self._haproxy.wait(10)
        for node in self.nodes.values():
            node.stop()
        self.hosts.down()
        if self.rabbit is not None:
            self.rabbit.destroy()
        if self.postgres is not None:
            self.postgres.destroy()
        found = self.directory / "h1" / "compute" / "libvirt" / "cache"
        if found.is_dir() and not (self._learned / "libvirt").exists():
            shutil.copytree(found, self._learned / "libvirt")
        shutil.rmtree(self.directory, ignore_errors=True)

    # -- what tests do -----------------------------------------------------------------------------------------------

    def sh(self, host: str, script: str) -> str:
        done = subprocess.run(self.hosts.command(host, "sh", "-c", script), capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{host}: {script}\n{done.stdout}{done.stderr}"
        return done.stdout

    def guests(self, host: str) -> dict[str, str]:
        """The QEMU processes of servers on a host: server -> process."""
        listed = self.sh(host, "ps -ww -eo pid,args").splitlines()
        guests = (line for line in listed if "qemu-system" in line and "guest=" in line)
        return {line.partition(" -uuid ")[2].split()[0]: line.split()[0] for line in guests}

    def libvirtd(self, host: str) -> int:
        """Its process, as it is numbered in the host; 0 while there is none."""
        pid_file = self.nodes[host].settings.run_dir / "compute" / "libvirt" / "libvirtd.pid"
        return int((pid_file.read_text() if pid_file.exists() else "") or 0)

    def api(self, user: str) -> Api:
        return self.nodes["c1"].api(user)


@contextmanager
def machines_alone(cache: Path) -> Iterator[tuple[Machines, guest.GuestImage]]:
    """The machines of one run, and the guests' image. ``cache`` keeps what is slow to make. One set of guests runs at
    a time on a machine: it is waited for."""
    directories = [cache / name for name in ("hostcompute-guest", "hostcompute-learned")]
    for directory in directories:
        directory.mkdir(parents=True, exist_ok=True)
    built = guest.build(directories[0])
    with open(Path(tempfile.gettempdir()) / "guest.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with Machines(directories[1]).running() as running:
            yield running, built
