"""Transfers: a volume given to another project by a key. Served under two paths, the old and the 3.55 one."""

import hashlib
import hmac
import secrets
from typing import Annotated, Any

import msgspec

from cumulet.db import Tx
from cumulet.http import Call, Reply, Route, Since
from cumulet.kernel.errors import BadInput, WrongState
from cumulet.kernel.ids import new_uuid
from cumulet.services.volume import state, store
from cumulet.services.volume.api.common import Text255, UuidText, equals, links, listed, listing, load, moment
from cumulet.services.volume.store import TransferRow
from cumulet.services.volume.tables import TRANSFERS


class TransferCreate(msgspec.Struct, forbid_unknown_fields=True):
    volume_id: UuidText
    name: Text255 | None = None
    no_snapshots: Annotated[bool, Since("3.55")] = False


class Accept(msgspec.Struct, forbid_unknown_fields=True):
    auth_key: str | int


def _hash(salt: str, key: str) -> str:
    return hmac.new(salt.encode(), key.encode(), hashlib.sha256).hexdigest()


def _kind(call: Call) -> str:
    return "volume-transfers" if "volume-transfers" in call.path else "os-volume-transfer"


def view(call: Call, row: TransferRow, *, full: bool = True) -> dict[str, Any]:
    version = call.version or (3, 0)
    found: dict[str, Any] = {"id": row.id, "volume_id": row.volume_id, "name": row.name}
    if full:
        found["created_at"] = moment(row.created_at)
        if version >= (3, 55):
            found["no_snapshots"] = row.no_snapshots
        if version >= (3, 57):
            found["source_project_id"] = row.project_id
            found["destination_project_id"] = row.destination_project_id
            found["accepted"] = row.accepted
    found["links"] = links(call, _kind(call), row.id)
    return found


def create(call: Call) -> dict[str, Any]:
    body: TransferCreate = call.body
    key = secrets.token_hex(8)
    salt = secrets.token_hex(8)

    def work(tx: Tx) -> dict[str, Any]:
        volume = load(tx, call, store.VOLUMES, body.volume_id, "volume:create_transfer")
        state.refuse_moving(volume)
        if volume.status != "available":
            raise WrongState("Invalid volume: status must be available")
        row = TransferRow(
            id=new_uuid(),
            volume_id=volume.id,
            name=body.name.strip() if body.name else None,
            project_id=volume.project_id,
            destination_project_id=None,
            accepted=False,
            no_snapshots=body.no_snapshots,
            salt=salt,
            auth_hash=_hash(salt, key),
            created_at=tx.now,
        )
        store.TRANSFERS.insert(tx, row)
        state.change(tx, volume.id, transfer=True)
        return {"transfer": {**view(call, row), "auth_key": key}}

    return call.service.db.write(work)


_FILTERS = {"name": equals(TRANSFERS.c.name), "volume_id": equals(TRANSFERS.c.volume_id), "id": equals(TRANSFERS.c.id)}
_SORTS = {"id": "id", "name": "name", "created_at": "created_at", "volume_id": "volume_id"}


def _index(call: Call, full: bool) -> dict[str, Any]:
    def work(tx: Tx) -> dict[str, Any]:
        rows, _, more = listing(call, tx, store.TRANSFERS, _FILTERS, sort_keys=_SORTS)
        path = _kind(call) + ("/detail" if full else "")
        return listed(call, "transfers", path, [view(call, row, full=full) for row in rows], rows, None, more)

    return call.service.db.read(work)


def index(call: Call) -> dict[str, Any]:
    return _index(call, False)


def detail(call: Call) -> dict[str, Any]:
    return _index(call, True)


def show(call: Call) -> dict[str, Any]:
    def work(tx: Tx) -> dict[str, Any]:
        return {"transfer": view(call, load(tx, call, store.TRANSFERS, call.params["id"], "volume:get_transfer"))}

    return call.service.db.read(work)


def delete(call: Call) -> Reply:
    def work(tx: Tx) -> None:
        row = load(tx, call, store.TRANSFERS, call.params["id"], "volume:delete_transfer")
        store.TRANSFERS.remove(tx, row.id)
        state.change(tx, row.volume_id, transfer=False)

    call.service.db.write(work)
    return Reply(status=202)


def accept(call: Call) -> dict[str, Any]:
    """Whoever knows the key may: the transfer belongs to another project."""

    def work(tx: Tx) -> dict[str, Any]:
        row = store.TRANSFERS.get(tx, call.params["id"])
        call.authorize("volume:accept_transfer", {"project_id": call.ctx.project_id})
        if not hmac.compare_digest(_hash(row.salt, str(call.body.auth_key)), row.auth_hash):
            raise BadInput(f"Invalid auth key: Attempt to transfer {row.id} with invalid auth key.")
        volume = store.VOLUMES.get(tx, row.volume_id)
        if volume.status != "awaiting-transfer":
            raise WrongState(f"Invalid volume: Transfer {row.id}: Volume id {volume.id} is not awaiting transfer.")
        project = call.ctx.project_id
        assert project is not None
        snapshots = [] if row.no_snapshots else store.snapshots_of(tx, volume.id)
        name = store.type_names(tx).get(volume.volume_type_id or "")
        asked = {"volumes": 1, "gigabytes": volume.size_gb + sum(one.size_gb for one in snapshots)}
        call.service.quotas.claim(tx, project, {**asked, **({"snapshots": len(snapshots)} if snapshots else {})}, name)
        for one in snapshots:
            store.SNAPSHOTS.change(tx, one.id, project_id=project, user_id=call.ctx.user_id)
        state.change(tx, volume.id, project_id=project, user_id=call.ctx.user_id, transfer=False)
        store.TRANSFERS.remove(tx, row.id, accepted=True, destination_project_id=project)
        return {"transfer": view(call, row, full=False)}

    return call.service.db.write(work)


def _routes(base: str, since: str | None) -> list[Route]:
    one = base + "/{id}"
    return [
        Route(method="GET", path=base, handler=index, policy="volume:get_all_transfers", min_version=since),
        Route(
            method="POST", path=base, handler=create, body=TransferCreate, body_key="transfer", strict=False,
            success=202, min_version=since,
        ),
        Route(
            method="GET", path=base + "/detail", handler=detail, policy="volume:get_all_transfers", min_version=since
        ),
        Route(method="GET", path=one, handler=show, min_version=since),
        Route(method="DELETE", path=one, handler=delete, success=202, min_version=since),
        Route(
            method="POST", path=one + "/accept", handler=accept, body=Accept, body_key="accept", success=202,
            min_version=since,
        ),
    ]  # fmt: skip


ROUTES = [*_routes("/os-volume-transfer", None), *_routes("/volume-transfers", "3.55")]
