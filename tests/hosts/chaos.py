"""Chaos upon the three hosts of these tests: real agents, libvirt, Open vSwitch and guests under two control nodes.

Killed, stopped and started again are: every api, conductor, agent, libvirtd, dnsmasq, the storage daemon,
ovs-vswitchd, the database, the broker. Messages are lost, doubled and late; the volumes' file system is filled. Clients
work as in the other forms, with fewer and slower guests. On each host a guest that no client touches is the witness:
its process must be the same in the end, and pings between them lose nothing but to Open vSwitch itself: while it, or
after that its agent, is away, and a packet now and then when devices of its host change, for here its datapath is in
user space.

``python -m tests.hosts.chaos --seconds 60 --seed 7`` is one run; progress goes to standard error, the result to
standard output.
"""

import argparse
import json
import os
import random
import re
import secrets
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from cumulet import guest
from cumulet.chaos.disturb import Disturbance, Say, Undo, harm_messages, in_file
from cumulet.chaos.field import Habits, wait_for_sagas
from cumulet.chaos.run import NOTHING, Result, Wanted, run
from cumulet.chaos.session import Session
from cumulet.chaos.victims import Victim, Victims
from cumulet.db import Database
from tests.hosts.machines import COMPARE_S, HOSTS, Machines, eventually, machines_alone
from tests.hosts.world import Pings, World, make_world
from tests.support import leftovers

CLIENTS = 4
CACHE = Path(__file__).parents[2] / ".pytest_cache" / "d"  # pytest's own place for such things
_LEASE_S, _HOST_TIMEOUT_S = 3.0, 8.0  # as Processes has them
_SWITCH_GAP_S = 5.0  # from its start, and its agent's, until packets flow: it is under two seconds on a quiet machine
_LINKS_GAP_S = 0.5  # around a change of links
_SERVES = "cd {run}/network/dhcp && for f in */pid; do echo $(cat $f); done"
# what exists on a host, as one line each: kind, name
_LOOK = """
cd {state}
ls compute/libvirt/etc/qemu/*.xml 2>/dev/null | sed 's/^/domain /'
ps -ww -eo args | grep -o '[g]uest=[^,]*' | sort -u | sed 's/^/guest /'
ls compute/servers 2>/dev/null | sed 's/^/files /'
ls {volumes}/volumes 2>/dev/null | sed 's/^/volume /'
grep -l '"served":true' {volumes}/exports/*.json 2>/dev/null | sed 's/^/export /'
ls {volumes}/scratch 2>/dev/null | sed 's/^/scratch /'
ip netns list | sed 's/ .*//; s/^/namespace /'
ls /sys/class/net | sed 's/^/device /'
for b in $(ovs-vsctl list-br); do
  ovs-vsctl list-ports $b | sed "s/^/port $b./"
  ovs-ofctl --no-stats --names dump-flows $b | grep actions= | grep -v 'table=[0-9]*, hard_timeout' |
    sed "s/ *cookie=[^,]*, *//; s/^/flow $b: /"
done
nft list chains | awk '$1 == "table" {{t = $2 "." $3}} $1 == "chain" {{print "chain", t "." $2}}'
ps -ww -eo args | grep -o '^[d]nsmasq .*pid-file=[^ ]*' | sed 's/.*pid-file=/dnsmasq /'
"""


class HostsField:
    """The machines as a run of chaos needs them."""

    pause_s = 2.5

    def __init__(self, machines: Machines, world: World, seed: int, images: tuple[bytes, ...], say: Say) -> None:
        self.machines, self.world = machines, world
        self._seed, self._say = seed, say
        control = machines.nodes["c1"]
        self.url = control.url
        self._ca = str(control.tls)
        self.habits = Habits(
            think_s=1.0,
            most={"server": 2, "volume": 2, "image": 1, "port": 2, "network": 1},
            memory_mb=(128,),
            images=images,
            outer=world.public,
            ca=self._ca,
        )
        self.db = Database(control.settings.database_url)
        self.switch_away: list[tuple[str, float, float]] = []  # host, from, until
        self._agent_away: dict[str, float] = {}  # host -> since when

    def admin(self) -> Session:
        return Session(self.url, "admin", "admin", "secret-admin", self._ca)

    # -- disturbances -------------------------------------------------------------------------------------------------

    def disturbances(self) -> list[Disturbance]:
        victims = [self._role(node, role) for node in ("c1", "c2") for role in ("api", "conductor")]
        for host in HOSTS:
            victims += [self._role(host, "agent"), self._libvirtd(host), self._switch(host)]
        victims += [self._storage_daemon("h1"), self._dnsmasq("h1"), self._database(), self._broker()]
        return [
            *Victims(victims, self._tend).disturbances(),
            harm_messages(self._seed, in_file(self.machines.harm), weight=10),
            Disturbance("disk full", 4, self._fill),
        ]

    def _tend(self) -> None:
        """As systemd: a role that found no database when it started is started again. Nothing else ends by itself."""
        for name, node in self.machines.nodes.items():
            for role in node.ended():
                said = node.output(role)
                last = (node.directory / f"{role}.out").read_text(errors="replace").strip().rpartition("\n")[2]
                assert "the database does not answer" in last, f"{role} of {name} ended by itself:\n{said}"
                node.launch(role)

    def _role(self, name: str, role: str) -> Victim:
        node = self.machines.nodes[name]

        def noted(act: Callable[[str], object], note: Callable[[str], None]) -> Callable[[], None]:
            def do() -> None:
                act(role)
                if role == "agent":
                    note(name)

            return do

        return Victim(
            f"{role} of {name}",
            role,
            kill=noted(node.kill, self._agent_goes),
            start=noted(node.launch, self._agent_comes),
            pause=noted(node.pause, self._agent_goes),
            resume=noted(node.resume, self._agent_comes),
            dead_s=(0.0, 0.3, 1.0, 3.0, 12.0),
            paused_s=(0.2, 1.0, _LEASE_S + 2, _HOST_TIMEOUT_S + 3),
            weight={"api": 6, "conductor": 10, "agent": 12}[role],
        )

    def _signalled(self, name: str, kind: str, host: str, pid_of: Callable[[], int], **more: Any) -> Victim:
        """A process of a host that somebody else starts again."""
        stopped: list[int] = []

        def send(number: signal.Signals, pid: int) -> None:
            if pid:
                self.machines.sh(host, f"kill -{number.value} {pid} 2>/dev/null; true")

        def pause() -> None:
            stopped.append(pid_of())
            send(signal.SIGSTOP, stopped[0])

        return Victim(
            f"{name} of {host}",
            kind,
            kill=lambda: send(signal.SIGKILL, pid_of()),
            pause=pause,
            resume=lambda: send(signal.SIGCONT, stopped.pop()),
            **{"dead_s": (1.0,), **more},
        )

    def _libvirtd(self, host: str) -> Victim:
        return self._signalled(
            "libvirtd", "libvirtd", host, lambda: self.machines.libvirtd(host), paused_s=(1.0, 12.0, 25.0), weight=6
        )

    def _storage_daemon(self, host: str) -> Victim:
        pid_file = self.machines.nodes[host].settings.run_dir / "volume" / "qsd.pid"

        def pid() -> int:
            return int((pid_file.read_text() if pid_file.exists() else "") or 0)

        return self._signalled("storage daemon", "storage daemon", host, pid, paused_s=(1.0, 8.0), weight=6)

    def _dnsmasq(self, host: str) -> Victim:
        rng = random.Random(f"{self._seed}/dnsmasq")
        run_dir = self.machines.nodes[host].settings.run_dir

        def pid() -> int:
            pids = self.machines.sh(host, _SERVES.format(run=run_dir)).split()
            return int(rng.choice(pids)) if pids else 0

        return self._signalled("a dnsmasq", "dnsmasq", host, pid, paused_s=(1.0, 5.0), weight=3)

    def _switch(self, host: str) -> Victim:
        """What it cuts is its own doing, and is told apart."""

        def kill() -> None:
            self.switch_away.append((host, time.time(), float("inf")))
            self.machines.sh(host, "kill -9 $(cat /run/openvswitch/ovs-vswitchd.pid)")

        def start() -> None:
            self.machines.start_switch(host)
            self.switch_away = [
                (name, began, min(ended, time.time() + _SWITCH_GAP_S) if name == host else ended)
                for name, began, ended in self.switch_away
            ]

        return Victim(f"ovs-vswitchd of {host}", "ovs-vswitchd", kill=kill, start=start, dead_s=(0.0, 0.5), weight=3)

    def _agent_goes(self, host: str) -> None:
        self._agent_away.setdefault(host, time.time())

    def _agent_comes(self, host: str) -> None:
        """A switch that came back meanwhile has had no flows: it has them from its agent."""
        since, soon = self._agent_away.pop(host, float("inf")), time.time() + _SWITCH_GAP_S
        self.switch_away = [
            (name, began, max(ended, soon) if name == host and since < ended < float("inf") else ended)
            for name, began, ended in self.switch_away
        ]

    def _database(self) -> Victim:
        postgres = self.machines.postgres
        assert postgres is not None
        stopped: list[int] = []

        def pause() -> None:
            stopped.extend(postgres.pids())
            _signal(stopped, signal.SIGSTOP)

        def resume() -> None:
            _signal(stopped, signal.SIGCONT)
            stopped.clear()

        return Victim(
            "the database", "database", kill=postgres.kill, start=postgres.start, pause=pause, resume=resume,
            dead_s=(0.0, 2.0, 6.0), paused_s=(1.0, 6.0), weight=4,
        )  # fmt: skip

    def _broker(self) -> Victim:
        rabbit = self.machines.rabbit
        assert rabbit is not None
        return Victim(
            "the broker",
            "broker",
            kill=rabbit.kill,
            start=rabbit.start,
            pause=lambda: os.kill(rabbit.pid, signal.SIGSTOP),
            resume=lambda: os.kill(rabbit.pid, signal.SIGCONT),
            dead_s=(0.0, 2.0),
            paused_s=(1.0, 6.0, 15.0),
            weight=4,
        )

    def _fill(self, rng: random.Random) -> tuple[str, Undo | None] | None:
        """All but less than a volume's first words need."""
        place = self.machines.nodes["h1"].settings.volume_dir
        seconds, left_kb = rng.uniform(2, 10), rng.choice([0, 64, 4096])
        room = f"$(( $(df -k --output=avail {place} | tail -1) - {left_kb} ))K"
        # what it could not take whole it takes in part
        fill = f"test -e {place}/filler || {{ fallocate -l {room} {place}/filler; echo full; }}"
        if not self.machines.sh("h1", fill):
            return None
        return "the disk of h1's volumes is full", (
            seconds, "the disk of h1's volumes has space", lambda: self.machines.sh("h1", f"rm -f {place}/filler")
        )  # fmt: skip

    # -- afterwards ---------------------------------------------------------------------------------------------------

    def settle(self, *, compared: bool) -> list[str]:
        self._all_ready()
        left = wait_for_sagas(self.db, self._tend)
        if left or not compared:
            return left
        time.sleep(2 * COMPARE_S + 5)  # each host has told what it has, and done what it was answered
        return wait_for_sagas(self.db, self._tend)

    def _all_ready(self) -> None:
        eventually("all roles work", self._ready)

    def _ready(self) -> bool:
        self._tend()
        nodes = self.machines.nodes.values()
        return all((node.settings.run_dir / f"{role}.ready").exists() for node in nodes for role in node.roles())

    def leftovers(self) -> dict[str, dict[str, list[str]]]:
        found: dict[str, dict[str, list[str]]] = {}
        for host in HOSTS:
            settings = self.machines.nodes[host].settings
            script = _LOOK.format(state=settings.state_dir, volumes=settings.volume_dir)
            for line in self.machines.sh(host, script).splitlines():
                kind, _, name = line.partition(" ")
                found.setdefault(host, {}).setdefault(kind, []).append(name)
        return found

    def close(self) -> None:
        self.db.close()


def _signal(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


class Witnesses:
    """One guest on each host, that nobody touches; the one on h2 pings the others. When a ping was sent is seen at the
    guest's tap, by the clock of everything else."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._before = self._processes()
        logs, machines = world.machines.directory, world.machines
        self._monitors = {host: logs / f"{host}.links" for host in world.servers}
        for host, log in self._monitors.items():  # these end with their host
            machines.sh(host, f"setsid --fork ip -tshort monitor link >{log} 2>&1 </dev/null")
        (port,) = world.admin.get("network", f"/ports?device_id={world.servers['h2']}")["ports"]
        self._capture = logs / "h2.pings"
        capture = f"tcpdump -l -n -tt -i tap{port['id'][:11]} icmp"
        machines.sh("h2", f"setsid --fork {capture} >{self._capture} 2>/dev/null </dev/null")
        eventually("pings are listened to", self._capture.exists)
        time.sleep(1)
        self._pings = {host: Pings(world, world.addresses[host]) for host in ("h1", "h3")}
        time.sleep(2)

    def _sent_at(self, address: str) -> dict[int, float]:
        """Ping -> when."""
        asked = re.compile(
            rf"^([\d.]+) IP \S+ > {re.escape(address)}: ICMP echo request, id \d+, seq (\d+),", re.MULTILINE
        )
        return {int(number): float(when) for when, number in asked.findall(self._capture.read_text())}

    def _link_changes(self, host: str) -> list[float]:
        """When devices of the host came, went or changed. Open vSwitch then reads the routes of its tunnels anew, and
        with its datapath in user space, as here, may lose packets meanwhile, agent or not."""
        found = re.findall(r"^\[(\S+)\]", self._monitors[host].read_text(), re.MULTILINE)
        return [datetime.fromisoformat(when).timestamp() for when in found]

    def _processes(self) -> dict[str, str]:
        machines, servers = self._world.machines, self._world.servers
        return {host: machines.guests(host).get(servers[host], "none") for host in servers}

    def told(self, began: float, switch_away: list[tuple[str, float, float]]) -> tuple[dict[str, int], list[str]]:
        """Counts, and what they saw that must not be (times since ``began``)."""
        counts = {"pings": 0, "lost": 0, "lost_to_switch": 0, "lost_to_links": 0, "stopped": 0}
        wrong = []
        changes = {host: self._link_changes(host) for host in self._world.servers}
        for host, pings in self._pings.items():
            sent, lost = pings.end()
            counts["pings"] += sent
            lost.discard(0)  # it looked for its way, before anything was disturbed
            sent_at = self._sent_at(pings.address)
            away = [(since, until) for name, since, until in switch_away if name in (host, "h2")]
            left = {n for n in lost if not any(a - 0.5 <= sent_at.get(n, 0) <= b for a, b in away)}
            near = changes[host] + changes["h2"]
            mine = left - lost_to_links(lost, sent_at, near)
            counts["lost"] += len(mine)
            counts["lost_to_links"] += len(left) - len(mine)
            counts["lost_to_switch"] += len(lost) - len(left)
            if mine:
                times = [sent_at.get(number, 0) for number in sorted(mine)[:20]]
                changed = [c for c in sorted(set(near)) if any(abs(c - when) < 5 * _LINKS_GAP_S for when in times)]
                wrong.append(
                    f"{len(mine)} of {sent} pings from h2 to {host} are lost, at {_since(began, times)};"
                    f" devices of the two hosts changed at {_since(began, changed) or 'no time near'}"
                )
        for host, process in self._processes().items():
            if process != self._before[host]:
                counts["stopped"] += 1
                wrong.append(f"the guest on {host} was process {self._before[host]} and is {process}")
        return counts, wrong


def lost_to_links(lost: set[int], sent_at: dict[int, float], changes: list[float]) -> set[int]:
    """Of lost pings, those that a change of links explains. `tests.hosts.losses` shows what Open vSwitch loses by
    itself while devices come and go: some 3%, for up to 40 ms. Of pings 0.2 s apart two in a row are lost at times."""
    few = {n for n in lost if not ({n - 2, n - 1} <= lost or {n - 1, n + 1} <= lost or {n + 1, n + 2} <= lost)}
    return {n for n in few if any(abs(sent_at.get(n, 0) - change) < _LINKS_GAP_S for change in changes)}


def _since(began: float, times: Iterable[float]) -> str:
    return ", ".join(f"{when - began:.2f} s" for when in times)


def images(built: guest.GuestImage) -> tuple[bytes, ...]:
    """Most of the clients' guests only need a QEMU process: two cores emulate all of them."""
    sector = guest.boot_sector_qcow2()
    return built.disk.read_bytes(), sector, sector


def chaos(
    machines: Machines,
    world: World,
    *,
    seconds: float,
    seed: int,
    images: tuple[bytes, ...],
    say: Say,
    wanted: Wanted = NOTHING,
) -> dict[str, Any]:
    field = HostsField(machines, world, seed, images, say)
    try:
        witnesses = Witnesses(world)
        began = time.time()
        result: Result = run(
            field,
            form="three hosts",
            seed=seed,
            seconds=seconds,
            clients=CLIENTS,
            hosts=len(HOSTS),
            say=say,
            wanted=wanted,
        )
        counts, wrong = witnesses.told(began, field.switch_away)
    finally:
        field.close()
    found: dict[str, Any] = msgspec.to_builtins(result)
    found["witnesses"] = counts
    found["violations"] += [{"what": "witness", "about": "guests", "message": line, "story": []} for line in wrong]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.hosts.chaos")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1 << 31))
    parser.add_argument("--logs", type=Path, help="keep the logs of all roles there")
    given = parser.parse_args()
    leftovers.sweep()
    print(f"seed {given.seed}", file=sys.stderr)
    with machines_alone(CACHE) as (machines, built), tempfile.TemporaryDirectory() as directory:
        try:
            found = chaos(
                machines, make_world(machines, built.disk, Path(directory)), seconds=given.seconds, seed=given.seed,
                images=images(built), say=lambda text: print(text, file=sys.stderr, flush=True),
            )  # fmt: skip
        finally:
            if given.logs is not None:
                for name, node in machines.nodes.items():
                    shutil.copytree(node.settings.log_dir, given.logs / name, dirs_exist_ok=True)
    print(json.dumps(found, indent=1))
    sys.exit(1 if found["violations"] else 0)


if __name__ == "__main__":
    main()
