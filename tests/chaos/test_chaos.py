"""Short runs with fixed seeds. `./run-tests --long chaos` runs long ones with new seeds."""

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("seed", [2, 5])
def test_in_one_process(seed: int) -> None:
    command = [sys.executable, "-m", "cumulet", "chaos", "--json", "--seconds=12", f"--seed={seed}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode in (0, 1), done.stderr
    result = json.loads(done.stdout)
    assert result["violations"] == [], done.stderr
    assert result["requests"]["acknowledged"] > 50
    assert len(result["disturbances"]) >= 6
