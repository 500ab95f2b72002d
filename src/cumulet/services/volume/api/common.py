"""What the handlers share: field types, lookups with authorisation, lists."""

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

from msgspec import Meta
from sqlalchemy import ColumnElement, Text, cast, or_

from cumulet.db import Tx
from cumulet.http import Call, next_href, page_of, whole_number
from cumulet.kernel.clock import iso, parse_iso
from cumulet.kernel.errors import BadInput, NotFound
from cumulet.services.volume.store import Store

UuidText = Annotated[
    str, Meta(pattern=r"^[0-9a-fA-F]{8}-?[0-9a-fA-F]{4}-?[0-9a-fA-F]{4}-?[0-9a-fA-F]{4}-?[0-9a-fA-F]{12}$")
]
Text255 = Annotated[str, Meta(max_length=255)]
Name = Annotated[str, Meta(min_length=1, max_length=255)]
Key = Annotated[str, Meta(min_length=1, max_length=255)]
Metadata = dict[Key, Text255]
Size = Annotated[int, Meta(ge=1, le=2147483647)]

MICRO = (3, 0)


def moment(us: int | None) -> str | None:
    return iso(us, zone="", micros=True)


def owned(row: Any) -> dict[str, Any]:
    """What policy rules see of an object."""
    return {"project_id": row.project_id, "user_id": getattr(row, "user_id", None)}


def load(tx: Tx, call: Call, store: Store[Any], object_id: str, rule: str | None) -> Any:
    """The object, if it is the caller's (404) and the rule allows it (403)."""
    row = store.find(tx, object_id)
    if row is None or not (call.ctx.is_admin or row.project_id == call.ctx.project_id):
        raise store.missing(object_id)
    if rule is not None:
        call.authorize(rule, owned(row))
    return row


def links(call: Call, kind: str, object_id: str) -> list[dict[str, str]]:
    tail = call.url_base.partition(call.url_root)[2]
    project = tail.partition("/v3")[2]
    return [
        {"rel": "self", "href": f"{call.url_base}/{kind}/{object_id}"},
        {"rel": "bookmark", "href": f"{call.url_root}{project}/{kind}/{object_id}"},
    ]


def clean(metadata: Mapping[str, str] | None) -> dict[str, str]:
    found = dict(metadata or {})
    for key in found:
        if not key.strip():
            raise BadInput("Metadata property key blank.")
    return found


def boolean(text: str, name: str = "value") -> bool:
    lowered = str(text).strip().lower()
    if lowered in ("1", "t", "true", "on", "y", "yes"):
        return True
    if lowered in ("0", "f", "false", "off", "n", "no"):
        return False
    raise BadInput(f"Invalid input received: '{name} = {text}' is not a boolean.")


Filter = Callable[[str], ColumnElement[bool]]


def equals(column: ColumnElement[Any]) -> Filter:
    return lambda text: column == text


def number(column: ColumnElement[Any]) -> Filter:
    def clause(text: str) -> ColumnElement[bool]:
        if not text.isdigit() or len(text) > 9:
            raise BadInput(f"Invalid input received: {text!r} is not a number.")
        return column == int(text)

    return clause


def flag(column: ColumnElement[Any], name: str) -> Filter:
    return lambda text: column.is_(boolean(text, name))


def time_range(column: ColumnElement[Any], name: str) -> Filter:
    """``gt:2020-01-01,lt:2021-01-01`` (3.60)."""

    def clause(text: str) -> ColumnElement[bool]:
        found: list[ColumnElement[bool]] = []
        for part in text.split(","):
            op, _, value = part.partition(":")
            if op not in ("gt", "gte", "lt", "lte", "eq", "neq"):
                op, value = "eq", part
            try:
                at = parse_iso(value)
            except (ValueError, OverflowError):
                raise BadInput(f"Invalid input received: {name}={text} is not a time.") from None
            second = column - column % 1_000_000
            found.append(
                {
                    "gt": second > at,
                    "gte": second >= at,
                    "lt": second < at,
                    "lte": second <= at,
                    "eq": second == at,
                    "neq": second != at,
                }[op]
            )
        result = found[0]
        for one in found[1:]:
            result = result & one
        return result

    return clause


def has_metadata(column: ColumnElement[Any]) -> Filter:
    """``metadata={'key': 'value'}`` against the JSON text of the column."""

    def clause(text: str) -> ColumnElement[bool]:
        import ast

        import msgspec

        try:
            wanted = ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            wanted = None
        if not isinstance(wanted, dict):
            raise BadInput(f"Invalid input received: metadata={text} is not a dictionary.")
        result: ColumnElement[bool] | None = None
        for key, value in wanted.items():
            pair = msgspec.json.encode(str(key)).decode() + ":" + msgspec.json.encode(str(value)).decode()
            one = cast(column, Text).contains(pair, autoescape=True)
            result = one if result is None else result & one
        return result if result is not None else column.is_not(None)

    return clause


_RESERVED = (
    "limit", "marker", "offset", "sort", "sort_key", "sort_dir", "all_tenants", "project_id", "with_count", "fields"
)  # fmt: skip


def listing(
    call: Call,
    tx: Tx,
    store: Store[Any],
    filters: Mapping[str, Filter],
    *,
    sort_keys: Mapping[str, str],
    like: Sequence[str] = ("name",),
    extra: Sequence[ColumnElement[bool]] = (),
    strict_from: tuple[int, int] = (3, 31),
) -> tuple[list[Any], int | None, bool]:
    """Rows of one page, the count if asked for (3.45), and whether another page may follow. ``sort_keys``: name in the
    query -> column. An unknown filter is an error from 3.31 on and ignored before."""
    table = store.table
    query = call.query
    clauses = list(extra)
    all_tenants = call.ctx.is_admin and "all_tenants" in query and boolean(query.get("all_tenants") or "1")
    if "project_id" in table.c and not all_tenants:
        clauses.append(table.c.project_id == call.ctx.project_id)
    elif all_tenants and "project_id" in query:
        clauses.append(table.c.project_id == query.get("project_id"))
    for key in query:
        if key in _RESERVED:
            continue
        base = key.removesuffix("~")
        if key.endswith("~") and call.version is not None and call.version >= (3, 34) and base in like:
            clauses.append(table.c[base].contains(query.get(key), autoescape=True))
        elif key in filters:
            clauses.append(or_(*[filters[key](value) for value in query.getlist(key)]))
        elif call.version is not None and call.version >= strict_from:
            raise BadInput(f"Invalid input received: Invalid filters {key} are found in query options.")
    page = page_of(query, sort_keys=sort_keys, default=(("created_at", "desc"), ("id", "desc")))
    offset = whole_number(query, "offset") or 0
    marker = None
    if page.marker is not None:
        marker = store.find(tx, page.marker)
        if marker is None:
            raise NotFound(f"{store.what} {page.marker} could not be found.")
    columns = {key: table.c[sort_keys.get(key, key)] for key, _ in page.sort}
    rows = store.page(tx, clauses, page.sort, marker, page.size, offset, columns) if page.size else []
    count = None
    if "with_count" in query and call.version is not None and call.version >= (3, 45):
        count = store.count(tx, clauses) if boolean(query.get("with_count"), "with_count") else None
    return rows, count, bool(rows) and len(rows) == page.size


def listed(
    call: Call, plural: str, path: str, views: list[dict[str, Any]], rows: Sequence[Any], count: int | None, more: bool
) -> dict[str, Any]:
    body: dict[str, Any] = {plural: views}
    if more:
        href = next_href(call, f"{call.url_base}/{path}", rows[-1].id, drop=("offset",))
        body[f"{plural}_links"] = [{"rel": "next", "href": href}]
    if count is not None:
        body["count"] = count
    return body
