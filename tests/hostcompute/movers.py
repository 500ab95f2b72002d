"""Two pretend hosts, each with the compute driver in a process of its own, a private libvirtd and a certificate of one
authority: for tests of what passes between hosts."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from cumulet.agent import contract as c
from cumulet.agent.compute.driver import ComputeConfig
from cumulet.agent.driver import Hooks
from cumulet.agent.errors import DriverError
from cumulet.kernel import pki
from tests.support import leftovers
from tests.support.pretend import PretendHosts

DOOR = 10810
_START_SECONDS = 120


class Authority:
    """The cloud's: certificates as `cumulet join` lays them out."""

    def __init__(self, name: str) -> None:
        self._certificate, self._key = pki.new_authority(name, time.time())

    def issue(self, folder: Path, host: str) -> Path:
        folder.mkdir(parents=True)
        key = pki.new_key()
        made = pki.sign(
            self._certificate, self._key, pki.request(key, host), name=host, addresses=[], days=2, now=time.time()
        )
        for name, text in (("ca-cert", self._certificate), ("server-cert", made.certificate), ("server-key", key)):
            (folder / f"{name}.pem").write_text(text)
        return folder


class Call:
    """An operation under way in another process."""

    def __init__(self) -> None:
        self.over = threading.Event()
        self.answer: dict[str, Any] = {}
        self.progress: list[float] = []

    def result(self, seconds: float = 120) -> Any:
        assert self.over.wait(seconds), "no end in time"
        if "error" in self.answer:
            raise DriverError(self.answer["code"], self.answer["error"])
        return self.answer["done"]


class Mover:
    """One host's driver."""

    def __init__(self, hosts: PretendHosts, name: str, config: ComputeConfig) -> None:
        self.hosts, self.name, self.config = hosts, name, config
        self.reports: list[tuple[str, int, str]] = []
        self.pid = 0
        self.hooks: Hooks | None = None
        self._calls: dict[int, Call] = {}
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        words = msgspec.json.encode(self.config, enc_hook=str).decode()
        command = self.hosts.command(self.name, sys.executable, "-m", "tests.hostcompute.driver_process", words)
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        ready = threading.Event()
        threading.Thread(target=self._hear, args=(self._process, ready), daemon=True).start()
        assert ready.wait(_START_SECONDS), f"{self.name} does not start"

    def _hear(self, process: subprocess.Popen[str], ready: threading.Event) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            words = json.loads(line)
            if "report" in words:
                self.reports.append(tuple(words["report"]))
                if self.hooks is not None:
                    self.hooks.server_changed(*words["report"])
            elif "ready" in words:
                self.pid = words["ready"]
                ready.set()
            elif "progress" in words:
                self._calls[words["n"]].progress += [] if words["progress"] is None else [words["progress"]]
            else:
                call = self._calls[words["n"]]
                call.answer = words
                call.over.set()

    def kill(self) -> None:
        os.kill(self.outer_pid(self.pid), signal.SIGKILL)
        self.wait()

    def wait(self) -> None:
        assert self._process is not None
        self._process.wait(10)

    def stop(self) -> None:
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()

    def send(self, **words: Any) -> Call:
        assert self._process is not None
        assert self._process.stdin is not None
        call, number = Call(), len(self._calls) + 1
        self._calls[number] = call
        self._process.stdin.write(json.dumps({"n": number, **words}) + "\n")
        self._process.stdin.flush()
        return call

    def begin(self, operation: c.Operation) -> Call:
        return self.send(do=msgspec.to_builtins(operation))

    def do(self, operation: c.Operation, seconds: float = 120) -> Any:
        return self.begin(operation).result(seconds)

    def ask(self, query: c.Query) -> Any:
        return self.send(ask=msgspec.to_builtins(query)).result()

    def servers(self) -> dict[str, int]:
        """What the inventory says."""
        found = self.send(call="inventory").result()
        return {one["server_id"]: one["power_state"] for one in found["servers"]}

    def on_the_way(self) -> list[str]:
        """Servers of which the inventory says that nothing is reported."""
        return list(self.send(call="inventory").result()["moving"])

    def sh(self, script: str) -> str:
        return self.hosts.output(self.name, "sh", "-c", script)

    def libvirtd(self) -> int:
        """Its process, as numbered in the host."""
        return int((self.config.run / "libvirt" / "libvirtd.pid").read_text())

    def outer_pid(self, pid: int) -> int:
        """As this process knows a process of the host: to kill it without delay."""
        namespace = os.readlink(f"/proc/{self.hosts.init(self.name)}/ns/pid")
        for status in Path("/proc").glob("[0-9]*/status"):
            with contextlib.suppress(OSError):
                numbers = next(line for line in status.read_text().splitlines() if line.startswith("NSpid:")).split()
                if int(numbers[-1]) == pid and os.readlink(status.with_name("ns") / "pid") == namespace:
                    return int(status.parent.name)
        raise AssertionError(f"{self.name} has no process {pid}")

    def guests(self) -> list[str]:
        """QEMU processes that have a guest."""
        lines = self.sh("ps -eo pid,args").splitlines()
        return [line.split()[0] for line in lines if "qemu-system" in line and "guest=instance" in line]

    def folder(self, server_id: str) -> Path:
        return self.config.state / "servers" / server_id

    def virsh(self, *words: str) -> str:
        uri = f"qemu+unix:///system?socket={self.config.run}/libvirt/libvirt-sock"
        return self.sh(f"virsh -q -c '{uri}' {' '.join(words)}")


@contextmanager
def movers(learned: Path, number: int = 2, *, certificates: bool = True) -> Iterator[list[Mover]]:
    hosts = PretendHosts("mv", number)
    directory = leftovers.directory("mv-")
    directory.chmod(0o755)
    authority = Authority("the cloud's")
    try:
        hosts.up()
        made = []
        for n in range(1, number + 1):
            name = f"h{n}"
            state = directory / name / "state"
            (state / "libvirt").mkdir(parents=True)
            if (learned / "libvirt").is_dir():
                shutil.copytree(learned / "libvirt", state / "libvirt" / "cache")
            if (learned / "kvm.json").exists():
                shutil.copy(learned / "kvm.json", state)
            config = ComputeConfig(
                state=state,
                run=directory / name / "run",
                virt_type="qemu",
                detach_seconds=2,
                host=name,
                door=(f"10.77.0.{n}", DOOR),
                tls=authority.issue(directory / name / "pki", name) if certificates else None,
            )
            made.append(Mover(hosts, name, config))
        starts = [threading.Thread(target=mover.start) for mover in made]
        for start in starts:
            start.start()
        for start in starts:
            start.join()
        yield made
    finally:
        for mover in made:
            mover.stop()
        hosts.down()
        found = directory / "h1" / "state" / "libvirt" / "cache"
        if found.is_dir() and not (learned / "libvirt").exists():
            shutil.copytree(found, learned / "libvirt")
        shutil.rmtree(directory, ignore_errors=True)


def until(what: str, holds: Callable[[], Any], seconds: float = 180) -> Any:
    end = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < end, f"not within {seconds:g} s: {what}"
        time.sleep(0.05)
    return found
