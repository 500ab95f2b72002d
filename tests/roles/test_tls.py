"""TLS everywhere: roles as processes whose database, broker and API refuse to speak without it."""

import shutil
import subprocess
import sys
from collections.abc import Iterator

import pytest
import requests

from cumulet.db import Database
from cumulet.kernel.errors import Unavailable
from tests.roles.test_processes import Servers
from tests.support import leftovers
from tests.support.certificates import Site
from tests.support.patience import eventually
from tests.support.postgres import PostgresServer
from tests.support.processes import Processes
from tests.support.rabbit import RabbitServer

pytestmark = [pytest.mark.slow, pytest.mark.postgres, pytest.mark.rabbit]


@pytest.fixture(scope="module")
def secured() -> Iterator[Processes]:
    directory = leftovers.directory("cumulet-tls-")
    site = Site(directory / "site")
    server, control = site.issue("server", "127.0.0.1"), site.issue("control")
    control.key.chmod(0o600)  # libpq insists
    postgres, rabbit = PostgresServer(server), RabbitServer(tls=server, management=True)
    postgres.start()
    rabbit.start()
    processes = Processes(directory / "c1", database_url=postgres.new_database(), bus_url=rabbit.url, tls=site.ca)
    settings = processes.settings
    settings.tls.ca, settings.tls.certificate, settings.tls.key = map(str, control)
    settings.api.certificate, settings.api.key = str(server.certificate), str(server.key)
    settings.bus.management_url = rabbit.management_url
    processes.url = settings.public_url
    try:
        processes.start("api", "conductor", "agent")
        processes.make_accounts()
        yield processes
    finally:
        processes.stop()
        rabbit.destroy()
        postgres.destroy()
        shutil.rmtree(directory, ignore_errors=True)


def test_a_server_is_created_and_nothing_went_in_the_clear(secured: Processes) -> None:
    assert secured.url.startswith("https://")
    eventually(secured.hosts_up)
    servers = Servers(secured)
    server_id = servers.create()
    eventually(lambda: servers.is_active(server_id))
    servers.delete(server_id)
    eventually(lambda: servers.is_gone(server_id))
    with pytest.raises(requests.exceptions.SSLError):  # an authority that nobody else knows
        requests.get(secured.url, timeout=30)
    assert secured.settings.database.url is not None
    with pytest.raises(Unavailable):
        Database(secured.settings.database.url).read(lambda tx: tx.now)


def test_hosts_are_let_in_over_it(secured: Processes) -> None:
    """`cumulet join` as another machine would run it: without the site's authority it believes nobody."""
    headers = {"X-Auth-Token": secured.api("admin").token}
    made = requests.post(
        f"{secured.url}/operator/v1/host-tokens",
        json={}, headers=headers, timeout=10, verify=str(secured.tls),
    )  # fmt: skip
    assert made.status_code == 201, made.text
    token = made.json()["token"]["token"]
    config = secured.directory / "elsewhere" / "cumulet.toml"
    words = [sys.executable, "-m", "cumulet", "join", secured.url, "--token", token, "--name", "far-1"]
    words += ["--config", str(config), "--no-install", "--no-start"]

    def run(*more: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run([*words, *more], capture_output=True, text=True, timeout=60, check=False)

    refused = run()
    assert refused.returncode == 1
    assert "--ca" in refused.stderr
    joined = run("--ca", str(secured.tls))
    assert joined.returncode == 0, joined.stdout + joined.stderr
    assert config.stat().st_mode & 0o077 == 0
    text = config.read_text()
    assert "amqps://cumulet-host-far-1:" in text
    assert "database" not in text
    config.write_text(text + "[compute]\nreserved_memory_mb = 99\n")
    again = run("--ca", str(secured.tls))
    assert again.returncode == 0, again.stdout + again.stderr
    repaired = config.read_text()
    assert "reserved_memory_mb = 99" in repaired, "what else stands there stays"
    assert repaired.count("cumulet-host-far-1") == 1
    assert repaired.splitlines() != text.splitlines(), "a new password"
    wrong = token.rpartition(".")[0] + "." + "0" * 64
    words[words.index(token)] = wrong
    other = run("--ca", str(secured.tls))
    assert other.returncode == 1
    assert "not the cloud that made the token" in other.stderr
