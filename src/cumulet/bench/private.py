"""A cloud of the run's own: Cumulet's roles as processes in a temporary directory, with the fake agent.

The settings are the quickstart's (policy, real password hashing, journal, durable database, encoded bus messages), with
``driver = "fake"``. Owns: the directory, the processes; both go with `stop`. What a killed run left is removed by the
next (`sweep`). Fails: `BenchError` with the last words of a process that does not start.
"""

import contextlib
import ctypes
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from cumulet.bench.target import BenchError
from cumulet.kernel.process import started_at
from cumulet.settings import Settings, to_toml

_PREFIX = "cumulet-bench-"
_PDEATHSIG = 1


class PrivateCloud:
    """``apart``: api, conductor and agent as processes of their own (over a database server and a broker)."""

    def __init__(self, *, database: str | None = None, bus: str | None = None, apart: bool = False) -> None:
        if apart and not (database and bus):
            raise BenchError("separate processes need a database server and a broker: --database URL --bus URL")
        sweep()
        self.directory = Path(tempfile.mkdtemp(prefix=_PREFIX))
        (self.directory / "owner").write_text(f"{os.getpid()} {started_at(os.getpid()):.0f}\n")
        self.roles = ("api", "conductor", "agent") if apart else ("all",)
        self.settings = _settings(self.directory, database, bus)
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self.launched = 0.0

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self._running.values()]

    @property
    def credentials(self) -> dict[str, Any]:
        """As an entry of clouds.yaml."""
        auth = {
            "auth_url": self.settings.public_url + "/identity",
            "username": "admin",
            "password": self.settings.admin_password_file.read_text().strip(),
            "project_name": "admin",
        }
        return {"auth": auth, "region_name": self.settings.api.region}

    def start(self, seconds: float = 60) -> float:
        """Launch the roles; seconds until the API gave its first answer. Returns when all of them work."""
        config = self.directory / "cumulet.toml"
        config.write_text(to_toml(self.settings))
        self.settings.state_dir.mkdir(exist_ok=True)
        if not self.settings.admin_password_file.exists():
            self.settings.admin_password_file.write_text(secrets.token_urlsafe(18) + "\n")
        began = self.launched = time.perf_counter()
        for role in self.roles:
            self._launch(role, ["serve", "--role", role, "--config", str(config)])
        self._until(self._answers, began, seconds)
        answered = time.perf_counter() - began
        for role in self.roles:
            self._until((self.settings.run_dir / f"{role}.ready").exists, began, seconds)
        return answered

    def start_emulator(self, seconds: float = 60) -> float:
        """Seconds until an emulator gave its first answer; it is ended again."""
        port = str(self.settings.api.port)
        began = time.perf_counter()
        self._launch("emulator", ["emulator", "--port", port, "--quiet"])
        try:
            self._until(self._answers, began, seconds)
            return time.perf_counter() - began
        finally:
            self.end()

    def _launch(self, name: str, words: list[str]) -> None:
        with (self.directory / f"{name}.out").open("ab") as out:
            self._running[name] = subprocess.Popen(
                [sys.executable, "-m", "cumulet", *words],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,  # an interrupt is ours to handle
                preexec_fn=_die_with_parent,
                env=_environment(),
                cwd="/",
            )

    def _until(self, holds: Any, began: float, seconds: float) -> None:
        while not holds():
            for role, process in self._running.items():
                if process.poll() is not None:
                    raise BenchError(f"role {role} ended: {self._last_words(role)}")
            if time.perf_counter() - began > seconds:
                raise BenchError(f"the cloud does not start: {self._last_words(self.roles[0])}")
            time.sleep(0.001)

    def _answers(self) -> bool:
        try:
            with socket.create_connection((self.settings.api.bind, self.settings.api.port), timeout=5) as connection:
                connection.sendall(b"GET /identity/v3 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                return connection.recv(64).startswith(b"HTTP/1.1 200")
        except OSError:
            return False

    def _last_words(self, role: str) -> str:
        lines = (self.directory / f"{role}.out").read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"

    def end(self) -> None:
        """End the processes; the directory stays for another `start`."""
        for process in self._running.values():
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self._running.values():
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(5)
        self._running.clear()

    def reset(self) -> None:
        """End the processes and forget all they kept on this machine; a database server is not ours to empty."""
        self.end()
        shutil.rmtree(self.settings.state_dir, ignore_errors=True)

    def stop(self) -> None:
        self.end()
        shutil.rmtree(self.directory, ignore_errors=True)


def _settings(directory: Path, database: str | None, bus: str | None) -> Settings:
    settings = Settings()
    settings.paths.state_dir = str(directory / "state")
    settings.paths.run_dir = str(directory / "run")
    settings.paths.log_dir = str(directory / "log")
    settings.api.port = _free_port()
    settings.database.url = database
    if bus is not None:
        settings.bus.url = bus
    settings.host.name = "bench-1"
    settings.compute.driver = settings.network.driver = settings.storage.driver = "fake"
    settings.compute.cpu_allocation_ratio = 64.0  # a thousand servers on one fake host
    return settings


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CUMULET_")}
    kept.pop("PYTHONDONTWRITEBYTECODE", None)  # a start would compile everything anew
    return kept


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PDEATHSIG, signal.SIGTERM)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def sweep() -> None:
    """Remove directories of runs that are gone."""
    for path in Path(tempfile.gettempdir()).glob(_PREFIX + "*"):
        with contextlib.suppress(OSError, ValueError):
            pid, began = (path / "owner").read_text().split()
            if abs(started_at(int(pid)) - float(began)) > 2:
                shutil.rmtree(path, ignore_errors=True)
