"""User messages: why something that was accepted did not work."""

from cumulet.db import Tx
from cumulet.kernel.clock import SECOND
from cumulet.kernel.ids import new_uuid
from cumulet.services.volume import store
from cumulet.services.volume.store import MessageRow

_KEPT_SECONDS = 30 * 24 * 3600


def record(
    tx: Tx,
    project_id: str | None,
    request_id: str | None,
    resource_type: str,
    resource_uuid: str,
    event_id: str,
    text: str,
) -> None:
    if project_id is None:
        return
    row = MessageRow(
        id=new_uuid(),
        project_id=project_id,
        request_id=request_id,
        resource_type=resource_type,
        resource_uuid=resource_uuid,
        event_id=event_id,
        message_level="ERROR",
        user_message=text,
        created_at=tx.now,
        expires_at=tx.now + _KEPT_SECONDS * SECOND,
    )
    store.MESSAGES.insert(tx, row)
