"""A private PostgreSQL server in a directory of its own; the system's clusters are never touched."""

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

from tests.support import leftovers
from tests.support.certificates import Files
from tests.support.ports import free_ports


def _bin() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]))
    return found[-1].parent if found else None


class PostgresServer:
    def __init__(self, tls: Files | None = None) -> None:
        """``tls``: over TCP nothing without it, and only clients with a certificate of the same authority."""
        self.directory = leftovers.directory("cumulet-pg-")
        (self.port,) = free_ports(1)
        self._tls = tls
        self._numbers = itertools.count(1)
        bin_directory = _bin()
        if bin_directory is None:
            raise RuntimeError("PostgreSQL is not installed")
        self._bin = bin_directory
        self._as_user: dict[str, object] = {}
        if os.geteuid() == 0:
            self._as_user = {"user": "postgres", "group": "postgres", "extra_groups": []}
            self.directory.chmod(0o755)
            shutil.chown(self.directory, "postgres", "postgres")

    @staticmethod
    def available() -> bool:
        return _bin() is not None

    def _run(self, program: str, *arguments: str) -> str:
        done = subprocess.run(
            [str(self._bin / program), *arguments],
            cwd=self.directory,
            env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "HOME": str(self.directory)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
            **self._as_user,  # type: ignore[call-overload]
        )
        if done.returncode:
            raise RuntimeError(f"{program} failed: {done.stdout.decode(errors='replace')}")
        text: str = done.stdout.decode()
        return text

    @property
    def pid(self) -> int:
        return int((self.directory / "data" / "postmaster.pid").read_text().splitlines()[0])

    def start(self, *, durable: bool = False) -> None:
        """``durable`` is for measurements: the tests kill our processes, not the machine."""
        data = self.directory / "data"
        if not data.exists():
            self._run("initdb", "-D", str(data), "-A", "trust", "-U", "postgres", "-E", "UTF8", "--no-sync")
        options = f"-p {self.port} -h 127.0.0.1 -k {self.directory} -c max_connections=300"
        if not durable:
            options += " -c fsync=off -c full_page_writes=off -c shared_buffers=32MB"
        if self._tls is not None:
            own = [Path(shutil.copy(path, self.directory)) for path in self._tls]
            for path in own:
                path.chmod(0o600)
                if self._as_user:
                    shutil.chown(path, "postgres", "postgres")
            for name, path in zip(("ssl_ca_file", "ssl_cert_file", "ssl_key_file"), own, strict=True):
                options += f" -c {name}={path}"
            options += " -c ssl=on"
            rules = "local all all trust\nhostssl all all 127.0.0.1/32 trust clientcert=verify-ca\n"
            (data / "pg_hba.conf").write_text(rules)
        log = str(self.directory / "log")
        # pg_ctl's child keeps the pipe open: its output goes to the log instead
        done = subprocess.run(
            [str(self._bin / "pg_ctl"), "-D", str(data), "-o", options, "-l", log, "-w", "-t", "60", "start"],
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
            **self._as_user,  # type: ignore[call-overload]
        )
        if done.returncode:
            raise RuntimeError(f"PostgreSQL did not start: {(self.directory / 'log').read_text()[-2000:]}")

    def new_database(self) -> str:
        """The URL of an empty database."""
        name = f"cloud{next(self._numbers)}"
        self._run("createdb", "-h", str(self.directory), "-p", str(self.port), "-U", "postgres", name)
        return f"postgresql://postgres@127.0.0.1:{self.port}/{name}"

    def dump(self, url: str, path: Path) -> None:
        self._run("pg_dump", "--format=custom", f"--file={path}", *self._named(url))

    def restore(self, url: str, path: Path) -> None:
        self._run(
            "pg_restore", "--clean", "--if-exists", "--exit-on-error", f"--dbname={self._named(url)[-1]}", str(path)
        )

    def _named(self, url: str) -> list[str]:
        name = url.rpartition("/")[2]
        return [f"host={self.directory} port={self.port} user=postgres dbname={name}"]

    def pids(self) -> list[int]:
        """The server's processes, its first one first; none if it does not run."""
        with contextlib.suppress(FileNotFoundError):
            first = self.pid
            return [first, *map(int, Path(f"/proc/{first}/task/{first}/children").read_text().split())]
        return []

    def kill(self) -> None:
        """All of it at once, with SIGKILL; `start` brings it back with what was written."""
        pids = self.pids()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        while any(Path(f"/proc/{pid}").exists() for pid in pids):  # whoever inherited them has to notice
            time.sleep(0.01)

    def restart(self) -> None:
        """Every connection is cut at once."""
        self._stop()
        self.start()

    def _stop(self) -> None:
        self._run("pg_ctl", "-D", str(self.directory / "data"), "-m", "immediate", "-w", "stop")

    def destroy(self) -> None:
        with contextlib.suppress(RuntimeError):  # it did not run
            self._stop()  # which gives back what it has of shared memory; a killed one cannot
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)
