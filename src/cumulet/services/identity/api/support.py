"""What all identity handlers share: policy with keystone's targets, collections with links and filters."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import urlencode

from cumulet.http import Call, whole_number
from cumulet.kernel.errors import Conflict, Forbidden, NotFound
from cumulet.services.identity.public import IdentityService

Row = TypeVar("Row")
_TRUE = {"1", "true", "yes", "on", ""}
_COMPARATORS: dict[str, Callable[[str, str], bool]] = {
    "contains": lambda value, wanted: wanted in value,
    "icontains": lambda value, wanted: wanted.lower() in value.lower(),
    "startswith": lambda value, wanted: value.startswith(wanted),
    "istartswith": lambda value, wanted: value.lower().startswith(wanted.lower()),
    "endswith": lambda value, wanted: value.endswith(wanted),
    "iendswith": lambda value, wanted: value.lower().endswith(wanted.lower()),
}
MAX_PAGE = 1000


def service_of(call: Call) -> IdentityService:
    return call.service


def enforce(call: Call, rule: str, **targets: Mapping[str, Any] | None) -> None:
    """``enforce(call, "identity:get_user", user={"id": …, "domain_id": …})`` judges ``target.user.id`` and so on.
    Objects that do not exist are left out: ordinary callers get 403, and only those allowed to see learn of 404."""
    target: dict[str, Any] = dict(call.params)
    for noun, values in targets.items():
        if noun == "target":
            for name, value in (values or {}).items():
                if value is not None:  # a caller without a domain is not "in the domain None"
                    target[f"target.{name}"] = value
        else:
            _flatten(target, f"target.{noun}", values or {})
    if not call.api.engine.allows(rule, target, credentials(call)):
        raise Forbidden(f"You are not authorized to perform the requested action: {rule}.")


def _flatten(target: dict[str, Any], prefix: str, values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        if isinstance(value, Mapping):
            _flatten(target, f"{prefix}.{name}", value)
        else:
            target[f"{prefix}.{name}"] = value


def credentials(call: Call) -> dict[str, Any]:
    ctx = call.ctx
    token: dict[str, Any] = {}
    if ctx.domain_id is not None:
        token["domain"] = {"id": ctx.domain_id}
    if ctx.project_id is not None:
        token["project"] = {"id": ctx.project_id, "domain": {"id": ctx.project_domain_id}}
    return {**ctx.credentials(), "token": token}


def found(row: Row | None, noun: str, id: str) -> Row:
    if row is None:
        raise NotFound(f"Could not find {noun}: {id}.")
    return row


def duplicate(noun: str, name: str) -> Conflict:
    return Conflict(f"Conflict occurred attempting to store {noun} - Duplicate entry found with name {name}.")


def self_link(call: Call, collection: str, id: str) -> dict[str, str]:
    return {"self": f"{call.url_base}/{collection}/{id}"}


def truth(text: str) -> bool:
    return text.strip().lower() in _TRUE


def flag(call: Call, name: str) -> bool:
    """A query flag: present counts as set, unless it says 0 or false."""
    value = call.query.get(name)
    return value is not None and value.strip().lower() not in ("0", "false", "no", "off")


def collection(
    call: Call,
    key: str,
    rows: Iterable[Mapping[str, Any]],
    *,
    exact: Sequence[str] = (),
    paged: bool = False,
    self_path: str | None = None,
) -> dict[str, Any]:
    """The answer to a list: rows that pass the query's filters (equality on ``exact``, ``attr__contains`` and its
    kin on any text), cut into pages where the list has them."""
    listed = list(rows)
    for name, wanted in call.query.items():
        attribute, _, comparator = name.partition("__")
        if comparator in _COMPARATORS:
            compare = _COMPARATORS[comparator]
            listed = [row for row in listed if isinstance(row.get(attribute), str) and compare(row[attribute], wanted)]
        elif name in exact:
            listed = [row for row in listed if _equals(row.get(name), wanted)]
    path = self_path or call.path.partition("/v3/")[2]
    url = f"{call.url_base}/{path}"
    links: dict[str, str | None] = {
        "next": None,
        "self": f"{url}?{call.query.raw}" if call.query.raw else url,
        "previous": None,
    }
    answer: dict[str, Any] = {key: listed, "links": links}
    if paged:
        limit = min(whole_number(call.query, "limit") or MAX_PAGE, MAX_PAGE)
        sort_key = call.query.get("sort_key")
        if sort_key and listed and sort_key in listed[0]:
            listed.sort(key=lambda row: str(row.get(sort_key) or ""), reverse=call.query.get("sort_dir") == "desc")
        marker = call.query.get("marker")
        if marker is not None:
            position = next((i for i, row in enumerate(listed) if row["id"] == marker), None)
            if position is None:
                raise NotFound(f"Marker {marker} could not be found.")
            listed = listed[position + 1 :]
        if len(listed) > limit:
            listed = listed[:limit]
            pairs = [(name, value) for name, value in call.query.items() if name != "marker"]
            links["next"] = f"{url}?{urlencode([*pairs, ('marker', listed[-1]['id'])])}"
            answer["truncated"] = True
        answer[key] = listed
    return answer


def _equals(value: Any, wanted: str) -> bool:
    if isinstance(value, bool):
        return value == truth(wanted)
    if value is None:
        return wanted in ("", "null", "None")
    return str(value) == wanted
