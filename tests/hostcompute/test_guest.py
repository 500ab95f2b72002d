"""The guests' bytes, and the builder's book-keeping without building."""

from pathlib import Path

import pytest

from cumulet import guest
from cumulet.guest import builder


def test_a_boot_sector_is_one() -> None:
    for disk in (guest.boot_sector(), guest.boot_sector(cooperative=False), guest.speed_sector()):
        assert len(disk) == 1 << 20
        assert disk[510:512] == b"\x55\xaa"
        assert not any(disk[440:510]), "no partition"
    assert b"hello\r\n\0" in guest.boot_sector("hello")
    assert len(guest.boot_sector_qcow2()) < 4096
    with pytest.raises(ValueError, match="full"):
        guest.boot_sector("x" * 440)


@pytest.fixture
def inputs(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """Stands for the script and its packages."""
    state: dict[str, object] = {"digest": "one", "built": 0, "apt": True}

    def digest() -> str:
        if not state["apt"]:
            raise guest.GuestBuildError("apt is gone")
        return str(state["digest"])

    def script(work: Path, progress: object) -> None:
        state["built"] = int(str(state["built"])) + 1
        if state.get("fails"):
            raise guest.GuestBuildError("no compiler")
        for name in builder._FILES.values():
            (work / name).write_text(f"{name} of {state['digest']}")

    monkeypatch.setattr(builder, "_digest_of_inputs", digest)
    monkeypatch.setattr(builder, "_run_script", script)
    return state


def test_built_once_for_the_same_inputs(inputs: dict[str, object], tmp_path: Path) -> None:
    assert guest.build(tmp_path).built
    again = guest.build(tmp_path)
    assert not again.built
    assert again.kernel.read_text() == "vmlinuz of one"
    inputs["digest"] = "two"
    assert guest.build(tmp_path).disk.read_text() == "guest.qcow2 of two"
    assert inputs["built"] == 2


def test_damaged_or_half_made_is_built_again(inputs: dict[str, object], tmp_path: Path) -> None:
    made = guest.build(tmp_path)
    made.disk.write_text("cut")
    assert guest.build(tmp_path).built
    (tmp_path / "guest.json").unlink()
    (tmp_path / ".build-left").mkdir()
    assert guest.build(tmp_path).built
    assert not (tmp_path / ".build-left").exists()


def test_a_failure_keeps_what_was_there(inputs: dict[str, object], tmp_path: Path) -> None:
    guest.build(tmp_path)
    inputs |= {"digest": "two", "fails": True}
    with pytest.raises(guest.GuestBuildError):
        guest.build(tmp_path)
    inputs |= {"digest": "one"}
    assert not guest.build(tmp_path).built
    assert list(tmp_path.glob(".build-*")) == []


def test_without_apt_what_is_there_is_kept(inputs: dict[str, object], tmp_path: Path) -> None:
    inputs["apt"] = False
    with pytest.raises(guest.GuestBuildError):
        guest.build(tmp_path)
    inputs["apt"] = True
    guest.build(tmp_path)
    inputs["apt"] = False
    said: list[str] = []
    assert not guest.build(tmp_path, said.append).built
    assert said
