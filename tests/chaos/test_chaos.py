"""Short runs with fixed seeds. `./run-tests --long chaos` runs long ones with new seeds."""

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.support.postgres import PostgresServer
from tests.support.rabbit import RabbitServer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def chaos(*options: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "cumulet", "chaos", "--json", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    ended = f"it ended with {done.returncode}: {done.stderr}"
    assert done.returncode in (0, 1), ended
    assert done.stdout, ended
    result: dict[str, Any] = json.loads(done.stdout)
    assert result["violations"] == [], json.dumps(result["violations"], indent=1)
    assert done.returncode == 0
    return result


def wanted(*names: str) -> list[str]:
    """However slow the machine is, the run goes on until they happened."""
    return [f"--see={name}" for name in names]


def evacuations(result: dict[str, Any]) -> int:
    """How many began: hosts were vouched dead that were not."""
    return sum(count for what, count in result["moves"].items() if what.startswith("evacuation"))


@pytest.mark.parametrize("seed", [11, 12])
def test_in_one_process(seed: int) -> None:
    disturbed = ["host killed", "conductor killed", "messages harmed", "operations fail", "clock jumps", "requests cut"]
    result = chaos("--seconds=12", f"--seed={seed}", "--requests=50", *wanted("evacuate server", *disturbed))
    assert evacuations(result) > 0
    assert result["requests"]["acknowledged"] >= 50
    assert set(disturbed) <= set(result["disturbances"])


def test_one_process_that_is_killed_and_stopped() -> None:
    result = chaos("--processes", "--seconds=15", "--seed=6", "--requests=10", *wanted("evacuate server"))
    assert result["form"] == "one process"
    assert result["operations"]["evacuate server"] > 0
    assert result["requests"]["acknowledged"] >= 10


def test_what_never_happens_is_no_success() -> None:
    command = [sys.executable, "-m", "cumulet", "chaos", "--seconds=1", "--see=evacuate servers"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 1, done.stderr
    assert done.stdout.splitlines()[-2] == "never happened: evacuate servers"


def test_one_that_is_ended_says_so() -> None:
    command = [sys.executable, "-m", "cumulet", "chaos", "--json", "--seconds=60"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        assert run.stderr is not None
        assert run.stderr.readline().startswith("seed ")
        assert " s  " in run.stderr.readline()  # it is at work
        run.terminate()
        out, told = run.communicate(timeout=60)
    assert (run.returncode, out) == (1, "")
    assert "SIGTERM ended the run" in told.splitlines()[-1]


@pytest.mark.postgres
@pytest.mark.rabbit
def test_api_conductors_and_agents(postgres: PostgresServer, rabbit: RabbitServer) -> None:
    servers = [f"--database={postgres.new_database()}", f"--bus={rabbit.url}?prefix=chaos"]
    disturbed = ["agent killed", "conductor killed", "messages harmed"]
    seen = ["--requests=20", *wanted("evacuate server", *disturbed)]
    result = chaos("--processes", "--seconds=25", "--seed=6", "--hosts=2", *seen, *servers)
    assert result["form"] == "processes"
    assert result["operations"]["evacuate server"] > 0
    assert set(disturbed) <= set(result["disturbances"])
    assert result["requests"]["acknowledged"] >= 20
