"""Untrusted image files: what is accepted, and each way in which a crafted file is refused."""

import os
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from cumulet.agent.image import confine
from cumulet.agent.image.inspect import ImageRefused, inspect
from cumulet.guest import boot_sector, boot_sector_qcow2

needs_qemu_img = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="needs qemu-img")
QEMU = {"vhd": "vpc"}


def qemu_img(*arguments: object) -> None:
    subprocess.run(["qemu-img", *map(str, arguments)], check=True, capture_output=True)


def made(tmp_path: Path, form: str, *options: str) -> Path:
    source, target = tmp_path / "source", tmp_path / f"disk.{form}"
    source.write_bytes(boot_sector())
    qemu_img("convert", "-f", "raw", "-O", QEMU.get(form, form), *options, source, target)
    return target


def patched(path: Path, offset: int, data: bytes) -> Path:
    with path.open("r+b") as file:
        file.seek(offset if offset >= 0 else path.stat().st_size + offset)
        file.write(data)
    return path


def refusal(path: Path, declared: str, **limits: int) -> str:
    with pytest.raises(ImageRefused) as caught:
        inspect(path, declared, **limits)
    return caught.value.reason


def test_raw_is_as_long_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(b"x" * 1000)
    for declared in ("raw", "aki", "ari", "ami"):
        info = inspect(path, declared)
        assert (info.format, info.virtual_size_bytes) == ("raw", 1000)


@needs_qemu_img
@pytest.mark.parametrize(
    "form,options",
    [
        ("qcow2", ()),
        ("qcow2", ("-c",)),
        ("qcow2", ("-o", "compat=0.10")),
        ("vmdk", ()),
        ("vmdk", ("-o", "subformat=streamOptimized")),
        ("vdi", ()),
        ("vdi", ("-o", "static=on")),
        ("vhd", ("-o", "force_size=on")),
        ("vhd", ("-o", "force_size=on,subformat=fixed")),
        ("vhdx", ()),
    ],
)
def test_sound_images_are_accepted(tmp_path: Path, form: str, options: tuple[str, ...]) -> None:
    info = inspect(made(tmp_path, form, *options), form)
    assert info.format == form
    assert info.virtual_size_bytes == 1 << 20


def test_our_own_qcow2_is_sound(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(boot_sector_qcow2())
    assert inspect(path, "qcow2").virtual_size_bytes == 1 << 20
    if shutil.which("qemu-img"):
        qemu_img("check", path)


@needs_qemu_img
def test_qcow2_that_reaches_outside(tmp_path: Path) -> None:
    base, overlay, data = tmp_path / "base", tmp_path / "overlay", tmp_path / "data-file"
    base.write_bytes(boot_sector())
    qemu_img("create", "-f", "qcow2", "-b", base, "-F", "raw", overlay)
    assert "backing file" in refusal(overlay, "qcow2")
    qemu_img("create", "-f", "qcow2", "-o", f"data_file={tmp_path / 'outside'}", data, "1M")
    assert "data file" in refusal(data, "qcow2")
    # the flag may be taken away while the name stays in the header extensions
    patched(data, 72, struct.pack(">Q", 0))
    assert "data file" in refusal(data, "qcow2")


def small_qcow2(tmp_path: Path) -> Path:
    path = tmp_path / "small"
    path.write_bytes(boot_sector_qcow2())
    return path


@pytest.mark.parametrize(
    "offset,data,words",
    [
        (4, struct.pack(">I", 9), "Version 9"),
        (8, struct.pack(">Q", 100), "backing file"),
        (20, struct.pack(">I", 40), "cluster size"),
        (24, struct.pack(">Q", 1 << 30), "does not fit its tables"),
        (32, struct.pack(">I", 2), "encrypted"),
        (36, struct.pack(">I", 1 << 30), "does not fit its tables"),
        (40, struct.pack(">Q", 1 << 40), "outside the file"),
        (48, struct.pack(">Q", 1 << 40), "outside the file"),
    ],
)
def test_crafted_qcow2_headers(tmp_path: Path, offset: int, data: bytes, words: str) -> None:
    assert words in refusal(patched(small_qcow2(tmp_path), offset, data), "qcow2")


@needs_qemu_img
@pytest.mark.parametrize("flag,words", [(2, "corrupt"), (1 << 40, "features"), (4, "data file")])
def test_qcow2_features(tmp_path: Path, flag: int, words: str) -> None:
    assert words in refusal(patched(made(tmp_path, "qcow2"), 72, struct.pack(">Q", flag)), "qcow2")


def test_cut_off_file(tmp_path: Path) -> None:
    path = tmp_path / "cut"
    path.write_bytes(boot_sector_qcow2()[:40])
    assert "ends within" in refusal(path, "qcow2")


@needs_qemu_img
def test_a_bomb_is_too_large(tmp_path: Path) -> None:
    path = tmp_path / "bomb"
    qemu_img("create", "-f", "qcow2", path, "60T")
    assert path.stat().st_size < 2 << 20
    assert "above the limit" in refusal(path, "qcow2")
    small = made(tmp_path, "qcow2")
    assert "above the limit" in refusal(small, "qcow2", max_virtual_size=1 << 19)


@needs_qemu_img
def test_vmdk_that_reaches_outside(tmp_path: Path) -> None:
    flat = made(tmp_path, "vmdk", "-o", "subformat=monolithicFlat")
    assert "other files" in refusal(flat, "vmdk")
    path = made(tmp_path, "vmdk")
    text = path.read_bytes()[512 : 512 + 20 * 512]
    for old, new, words in (
        (b"createType=", b'createType="monolithicFlat"\n#', "types"),
        (b"parentCID=ffffffff", b"parentCID=12345678", "parent"),
        (b"RW 2048 SPARSE", b"RW 2048 FLAT  ", "other files"),
        (b"RW 2048 SPARSE", b"RW 4096 SPARSE", "contradict"),
        (b"# The Disk Data", b'RW 2048 FLAT "/etc/shadow" 0\n#', "other files"),
    ):
        assert old in text
        patched(path, 512, text.replace(old, new)[: len(text)])
        assert words in refusal(path, "vmdk")
    assert inspect(patched(path, 512, text), "vmdk").format == "vmdk"


@needs_qemu_img
def test_differencing_disks(tmp_path: Path) -> None:
    assert "parent" in refusal(patched(made(tmp_path, "vhd"), 60, struct.pack(">I", 4)), "vhd")
    assert "depends" in refusal(patched(made(tmp_path, "vdi"), 0x4C, struct.pack("<I", 4)), "vdi")
    assert "parent" in refusal(patched(made(tmp_path, "vdi"), 0x1B8, b"\1" * 16), "vdi")


@needs_qemu_img
def test_lying_sizes(tmp_path: Path) -> None:
    fixed = made(tmp_path, "vhd", "-o", "force_size=on,subformat=fixed")
    assert "shorter" in refusal(patched(fixed, -512 + 48, struct.pack(">Q", 1 << 40)), "vhd")
    # the header says more than the tables hold: QEMU's reading differs from ours
    dynamic = made(tmp_path, "vdi")
    assert refusal(patched(dynamic, 0x170, struct.pack("<Q", 1 << 33)), "vdi")


def test_declared_format_must_match(tmp_path: Path) -> None:
    path = small_qcow2(tmp_path)
    assert "looks like qcow2" in refusal(path, "raw")
    assert "looks like qcow2" in refusal(path, "aki")
    assert "looks like qcow2" in refusal(path, "iso")
    plain = tmp_path / "plain"
    plain.write_bytes(boot_sector())
    assert "looks like raw" in refusal(plain, "qcow2")
    assert "not supported" in refusal(plain, "ploop")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become nobody")
def test_the_confined_program_reads_nothing_else(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    secret.chmod(0o600)
    with pytest.raises(confine.ConfinedError):
        confine.run(["cat", str(secret)])
    interfaces = confine.run(["cat", "/proc/net/dev"]).splitlines()[2:]
    assert [line.split(":")[0].strip() for line in interfaces] in ([], ["lo"])
    assert "NoNewPrivs:\t1" in confine.run(["cat", "/proc/self/status"])


def test_the_confined_program_is_limited(tmp_path: Path) -> None:
    with pytest.raises(confine.ConfinedError, match="not finished"):
        confine.run(["sleep", "30"], seconds=0.6)
    with pytest.raises(confine.ConfinedError, match="enough said"):
        confine.run(["sleep", "30"], watch=lambda: "enough said")
    with pytest.raises(confine.ConfinedError):
        confine.run(["tail", "/dev/zero"], memory_bytes=64 << 20)
