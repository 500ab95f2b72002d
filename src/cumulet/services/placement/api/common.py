"""What the placement handlers share: links, times of last change, checked parameters."""

from email.utils import formatdate
from typing import Annotated, Any

import msgspec

from cumulet.http import Call, Reply
from cumulet.kernel.clock import SECOND
from cumulet.kernel.errors import BadInput
from cumulet.kernel.ids import is_uuid

PREFIX = "/placement"
BAD_VALUE = "placement.query.bad_value"
MISSING = "placement.query.missing_value"
DUPLICATE = "placement.query.duplicate_key"
MAX_INT = 2_147_483_647

Count = Annotated[int, msgspec.Meta(ge=0, le=MAX_INT)]
Positive = Annotated[int, msgspec.Meta(ge=1, le=MAX_INT)]
Amount = Annotated[int, msgspec.Meta(ge=1, le=MAX_INT)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
ClassName = Annotated[str, msgspec.Meta(pattern=r"^[A-Z0-9_]+$", max_length=255)]
Uuid = Annotated[
    str, msgspec.Meta(pattern=r"^[0-9a-fA-F]{8}-?[0-9a-fA-F]{4}-?[0-9a-fA-F]{4}-?[0-9a-fA-F]{4}-?[0-9a-fA-F]{12}$")
]


def since(call: Call, minor: int) -> bool:
    return call.version is not None and call.version >= (1, minor)


def body(call: Call, value: Any, changed: int | None = None, *, status: int | None = None, **headers: str) -> Reply:
    """An answer with a body, which from 1.15 on says when it last changed."""
    more = {name.replace("_", "-"): text for name, text in headers.items()}
    if since(call, 15):
        more["cache-control"] = "no-cache"
        more["last-modified"] = formatdate((changed or call.service.db.clock.now()) / SECOND, usegmt=True)
    return Reply(value, status=status, headers=more)


def empty(call: Call, status: int = 204, changed: int | None = None, **headers: str) -> Reply:
    return body(call, None, changed, status=status, **headers)


def plain(call: Call, status: int = 204, **headers: str) -> Reply:
    """Without a time: what changed something."""
    return Reply(None, status=status, headers={name.replace("_", "-"): text for name, text in headers.items()})


def location(call: Call, path: str) -> str:
    return f"{call.url_host}{PREFIX}{path}"


def check_query(call: Call, allowed: set[str]) -> None:
    """Unknown parameters are refused."""
    unknown = set(call.query.keys()) - allowed
    if unknown:
        raise BadInput(f"Invalid query string parameters: Additional properties are not allowed: {sorted(unknown)}.")


def one(call: Call, name: str) -> str | None:
    """A parameter that may be given once."""
    values = call.query.getlist(name)
    if len(values) > 1:
        raise BadInput(f"Query parameter {name} is given more than once.", code=DUPLICATE)
    return values[0] if values else None


def uuid_parameter(call: Call, name: str) -> str | None:
    value = one(call, name)
    if value is not None and not is_uuid(value):
        raise BadInput(f"Invalid query string parameters: {value!r} is not a uuid.", code=BAD_VALUE)
    return value


def present(value: Any) -> Any:
    """The value of an optional field, None when it is absent."""
    return None if value is msgspec.UNSET else value


def path_uuid(call: Call) -> str:
    return call.params["uuid"]
