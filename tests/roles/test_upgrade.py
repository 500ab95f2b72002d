"""An agent of the previous revision, run from a git worktree, under today's control plane; then today's in its place.

``previous-revision`` names the commit: hosts that run it must keep working. It is moved forward with each release. A
clone that does not have it (a shallow one) fetches it from where the clone came from, or cannot run this.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cumulet.settings import to_toml
from tests.roles.test_processes import Servers
from tests.support import leftovers
from tests.support.cloud import unique
from tests.support.patience import eventually
from tests.support.postgres import PostgresServer
from tests.support.processes import Processes
from tests.support.rabbit import RabbitServer

pytestmark = [pytest.mark.slow, pytest.mark.postgres, pytest.mark.rabbit]
ROOT = Path(__file__).parents[2]
REVISION = (Path(__file__).parent / "previous-revision").read_text().strip()


def git(*words: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=check)


@pytest.fixture(scope="module")
def previous() -> Iterator[Path]:
    """A worktree of the previous revision."""
    if not shutil.which("git") or git("rev-parse", "--git-dir", check=False).returncode:
        pytest.skip("not a git clone")
    if git("cat-file", "-e", f"{REVISION}^{{commit}}", check=False).returncode:
        git("fetch", "--quiet", "--depth=1", "origin", REVISION, check=False)
    if git("cat-file", "-e", f"{REVISION}^{{commit}}", check=False).returncode:
        pytest.skip(f"this clone does not have {REVISION[:7]}, and its origin does not give it")
    directory = leftovers.directory("cumulet-previous-")
    git("worktree", "add", "--quiet", "--detach", "--force", str(directory / "tree"), REVISION)
    try:
        yield directory / "tree"
    finally:
        git("worktree", "remove", "--force", str(directory / "tree"), check=False)
        git("worktree", "prune")
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def apart(postgres: PostgresServer, rabbit: RabbitServer) -> Iterator[Processes]:
    directory = leftovers.directory("cumulet-upgrade-")
    made = Processes(
        directory, database_url=postgres.new_database(), bus_url=rabbit.url + f"?prefix={unique('upgrade')}"
    )
    made.start("api", "conductor")
    made.make_accounts()
    yield made
    made.stop()
    shutil.rmtree(directory, ignore_errors=True)


def start_previous(apart: Processes, tree: Path) -> "subprocess.Popen[bytes]":
    """Its settings are those of its time."""
    settings = apart.settings
    config = apart.directory / "previous.toml"
    own = {
        "paths": {name: getattr(settings.paths, name) for name in ("state_dir", "run_dir", "log_dir")},
        "bus": {"url": settings.bus.url},
        "host": {"name": "fake-1", "heartbeat_seconds": 1.0},
        "compute": {"driver": "fake"},
        "network": {"driver": "fake"},
        "storage": {"driver": "fake"},
    }  # fmt: skip
    config.write_text(to_toml(own))
    environment = {**os.environ, "PYTHONPATH": str(tree / "src")}
    asked = [sys.executable, "-c", "import cumulet; print(cumulet.__file__)"]
    found = subprocess.run(asked, env=environment, cwd="/", capture_output=True, text=True, check=True).stdout
    assert found.startswith(str(tree)), "it is the previous revision's code that runs"
    words = [sys.executable, "-m", "cumulet", "serve", "--role", "agent", "--config", str(config)]
    with (apart.directory / "agent.out").open("ab") as out:
        return subprocess.Popen(words, env=environment, cwd="/", stdin=subprocess.DEVNULL, stdout=out, stderr=out)


def test_an_agent_of_the_previous_revision_keeps_working(apart: Processes, previous: Path) -> None:
    agent = start_previous(apart, previous)
    try:
        eventually(apart.hosts_up)
        servers = Servers(apart)
        kept, gone = servers.create(), servers.create()
        for server_id in (kept, gone):
            eventually(lambda server_id=server_id: servers.is_active(server_id))  # type: ignore[misc]
        for action, status in (("os-stop", "SHUTOFF"), ("os-start", "ACTIVE")):
            done = servers.user.post("compute", f"/servers/{kept}/action", {action: None})
            assert done.status == 202, done.text
            eventually(lambda status=status: (servers.show(kept) or {})["status"] == status)  # type: ignore[misc]
        volume = servers.user.post("volume", "/volumes", {"volume": {"size": 1}})["volume"]["id"]

        def volume_is(status: str) -> bool:
            return bool(servers.user.get("volume", f"/volumes/{volume}")["volume"]["status"] == status)

        eventually(lambda: volume_is("available"))
        body = {"volumeAttachment": {"volumeId": volume}}
        assert servers.user.post("compute", f"/servers/{kept}/os-volume_attachments", body).status in (200, 202)
        eventually(lambda: volume_is("in-use"))
        network = servers.user.post("network", "/networks", {"network": {"name": "n"}})["network"]["id"]
        subnet = {"network_id": network, "cidr": "10.8.0.0/24", "ip_version": 4}
        assert servers.user.post("network", "/subnets", {"subnet": subnet}).status == 201
        interface = {"interfaceAttachment": {"net_id": network}}
        plugged = servers.user.post("compute", f"/servers/{kept}/os-interface", interface)
        assert plugged.status in (200, 202), plugged.text
        servers.delete(gone)
        eventually(lambda: servers.is_gone(gone))
    finally:
        agent.terminate()
        agent.wait(20)
    # the host is upgraded: its agent starts anew, on what the former one left
    apart.start("agent")
    eventually(apart.hosts_up)
    assert servers.is_active(kept)
    servers.delete(kept)
    eventually(lambda: servers.is_gone(kept))
