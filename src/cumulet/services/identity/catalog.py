"""The service catalog as tokens carry it."""

import re
from typing import Any

from cumulet.db import Tx
from cumulet.services.identity import store

_SUBSTITUTE = re.compile(r"[%$]\((\w+)\)s")


def expand_url(url: str, values: dict[str, str | None]) -> str | None:
    """The URL with ``%(project_id)s`` and the like filled in; None when the token has no such value."""
    missing = False

    def fill(found: re.Match[str]) -> str:
        nonlocal missing
        value = values.get(found.group(1))
        if value is None:
            missing = True
            return ""
        return value

    result = _SUBSTITUTE.sub(fill, url)
    return None if missing else result


def build(tx: Tx, project_id: str | None, user_id: str | None) -> list[dict[str, Any]]:
    values = {"project_id": project_id, "tenant_id": project_id, "user_id": user_id}
    endpoints: dict[str, list[dict[str, Any]]] = {}
    for row in store.endpoints.list(tx, enabled=True):
        url = expand_url(row.url, values)
        if url is None:
            continue
        entry = {
            "id": row.id,
            "interface": row.interface,
            "region_id": row.region_id,
            "region": row.region_id,
            "url": url,
        }
        endpoints.setdefault(row.service_id, []).append(entry)
    return [
        {"id": row.id, "type": row.type, "name": row.extra.get("name", ""), "endpoints": endpoints.get(row.id, [])}
        for row in store.services.list(tx, enabled=True)
    ]
