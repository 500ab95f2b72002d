"""Builds the tiny Linux guest by `build.sh` and keeps it by a digest of its inputs.

Owns: one output folder with the images and ``guest.json`` (written last: a folder without it is unfinished).
Refuses: nothing; needs no root and no mounts. Killed at any point it leaves a ``.build-*`` folder, which the next
build removes. Fails with `GuestBuildError`.
"""

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

BUILD_PACKAGES = (
    "binutils cpio dosfstools e2fsprogs kmod lz4 mtools qemu-utils syslinux syslinux-common".split()  # noqa: SIM905
)
_HERE = Path(__file__).parent
_SCRIPT = _HERE / "build.sh"
_FILES = {"disk": "guest.qcow2", "root_filesystem": "guest.raw.ext4", "kernel": "vmlinuz", "ramdisk": "initrd"}


class GuestBuildError(Exception):
    """The image could not be built; the text names the cure."""


class GuestImage(msgspec.Struct, frozen=True):
    """``disk`` is a bootable qcow2; ``root_filesystem``, ``kernel`` and ``ramdisk`` are the same guest as AMI,
    AKI, ARI.
    ``digest`` identifies the inputs; ``built`` is False when the images were there already."""

    disk: Path
    root_filesystem: Path
    kernel: Path
    ramdisk: Path
    digest: str
    built: bool


def build(outdir: Path | str, progress: Callable[[str], None] = lambda line: None) -> GuestImage:
    """The guest's images in ``outdir``, built if they are not there or made of other inputs."""
    out = Path(outdir).absolute()
    out.mkdir(parents=True, exist_ok=True)
    with _only_one(out):
        kept = _kept(out)
        try:
            digest = _digest_of_inputs()
        except GuestBuildError:
            if kept is None:
                raise
            progress("apt does not answer: keeping the guest image that is there")
            return kept
        if kept is not None and kept.digest == digest:
            return kept
        _build(out, digest, progress)
        made = _kept(out)
        if made is None:
            raise GuestBuildError(f"the guest image in {out} vanished while it was built")
        return GuestImage(made.disk, made.root_filesystem, made.kernel, made.ramdisk, made.digest, True)


@contextmanager
def _only_one(out: Path) -> Iterator[None]:
    with (out / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _kept(out: Path) -> GuestImage | None:
    try:
        note = json.loads((out / "guest.json").read_text())
        whole = all((out / name).stat().st_size == note["sizes"][name] for name in _FILES.values())
    except (OSError, ValueError, KeyError):
        return None
    if not whole:
        return None
    return GuestImage(**{field: out / name for field, name in _FILES.items()}, digest=note["digest"], built=False)


def _digest_of_inputs() -> str:
    """Of the builder's own files and of the packages that apt would fetch (name, version and hash, not where from)."""
    digest = hashlib.sha256()
    for path in sorted(p for p in (_SCRIPT, _HERE / "initramfs-init", *(_HERE / "rootfs").rglob("*")) if p.is_file()):
        digest.update(f"{path.relative_to(_HERE)}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    for line in _packages():
        digest.update(line.encode() + b"\0")
    return digest.hexdigest()


def _packages() -> list[str]:
    folder = os.environ.get("DEB_DIR")
    if folder:
        return sorted(
            f"{deb.name} {hashlib.sha256(deb.read_bytes()).hexdigest()}" for deb in Path(folder).glob("*.deb")
        )
    names = _output(["bash", str(_SCRIPT), "--packages"]).split()
    lines = _output(["apt-get", "download", "--print-uris", *names]).splitlines()
    return sorted(line.split("' ", 1)[1] for line in lines if line.startswith("'"))


def _output(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd="/", check=False)
    except FileNotFoundError as error:
        raise GuestBuildError(f"{command[0]} is missing: the guest is built from Debian packages by apt") from error
    if done.returncode:
        raise GuestBuildError(f"{' '.join(command[:3])} failed: {done.stderr.strip() or done.returncode}")
    return done.stdout


def _build(out: Path, digest: str, progress: Callable[[str], None]) -> None:
    for left in out.glob(".build-*"):
        shutil.rmtree(left)
    work = Path(tempfile.mkdtemp(prefix=".build-", dir=out))
    try:
        progress("building the guest image")
        _run_script(work, progress)
        (out / "guest.json").unlink(missing_ok=True)
        for name in _FILES.values():
            os.replace(work / name, out / name)
        sizes = {name: (out / name).stat().st_size for name in _FILES.values()}
        (work / "guest.json").write_text(json.dumps({"digest": digest, "sizes": sizes}, indent=1))
        os.replace(work / "guest.json", out / "guest.json")
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _run_script(work: Path, progress: Callable[[str], None]) -> None:
    """Lines of its standard error are progress, and the last of them the reason if it fails."""
    process = subprocess.Popen(
        ["bash", str(_SCRIPT), str(work)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd="/"
    )
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line.rstrip())
        progress(line.rstrip())
    if process.wait():
        said = "; ".join(lines[-3:])
        raise GuestBuildError(f"{said} (needed to build: apt-get install {' '.join(BUILD_PACKAGES)})")
