"""Pretend hosts with the real network driver in them, and pretend guests: a namespace at the end of a tap's veth."""

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cumulet.agent.contract import FixedIp, PortDoc, Segment, SubnetDoc
from tests.support.pretend import claim

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
ENV = {**os.environ, "TH_PREFIX": claim("hn"), "PYTHONPATH": f"{ROOT}/src:{ROOT}"}


def uuid(text: str) -> str:
    raw = hashlib.sha256(text.encode()).hexdigest()
    return f"{raw[:8]}-{raw[8:12]}-{raw[12:16]}-{raw[16:20]}-{raw[20:32]}"


def mac(text: str) -> str:
    raw = hashlib.sha256(text.encode()).hexdigest()
    return f"fa:16:3e:{raw[0:2]}:{raw[2:4]}:{raw[4:6]}"


class Failed(Exception):
    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code


class Worker:
    """The driver's process in a host."""

    def __init__(self, host: "Host", config: dict[str, Any]) -> None:
        self.host = host
        self.process = subprocess.Popen(
            [*host.enter, sys.executable, "-m", "tests.hostnetwork.worker", json.dumps(config)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=ENV,
            cwd=ROOT,
        )
        self.commands: list[list[str]] = []
        assert self._read() == "ready"

    def __call__(self, name: str, *args: Any) -> Any:
        assert self.process.stdin
        self.process.stdin.write(json.dumps(msgspec.to_builtins([name, *args])) + "\n")
        self.process.stdin.flush()
        return self._read()

    def apply(self, doc: Any) -> None:
        self("apply", doc.kind, doc)

    def _read(self) -> Any:
        assert self.process.stdout
        line = self.process.stdout.readline()
        assert line, "the worker ended"
        reply = json.loads(line)
        self.commands = reply.get("commands", [])
        if "error" in reply:
            raise Failed(reply["error"], reply["message"])
        return reply["ok"]

    def kill_soon(self, seconds: float) -> None:
        """kill -9 from now on, whatever it does then."""
        pid = self.host.sh("pgrep -f '^[^ ]*python[^ ]* -m tests.hostnetwork.worker'").split()[0]
        self.killer = subprocess.Popen([*self.host.enter, "sh", "-c", f"sleep {seconds:.3f}; kill -9 {pid}"], env=ENV)

    def try_call(self, *request: Any) -> None:
        """A call whose worker may die in it."""
        self.survives(*request)
        self.killer.wait()

    def survives(self, *request: Any) -> bool:
        with contextlib.suppress(AssertionError, BrokenPipeError):
            self(*request)
            return True
        return False

    def changes(self) -> list[list[str]]:
        """Commands of the last call that are not mere reading."""
        return [c for c in self.commands if "-batch" in c or c[:3] == ["nft", "-f", "-"] or c[0] == "dnsmasq"]

    def kill(self) -> None:
        self.host.sh("kill -9 $(pgrep -f '^[^ ]*python[^ ]* -m tests.hostnetwork.worker')", check=False)
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream:
                stream.close()


class Host:
    def __init__(self, name: str, index: int) -> None:
        self.name, self.index = name, index
        self.enter = [str(HERE / "testhosts.sh"), "exec", name]
        self.worker: Worker | None = None
        self.config: dict[str, Any] = {}

    def start(self, **config: Any) -> Worker:
        self.stop()
        self.config = {
            "state_dir": "/var/lib/cumulet-test",
            "run_dir": "/run/cumulet-test",
            "tunnel_ip": f"10.78.0.{self.index}",
            "mechanism": "linuxbridge",
            **config,
        }
        self.worker = Worker(self, self.config)
        return self.worker

    def restart(self) -> Worker:
        self.stop()
        self.worker = Worker(self, self.config)
        return self.worker

    def stop(self) -> None:
        if self.worker:
            self.worker.kill()
            self.worker = None

    def sh(self, script: str, check: bool = True, timeout: float = 180) -> str:
        done = subprocess.run(
            [*self.enter, "sh", "-c", script], capture_output=True, text=True, env=ENV, timeout=timeout, check=False
        )
        if check and done.returncode:
            raise AssertionError(f"{self.name}: {script}\n{done.stdout}{done.stderr}")
        return done.stdout if check else f"{done.returncode}\n{done.stdout}{done.stderr}"

    def good(self, script: str) -> bool:
        return self.sh(script, check=False).startswith("0\n")

    def wipe(self) -> None:
        """Back to an empty host, whatever an earlier run left."""
        self.stop()
        self.sh(
            "for n in $(ip netns list | cut -d' ' -f1); do ip netns pids $n | xargs -r kill -9; ip netns del $n; done;"
            "nft flush ruleset;"
            "for l in $(ls /sys/class/net); do case $l in lo|eth[0-9]) ;; *) ip link del $l ;; esac; done;"
            "rm -rf /var/lib/cumulet-test /run/cumulet-test; ip addr flush dev eth2; true",
            check=False,
        )


class Guest:
    """A pretend guest: a namespace whose eth0 is the other end of the port's tap."""

    def __init__(self, host: Host, port: PortDoc, adopt: bool = False) -> None:
        """``adopt``: the driver made the tap already; what is pretended is put in its place in the bridge."""
        self.host, self.port, self.ns = host, port, "vm-" + port.tap
        if adopt:
            bridge = host.sh(f"basename $(readlink /sys/class/net/{port.tap}/master)").strip()
            host.sh(f"ip link del {port.tap}")
        host.sh(
            f"ip netns add {self.ns}; ip -n {self.ns} link set lo up;"
            f"ip link add {port.tap} type veth peer name eth0 netns {self.ns} address {port.mac_address};"
            f"ip -n {self.ns} link set eth0 mtu {port.segment.mtu} up;"
            f"ip netns exec {self.ns} sysctl -qw net.ipv6.conf.eth0.accept_dad=0"
        )
        if adopt:
            mark = f"ip link set {port.tap} alias cumulet:port:{port.id}"
            host.sh(f"ip link set {port.tap} master {bridge} mtu {port.segment.mtu} up; {mark}")

    def sh(self, script: str, check: bool = True, timeout: float = 180) -> str:
        quoted = script.replace("'", "'\\''")
        return self.host.sh(f"ip netns exec {self.ns} sh -c '{quoted}'", check=check, timeout=timeout)

    def good(self, script: str) -> bool:
        return self.sh(script, check=False).startswith("0\n")

    def set_address(self, subnet: SubnetDoc) -> None:
        length = subnet.cidr.split("/")[1]
        self.sh(
            "ip addr flush dev eth0 scope global;"
            f"ip addr add {self.port.fixed_ips[0].ip_address}/{length} dev eth0;"
            + (f"ip route replace default via {subnet.gateway_ip}" if subnet.gateway_ip else "")
        )

    def ping(self, address: str, count: int = 1) -> bool:
        return self.good(f"ping -n -c{count} -i0.2 -W1 {address}")

    def dhcp(self, *more: str) -> dict[str, str]:
        """What the DHCP server says, as udhcpc's variables."""
        self.host.sh("printf '#!/bin/sh\\n[ $1 = bound ] && env\\nexit 0\\n' > /run/show.sh; chmod +x /run/show.sh")
        out = self.sh(
            "busybox udhcpc -i eth0 -n -q -f -t 4 -T 1 -s /run/show.sh -O 121 -O mtu -O domain " + " ".join(more),
            check=False,
        )
        return dict(line.split("=", 1) for line in out.splitlines() if "=" in line and " " not in line.split("=")[0])


@pytest.fixture(scope="session")
def pretend_hosts() -> Iterator[list[Host]]:
    if os.geteuid() != 0 or not shutil.which("nft") or not shutil.which("dnsmasq"):
        pytest.skip("needs root, nftables and dnsmasq")
    script = str(HERE / "testhosts.sh")
    subprocess.run([script, "down"], env=ENV, check=False, capture_output=True)
    subprocess.run([script, "up", "2"], env=ENV, check=True, capture_output=True)
    hosts = [Host(f"h{i}", i) for i in (1, 2)]
    yield hosts
    for host in hosts:
        host.stop()
    subprocess.run([script, "down"], env=ENV, check=True, capture_output=True)


@pytest.fixture
def hosts(pretend_hosts: list[Host]) -> Iterator[list[Host]]:
    for host in pretend_hosts:
        host.wipe()
    yield pretend_hosts
    for host in pretend_hosts:
        host.stop()


@pytest.fixture
def host(hosts: list[Host]) -> Host:
    return hosts[0]


# -- documents -------------------------------------------------------------------------------------------------------

NET = uuid("net")
SUBNET = SubnetDoc(
    id=uuid("subnet"), cidr="10.9.0.0/24", ip_version=4, gateway_ip="10.9.0.1", dhcp_ip="10.9.0.2",
)  # fmt: skip
LOCAL = Segment(network_type="local", mtu=1442)


def port(name: str, ip: str | None, **more: Any) -> PortDoc:
    values: dict[str, Any] = {
        "id": uuid(name),
        "generation": 1,
        "network_id": NET,
        "segment": LOCAL,
        "mac_address": mac(name),
        "fixed_ips": [FixedIp(subnet_id=SUBNET.id, ip_address=ip)] if ip else [],
        "device_owner": "compute:nova",
        **more,
    }
    return PortDoc(**values)


@pytest.fixture
def external(host: Host) -> str:
    """An outside world: the other pretend hosts' provider network by eth2 in br-ex; the underlay's sw-eth2 answers."""
    host.sh("ip link add br-ex type bridge; ip link set eth2 master br-ex; ip link set br-ex up; ip link set eth2 up")
    subprocess.run(
        ["ip", "netns", "exec", f"{ENV['TH_PREFIX']}-ul", "ip", "addr", "replace", "172.31.9.1/24", "dev", "sw-eth2"],
        check=True,
    )
    return "172.31.9.1"
