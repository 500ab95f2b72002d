"""Pages of lists: limit, marker, sort keys as services take them, the links they answer, and keyset SQL."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from sqlalchemy import ColumnElement, Select, and_, or_

from cumulet.http.call import Call, Query
from cumulet.kernel.errors import BadInput

Sort = tuple[tuple[str, str], ...]
MAX_LIMIT = 1000


@dataclass(frozen=True)
class Page:
    """``limit`` None: no limit was asked for. ``sort``: (key, "asc" or "desc") pairs."""

    limit: int | None
    marker: str | None
    sort: Sort

    @property
    def size(self) -> int:
        """Rows to fetch: what was asked for, capped."""
        return MAX_LIMIT if self.limit is None else min(self.limit, MAX_LIMIT)


def whole_number(query: Query, name: str) -> int | None:
    """A non-negative integer parameter; an empty one counts as absent."""
    text = query.get(name)
    if text is None or text == "":
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise BadInput(f"Invalid input for query parameter {name!r}: {text!r} is not a non-negative integer.")
    return int(text)


def page_of(
    query: Query,
    *,
    sort_keys: Collection[str] = (),
    default: Sort = (("created_at", "desc"), ("id", "desc")),
    max_limit: int = MAX_LIMIT,
    default_dir: str = "desc",
) -> Page:
    """``sort_key`` and ``sort_dir`` (repeatable), or ``sort=key:dir,key:dir``. An unknown key is a 400; a list
    always ends by ``id``, so pages neither repeat nor lose rows."""
    limit = whole_number(query, "limit")
    if limit is not None:
        limit = min(limit, max_limit)
    keys: list[str] = []
    dirs: list[str] = []
    combined = query.get("sort")
    if combined:
        for part in combined.split(","):
            key, _, direction = part.strip().partition(":")
            keys.append(key)
            dirs.append(direction or default_dir)
    else:
        keys = query.getlist("sort_key")
        dirs = query.getlist("sort_dir")
    for key in keys:
        if key not in sort_keys:
            raise BadInput(f"Invalid input for query parameter 'sort_key': {key!r} cannot be sorted by.")
    for direction in dirs:
        if direction.lower() not in ("asc", "desc"):
            raise BadInput(f"Invalid input for query parameter 'sort_dir': {direction!r} is neither asc nor desc.")
    if not keys:
        sort = default
        if dirs:
            sort = tuple((key, dirs[0].lower()) for key, _ in default)
    else:
        if len(dirs) > len(keys):
            raise BadInput("There are more sort directions than sort keys.")
        last = dirs[-1].lower() if dirs else default_dir
        filled = [direction.lower() for direction in dirs] + [last] * (len(keys) - len(dirs))
        sort = tuple(zip(keys, filled, strict=True))
    if not any(key == "id" for key, _ in sort):
        sort = (*sort, ("id", sort[-1][1] if sort else "asc"))
    return Page(limit, query.get("marker") or None, sort)


def next_href(call: Call, url: str, marker: str, *, drop: Collection[str] = ()) -> str:
    """The same list from after ``marker``: ``url`` with the request's own query."""
    pairs = [(key, value) for key, value in call.query.items() if key != "marker" and key not in drop]
    pairs.append(("marker", marker))
    return f"{url}?{urlencode(pairs)}"


def next_links(call: Call, path: str, ids: Sequence[str], page: Page) -> list[dict[str, str]]:
    """nova's, cinder's ``<plural>_links``: a next link only when a full page came."""
    if (page.limit is None and len(ids) < MAX_LIMIT) or not ids or len(ids) < page.size:
        return []
    return [{"rel": "next", "href": next_href(call, call.url_base + path, ids[-1])}]


def ordered(
    statement: Select[Any], columns: Mapping[str, ColumnElement[Any]], sort: Sort, marker: Mapping[str, Any] | None
) -> Select[Any]:
    """Add ORDER BY, and WHERE "after the marker row" (``marker``: its values by sort key). NULLs come first
    ascending, on SQLite and PostgreSQL alike."""
    for key, direction in sort:
        column = columns[key]
        statement = statement.order_by(column.asc().nulls_first() if direction == "asc" else column.desc().nulls_last())
    if marker is None:
        return statement
    alternatives: list[ColumnElement[bool]] = []
    equal: list[ColumnElement[bool]] = []
    for key, direction in sort:
        column, value = columns[key], marker[key]
        beyond = _beyond(column, direction, value)
        if beyond is not None:
            alternatives.append(and_(*equal, beyond))
        equal.append(column.is_(None) if value is None else column == value)
    return statement.where(*_at_least(columns[sort[0][0]], sort[0][1], marker[sort[0][0]]), or_(*alternatives))


def _at_least(column: ColumnElement[Any], direction: str, value: Any) -> list[ColumnElement[bool]]:
    """What follows from the alternatives for the first key, said by itself so that an index is entered in the middle
    and not walked from its end."""
    if value is None or getattr(column, "nullable", True):
        return []
    return [column >= value if direction == "asc" else column <= value]


def _beyond(column: ColumnElement[Any], direction: str, value: Any) -> ColumnElement[bool] | None:
    if direction == "asc":
        return column.is_not(None) if value is None else column > value
    if value is None:
        return None
    if not getattr(column, "nullable", True):
        return column < value
    return or_(column < value, column.is_(None))


def paged_in_memory(
    items: Sequence[Any], page: Page, *, key: Callable[[Any, str], Any], marker_missing: Exception
) -> list[Any]:
    """Sort and cut a short list (types, zones, agents) the way the database would."""
    found = list(items)
    for name, direction in reversed(page.sort):
        found.sort(
            key=lambda item, name=name: _nulls_first(key(item, name)),  # type: ignore[misc]
            reverse=direction == "desc",
        )
    if page.marker is not None:
        position = next((i for i, item in enumerate(found) if key(item, "id") == page.marker), None)
        if position is None:
            raise marker_missing
        found = found[position + 1 :]
    return found[: page.size]


def _nulls_first(value: Any) -> tuple[bool, Any]:
    return (False, "") if value is None else (True, value)
