"""Hosts that are drained: their servers move to others, live where they run and cold where they are stopped.

That a host is to be empty stands in a row; a reconciler begins as many moves as may go on at once, until nothing is
left that could move. A move that failed is tried again when the operator drains the host once more.
"""

import json
from collections.abc import Sequence
from typing import Any

from cumulet.conductor import drains
from cumulet.db import Tx
from cumulet.kernel.context import RequestContext, system_context
from cumulet.kernel.errors import CloudError
from cumulet.services.compute import migrations, store
from cumulet.services.compute.moves import Moves
from cumulet.services.compute.rows import FaultRow, MigrationRow, ServerRow

AT_ONCE = 4  # moves from one host
_LIVE, _COLD = ("active", "paused"), ("stopped",)
_FAILED = ("error", "failed", "cancelled")
_STAYS = {
    "resized": "its resize waits to be confirmed or reverted",
    "suspended": "it is suspended: resume or stop it",
    "error": "it is in ERROR: reset its state or delete it",
    "building": "it is being built",
}


class Drains:
    def __init__(self, moves: Moves) -> None:
        self.moves = moves

    def go_on(self, tx: Tx, host: str, asked_at: int) -> int:
        """Begin what may be begun now; how many moves."""
        if not self.moves.host_up(tx, host):
            return 0
        servers = store.servers_on(tx, host)
        room = AT_ONCE - len(migrations.leaving(tx, host))  # some are elsewhere by now, on their last steps
        last = migrations.last_of(tx, [server.id for server in servers])
        begun = 0
        for server in servers:
            if begun >= room:
                break
            if self._may_move(server, last.get(server.id), asked_at) and self._begin(tx, server):
                begun += 1
        return begun

    def _may_move(self, server: ServerRow, last: MigrationRow | None, asked_at: int) -> bool:
        if server.task_state is not None or server.deleting or server.vm_state not in (*_LIVE, *_COLD):
            return False
        return last is None or last.status not in _FAILED or last.created_at < asked_at

    def _begin(self, tx: Tx, seen: ServerRow) -> bool:
        tx.lock("server", seen.id)
        server = store.server(tx, seen.id)
        if server != seen or self.moves.parts.sagas.owner(tx, "server", seen.id) is not None:
            return False  # somebody came first, and is seen the next time
        ctx = _of(server)
        try:
            if server.vm_state in _LIVE:
                self.moves.live_migrate(tx, ctx, server, None, copy_disks=True, force=False, at_once=False)
            else:
                self.moves.migrate(tx, ctx, server, None, confirmed=True)
        except CloudError:
            return False  # somebody came first
        return True

    def why(self, tx: Tx, host: str, servers: Sequence[ServerRow]) -> dict[str, str]:
        """Why something of each still is on the host."""
        if not servers:
            return {}
        asked_at = drains.asked_at(tx, host)
        up = self.moves.host_up(tx, host)
        last = migrations.last_of(tx, [server.id for server in servers])
        failed = [server_id for server_id, move in last.items() if move.status in _FAILED]
        faults = store.faults(tx, failed)
        return {one.id: _why(one, host, up, asked_at, last.get(one.id), faults.get(one.id)) for one in servers}


def _why(
    server: ServerRow, host: str, up: bool, asked_at: int | None, last: MigrationRow | None, fault: FaultRow | None
) -> str:
    if last is not None and last.status in migrations.OPEN and server.task_state is not None:
        return f"it is on its way{f' to {last.dest}' if last.dest else ''} ({last.type}, {last.status})"
    if server.host != host:
        return "its old disks wait here until its resize is confirmed or reverted"
    if asked_at is None:
        return "drain the host, and it moves"
    if not up:
        return "its host is down: evacuate it"
    if server.task_state is not None:
        return f"it is {server.task_state}"
    if server.vm_state in _STAYS:
        return _STAYS[server.vm_state]
    if last is not None and last.status in _FAILED and last.created_at >= asked_at:
        return f"its move failed: {_error(last, fault)}; drain again to try again"
    return "it waits for its turn"


def _error(move: MigrationRow, fault: FaultRow | None) -> str:
    if fault is None or fault.created_at < move.created_at:
        return move.status
    details: dict[str, Any] = json.loads(fault.details or "{}")
    return str(details.get("error") or fault.message).rstrip(".")


def _of(server: ServerRow) -> RequestContext:
    ctx = system_context("drain")
    return RequestContext(request_id=ctx.request_id, project_id=server.project_id, roles=ctx.roles)
