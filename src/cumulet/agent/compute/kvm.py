"""Whether KVM works here, found out by running a guest for a moment; and how fast this host is without it.

/dev/kvm may exist and guests hang, crawl or die in it (nested virtualisation), so a boot sector is run in it and must
speak about as soon as it does in software emulation, which real hardware beats.
The verdict is kept in a file with what it depends on (kernel, QEMU, CPU, device) and taken from there
while that is unchanged. Without KVM the host's speed factor is measured by another boot sector.
"""

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import msgspec

from cumulet.agent.errors import DriverError
from cumulet.guest import boot_sector, speed_sector

_HELLO = "cumulet: kvm works"
_PROBE_SECONDS = 2.0
_SOFTWARE_SECONDS = 30.0
_SPEED_SECONDS = 60.0
_ROUNDS = 20_000_000
# chosen so that the factor says how many times longer a Linux takes to boot (not this loop, which suits emulation)
_REFERENCE_SECONDS = 0.0225


class Verdict(msgspec.Struct, frozen=True):
    """``speed_factor``: 1.0 with KVM, else how many times slower the guest's code runs. ``why``: if KVM is not used."""

    virt_type: str
    speed_factor: float
    why: str = ""
    fingerprint: str = ""

    def warnings(self) -> list[dict[str, str]]:
        if self.virt_type == "kvm" or not self.why:
            return []
        return [
            {
                "code": "no-kvm",
                "message": f"guests are emulated in software, about {self.speed_factor:.0f} times slower: {self.why}",
                "cure": "enable virtualisation in the firmware or nested virtualisation in the outer hypervisor,"
                " load kvm_intel or kvm_amd; or accept it with [compute] virt_type = 'qemu'",
            }
        ]


def decide(setting: str, emulator: str, kept: Path) -> Verdict:
    """``setting``: auto, kvm or qemu. ``kept``: the file with the last verdict."""
    fingerprint = hashlib.sha256("\0".join((setting, *_circumstances(emulator))).encode()).hexdigest()
    try:
        verdict = msgspec.json.decode(kept.read_bytes(), type=Verdict)
        if verdict.fingerprint == fingerprint:
            return verdict
    except (OSError, msgspec.DecodeError):
        pass  # never decided, or by another release: decide now
    verdict = _decide(setting, emulator)
    verdict = msgspec.structs.replace(verdict, fingerprint=fingerprint)
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.with_suffix(".new").write_bytes(msgspec.json.encode(verdict))
    os.replace(kept.with_suffix(".new"), kept)
    return verdict


def _circumstances(emulator: str) -> list[str]:
    try:
        about = os.stat(emulator)
    except OSError as error:
        raise DriverError("hypervisor", f"{emulator} is missing: apt-get install qemu-system-x86") from error
    device = Path("/dev/kvm")
    present = f"{device.stat().st_rdev}:{device.stat().st_mode}" if device.exists() else "none"
    cpu = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), "")
    return [platform.release(), cpu, f"{about.st_size}:{about.st_mtime_ns}", present]


def _decide(setting: str, emulator: str) -> Verdict:
    if setting == "kvm":
        return Verdict("kvm", 1.0)
    if setting == "auto":
        why = why_not_kvm(emulator)
        if not why:
            return Verdict("kvm", 1.0)
    else:
        why = ""
    return Verdict("qemu", measure(emulator), why)


def why_not_kvm(emulator: str) -> str:
    """Empty if a guest ran in KVM, else the reason in words."""
    if not os.path.exists("/dev/kvm"):
        return "there is no /dev/kvm"
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "/dev/kvm cannot be opened"
    seen, software, said = _run(emulator, "tcg", boot_sector(_HELLO), _HELLO, _SOFTWARE_SECONDS)
    if not seen:
        raise DriverError("hypervisor", f"QEMU cannot run a guest even in software: {said.strip()[-200:]}")
    seen, seconds, said = _run(emulator, "kvm", boot_sector(_HELLO), _HELLO, max(_PROBE_SECONDS, 1.5 * software))
    if seen:
        return ""
    failed = [line for line in said.splitlines() if "warning" not in line]
    reason = failed[-1] if failed else f"a guest in it is silent for {seconds:.1f} s, in software for {software:.1f} s"
    return f"/dev/kvm is there, but does not work: {reason}"


def measure(emulator: str) -> float:
    """How many times slower than hardware a small loop runs in software emulation on this host."""
    best = _SPEED_SECONDS
    for _ in range(3):  # the best of three: the host may be busy with something else
        seen, seconds, said = _run(emulator, "tcg", speed_sector(_ROUNDS), "B", _SPEED_SECONDS, after="A")
        if not seen:
            raise DriverError("hypervisor", f"QEMU cannot run a guest even in software: {said.strip()[-200:]}")
        best = min(best, seconds)
    return round(min(50.0, max(1.0, best / _REFERENCE_SECONDS)), 1)


def _run(
    emulator: str, accelerator: str, disk: bytes, until: str, seconds: float, after: str = ""
) -> tuple[bool, float, str]:
    """Run a guest until it says ``until``: (did it, seconds since it said ``after`` or started, QEMU's words)."""
    work = Path(tempfile.mkdtemp(prefix="cumulet-probe-"))
    try:
        (work / "disk").write_bytes(disk)
        serial = work / "serial"
        process = subprocess.Popen(
            [emulator, "-accel", accelerator, "-machine", "pc", "-m", "16", "-nodefaults", "-no-reboot",
             "-display", "none", "-serial", f"file:{serial}", "-drive", f"file={work / 'disk'},format=raw,if=ide"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd="/",
        )  # fmt: skip
        begun = started = time.monotonic()
        seen = False
        while time.monotonic() - started < seconds and process.poll() is None and not seen:
            text = serial.read_text(errors="replace") if serial.exists() else ""
            if after and text and begun == started:
                begun = time.monotonic()
            seen = until in text
            if not seen:
                time.sleep(0.005)
        took = time.monotonic() - begun
        process.kill()
        _, said = process.communicate()
        return seen, took, said
    finally:
        shutil.rmtree(work, ignore_errors=True)
