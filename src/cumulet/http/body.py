"""Bodies and query strings, decoded into structs with errors that name the field."""

import re
from typing import Any, NamedTuple

import msgspec

from cumulet.http.call import Query, Version
from cumulet.http.faults import Faults
from cumulet.http.router import Operation
from cumulet.kernel.errors import BadInput, CloudError

_decode = msgspec.json.Decoder().decode
_LONG_NUMBER = re.compile(rb"\d{19}|[eE]\+?\d")
_WHERE = re.compile(r"^(.*?)(?: - at `(?:key in )?\$?(.*)`)?\Z", re.DOTALL)
_STEP = re.compile(r"[^.\[\]]+")
_INT64 = 1 << 63


def media_type(header: str | None) -> str:
    return (header or "").partition(";")[0].strip().lower()


def parse_json(raw: bytes) -> Any:
    """Any JSON value; refuses what no database column could hold (NUL characters, integers beyond 64 bits)."""
    try:
        value = _decode(raw)
        if b"\\u0000" in raw or _LONG_NUMBER.search(raw):
            _check_values(value)
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError) as error:
        raise BadInput(f"The request body is not valid JSON: {error}") from None
    except RecursionError:
        raise BadInput("The request body is nested too deeply.") from None
    return value


def _check_values(value: Any) -> None:
    if isinstance(value, str):
        if "\0" in value:
            raise BadInput("A value in the request body holds a NUL character.")
    elif isinstance(value, bool):
        return
    elif isinstance(value, int):
        if not -_INT64 <= value < _INT64:
            raise BadInput("A number in the request body is out of range.")
    elif isinstance(value, list):
        for item in value:
            _check_values(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            _check_values(key)
            _check_values(item)


def decode_body(operation: Operation, document: Any, version: Version | None) -> tuple[Any, Any]:
    """``document``: the parsed body. Unwraps, refuses fields of other versions, converts; the converted value and
    the plain one."""
    route = operation.route
    prefix = "$"
    if route.body_key is not None:
        if not isinstance(document, dict):
            raise BadInput(f"The request body must be an object with the key {route.body_key!r}.")
        if route.body_key not in document:
            raise BadInput(f"The request body lacks the required key {route.body_key!r}.")
        extra = document.keys() - {route.body_key}
        if extra and _forbids_unknown(route.body):
            raise BadInput(f"Additional properties are not allowed: {', '.join(sorted(map(repr, extra)))}.")
        document = document[route.body_key]
        prefix = f"$.{route.body_key}"
    if operation.fields is not None and version is not None:
        operation.fields.check(document, version)
    return convert(document, route.body, strict=route.strict, prefix=prefix), document


def _forbids_unknown(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct) and kind.__struct_config__.forbid_unknown_fields


def convert(value: Any, kind: Any, *, strict: bool = True, prefix: str = "$") -> Any:
    try:
        return msgspec.convert(value, kind, strict=strict)
    except msgspec.ValidationError as error:
        message, where = _parted(str(error))
        field = _STEP.findall((prefix + where)[1:])
        if "..." in where:
            message = f"one of its values: {message}"
        at = BadField(field[-1] if field else "", _value_at(value, _STEP.findall(where)), message)
        raise BadInput(explain(str(error), prefix), field=at) from None
    except RecursionError:
        raise BadInput("The request body is nested too deeply.") from None


class BadField(NamedTuple):
    """What a service's faults may say more of a body that did not fit, in its own words."""

    name: str  # empty: the whole body
    value: Any
    reason: str


def _value_at(value: Any, path: list[str]) -> Any:
    for step in path:
        if isinstance(value, list) and step.isdigit():
            value = value[int(step)]
        elif isinstance(value, dict) and step in value:
            value = value[step]
        else:
            return value  # in a mapping, msgspec does not say which key
    return value


def _parted(text: str) -> tuple[str, str]:
    found = _WHERE.match(text)
    return (found.group(1), found.group(2) or "") if found else (text, "")


def explain(text: str, prefix: str = "$") -> str:
    """msgspec's message with the field in front."""
    message, where = _parted(text)
    path = (prefix + where).removeprefix("$").removeprefix(".")
    if not path:
        return f"Invalid input: {message}."
    return f"Invalid input for field {path!r}: {message}."


def decode_query(operation: Operation, query: Query) -> Any:
    values: dict[str, Any] = {}
    for name in query:
        if name in operation.query_lists:
            values[name] = query.getlist(name)
        else:
            values[name] = query.get(name)
    try:
        return msgspec.convert(values, operation.route.query, strict=False)
    except msgspec.ValidationError as error:
        raise BadInput(explain(str(error)).replace("field", "query parameter", 1)) from None


def check_media_type(operation: Operation, header: str | None, faults: Faults) -> CloudError | None:
    accepted = operation.route.media_types
    if not accepted:
        return None
    kind = media_type(header)
    if not kind or kind in accepted or "*/*" in accepted:
        return None
    return faults.unsupported_media(kind, accepted)


def one_action(document: Any) -> tuple[str, Any]:
    """The name and the argument of a body ``{"action": argument}``."""
    if not isinstance(document, dict):
        raise BadInput("The request body must be an object with the action as its only key.")
    if len(document) != 1:
        raise BadInput(f"The request body must hold exactly one action, not {len(document)}.")
    return next(iter(document.items()))
