"""The verdict on KVM: by what guests did, kept while nothing changes, overridable."""

import shutil
from pathlib import Path

import pytest

from cumulet.agent.compute import kvm

EMULATOR = "/bin/sh"  # anything that is there: `_run` is replaced


class Machine:
    """How guests fare: seconds until they speak; None: never."""

    def __init__(self) -> None:
        self.software: float | None = 0.2
        self.hardware: float | None = 0.1
        self.said = ""
        self.runs: list[str] = []

    def run(
        self, emulator: str, accelerator: str, disk: bytes, until: str, seconds: float, after: str = ""
    ) -> tuple[bool, float, str]:
        self.runs.append(accelerator)
        took = self.software if accelerator == "tcg" else self.hardware
        return took is not None and took <= seconds, seconds if took is None else took, self.said


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine()
    monkeypatch.setattr(kvm, "_run", machine.run)
    monkeypatch.setattr(kvm.os.path, "exists", lambda path: True)
    monkeypatch.setattr(kvm.os, "access", lambda path, mode: True)
    return machine


def test_a_guest_that_speaks(machine: Machine, tmp_path: Path) -> None:
    verdict = kvm.decide("auto", EMULATOR, tmp_path / "kept")
    assert (verdict.virt_type, verdict.speed_factor, verdict.warnings()) == ("kvm", 1.0, [])


def test_a_guest_that_hangs(machine: Machine, tmp_path: Path) -> None:
    machine.hardware = None
    verdict = kvm.decide("auto", EMULATOR, tmp_path / "kept")
    assert verdict.virt_type == "qemu"
    assert verdict.speed_factor > 1
    [warning] = verdict.warnings()
    assert warning["code"] == "no-kvm"
    assert "silent" in warning["message"]


def test_a_guest_that_crawls(machine: Machine, tmp_path: Path) -> None:
    """Nested virtualisation without help from the outer hypervisor: it runs, slower than software does."""
    machine.hardware = 4.3
    assert kvm.decide("auto", EMULATOR, tmp_path / "kept").virt_type == "qemu"
    machine.software = 4.0
    assert kvm.decide("auto", EMULATOR, tmp_path / "other").virt_type == "kvm", "all is slow on a busy host"


def test_a_guest_that_dies(machine: Machine, tmp_path: Path) -> None:
    machine.hardware, machine.said = None, "warning: x\nKVM internal error. Suberror: 1\n"
    assert "Suberror" in kvm.decide("auto", EMULATOR, tmp_path / "kept").warnings()[0]["message"]


def test_the_verdict_is_kept(machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = tmp_path / "deep" / "kept"
    first = kvm.decide("auto", EMULATOR, kept)
    runs = len(machine.runs)
    assert kvm.decide("auto", EMULATOR, kept) == first
    assert len(machine.runs) == runs
    monkeypatch.setattr(kvm.platform, "release", lambda: "99.0")
    kvm.decide("auto", EMULATOR, kept)
    assert len(machine.runs) > runs, "another kernel: look again"
    kept.write_text("damaged")
    assert kvm.decide("auto", EMULATOR, kept).virt_type == "kvm"


def test_the_setting_overrides(machine: Machine, tmp_path: Path) -> None:
    machine.hardware = None
    assert kvm.decide("kvm", EMULATOR, tmp_path / "a").virt_type == "kvm"
    assert machine.runs == []
    verdict = kvm.decide("qemu", EMULATOR, tmp_path / "b")
    assert (verdict.virt_type, verdict.warnings()) == ("qemu", []), "it was asked for"


def test_no_emulator(tmp_path: Path) -> None:
    from cumulet.agent.errors import DriverError

    with pytest.raises(DriverError, match="apt-get install"):
        kvm.decide("auto", "/nonexistent/qemu", tmp_path / "kept")


@pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="needs QEMU")
def test_speed_is_measured_by_a_real_guest() -> None:
    assert 1.0 <= kvm.measure("qemu-system-x86_64") <= 50.0
