"""Images: create, list, show, update, delete, tags, deactivate and reactivate."""

from typing import Any
from urllib.parse import urlencode

from sqlalchemy import ColumnElement

from cumulet.db import Tx
from cumulet.http import Call, Reply, Route
from cumulet.http.paging import Sort
from cumulet.kernel.clock import parse_iso
from cumulet.kernel.errors import BadInput, Forbidden, NotFound
from cumulet.services.image import rules, store, views
from cumulet.services.image.api.access import json_body, require, target, visibility_rule
from cumulet.services.image.public import ImageService
from cumulet.services.image.store import Listing
from cumulet.services.image.tables import IMAGES

_IN_FILTERS = ("name", "id", "status", "container_format", "disk_format")
_TEXT_FILTERS = ("owner", "checksum", "os_hash_algo", "os_hash_value")
_NUMBER_FILTERS = ("size", "min_ram", "min_disk", "virtual_size")
_TIME_FILTERS = ("created_at", "updated_at")
_COMPARE = ("gt", "gte", "lt", "lte", "eq", "neq")
_PAGING = ("limit", "marker", "sort", "sort_key", "sort_dir", "member_status", "tag", "visibility")


def create(call: Call) -> Reply:
    service: ImageService = call.service
    columns, properties = rules.parse_create(json_body(call))
    owner = columns.get("owner", call.ctx.project_id)
    visibility = columns.get("visibility", "shared")
    seen = {"project_id": owner, "owner": owner, "visibility": columns.get("visibility", "private")}
    if not call.allowed("add_image", seen):
        if owner != call.ctx.project_id:
            raise Forbidden(f"You are not permitted to create images owned by '{owner}'")
        raise Forbidden("You are not authorized to complete add_image action.")
    visibility_rule(call, visibility, seen)
    row = service.db.write(lambda tx: service.create(tx, call.ctx, columns, properties))
    headers = {"location": f"{call.url_root}/v2/images/{row.id}"}
    if service.settings.import_methods:
        headers["openstack-image-import-methods"] = ",".join(service.settings.import_methods)
    return Reply(views.image(row), status=201, headers=headers)


def show(call: Call) -> dict[str, Any]:
    service: ImageService = call.service

    def work(tx: Tx) -> dict[str, Any]:
        row = service.get(tx, call.ctx, call.params["image_id"])
        require(tx, call, row, "get_image")
        return views.image(row)

    return service.db.read(work)


def update(call: Call) -> dict[str, Any]:
    service: ImageService = call.service
    media_type = call.headers.get("content-type", "").partition(";")[0].strip().lower()
    body = json_body(call) if media_type in rules.PATCH_TYPES else None
    changes = rules.parse_patch(media_type, body)

    def work(tx: Tx) -> dict[str, Any]:
        row = service.get(tx, call.ctx, call.params["image_id"], change=True)
        seen = target(tx, call, row)
        if not changes:
            require(tx, call, row, "get_image")
        for change in changes:
            if change.name == "visibility" and change.op != "remove":
                visibility_rule(call, change.value, seen)
            if change.name == "locations":
                require(tx, call, row, "delete_image_location" if change.op == "remove" else "set_image_location")
            else:
                require(tx, call, row, "modify_image")
        return views.image(service.update(tx, call.ctx, row, changes))

    return service.db.write(work)


def delete(call: Call) -> Reply:
    service: ImageService = call.service

    def work(tx: Tx) -> None:
        row = service.get(tx, call.ctx, call.params["image_id"], change=True)
        require(tx, call, row, "delete_image")
        service.delete(tx, row)

    service.db.write(work)
    return Reply(status=204)


def deactivate(call: Call) -> Reply:
    return _set_deactivated(call, "deactivate", True)


def reactivate(call: Call) -> Reply:
    return _set_deactivated(call, "reactivate", False)


def _set_deactivated(call: Call, rule: str, deactivated: bool) -> Reply:
    service: ImageService = call.service

    def work(tx: Tx) -> None:
        row = service.get(tx, call.ctx, call.params["image_id"], change=True)
        require(tx, call, row, rule)
        service.set_deactivated(tx, row, deactivated)

    service.db.write(work)
    return Reply(status=204)


def add_tag(call: Call) -> Reply:
    tag = call.params["tag"]
    if len(tag) > 255:
        raise BadInput("Provided object does not match schema 'image': the tag is too long")
    return _change_tags(call, lambda tags: [*tags, tag])


def remove_tag(call: Call) -> Reply:
    tag = call.params["tag"]

    def without(tags: list[str]) -> list[str]:
        if tag not in tags:
            raise NotFound(f"Tag {tag} is not on the image.")
        return [other for other in tags if other != tag]

    return _change_tags(call, without)


def _change_tags(call: Call, change: Any) -> Reply:
    service: ImageService = call.service

    def work(tx: Tx) -> None:
        row = service.get(tx, call.ctx, call.params["image_id"], change=True)
        require(tx, call, row, "modify_image")
        store.change_image(tx, row.id, {"tags": rules.distinct_tags(change(row.tags))})

    service.db.write(work)
    return Reply(status=204)


# -- lists -----------------------------------------------------------------------------------------------------


def index(call: Call) -> dict[str, Any]:
    service: ImageService = call.service
    call.authorize("get_images", {"project_id": call.ctx.project_id})
    ask = _listing(call, service.settings.page_default, service.settings.page_max)
    marker_id = call.query.get("marker")

    def work(tx: Tx) -> list[store.ImageRow]:
        if marker_id is not None:
            marker = store.image(tx, marker_id)
            if marker is None or not service.visible(tx, call.ctx, marker):
                raise BadInput(f"No image found with ID {marker_id}")
            ask.marker = marker
        return service.list(tx, ask) if ask.limit else []

    rows = service.db.read(work)
    pairs = {key: value for key, value in call.query.items() if key != "marker"}
    body: dict[str, Any] = {"images": [views.image(row) for row in rows], "schema": "/v2/schemas/images"}
    body["first"] = "/v2/images" + (f"?{urlencode(pairs)}" if pairs else "")
    if rows and len(rows) == ask.limit:
        body["next"] = "/v2/images?" + urlencode({**pairs, "marker": rows[-1].id})
    return body


def parse_limit(text: str | None, default: int, maximum: int) -> int:
    if text is None:
        return min(default, maximum)
    try:
        limit = int(text)
    except ValueError:
        raise BadInput("limit param must be an integer") from None
    if limit < 0:
        raise BadInput("limit param must be positive")
    return min(limit, maximum)


def _listing(call: Call, page_default: int, page_max: int) -> Listing:
    query = call.query
    ask = Listing(project_id=call.ctx.project_id, admin=call.ctx.is_admin)
    ask.limit = parse_limit(query.get("limit"), page_default, page_max)
    ask.member_status = query.get("member_status", "accepted")
    if ask.member_status not in ("pending", "accepted", "rejected", "all"):
        raise BadInput(f"Invalid status: {ask.member_status}")
    ask.visibility = query.get("visibility") or None
    if ask.visibility is not None and ask.visibility not in (*rules.VISIBILITIES, "all"):
        raise BadInput(f"Invalid visibility value: {ask.visibility}")
    ask.tags = [tag.strip() for tag in query.getlist("tag")]
    ask.sorts = _sorting(query)
    ask.equal["os_hidden"] = _boolean("os_hidden", query.get("os_hidden", "false").lower())
    for key in query:
        if key not in _PAGING and key != "os_hidden":
            _filter(ask, key, query.get(key))
    return ask


def _boolean(name: str, text: str) -> bool:
    if text not in ("true", "false"):
        raise BadInput(f"Invalid value '{text}' for '{name}' filter. Valid values are 'true' or 'false'.")
    return text == "true"


def _filter(ask: Listing, key: str, value: str) -> None:
    if key == "changes-since":
        raise BadInput('The "changes-since" filter is no longer available on v2.')
    if key in _IN_FILTERS:
        op, _, rest = value.partition(":")
        if op == "in" and rest:
            ask.within[key] = split_quoted(rest)
        elif op in _COMPARE[:4] or op == "neq":
            raise BadInput(f"Unable to filter by unknown operator '{op}'.")
        else:
            ask.equal[key] = rest if op == "eq" and rest else value
    elif key == "protected":
        ask.equal[key] = _boolean(key, value)
    elif key in _TEXT_FILTERS:
        ask.equal[key] = value
    elif key in _TIME_FILTERS:
        ask.compare.append(_time_clause(key, value))
    elif key in _NUMBER_FILTERS:
        ask.equal[key] = _number(value)
    elif key[-4:] in ("_min", "_max") and key[:-4] in _NUMBER_FILTERS:
        column, number = IMAGES.c[key[:-4]], _number(value)
        ask.compare.append(column >= number if key.endswith("_min") else column <= number)
    else:
        ask.properties[key] = value


def _number(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        raise BadInput("Unable to filter on a range with a non-numeric value.") from None
    if abs(number) >= 2**63:
        raise BadInput("Unable to filter on a range with a number so large.")
    return number


def _time_clause(key: str, value: str) -> ColumnElement[bool]:
    op, _, text = value.partition(":")
    if op not in _COMPARE:
        op, text = "eq", value
    try:
        moment = parse_iso(text)
    except (ValueError, OverflowError):
        raise BadInput(f'Bad "{key}" query filter format. Use ISO 8601 DateTime notation.') from None
    # Stored to the microsecond, shown and compared to the second.
    second = IMAGES.c[key] - IMAGES.c[key] % 1_000_000
    clauses = {
        "gt": second > moment,
        "gte": second >= moment,
        "lt": second < moment,
        "lte": second <= moment,
        "eq": second == moment,
        "neq": second != moment,
    }
    return clauses[op]


def split_quoted(text: str) -> list[str]:
    """``a,"b,c",d``: values in double quotes may hold commas."""
    values: list[str] = []
    rest = text
    while True:
        if rest.startswith('"'):
            end = rest.find('"', 1)
            if end < 0:
                raise BadInput(f"Invalid filter value {text}. The quote is not closed.")
            values.append(rest[1:end])
            rest = rest[end + 1 :]
            if rest and not rest.startswith(","):
                raise BadInput(f"Invalid filter value {text}. There is no comma after closing quotation mark.")
            if not rest:
                return values
            rest = rest[1:]
        else:
            value, comma, rest = rest.partition(",")
            if '"' in value:
                raise BadInput(f"Invalid filter value {text}. There is no comma before opening quotation mark.")
            values.append(value)
            if not comma:
                return values


def _sorting(query: Any) -> Sort:
    keys: list[str] = []
    dirs: list[str] = []
    if "sort" in query:
        if "sort_key" in query or "sort_dir" in query:
            raise BadInput("Old and new sorting syntax cannot be combined")
        for part in query.get("sort").strip().split(","):
            key, _, direction = part.partition(":")
            keys.append(key.strip())
            dirs.append(direction.strip() or "desc")
    else:
        # Both were parsed as stacks upstream: the last given comes first.
        keys = [key.strip() for key in reversed(query.getlist("sort_key"))]
        dirs = [text.strip() for text in reversed(query.getlist("sort_dir"))]
    for key in keys:
        if key not in rules.SORT_KEYS:
            raise BadInput(f"Invalid sort key: {key}. It must be one of the following: {', '.join(rules.SORT_KEYS)}.")
    for direction in dirs:
        if direction not in ("asc", "desc"):
            raise BadInput(f"Invalid sort direction: {direction}")
    if len(dirs) > 1 and len(dirs) != len(keys):
        raise BadInput("Number of sort dirs does not match the number of sort keys")
    keys = keys or ["created_at"]
    dirs = dirs or ["desc"]
    if len(dirs) == 1:
        dirs *= len(keys)
    default = dirs[0] if len(set(dirs)) == 1 else "desc"
    for key in ("created_at", "id"):
        if key not in keys:
            keys.append(key)
            dirs.append(default)
    return tuple(zip(keys, dirs, strict=True))


ROUTES = [
    Route(method="GET", path="/images", handler=index, summary="List images"),
    Route(method="POST", path="/images", handler=create, success=201, summary="Create an image"),
    Route(method="GET", path="/images/{image_id}", handler=show, summary="Show an image"),
    Route(method="PATCH", path="/images/{image_id}", handler=update, media_types=(), summary="Update an image"),
    Route(method="DELETE", path="/images/{image_id}", handler=delete, success=204, summary="Delete an image"),
    Route(
        method="POST",
        path="/images/{image_id}/actions/deactivate",
        handler=deactivate,
        success=204,
        summary="Deactivate an image",
    ),
    Route(
        method="POST",
        path="/images/{image_id}/actions/reactivate",
        handler=reactivate,
        success=204,
        summary="Reactivate an image",
    ),
    Route(method="PUT", path="/images/{image_id}/tags/{tag}", handler=add_tag, success=204, summary="Add a tag"),
    Route(
        method="DELETE", path="/images/{image_id}/tags/{tag}", handler=remove_tag, success=204, summary="Remove a tag"
    ),
]
