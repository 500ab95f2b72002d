"""What the handlers of compute share: loading a server for a call, paging short lists."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from cumulet.db import Tx
from cumulet.http import Call, Page, next_links, whole_number
from cumulet.kernel.clock import parse_iso
from cumulet.kernel.errors import BadInput
from cumulet.services.compute import rules
from cumulet.services.compute.public import ComputeService
from cumulet.services.compute.rows import ServerRow

T = TypeVar("T")


def service_of(call: Call) -> ComputeService:
    service: ComputeService = call.service
    return service


def target(row: ServerRow) -> dict[str, Any]:
    return {"project_id": row.project_id, "user_id": row.user_id}


def load(call: Call, tx: Tx, rule: str | None, name: str = "server_id") -> ServerRow:
    """The server named in the path, if the caller may see it and the rule allows the operation on it. In a writing unit
    of work it stays as it is found until the end: what two requests ask of it, the second judges by what the first has
    begun (a move, say, and a change of devices)."""
    if tx.writing:
        tx.lock("server", call.params[name])
    row = service_of(call).visible(tx, call.ctx, call.params[name])
    if rule is not None:
        call.authorize(rule, target(row))
    return row


def load_unlocked(call: Call, tx: Tx, rule: str | None, name: str = "server_id") -> ServerRow:
    row = load(call, tx, rule, name)
    rules.check_lock(row, admin=call.ctx.is_admin)
    return row


def version_of(call: Call) -> tuple[int, int]:
    return call.version or (2, 1)


def only_query(call: Call, known: Sequence[str], since: tuple[int, int]) -> None:
    """From ``since`` on, other query parameters are refused."""
    if version_of(call) < since:
        return
    for name in call.query:
        if name not in known:
            raise BadInput(
                f"Invalid input for query parameters {name}. Value: {call.query.get(name)}. Additional properties are"
                f" not allowed ({name!r} was unexpected)"
            )


def one_of(call: Call, name: str) -> str | None:
    """A parameter that may be given once only."""
    values = call.query.getlist(name)
    if len(values) > 1:
        raise BadInput(f"Invalid input for query parameters {name}. Value: {values}. {values} is too long")
    return values[0] if values else None


def time_of(call: Call, name: str, since: tuple[int, int]) -> int | None:
    """A time in the query, in microseconds; older versions ignore it."""
    text = one_of(call, name) if version_of(call) >= since else None
    if text is None:
        return None
    try:
        return parse_iso(text)
    except ValueError:
        raise BadInput(
            f"Invalid input for query parameters {name}. Value: {text}. {text!r} is not a 'date-time'"
        ) from None


def page_of(call: Call) -> Page:
    limit = whole_number(call.query, "limit")
    return Page(min(limit, 1000) if limit else None, call.query.get("marker") or None, ())


def cut(items: Sequence[T], page: Page, key: Callable[[T], str], missing: Callable[[str], Exception]) -> list[T]:
    """The page of a short, sorted list."""
    found = list(items)
    if page.marker is not None:
        position = next((n for n, item in enumerate(found) if key(item) == page.marker), None)
        if position is None:
            raise missing(page.marker)
        found = found[position + 1 :]
    return found[: page.size]


def with_links(
    call: Call, name: str, path: str, shown: Sequence[Any], ids: Sequence[str], page: Page
) -> dict[str, Any]:
    body: dict[str, Any] = {name: shown}
    links = next_links(call, path, ids, page)
    if links:
        body[f"{name}_links"] = links
    return body


def marker_missing(marker: str) -> BadInput:
    return BadInput(f"marker [{marker}] not found")


def boolean(text: str | None, *, name: str, default: bool = False, empty: bool = True) -> bool:
    """A strict boolean of a query."""
    if text is None:
        return default
    if text == "":
        return empty
    lowered = text.strip().lower()
    if lowered in ("1", "t", "true", "on", "y", "yes"):
        return True
    if lowered in ("0", "f", "false", "off", "n", "no"):
        return False
    raise BadInput(
        f"Unrecognized value '{text}' for {name}, acceptable values are: '0', '1', 'f', 'false', 'n', 'no', 'off',"
        " 'on', 't', 'true', 'y', 'yes'"
    )


def only(mapping: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: mapping[name] for name in names}
