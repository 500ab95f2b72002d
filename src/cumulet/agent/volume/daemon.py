"""The one qemu-storage-daemon of a host: it holds every exported volume open and serves them by NBD.

It is not our child: it detaches, outlives us and is found again by its monitor socket. Guests' disks hang on it, so
nothing here ever stops it except `stop`, which tear-down calls.
"""

import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cumulet.agent.errors import DriverError
from cumulet.agent.outlive import outliving
from cumulet.agent.volume.qmp import Qmp, QmpError

PROGRAM = "qemu-storage-daemon"
_START_SECONDS = 20
_CREDENTIALS, _ADMITTED = "tls0", "admitted"  # objects in it


class StorageDaemon:
    """``run_dir``: sockets and pid file (short path: a socket's name holds 107 bytes). ``listen``: ``HOST:PORT`` for
    NBD over TCP; None: a unix socket, for guests of this host. ``tls``: the folder with this host's certificate and
    key, as QEMU wants it: over TCP only hosts that `admit` named get in, each by its certificate."""

    def __init__(
        self, run_dir: Path, listen: str | None = None, group: str | None = None, tls: Path | None = None
    ) -> None:
        self.run_dir = run_dir
        self.listen = listen
        self.group = group
        self.tls = tls if listen is not None else None
        self.monitor = run_dir / "qsd.qmp"
        self.socket = run_dir / "nbd.sock"
        self.pid_file = run_dir / "qsd.pid"
        self.shown = run_dir / "qsd-cert.pem"  # the certificate it was started with: it reads no other
        self._lock = threading.RLock()

    def running(self) -> bool:
        """Does its process live? One that does not answer for a while is no reason to start another."""
        return self._process() is not None

    def _process(self) -> tuple[int, list[bytes]] | None:
        """Its number and its command line."""
        try:
            pid = int(self.pid_file.read_text())
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")  # a zombie has none
        except (OSError, ValueError):
            return None
        ours = os.path.basename(words[0]) == PROGRAM.encode() and str(self.pid_file).encode() in words
        return (pid, words) if ours else None

    def ensure(self) -> bool:
        """Start it unless it runs; True if it had to be started (it then has no exports)."""
        with self._lock:
            if self.running():
                return False
            if shutil.which(PROGRAM) is None:
                raise DriverError("unsupported", f"{PROGRAM} is not installed (Debian: qemu-system-common)")
            self.run_dir.mkdir(parents=True, exist_ok=True)
            for left in (self.monitor, self.socket, self.pid_file):
                left.unlink(missing_ok=True)
            if self.listen is None:
                address = f"addr.type=unix,addr.path={self.socket}"
            else:
                host, _, port = self.listen.rpartition(":")
                address = f"addr.type=inet,addr.host={host.strip('[]')},addr.port={port}"
            secured = ""
            objects: list[str] = []
            if self.tls is not None:
                secured = f",tls-creds={_CREDENTIALS},tls-authz={_ADMITTED}"
                credentials = f"tls-creds-x509,id={_CREDENTIALS},dir={self.tls},endpoint=server,verify-peer=on"
                objects = ["--object", credentials, "--object", f"authz-list,id={_ADMITTED},policy=deny"]
                shutil.copyfile(self._certificate(self.tls), self.shown)
            command = [
                *(PROGRAM, "--daemonize", "--pidfile", str(self.pid_file)),
                *("--chardev", f"socket,id=qmp,path={self.monitor},server=on,wait=off"),
                *("--monitor", "chardev=qmp"),
                *objects,
                *("--nbd-server", f"{address}{secured},max-connections=0"),
            ]
            try:
                subprocess.run(
                    outliving(command), check=True, timeout=_START_SECONDS, capture_output=True, text=True, cwd="/"
                )
            except subprocess.CalledProcessError as error:
                raise DriverError("internal", f"{PROGRAM} did not start: {error.stderr.strip()[-300:]}") from error
            except subprocess.TimeoutExpired as error:
                raise DriverError("timeout", f"{PROGRAM} did not start in {_START_SECONDS} s") from error
            os.chmod(self.monitor, 0o600)
            self._admit()
            return True

    def _admit(self) -> None:
        """Let the hypervisor's group, and nobody else, connect to the socket."""
        if self.listen is not None:
            return
        os.chmod(self.socket, 0o600)
        if self.group is not None:
            try:
                shutil.chown(self.socket, group=self.group)
            except LookupError as error:
                raise DriverError("internal", f"there is no group {self.group} on this host") from error
            os.chmod(self.socket, 0o660)

    def speaks_tls(self) -> bool:
        """As it runs, or is to be started: one that was started before this host had a certificate goes on as it is."""
        process = self._process()
        if process is None:
            return self.tls is not None
        return any(f"tls-creds={_CREDENTIALS}".encode() in word for word in process[1])

    def outdated(self) -> bool:
        """Is it known to others by another certificate (or none) than this host has by now?"""
        if self.speaks_tls() != (self.tls is not None):
            return True
        try:
            return self.tls is not None and self.shown.read_bytes() != self._certificate(self.tls).read_bytes()
        except OSError:  # never started, or by a release that kept no copy
            return False

    @staticmethod
    def _certificate(folder: Path) -> Path:
        return folder / "server-cert.pem"

    def admit(self, qmp: Qmp, hosts: Iterable[str]) -> None:
        """These hosts, and no others, may connect from now on. For a moment nobody may: clients try again."""
        if not self.speaks_tls():
            return
        rules = [{"match": f"CN={host}", "policy": "allow", "format": "exact"} for host in sorted(set(hosts))]
        qmp.execute("object-del", id=_ADMITTED)
        qmp.execute("object-add", **{"qom-type": "authz-list"}, id=_ADMITTED, policy="deny", rules=rules)

    @contextmanager
    def qmp(self) -> Iterator[Qmp]:
        """The monitor, for one thread at a time (it serves one client)."""
        with self._lock:
            try:
                connection = Qmp(self.monitor)
            except OSError as error:
                raise DriverError("internal", f"the storage daemon does not answer: {error}") from error
            with connection:
                try:
                    yield connection
                except QmpError as error:
                    raise DriverError("internal", f"the storage daemon refused: {error}") from error
                except (OSError, ValueError) as error:
                    raise DriverError("internal", f"the storage daemon broke off: {error}") from error

    def stop(self, seconds: float = 10) -> None:
        """End it: every guest that uses a volume of it loses its disk."""
        process = self._process()
        if process is None:
            return
        pid = process[0]
        try:
            with Qmp(self.monitor, timeout=5) as qmp:
                qmp.execute("quit")
        except (OSError, QmpError):
            os.kill(pid, signal.SIGTERM)
        end = time.monotonic() + seconds
        while time.monotonic() < end and _alive(pid):
            time.sleep(0.02)
        for left in (self.monitor, self.socket, self.pid_file):
            left.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
