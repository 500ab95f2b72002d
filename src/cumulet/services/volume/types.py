"""Volume types: which one a volume gets, who may use it."""

from cumulet.db import Tx
from cumulet.kernel.context import RequestContext
from cumulet.kernel.errors import BadInput, NotFound
from cumulet.kernel.ids import new_uuid
from cumulet.services.volume import store
from cumulet.services.volume.store import TypeRow
from cumulet.services.volume.tables import DEFAULT_TYPES, TYPES

DEFAULT_NAME = "__DEFAULT__"


def ensure_default(tx: Tx) -> TypeRow:
    tx.lock("volume-type", DEFAULT_NAME)
    found = store.type_named(tx, DEFAULT_NAME)
    if found is not None:
        return found
    row = TypeRow(new_uuid(), DEFAULT_NAME, "Default Volume Type", True, {}, None, None, tx.now)
    return store.TYPES.insert(tx, row)


def usable(tx: Tx, ctx: RequestContext, row: TypeRow) -> bool:
    return row.is_public or ctx.is_admin or ctx.project_id in store.type_projects(tx, row.id)


def find(tx: Tx, ctx: RequestContext, name_or_id: str) -> TypeRow:
    """By id or name; NotFound if there is none that the caller may use."""
    row = store.TYPES.find_to_refer(tx, name_or_id) or store.type_named(tx, name_or_id)
    if row is None or not usable(tx, ctx, row):
        raise NotFound(f"Volume type {name_or_id} could not be found.")
    return row


def default_for(tx: Tx, project_id: str | None) -> TypeRow:
    """The project's default type, else the cloud's."""
    from sqlalchemy import select

    chosen = tx.scalar(select(DEFAULT_TYPES.c.volume_type_id).where(DEFAULT_TYPES.c.project_id == project_id))
    row = store.TYPES.find_to_refer(tx, chosen) if chosen else None
    row = row or store.type_named(tx, DEFAULT_NAME)
    if row is None:
        named = store.TYPES.where(tx, TYPES.c.is_public.is_(True))
        if not named:
            raise BadInput("There is no volume type; an administrator has to create one.")
        row = named[0]
    return row


def refuse_encrypted(row: TypeRow) -> None:
    """There is no key manager here: what asks to be encrypted is not made in plain form instead."""
    if row.encryption is not None:
        raise BadInput(f"Key manager error: there is no key for volumes of the encrypted type {row.name}.")


def multiattach(row: TypeRow) -> bool:
    return row.extra_specs.get("multiattach", "").lower() == "<is> true"
