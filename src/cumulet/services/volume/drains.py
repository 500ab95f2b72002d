"""Volumes leave hosts that are drained: those that can move do, a few at a time; of others it is said why they stay.

A move that failed is tried again when the operator drains the host once more.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from cumulet.conductor import drains
from cumulet.db import Tx
from cumulet.kernel.context import RequestContext, system_context
from cumulet.kernel.errors import CloudError, NoValidHost
from cumulet.saga.journal import SagaRow
from cumulet.services.volume import placing, store
from cumulet.services.volume.store import VolumeRow

AT_ONCE = 2  # moves from one host: its disk and its link are shared by all that it serves


class Drains:
    def __init__(self, service: Any) -> None:
        self.service = service

    def go_on(self, tx: Tx, host: str, asked_at: int) -> int:
        """Begin what may be begun now; how many moves."""
        if not self._up(tx, host):
            return 0
        volumes = store.VOLUMES.where(tx, store.t.VOLUMES.c.host == host)
        room = AT_ONCE - sum(volume.migration_status in store.MOVES for volume in volumes)
        begun = 0
        for volume in sorted(volumes, key=lambda one: one.id):
            if begun >= room:
                break
            if volume.status == "available" and self._failed(tx, volume, asked_at) is None:
                begun += self._begin(tx, volume)
        return begun

    def _up(self, tx: Tx, host: str) -> bool:
        return any(one.name == host and one.up for one in placing.storage_hosts(tx, self.service.hosts))

    def _failed(self, tx: Tx, volume: VolumeRow, asked_at: int) -> SagaRow | None:
        """Its move, if that failed since the host is to be empty."""
        if volume.migration_status != "error":
            return None
        moves = [one.saga for one in self.service.sagas.history(tx, "volume", volume.id)]
        last = next((saga for saga in moves if saga.kind == "volume.migrate"), None)
        return last if last is not None and last.created_at >= asked_at else None

    def _begin(self, tx: Tx, volume: VolumeRow) -> bool:
        ctx = system_context("drain")
        try:
            now = store.VOLUMES.get(tx, volume.id)
            host = placing.choose_other(tx, self.service.hosts, now)
            self.service.begin_move(tx, _of(ctx, now), now, host)
        except CloudError:
            return False  # it cannot move, or somebody came first
        return True

    def why(self, tx: Tx, host: str, volume_ids: Sequence[str]) -> dict[str, str]:
        """Why each still is on the host."""
        if not volume_ids:
            return {}
        asked_at, up = drains.asked_at(tx, host), self._up(tx, host)
        found = [volume for one in volume_ids if (volume := store.VOLUMES.find(tx, one)) is not None]
        return {volume.id: self._why(tx, volume, host, up, asked_at) for volume in found}

    def _why(self, tx: Tx, volume: VolumeRow, host: str, up: bool, asked_at: int | None) -> str:
        if volume.host != host:
            done = volume.migration_status == "completing"
            return f"it moved to {volume.host}; its data here goes" if done else "it is on its way here (migrating)"
        if volume.migration_status in store.MOVES:
            where = "".join(f" to {copy}" for copy in store.copies_of(tx, volume.id))
            return f"it is on its way{where} ({volume.migration_status})"
        if asked_at is None:
            return "drain the host, and it moves"
        if not up:
            return "its host is down: only there it can be read"
        if (stays := self._stays(tx, volume)) is not None:
            return stays
        if (failed := self._failed(tx, volume, asked_at)) is not None:
            return f"its move failed: {(failed.error or 'no reason is known').rstrip('.')}; drain again to try again"
        try:
            placing.choose_other(tx, self.service.hosts, volume)
        except NoValidHost as error:
            reasons = ", ".join(f"{why}: {count}" for why, count in error.details.get("reasons", {}).items())
            return f"no other storage host can take it ({reasons})"
        return "it waits for its turn"

    def _stays(self, tx: Tx, volume: VolumeRow) -> str | None:
        """What a user or an operator has to do before it can move."""
        attachments = store.attachments_of(tx, volume.id)
        if attachments:
            servers = ", ".join(sorted({one.server_id or one.host or "a client" for one in attachments}))
            return f"it is attached to {servers}: detach it, and it moves"
        if volume.status != "available":
            return f"it is {volume.status}"
        if store.snapshots_of(tx, volume.id):
            return "it has snapshots: delete them, and it moves; or back it up, restore it elsewhere, delete it"
        if store.exports_of(tx, volume.id):
            return "a client is connected to it: terminate its connection"
        return None


def _of(ctx: RequestContext, volume: VolumeRow) -> RequestContext:
    return msgspec.structs.replace(ctx, project_id=volume.project_id)
