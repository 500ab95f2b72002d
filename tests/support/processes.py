"""The roles as processes of their own, started by ``python -m cumulet serve``, killed at will."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import requests

from cumulet.db import Database
from cumulet.emulator.cloud import QUICK_HASHES
from cumulet.settings import to_toml
from tests.support.cloud import Clients, make_accounts, test_settings
from tests.support.ports import free_ports


def _innermost(pid: int) -> int:
    """The role's own process, below what put it where it lives (`nsenter` waits for its child)."""
    command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    if b"nsenter" in command[0] and children:
        return _innermost(int(children[0]))
    return pid


class Processes(Clients):
    """``start("api")`` returns when the role works."""

    def __init__(
        self,
        directory: Path,
        *,
        database_url: str | None = None,
        bus_url: str = "local",
        address: str = "127.0.0.1",
        tls: Path | None = None,
        within: Callable[..., list[str]] = lambda *command: list(command),
        users: dict[str, int] | None = None,
        group: int | None = None,
    ) -> None:
        """``address``: where the API listens. ``tls``: whom to believe, when it speaks HTTPS. ``within``: turns a
        command into the one that runs it where the roles are to live. ``users``, ``group``: as whom roles run."""
        super().__init__()
        self._within = within
        self.tls = tls
        self._users, self._group = users or {}, group
        self.python = [sys.executable]
        self.directory = directory
        self.settings = test_settings(directory, free_ports(1)[0])
        self.settings.api.bind = address
        self.settings.database.url = database_url
        self.settings.bus.url = bus_url
        self.settings.conductor.lease_seconds = 3
        self.settings.conductor.host_timeout_seconds = 8
        self.settings.host.heartbeat_seconds = 1
        self.url = self.settings.public_url
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def write_settings(self) -> Path:
        self.directory.mkdir(parents=True, exist_ok=True)
        self.settings.admin_password_file.write_text("secret-admin\n")
        path = self.directory / "cumulet.toml"
        path.write_text(to_toml(self.settings))
        return path

    def start(self, *roles: str, seconds: float = 30) -> float:
        """Start them together; how long until all work."""
        began = time.monotonic()
        self.launch(*roles)
        for role in roles:
            self.wait_ready(role, seconds)
        return time.monotonic() - began

    def wait_ready(self, role: str, seconds: float = 30) -> None:
        end = time.monotonic() + seconds
        while not (self.settings.run_dir / f"{role}.ready").exists():
            assert self._running[role].poll() is None, f"{role} ended:\n{self.output(role)}"
            assert time.monotonic() < end, f"{role} does not start:\n{self.output(role)}"
            time.sleep(0.01)

    def launch(self, *roles: str) -> None:
        """Start them; they may not work yet."""
        path = self.write_settings()
        for role in roles:
            (self.settings.run_dir / f"{role}.ready").unlink(missing_ok=True)
            with (self.directory / f"{role}.out").open("ab") as out:
                self._running[role] = subprocess.Popen(
                    self._within(*self.python, "-m", "cumulet", "serve", "--role", role, "--config", str(path)),
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    start_new_session=True,
                    cwd="/",
                    **self._as_user(role),
                )

    def _as_user(self, role: str) -> dict[str, Any]:
        if role not in self._users:
            return {}
        return {"user": self._users[role], "group": self._group, "extra_groups": [], "umask": 0o007}

    def output(self, role: str) -> str:
        log = self.settings.log_dir / f"{role}.json.log"
        text = (self.directory / f"{role}.out").read_text(errors="replace")[-4000:]
        return text + (log.read_text(errors="replace")[-4000:] if log.exists() else "")

    def pid(self, role: str) -> int:
        return _innermost(self._running[role].pid)

    def roles(self) -> list[str]:
        """Those that were started and not killed by us."""
        return list(self._running)

    def ended(self) -> list[str]:
        """Those of them that ended by themselves."""
        return [role for role, process in self._running.items() if process.poll() is not None]

    def kill(self, role: str) -> None:
        """kill -9: no word to anyone."""
        process = self._running.pop(role)
        os.kill(_innermost(process.pid), signal.SIGKILL)
        process.wait(10)

    def pause(self, role: str) -> None:
        os.kill(self.pid(role), signal.SIGSTOP)

    def resume(self, role: str) -> None:
        """What started it where it lives (`nsenter`) stops with it."""
        for pid in {self.pid(role), self._running[role].pid}:
            os.kill(pid, signal.SIGCONT)

    def forget(self, role: str) -> None:
        """It died with its machine."""
        self._running.pop(role).wait(10)

    def terminate(self, role: str) -> int:
        """SIGTERM; the exit status."""
        process = self._running.pop(role)
        os.kill(_innermost(process.pid), signal.SIGTERM)
        return process.wait(20)

    def make_accounts(self) -> None:
        db = Database(self.settings.database_url)

        control: Any = SimpleNamespace(db=db, identity=SimpleNamespace(passwords=QUICK_HASHES))
        make_accounts(control)
        db.close()

    def hosts_up(self) -> list[str]:
        headers = {"X-Auth-Token": self.api("admin").token}
        status = requests.get(
            self.url + "/operator/v1/status", headers=headers, timeout=10, verify=str(self.tls) if self.tls else True
        ).json()
        return [host["name"] for host in status["hosts"] if host["up"]]

    def world(self) -> dict[str, Any]:
        """What the fake host's file says exists there: kind -> id -> thing."""
        path = self.settings.state_dir / "agent" / "fake-1.world.db"
        found: dict[str, Any] = {"domains": {}, "disks": {}}
        if path.exists():
            with closing(sqlite3.connect(path)) as file:
                for kind, key, body in file.execute("SELECT kind, id, body FROM things"):
                    found.setdefault(kind, {})[key] = json.loads(body)
        return found

    def stop(self) -> None:
        for connection in self._connections.values():
            connection.close()
        for role in list(self._running):
            if self._running[role].poll() is None:
                os.kill(_innermost(self._running[role].pid), signal.SIGTERM)
        for role in list(self._running):
            try:
                self._running[role].wait(10)
            except subprocess.TimeoutExpired:
                self.kill(role)
        self._running.clear()
