"""Lists: filters, ``fields``, sorting, pages and their links, from a query string to SQL conditions.

Refuses with 400: unknown filters (filter-validation), unknown sort keys, directions, limits; with 404: a marker that
does not exist.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

from sqlalchemy import ColumnElement, and_, false, func, or_, select, union_all
from sqlalchemy import Table as SqlTable

from cumulet.db import Tx
from cumulet.http import Call
from cumulet.kernel.errors import NotFound
from cumulet.services.network import tables as t
from cumulet.services.network.attributes import to_boolean
from cumulet.services.network.faults import bad
from cumulet.services.network.resources import Resource

_CONTROLS = {"fields", "limit", "marker", "page_reverse", "sort_key", "sort_dir"}
Condition = ColumnElement[bool]


@dataclass
class ListQuery:
    filters: dict[str, list[str]]
    fields: frozenset[str]
    sort: list[tuple[str, str]] = field(default_factory=list)  # (attribute, asc or desc)
    limit: int | None = None
    marker: str | None = None
    reverse: bool = False


def fields_of(call: Call) -> frozenset[str]:
    return frozenset(name for name in call.query.getlist("fields") if name)


def parse(resource: Resource, call: Call) -> ListQuery:
    query = call.query
    filters = {name: query.getlist(name) for name in query.keys() if name not in _CONTROLS}  # noqa: SIM118
    unknown = sorted(n for n in filters if not (n in resource.attributes and resource.attributes[n].filter))
    if unknown:
        raise bad(f"{unknown} is invalid attribute for filtering")
    return ListQuery(
        filters=filters,
        fields=fields_of(call),
        sort=_sorting(resource, query.getlist("sort_key"), query.getlist("sort_dir")),
        limit=_limit(query.get("limit")),
        marker=query.get("marker") or None,
        reverse=_boolean("page_reverse", query.get("page_reverse") or "false"),
    )


def _boolean(name: str, value: str) -> bool:
    found = to_boolean(value)
    if found is None:
        raise bad(f"Invalid input for {name}. Reason: {value!r} cannot be taken as a boolean.")
    return found


def _limit(text: str | None) -> int | None:
    if text is None:
        return None
    try:
        if len(text) > 18 or int(text) < 0:
            raise ValueError
    except ValueError:
        raise bad("limit must be an integer 0 or greater") from None
    return int(text) or None


def _sorting(resource: Resource, keys: list[str], directions: list[str]) -> list[tuple[str, str]]:
    if len(keys) != len(directions) and directions:
        raise bad("There must be as many sort_dir as sort_key.")
    unknown = [k for k in keys if not (k in resource.attributes and resource.attributes[k].sort)]
    if unknown:
        raise bad(f"{unknown} is invalid attribute for sort_keys")
    if set(directions) - {"asc", "desc"}:
        raise bad("sort_dirs must be asc or desc")
    found = list(zip(keys, directions or ["asc"] * len(keys), strict=True))
    return list({key: (key, direction) for key, direction in reversed(found)}.values())[::-1]


# -- SQL -------------------------------------------------------------------------------------------------------


def column(resource: Resource, name: str) -> Any:
    return resource.table.c[resource.columns.get(name, name)]


def conditions(
    resource: Resource, filters: dict[str, list[str]], special: Callable[[str, list[str]], Condition | None]
) -> list[Condition]:
    found = []
    for name, values in filters.items():
        condition = special(name, values)
        found.append(_plain(resource, name, values) if condition is None else condition)
    return found


def _plain(resource: Resource, name: str, values: list[str]) -> Condition:
    kind = resource.attributes[name].kind
    if kind == "tags":
        return _tags(resource, name, values)
    target = column(resource, name)
    if kind == "boolean":
        return target.in_([_boolean(name, value) for value in values])
    if kind == "integer":
        numbers = []
        for value in values:
            if value.lower() in ("null", "none", ""):
                continue
            try:
                numbers.append(int(value))
            except ValueError:
                raise bad(f"Invalid input for {name}. Reason: {value!r} is not an integer.") from None
        numbers = [n for n in numbers if -(2**63) <= n < 2**63]
        return target.in_(numbers) if numbers else target.is_(None)
    if "" in values and target.nullable:
        return or_(target.in_(values), target.is_(None))
    return target.in_(values) if len(values) > 1 else target == values[0]


def _tags(resource: Resource, name: str, values: list[str]) -> Condition:
    wanted = {tag for value in values for tag in value.split(",") if tag}
    if not wanted:
        return false() if not name.startswith("not") else ~false()
    owner = resource.table.c.id
    any_of = owner.in_(select(t.TAGS.c.resource_id).where(t.TAGS.c.tag.in_(wanted)))
    all_of = and_(*(owner.in_(select(t.TAGS.c.resource_id).where(t.TAGS.c.tag == tag)) for tag in sorted(wanted)))
    return {"tags": all_of, "tags-any": any_of, "not-tags": ~all_of, "not-tags-any": ~any_of}[name]


def _sortable(target: Any) -> Any:
    if not target.nullable:
        return target
    return func.coalesce(target, "" if target.type.python_type is str else -1)


def page(tx: Tx, resource: Resource, query: ListQuery, where: list[Condition], scope: list[Condition]) -> Sequence[Any]:
    """The rows of one page, in the order asked for, that meet one of ``scope``, if there is any. Of a page each part of
    the scope gives its first rows by its own index: a database that is asked for one or the other sorts them all."""
    table: SqlTable = resource.table
    order = [(_sortable(column(resource, name)), direction == "asc") for name, direction in query.sort]
    order.append((table.c.id, True))
    if query.reverse:
        order = [(target, not ascending) for target, ascending in order]
    if query.marker is not None:
        at = tx.first(select(*(target for target, _ in order)).where(table.c.id == query.marker))
        if at is None:
            raise NotFound(f"The marker {query.marker} could not be found.", type_name=resource.not_found)
        beyond: list[Any] = []
        equal: list[Any] = []
        for (target, ascending), value in zip(order, at, strict=True):
            beyond.append(and_(*equal, target > value if ascending else target < value))
            equal.append(target == value)
        where = [*where, or_(*beyond)]
    by = [x if up else x.desc() for x, up in order]
    if query.limit is not None and len(scope) > 1:
        parts = [select(table.c.id).where(*where, one).order_by(*by).limit(query.limit).subquery() for one in scope]
        where = [table.c.id.in_(union_all(*(select(part.c.id) for part in parts)))]
    elif scope:
        where = [*where, or_(*scope)]
    statement = select(table).where(*where).order_by(*by)
    if query.limit is not None:
        statement = statement.limit(query.limit)
    found = tx.rows(statement)
    return found[::-1] if query.reverse else found


def links(call: Call, resource: Resource, query: ListQuery, ids: list[str]) -> list[dict[str, str]]:
    """``next`` and ``previous`` of the page just made."""
    if query.limit is None or not ids:
        return []
    found = []
    full = len(ids) >= query.limit

    def link(rel: str, marker: str, reverse: bool) -> dict[str, str]:
        kept = [(k, v) for k, v in call.query.items() if k not in ("marker", "page_reverse")]
        kept.append(("marker", marker))
        if reverse:
            kept.append(("page_reverse", "True"))
        return {"rel": rel, "href": f"{call.url_base}/{resource.path}?{urlencode(kept)}"}

    if full or query.reverse:
        found.append(link("next", ids[-1], False))
    if full or not query.reverse:
        found.append(link("previous", ids[0], True))
    return found
