"""Backup and restore of the control plane, as the operator's guide says: hosts go on; what was in the dump is there."""

import shutil

import pytest

from tests.roles.test_processes import Servers
from tests.support import leftovers
from tests.support.cloud import unique
from tests.support.patience import eventually
from tests.support.postgres import PostgresServer
from tests.support.processes import Processes
from tests.support.rabbit import RabbitServer

pytestmark = [pytest.mark.slow, pytest.mark.postgres, pytest.mark.rabbit]


def test_a_restored_control_plane(postgres: PostgresServer, rabbit: RabbitServer) -> None:
    directory = leftovers.directory("cumulet-restore-")
    url = postgres.new_database()
    apart = Processes(directory, database_url=url, bus_url=rabbit.url + f"?prefix={unique('restore')}")
    dump = postgres.directory / unique("dump")
    try:
        apart.start("api", "conductor", "agent")
        apart.make_accounts()
        eventually(apart.hosts_up)
        servers = Servers(apart)
        kept, deleted_later = servers.create(), servers.create()
        for server_id in (kept, deleted_later):
            eventually(lambda server_id=server_id: servers.is_active(server_id))  # type: ignore[misc]
        postgres.dump(url, dump)
        servers.delete(deleted_later)
        eventually(lambda: servers.is_gone(deleted_later))
        made_later = servers.create()
        eventually(lambda: servers.is_active(made_later))

        apart.terminate("api")
        apart.terminate("conductor")
        postgres.restore(url, dump)
        assert {kept, made_later} <= set(running(apart)), "hosts go on meanwhile"
        apart.start("api", "conductor")
        eventually(apart.hosts_up)

        assert servers.is_active(kept), "the token of before is good too: its keys were in the dump"
        assert servers.show(made_later) is None
        assert made_later in running(apart), "what the database does not know is kept, not deleted"
        apart.terminate("agent")
        apart.start("agent")  # it tells what it has
        eventually(lambda: (servers.show(deleted_later) or {})["status"] == "SHUTOFF")  # the host does not have it
        assert servers.is_active(kept)
        assert made_later in running(apart)
        for server_id in (kept, deleted_later):
            servers.delete(server_id)
            eventually(lambda server_id=server_id: servers.is_gone(server_id))  # type: ignore[misc]
        new = servers.create()
        eventually(lambda: servers.is_active(new))
    finally:
        apart.stop()
        shutil.rmtree(directory, ignore_errors=True)


def running(apart: Processes) -> list[str]:
    return list(apart.world()["domains"])
