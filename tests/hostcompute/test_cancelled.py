"""A migration that QEMU cancels and forgets is ended. With QEMU alone: it takes some tries to meet that moment."""

import json
import random
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import libvirt
import libvirt_qemu
import pytest

from cumulet.agent.compute.moving.live import end_cancelled, remind
from tests.support.patience import eventually

pytestmark = pytest.mark.host
_TRIES_SECONDS = 120.0
_FORGOTTEN_SECONDS = 2.0


class Monitor:
    """QMP of a small guest that does nothing."""

    def __init__(self, directory: Path) -> None:
        path = directory / "monitor"
        words = ["qemu-system-x86_64", "-machine", "pc,accel=tcg", "-m", "16", "-nodefaults", "-display", "none"]
        self.process = subprocess.Popen([*words, "-qmp", f"unix:{path},server=on,wait=off"])
        self._socket = socket.socket(socket.AF_UNIX)
        eventually(lambda: path.exists() and self._socket.connect_ex(str(path)) == 0)
        self._file = self._socket.makefile("rw")
        self.version = json.loads(self._file.readline())["QMP"]["version"]["qemu"]["major"]
        self.do("qmp_capabilities")

    def command(self, words: str) -> str:
        self._file.write(words + "\n")
        self._file.flush()
        while "event" in (said := json.loads(self._file.readline())):
            pass
        return json.dumps(said)

    def do(self, name: str, **arguments: Any) -> Any:
        answer = json.loads(self.command(json.dumps({"execute": name, "arguments": arguments})))
        assert "return" in answer, answer
        return answer["return"]

    def status(self) -> str:
        return str(self.do("query-migrate")["status"])


@pytest.fixture
def monitor(tmp_path: Path) -> Iterator[Monitor]:
    made = Monitor(tmp_path)
    yield made
    made.process.kill()
    made.process.wait()


def forgotten(monitor: Monitor) -> bool:
    """Cancelled at some moment, QEMU does not come to an end with it."""
    monitor.do("migrate", uri="exec:cat >/dev/null")
    time.sleep(random.random() * 0.03)
    monitor.do("migrate_cancel")
    end = time.monotonic() + _FORGOTTEN_SECONDS
    while monitor.status() == "cancelling":
        if time.monotonic() > end:
            return True
        time.sleep(0.002)
    return False


def test_what_was_cancelled_and_forgotten_ends(monitor: Monitor) -> None:
    monitor.do("migrate-set-capabilities", capabilities=[{"capability": "pause-before-switchover", "state": True}])
    end = time.monotonic() + _TRIES_SECONDS
    while not forgotten(monitor):
        if monitor.version > 7 and time.monotonic() > end:
            pytest.skip("this QEMU does not forget")
        assert time.monotonic() < end, "QEMU 7 forgets it now and then"
    assert not monitor.do("query-status")["running"], "the guest stands still"
    monitor.do("migrate_cancel")
    time.sleep(0.5)
    assert end_cancelled(monitor.command) == "cancelling", "cancelling it again does not help"
    eventually(lambda: monitor.status() == "cancelled")
    eventually(lambda: monitor.do("query-status")["running"])
    assert end_cancelled(monitor.command) == "cancelled"


class _Domain:
    """What `remind` asks of libvirt. That a suspend ends what libvirt forgot was seen with libvirt 9.0 itself, in about
    one of forty aborted migrations of a busy host: too few to wait for."""

    def __init__(self, state: int) -> None:
        self.suspended = 0
        self._state = state

    def name(self) -> str:
        return "instance-1"

    def state(self) -> tuple[int, int]:
        return self._state, 0

    def suspend(self) -> None:
        self.suspended += 1


@pytest.mark.parametrize(
    ("migration", "waited", "state", "suspended"),
    [
        ("cancelled", 21.0, libvirt.VIR_DOMAIN_RUNNING, 1),
        ("cancelled", 19.0, libvirt.VIR_DOMAIN_RUNNING, 0),  # libvirt may be at it
        ("cancelled", 0.0, libvirt.VIR_DOMAIN_RUNNING, 0),  # it is not to end, or it has ended
        ("cancelled", 21.0, libvirt.VIR_DOMAIN_PAUSED, 0),
        ("active", 21.0, libvirt.VIR_DOMAIN_RUNNING, 0),
        ("completed", 21.0, libvirt.VIR_DOMAIN_RUNNING, 0),
    ],
)
def test_a_guest_is_suspended_for_what_libvirt_forgot_alone(
    monkeypatch: pytest.MonkeyPatch, migration: str, waited: float, state: int, suspended: int
) -> None:
    answer = json.dumps({"return": {"status": migration}})
    monkeypatch.setattr(libvirt_qemu, "qemuMonitorCommand", lambda *_: answer)
    domain = _Domain(state)
    remind(domain, waited)
    assert domain.suspended == suspended
