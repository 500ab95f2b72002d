"""May the caller do this to that image? Shared by the handlers."""

from typing import Any

from cumulet.db import Tx
from cumulet.http import Call
from cumulet.http.body import parse_json
from cumulet.kernel.errors import BadInput, Forbidden, NotFound
from cumulet.services.image import store
from cumulet.services.image.store import ImageRow


def target(tx: Tx, call: Call, row: ImageRow) -> dict[str, Any]:
    """What policy rules see of an image."""
    project = call.ctx.project_id
    is_member = row.visibility == "shared" and store.member(tx, row.id, project) is not None
    return {
        "project_id": row.owner,
        "owner": row.owner,
        "visibility": row.visibility,
        "member_id": project if is_member else None,
        "image_id": row.id,
        "status": row.status,
        "protected": row.protected,
    }


def require(tx: Tx, call: Call, row: ImageRow, *names: str) -> None:
    """Each rule must allow it. Who may not even see the image learns nothing of it (404)."""
    seen = target(tx, call, row)
    for name in names:
        if not call.allowed(name, seen):
            if name == "get_image" or not call.allowed("get_image", seen):
                raise NotFound(f"No image found with ID {row.id}")
            raise Forbidden(f"You are not authorized to complete {name} action.")


def visibility_rule(call: Call, visibility: str, seen: dict[str, Any]) -> None:
    rule = {"public": "publicize_image", "community": "communitize_image"}.get(visibility)
    if rule is not None and not call.allowed(rule, seen):
        raise Forbidden(f"You are not authorized to complete {rule} action.")


def json_body(call: Call) -> Any:
    if not call.raw:
        raise BadInput("Body expected in request.")
    return parse_json(call.raw)
