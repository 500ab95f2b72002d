"""A cloud of processes to bring chaos upon: api, two conductors and agents over a database server and a broker, or one
process with all roles over SQLite. Each is killed with SIGKILL, stopped with SIGSTOP, and started again.

Owns: the processes and their directory. Fails: with `BenchError` when a process ends that nobody killed.
"""

import random
import signal
import time
from pathlib import Path

import msgspec
from sqlalchemy import func, select

from cumulet.agent.fake import World
from cumulet.bench.private import PrivateCloud
from cumulet.bench.target import BenchError
from cumulet.chaos.disturb import Disturbance, Undo
from cumulet.chaos.field import under_way
from cumulet.chaos.session import Session
from cumulet.db import METADATA, Database
from cumulet.kernel.clock import SECOND
from cumulet.saga.journal import ACTIVE
from cumulet.saga.tables import SAGAS
from cumulet.settings import Settings, to_toml

_PROVIDERS = select(func.count()).select_from(METADATA.tables["resource_providers"])
_LAST_DEADLINE = select(func.max(SAGAS.c.deadline_at)).where(SAGAS.c.status.in_(ACTIVE))
_LEASE_S, _HOST_TIMEOUT_S = 3.0, 8.0
_MOST_S = 600.0  # that a settling may take, whatever the deadlines say
_COMPARE_S = 7.0  # hosts compare their documents every five seconds
_LATE_S = 30.0


class Member(msgspec.Struct):
    """One process: what it does, with which settings."""

    name: str
    role: str
    settings: Settings

    @property
    def ready(self) -> Path:
        return self.settings.run_dir / f"{self.role}.ready"


class ProcessField(PrivateCloud):
    def __init__(self, hosts: int, *, database: str | None, bus: str | None) -> None:
        self._apart = apart = bool(database and bus)
        self.pause_s = 1.0 if apart else 2.5
        super().__init__(database=database, bus=bus, apart=apart)
        if not apart and (database or bus):
            raise BenchError("a database server and a broker go together: --database URL --bus URL")
        self.settings.host.name = "host-1"
        self.settings.host.heartbeat_seconds = 1
        self.settings.conductor.lease_seconds, self.settings.conductor.host_timeout_seconds = _LEASE_S, _HOST_TIMEOUT_S
        quota = self.settings.quota
        quota.instances = quota.volumes = quota.cores = quota.security_groups = 100
        self.hosts = [f"host-{number}" for number in range(1, hosts + 1)] if apart else ["host-1"]
        wanted = [("all", "all", "host-1")]
        if apart:
            wanted = [("api", "api", "host-1"), ("conductor-1", "conductor", "control-1"),
                      ("conductor-2", "conductor", "control-2")]  # fmt: skip
            wanted += [(f"agent-{host}", "agent", host) for host in self.hosts]
        self.members = {name: self._member(name, role, host) for name, role, host in wanted}
        self._away: set[str] = set()  # killed or stopped, by us
        self.url = self.settings.public_url
        self._start_members()
        self.db = Database(self.settings.database_url)

    def _member(self, name: str, role: str, host: str) -> Member:
        settings: Settings = msgspec.convert(msgspec.to_builtins(self.settings), Settings)
        settings.host.name = host
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
            if process.poll() is not None:
                raise BenchError(f"{name} ended by itself: {self._last_words(name)}")

    @staticmethod
    def _up(admin: Session) -> int:
        reply = admin.ask("GET", "operator", "/v1/status")
        return sum(host["up"] for host in reply.body["hosts"]) if reply.acknowledged else 0

    # -- as a field ---------------------------------------------------------------------------------------------------

    def admin(self) -> Session:
        return Session(self.url, "admin", "admin", self.settings.admin_password_file.read_text().strip())

    def disturbances(self) -> list[Disturbance]:
        return [Disturbance("process killed", 6, self._kill_one), Disturbance("process stopped", 4, self._stop_one)]

    def _choose(self, rng: random.Random) -> str | None:
        name = rng.choice(list(self.members))
        return None if name in self._away else name

    def _kill_one(self, rng: random.Random) -> tuple[str, Undo | None] | None:
        name, seconds = self._choose(rng), rng.choice([0.0, 0.3, 1.0, 3.0, 12.0][: None if self._apart else 2])
        if name is None:
            return None
        self._none_ended()
        self._away.add(name)
        self.kill(name)

        def back() -> None:
            self.launch(name)
            self._away.discard(name)

        return f"{name} killed", (seconds, f"{name} started", back)

    def _stop_one(self, rng: random.Random) -> tuple[str, Undo | None] | None:
        """Longer than a lease, longer than hosts may be silent, or only for a moment."""
        seconds = rng.choice([0.2, 1.0, _LEASE_S + 2, _HOST_TIMEOUT_S + 3][: None if self._apart else 2])
        name = self._choose(rng)
        if name is None:
            return None
        self._none_ended()
        self._away.add(name)
        process = self._running[name]
        process.send_signal(signal.SIGSTOP)

        def back() -> None:
            process.send_signal(signal.SIGCONT)
            self._away.discard(name)

        return f"{name} stopped for {seconds:g} s", (seconds, f"{name} goes on", back)

    def settle(self, *, compared: bool) -> list[str]:
        self._ready(60)
        left = self._wait_for_sagas()
        if left or not compared:
            return left
        for name, member in self.members.items():
            if member.role in ("agent", "all"):  # its first words are what is on the host
                self.kill(name)
                self.launch(name)
        self._ready(60)
        time.sleep(_COMPARE_S)
        return self._wait_for_sagas()

    def _wait_for_sagas(self) -> list[str]:
        last = self.db.read(lambda tx: (tx.scalar(_LAST_DEADLINE) or tx.now) - tx.now)
        end = time.monotonic() + min(_MOST_S, max(float(last) / SECOND, 0.0) + _LATE_S)
        while (left := under_way(self.db)) and time.monotonic() < end:
            self._none_ended()
            time.sleep(0.2)
        return left

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
