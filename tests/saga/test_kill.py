"""SIGKILL of a real process that is control plane and host at once, then a new one on the same files."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


def run(directory: Path, *arguments: str) -> tuple[int, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.saga.killed", str(directory), *arguments],
        capture_output=True,
        text=True,
        timeout=40,
        cwd=Path(__file__).parents[2],
        check=False,
    )
    return done.returncode, json.loads(done.stdout) if done.stdout else done.stderr


@pytest.mark.parametrize("point", ["before-commit", "before-send", "after-send", "outcome"])
def test_killed_in_a_call_it_finishes(tmp_path: Path, point: str) -> None:
    position = "1"
    code, _ = run(tmp_path, "start", point, position, "running")
    assert code == -signal.SIGKILL
    code, result = run(tmp_path, "resume")
    assert code == 0, result
    assert result["status"] == "finished"
    assert result["thing"] == ["ready", 2]
    assert result["left"] == {"volumes": ["t"], "exports": ["a"]}


@pytest.mark.parametrize("point", ["before-send", "outcome"])
def test_killed_while_unwinding_it_leaves_nothing(tmp_path: Path, point: str) -> None:
    code, _ = run(tmp_path, "start", point, "1", "unwinding", "fail")
    assert code == -signal.SIGKILL
    code, result = run(tmp_path, "resume", "fail")
    assert code == 0, result
    assert (result["status"], result["error"]) == ("failed", "told")
    assert result["thing"] == ["error", 1]
    assert result["left"] == {}
    assert result["steps"] == [["grow", "undone"], ["create", "undone"], ["export", "undone"]]
