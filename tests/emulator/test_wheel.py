"""The emulator out of a wheel, in an empty virtual environment, by an ordinary user: no extra, no system package."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import leftovers

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
ROOT = Path(__file__).parents[2]
CONSTRAINTS = ROOT / "setup" / "constraints.txt"
_NOBODY = {"user": "nobody", "group": "nogroup"}
_USABLE = "import ensurepip, sys; sys.exit(sys.version_info < (3, 11))"


def who_runs_what() -> tuple[str, dict[str, Any]]:
    """An interpreter, and an ordinary user who can run it (root's own may be out of everybody's reach)."""
    if os.getuid() == 0:
        for candidate in (os.path.realpath(sys.executable), "/usr/bin/python3"):
            with contextlib.suppress(OSError):
                if subprocess.run([candidate, "-c", _USABLE], check=False, cwd="/", env={}, **_NOBODY).returncode == 0:
                    return candidate, _NOBODY
    return sys.executable, {}


INTERPRETER, NOBODY = who_runs_what()


def pip(python: Path | str, *arguments: str) -> None:
    done = subprocess.run(
        [str(python), "-m", "pip", "--disable-pip-version-check", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    directory = leftovers.directory("cumulet-wheel-")
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="module")
def python(home: Path) -> Path:
    """Of the virtual environment, in which there is nothing but the wheel and what it says that it needs."""
    source = home / "source"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".venv", ".git", "__pycache__", "*.egg-info"))
    pip(sys.executable, "wheel", "-q", "--no-deps", "-w", str(home), str(source))
    (wheel,) = home.glob("cumulet-*.whl")
    subprocess.run([INTERPRETER, "-m", "venv", str(home / "venv")], check=True, timeout=120)
    found = home / "venv" / "bin" / "python"
    pip(found, "install", "-q", "-c", str(CONSTRAINTS), str(wheel))
    return found


def run(python: Path, *command: str) -> str:
    """As nobody, with no program in reach but those of the environment."""
    work = python.parents[2] / "work"
    work.mkdir(exist_ok=True)
    if NOBODY:
        shutil.chown(work, "nobody", "nogroup")
    done = subprocess.run(
        [str(python.parent / command[0]), *command[1:]],
        cwd=work,
        env={"PATH": str(python.parent), "HOME": str(work), "TMPDIR": str(work)},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        **NOBODY,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return str(done.stdout)


_PROGRAM = """
import json, os, sys, urllib.request
url = os.environ["CUMULET_EMULATOR_URL"]
seen = json.load(urllib.request.urlopen(url + "/emulator"))
print(len(seen["hosts"]), json.load(urllib.request.urlopen(url))["services"]["compute"])
"""
_IMPORTED = """
import json, sys
from cumulet.emulator import Emulator
with Emulator() as cloud:
    cloud.reset()
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""


def test_the_command(python: Path) -> None:
    assert run(python, "cumulet", "emulator", "--", "python", "-c", _PROGRAM) == "2 /compute\n"


def test_nothing_of_a_host_or_of_several_processes_is_imported(python: Path) -> None:
    imported = set(json.loads(run(python, "python", "-c", _IMPORTED)))
    assert {"cumulet", "sqlalchemy", "uvicorn"} <= imported
    assert not {"libvirt", "kombu", "psycopg2", "alembic", "openstack", "pytest", "requests"} & imported


def test_the_pytest_example(python: Path, home: Path) -> None:
    """With what its first line says is to be installed."""
    pip(python, "install", "-q", "-c", str(CONSTRAINTS), "pytest", "openstacksdk")
    example = home / "work" / "example"
    shutil.copytree(ROOT / "docs" / "examples" / "emulator" / "pytest", example)
    told = run(
        python, "pytest", "-q", "-p", "no:cacheprovider", "-W", "ignore", "--rootdir", str(example), str(example)
    )
    assert "9 passed" in told
