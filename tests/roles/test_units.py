"""The systemd units: they say what there is, and the control plane's roles live with what they are given."""

import configparser
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import cumulet
from cumulet.app import ROLES
from tests.roles.test_processes import Servers
from tests.support import leftovers
from tests.support.cloud import unique
from tests.support.patience import eventually
from tests.support.postgres import PostgresServer
from tests.support.processes import Processes
from tests.support.rabbit import RabbitServer

UNITS = Path(__file__).parents[2] / "setup" / "systemd"
_USERS, _GROUP = {"api": 64101, "conductor": 64102}, 64100  # of nobody else on the machine


def unit(role: str) -> configparser.ConfigParser:
    parsed = configparser.ConfigParser(strict=False, interpolation=None)
    parsed.optionxform = str  # type: ignore[assignment,method-assign]
    parsed.read(UNITS / f"cumulet-{role}.service")
    return parsed


def test_each_role_has_a_unit_and_only_the_agent_is_root() -> None:
    assert {path.stem.removeprefix("cumulet-") for path in UNITS.glob("*.service")} == set(ROLES)
    made = re.findall(r"^u (\S+)", (UNITS / "cumulet.sysusers").read_text(), re.MULTILINE)
    for role in ROLES:
        service = unit(role)["Service"]
        assert service["ExecStart"].endswith(f"serve --role {role}")
        assert service.get("User") == (f"cumulet-{role}" if role in _USERS else None)
        assert (service.get("KillMode") == "process") == (role in ("agent", "all")), "guests outlive it"
        if role in _USERS:
            assert service["User"] in made
            assert service["CapabilityBoundingSet"] == ""


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not installed")
def test_systemd_takes_them(tmp_path: Path) -> None:
    for path in UNITS.glob("*.service"):
        text = path.read_text().replace("/usr/local/bin/cumulet", shutil.which("true") or "/bin/true")
        (tmp_path / path.name).write_text(re.sub(r"^(User|Group|Documentation)=.*\n", "", text, flags=re.MULTILINE))
        done = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", str(tmp_path / path.name)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        said = [line for line in done.stderr.splitlines() if path.name in line]
        assert said == [], done.stderr


@pytest.fixture
def apart() -> Iterator[Processes]:
    directory = leftovers.directory("cumulet-users-")
    directory.chmod(0o755)
    postgres, rabbit = PostgresServer(), RabbitServer()
    postgres.start()
    rabbit.start()
    processes = Processes(
        directory / "c1", database_url=postgres.new_database(), bus_url=f"{rabbit.url}?prefix={unique('users')}",
        users=_USERS, group=_GROUP,
    )  # fmt: skip
    settings = processes.settings
    places = {
        "/run/cumulet": settings.run_dir,
        "/var/log/cumulet": settings.log_dir,
        "/var/lib/cumulet": settings.state_dir,
    }
    settings.storage.image_directory = str(settings.state_dir / "images")
    for line in (UNITS / "cumulet.tmpfiles").read_text().splitlines():
        kind, path, mode, *_ = line.split()
        if kind == "d" and not path.startswith("/etc"):
            home = next(place for place in places if path.startswith(place))
            made = Path(str(places[home]) + path.removeprefix(home))
            made.mkdir(parents=True, exist_ok=True)
            os.chown(made, 0, _GROUP)
            made.chmod(int(mode, 8))
    try:
        yield processes
    finally:
        processes.stop()
        rabbit.destroy()
        postgres.destroy()
        shutil.rmtree(directory, ignore_errors=True)


def others_python() -> list[str]:
    """An interpreter with our packages that other users may run: where the tests' own lies in root's home, the
    system's of the same version."""
    packages = os.pathsep.join([str(Path(cumulet.__file__).parents[1]), sysconfig.get_path("purelib")])
    for python in (
        [sys.executable],
        ["/usr/bin/env", f"PYTHONPATH={packages}", f"/usr/bin/python3.{sys.version_info.minor}"],
    ):
        words = [*python, "-c", "import cumulet.app"]
        who: dict[str, Any] = {"user": _USERS["api"], "group": _GROUP, "extra_groups": []}
        try:
            subprocess.run(words, cwd="/", capture_output=True, check=True, **who)
        except (OSError, subprocess.CalledProcessError):
            continue
        return python
    pytest.skip("this checkout cannot be read by other users")


@pytest.mark.slow
@pytest.mark.postgres
@pytest.mark.rabbit
@pytest.mark.skipif(os.geteuid() != 0, reason="to be others one must be root")
def test_api_and_conductor_are_users_of_their_own(apart: Processes) -> None:
    apart.python = others_python()
    apart.write_settings().chmod(0o640)
    for path in (apart.directory / "cumulet.toml", apart.settings.admin_password_file):
        os.chown(path, 0 if path.suffix else _USERS["api"], _GROUP)
    apart.settings.admin_password_file.chmod(0o600)
    apart.write_settings = lambda: apart.directory / "cumulet.toml"  # type: ignore[method-assign]
    apart.start("api", "conductor", "agent")
    apart.make_accounts()
    eventually(apart.hosts_up)
    for role, user in _USERS.items():
        status = Path(f"/proc/{apart.pid(role)}/status").read_text()
        assert re.search(rf"^Uid:\t{user}\t{user}", status, re.MULTILINE)
    servers = Servers(apart)
    server_id = servers.create()
    eventually(lambda: servers.is_active(server_id))
    servers.delete(server_id)
    eventually(lambda: servers.is_gone(server_id))
    assert servers.user.cloud.api("admin").delete("image", f"/images/{servers.image}").status == 204
