"""The worked examples of docs/emulator.md, as they stand, against ``cumulet emulator``."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.emulator.test_command import CUMULET

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "docs" / "examples" / "emulator"
BIN = Path(sys.executable).parent


def needed(program: str) -> None:
    if shutil.which(program, path=f"{BIN}:{os.environ['PATH']}") is None:
        pytest.fail(f"{program} is missing: setup/install --test")


def run(directory: Path, home: Path, *command: str, **environment: str) -> str:
    """In the example's own directory, around a cloud of its own; what it printed."""
    done = subprocess.run(
        [CUMULET, "emulator", "--", *command],
        cwd=directory,
        env={"PATH": f"{BIN}:{os.environ['PATH']}", "HOME": str(home), "LANG": "C.UTF-8", **environment},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def test_pytest_with_openstacksdk(tmp_path: Path) -> None:
    """Without the command around it: the fixtures have their own cloud."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "ignore", "--rootdir=.", "."],
        cwd=EXAMPLES / "pytest",
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "9 passed" in done.stdout


def test_shell(tmp_path: Path) -> None:
    assert run(EXAMPLES / "shell", tmp_path, "sh", "servers.sh").endswith("all is well\n")


def test_javascript(tmp_path: Path) -> None:
    needed("node")
    assert run(EXAMPLES / "javascript", tmp_path, "node", "servers.mjs") == "all is well\n"


def test_go(tmp_path: Path) -> None:
    needed("go")
    assert run(EXAMPLES / "go", tmp_path, "go", "run", ".", GOFLAGS="-mod=mod", GOPROXY="off") == "all is well\n"


def test_ansible(tmp_path: Path, collections: Path) -> None:
    needed("ansible-playbook")
    shim = tmp_path / "shim"
    shim.mkdir()
    # openstack.cloud 2.5 reads openstack.version, which openstacksdk 4.22 no longer imports by itself
    (shim / "sitecustomize.py").write_text("import openstack.version\n")
    told = run(
        EXAMPLES / "ansible",
        tmp_path,
        "ansible-playbook",
        "--extra-vars",
        f"ansible_python_interpreter={sys.executable}",
        "site.yml",
        PYTHONPATH=str(shim),
        ANSIBLE_COLLECTIONS_PATH=str(collections),
        ANSIBLE_LOCALHOST_WARNING="false",
        ANSIBLE_INVENTORY_UNPARSED_WARNING="false",
    )
    assert "unreachable=0    failed=0" in told
    assert "changed=4" in told


@pytest.fixture
def collections(tmp_path: Path) -> Path:
    """The collection openstack.cloud, out of the package ``ansible``: all the others in it are not unpacked."""
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:"),
            *("-d", str(tmp_path), "-c", str(ROOT / "setup" / "constraints.txt"), "ansible"),
        ],
        check=True,
        capture_output=True,
        timeout=100,
    )
    (wheel,) = tmp_path.glob("ansible-*.whl")
    target = tmp_path / "collections"
    with zipfile.ZipFile(wheel) as content:
        names = [n for n in content.namelist() if n.startswith("ansible_collections/openstack/cloud/")]
        content.extractall(target, names)
    wheel.unlink()
    return target
