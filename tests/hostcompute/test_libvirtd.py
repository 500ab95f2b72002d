"""Who QEMU is to run as, and what libvirt must not see of a host."""

import os
import pwd
import shutil
import time
from pathlib import Path

import pytest

from cumulet.agent.compute import libvirtd
from cumulet.agent.compute.libvirtd import PrivateLibvirtd, impassable, kvm_for_root_only
from cumulet.agent.errors import DriverError
from tests.support import leftovers

ME = pwd.getpwuid(os.getuid()).pw_name
NOBODY = "nobody"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give files away")
def test_kvm_for_root_only(tmp_path: Path) -> None:
    device = tmp_path / "kvm"
    assert not kvm_for_root_only(device, NOBODY)
    device.touch()
    for mode, only in ((0o600, True), (0o660, True), (0o666, False), (0o604, True)):
        device.chmod(mode)
        assert kvm_for_root_only(device, NOBODY) is only
    account = pwd.getpwnam(NOBODY)
    device.chmod(0o660)
    os.chown(device, 0, account.pw_gid)
    assert not kvm_for_root_only(device, NOBODY)
    assert kvm_for_root_only(device, "no-such-user")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give files away")
def test_impassable(tmp_path: Path) -> None:
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    for folder in (*tmp_path.parents, tmp_path):
        if folder.stat().st_mode & 1 == 0:
            assert impassable(inner, NOBODY) is not None
            os.chmod(folder, folder.stat().st_mode | 1)  # pytest's own folders are closed
    assert impassable(inner, NOBODY) is None
    assert impassable(inner / "to" / "be", NOBODY) is None
    inner.chmod(0o700)
    assert impassable(inner / "to" / "be", NOBODY) == inner


@pytest.mark.parametrize(
    "use_kvm,root_only,barred,code,text",
    [
        (False, False, None, None, ""),
        (True, False, None, None, ""),
        (False, True, None, None, ""),
        (True, True, None, "qemu-as-root", "/dev/kvm"),
        (False, False, Path("/closed"), "qemu-as-root", "/closed"),
    ],
)
def test_when_qemu_runs_as_root(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    use_kvm: bool,
    root_only: bool,
    barred: Path | None,
    code: str | None,
    text: str,
) -> None:
    monkeypatch.setattr(libvirtd, "kvm_for_root_only", lambda: root_only)
    monkeypatch.setattr(libvirtd, "impassable", lambda path: barred)
    monkeypatch.setattr(libvirtd, "QEMU_USER", ME)
    warnings = PrivateLibvirtd(tmp_path, tmp_path, use_kvm=use_kvm).warnings()
    assert [warning["code"] for warning in warnings] == ([code] if code else [])
    assert all(text in warning["message"] and warning["cure"] for warning in warnings)


def test_without_the_packages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(libvirtd, "QEMU_USER", "no-such-user")
    [warning] = PrivateLibvirtd(tmp_path, tmp_path, use_kvm=False).warnings()
    assert "apt-get" in warning["cure"]
    assert libvirtd.qemu_group() is None


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount")
def test_a_daemon_that_ends_at_once_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = leftovers.directory("lv-", "/tmp")
    program = folder / "bin" / "libvirtd"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho 'no such option: quick' >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    daemon = PrivateLibvirtd(folder / "state", folder / "run", use_kvm=False)
    began = time.monotonic()
    try:
        with pytest.raises(DriverError, match="no such option: quick"):
            daemon.start()
        assert time.monotonic() - began < libvirtd._START_SECONDS / 2
    finally:
        daemon.remove_mount_point()
        shutil.rmtree(folder)
