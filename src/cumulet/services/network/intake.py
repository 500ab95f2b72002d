"""From request bodies to checked values: which attributes may be given, their defaults, whose project, bulk.

Refuses with 400: no body, unknown attributes, attributes not allowed in this method, missing required ones, values
that do not pass their check, a project that differs from the caller's unless the caller may act for others.
"""

from collections.abc import Callable
from typing import Any

from cumulet.kernel.context import RequestContext
from cumulet.services.network.attributes import REQUIRED, UNSET
from cumulet.services.network.faults import bad
from cumulet.services.network.resources import Resource


class Given(dict[str, Any]):
    """Checked values of one object. ``explicit``: the attributes that the caller gave."""

    explicit: frozenset[str] = frozenset()
    for_server: bool = False  # a port that comes and goes with its server

    def has(self, name: str) -> bool:
        """Given, or with a default."""
        return self.get(name, UNSET) is not UNSET


def items_of(resource: Resource, body: Any) -> tuple[list[dict[str, Any]], bool]:
    """The objects in the body of a POST, and whether it is the bulk form."""
    if not isinstance(body, dict) or not body:
        raise bad("The request has no body.")
    bulk = resource.collection in body
    if bulk:
        items = body[resource.collection]
        if not isinstance(items, list) or not items:
            raise bad("Resources required")
        unwrapped = [i[resource.name] if isinstance(i, dict) and list(i) == [resource.name] else i for i in items]
        extra = set(body) - {resource.collection}
    else:
        if resource.name not in body:
            raise bad(f"The body has no {resource.name!r}.")
        unwrapped = [body[resource.name]]
        extra = set(body) - {resource.name}
    if extra:
        raise bad(f"Unknown keys in the body: {sorted(map(str, extra))}.")
    for item in unwrapped:
        if not isinstance(item, dict):
            raise bad(f"{resource.name!r} must be an object.")
    return unwrapped, bulk


def _known(resource: Resource, values: dict[str, Any]) -> None:
    unknown = sorted(set(values) - set(resource.attributes))
    if unknown:
        raise bad(f"Unrecognized attribute(s) {', '.join(map(repr, unknown))}")


def _project(ctx: RequestContext, values: dict[str, Any], acts_for_others: Callable[[], bool]) -> str:
    given = {values[k] for k in ("tenant_id", "project_id") if values.get(k) is not None}
    for one in given:
        if not isinstance(one, str) or len(one) > 255:
            raise bad("Invalid input for project_id. Reason: it is not a project id.")
    if len(given) > 1:
        raise bad("project_id and tenant_id differ.")
    wanted = given.pop() if given else None
    if wanted is not None and wanted != ctx.project_id and not acts_for_others():
        raise bad("A project_id other than that of the token needs the admin role.", "AdminRequired")
    if wanted is None:
        wanted = ctx.project_id
    if not wanted:
        raise bad("The token has no project, and the request names none.")
    return wanted


def for_create(
    resource: Resource, item: dict[str, Any], ctx: RequestContext, acts_for_others: Callable[[], bool]
) -> Given:
    _known(resource, item)
    found = Given()
    for name, attribute in resource.attributes.items():
        if name in item:
            if not attribute.post:
                raise bad(f"Attribute {name!r} not allowed in POST")
            value = item[name]
            if value is None and attribute.default is None:
                found[name] = None
            elif attribute.check is not None and name not in ("tenant_id", "project_id"):
                found[name] = attribute.check(name, value)
        elif attribute.post:
            if attribute.default is REQUIRED:
                raise bad(f"The required attribute {name!r} is missing.")
            default = attribute.default
            found[name] = list(default) if isinstance(default, list) else default
    found["project_id"] = found["tenant_id"] = _project(ctx, item, acts_for_others)
    found.explicit = frozenset(item)
    return found


def for_update(resource: Resource, body: Any) -> Given:
    if not isinstance(body, dict) or not isinstance(body.get(resource.name), dict) or len(body) != 1:
        raise bad(f"The body must hold one {resource.name!r}.")
    item = body[resource.name]
    _known(resource, item)
    found = Given()
    for name, value in item.items():
        attribute = resource.attributes[name]
        if not attribute.put:
            raise bad(f"Cannot update read-only attribute {name}")
        if value is None and attribute.default is None:
            found[name] = None
        elif attribute.check is not None:
            found[name] = attribute.check(name, value)
    found.explicit = frozenset(item)
    return found
