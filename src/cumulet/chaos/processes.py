"""A cloud of processes to bring chaos upon: api, two conductors and agents over a database server and a broker, or one
process with all roles over SQLite. Each is killed with SIGKILL, stopped with SIGSTOP, and started again.

Owns: the processes and their directory. Fails: with `BenchError` when a process ends that nobody killed.
"""

import signal
import time
from pathlib import Path

import msgspec

from cumulet.agent.fake import World
from cumulet.bench.private import PrivateCloud
from cumulet.bench.target import BenchError
from cumulet.chaos.disturb import Disturbance, harm_messages, in_file
from cumulet.chaos.field import Habits, wait_for_sagas
from cumulet.chaos.session import Session
from cumulet.chaos.victims import Victim, Victims
from cumulet.db import Database
from cumulet.settings import Settings, to_toml

LEASE_S, HOST_TIMEOUT_S = 3.0, 8.0
_COMPARE_S = 4.0  # hosts compare what they have with the control plane so often


class Member(msgspec.Struct):
    """One process: what it does, with which settings."""

    name: str
    role: str
    settings: Settings

    @property
    def ready(self) -> Path:
        return self.settings.run_dir / f"{self.role}.ready"


class ProcessField(PrivateCloud):
    def __init__(self, hosts: int, seed: int, *, database: str | None, bus: str | None) -> None:
        self._seed = seed
        self._apart = apart = bool(database and bus)
        self.habits = Habits()
        self.pause_s = 1.0 if apart else 2.5
        super().__init__(database=database, bus=bus, apart=apart)
        if not apart and (database or bus):
            raise BenchError("a database server and a broker go together: --database URL --bus URL")
        self.settings.host.name = "host-1"
        self.settings.host.heartbeat_seconds = 1
        self.settings.host.compare_seconds = self.settings.host.inventory_seconds = _COMPARE_S
        self.settings.conductor.lease_seconds, self.settings.conductor.host_timeout_seconds = LEASE_S, HOST_TIMEOUT_S
        quota = self.settings.quota
        quota.instances = quota.volumes = quota.cores = quota.security_groups = 100
        self._harm = self.directory / "harm.json"
        self.hosts = [f"host-{number}" for number in range(1, hosts + 1)] if apart else ["host-1"]
        wanted = [("all", "all", "host-1")]
        if apart:
            wanted = [("api", "api", "host-1"), ("conductor-1", "conductor", "control-1"),
                      ("conductor-2", "conductor", "control-2")]  # fmt: skip
            wanted += [(f"agent-{host}", "agent", host) for host in self.hosts]
        self.members = {name: self._member(name, role, host) for name, role, host in wanted}
        self.url = self.settings.public_url
        self._start_members()
        self.db = Database(self.settings.database_url)

    def _member(self, name: str, role: str, host: str) -> Member:
        settings: Settings = msgspec.convert(msgspec.to_builtins(self.settings), Settings)
        settings.host.name = host
        settings.bus.url += f"{'&' if '?' in settings.bus.url else '?'}chaos={self._harm}"
        settings.paths.run_dir = str(self.directory / "run" / name)
        settings.paths.log_dir = str(self.directory / "log" / name)
        (self.directory / f"{name}.toml").write_text(to_toml(settings))
        return Member(name, role, settings)

    # -- processes ----------------------------------------------------------------------------------------------------

    def _start_members(self) -> None:
        self.settings.state_dir.mkdir(exist_ok=True)
        self.settings.admin_password_file.write_text("chaos-admin-password\n")
        for name in self.members:
            self.launch(name)
        self._ready(60)
        admin, end = self.admin(), time.monotonic() + 60
        while self._up(admin) < len(self.hosts):
            if time.monotonic() > end:
                raise BenchError("the hosts do not come up")
            time.sleep(0.1)
        admin.close()

    def launch(self, name: str) -> None:
        member = self.members[name]
        member.ready.unlink(missing_ok=True)
        self._launch(name, ["serve", "--role", member.role, "--config", str(self.directory / f"{name}.toml")])

    def kill(self, name: str) -> None:
        process = self._running.pop(name)
        process.kill()
        process.wait(10)

    def _ready(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not all(member.ready.exists() for member in self.members.values()):
            self._none_ended()
            if time.monotonic() > end:
                late = [name for name, member in self.members.items() if not member.ready.exists()]
                raise BenchError(f"{', '.join(late)} does not start: {self._last_words(late[0])}")
            time.sleep(0.02)

    def _none_ended(self) -> None:
        for name, process in self._running.items():
            if (status := process.poll()) is not None:
                raise BenchError(f"{name} ended by itself with status {status}: {self._last_words(name)}")

    @staticmethod
    def _up(admin: Session) -> int:
        reply = admin.ask("GET", "operator", "/v1/status")
        return sum(host["up"] for host in reply.body["hosts"]) if reply.acknowledged else 0

    # -- as a field ---------------------------------------------------------------------------------------------------

    def admin(self) -> Session:
        return Session(self.url, "admin", "admin", self.settings.admin_password_file.read_text().strip())

    def disturbances(self) -> list[Disturbance]:
        victims = Victims([self._victim(name) for name in self.members], self._none_ended)
        return [*victims.disturbances(), harm_messages(self._seed, in_file(self._harm), weight=4)]

    def _victim(self, name: str) -> Victim:
        """Stopped longer than a lease, longer than hosts may be silent, or only for a moment."""
        weights = {"api": 4, "conductor": 8, "agent": 8, "all": 12}
        role = self.members[name].role
        return Victim(
            name,
            "process" if role == "all" else role,
            kill=lambda: self.kill(name),
            start=lambda: self.launch(name),
            pause=lambda: self._running[name].send_signal(signal.SIGSTOP),
            resume=lambda: self._running[name].send_signal(signal.SIGCONT),
            dead_s=(0.0, 0.3, 1.0, 3.0, 12.0)[: None if self._apart else 2],
            paused_s=(0.2, 1.0, LEASE_S + 2, HOST_TIMEOUT_S + 3)[: None if self._apart else 2],
            weight=weights[role],
        )

    def settle(self, *, compared: bool) -> list[str]:
        self._ready(60)
        left = wait_for_sagas(self.db, self._none_ended)
        if left or not compared:
            return left
        time.sleep(2 * _COMPARE_S)  # each host has told what it has, and done what it was answered
        return wait_for_sagas(self.db, self._none_ended)

    def leftovers(self) -> dict[str, dict[str, list[str]]]:
        found = {}
        for host in self.hosts:
            world = World(self.settings.state_dir / "agent" / f"{host}.world.db")
            found[host] = world.leftovers()
            world.close()
        return {host: what for host, what in found.items() if what}

    def stop(self) -> None:
        for process in self._running.values():
            process.send_signal(signal.SIGCONT)
        self.db.close()
        super().stop()


__all__ = ["ProcessField"]
