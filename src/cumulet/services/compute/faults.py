"""Errors of the compute API: nova's form, also for bodies that do not fit their schema."""

import re
from collections.abc import Callable
from typing import Any

from cumulet.http import NovaFaults
from cumulet.http.body import BadField
from cumulet.http.faults import FaultRequest
from cumulet.kernel.errors import CloudError

_TYPES = {
    "str": "string",
    "uuid": "string",
    "int": "integer",
    "float": "number",
    "bool": "boolean",
    "array": "array",
    "object": "object",
    "null": "null",
}
_Words = Callable[[re.Match[str], Any], str]
_REASONS: tuple[tuple[re.Pattern[str], _Words], ...] = (
    (re.compile(r"Object missing required field `(.*)`"), lambda m, v: f"{m[1]!r} is a required property"),
    (
        re.compile(r"Object contains unknown field `(.*)`"),
        lambda m, v: f"Additional properties are not allowed ({m[1]!r} was unexpected)",
    ),
    (re.compile(r"Expected `(?:str|array)[^`]*` of length >= (\d+)"), lambda m, v: f"{v!r} is too short"),
    (re.compile(r"Expected `(?:str|array)[^`]*` of length <= (\d+)"), lambda m, v: f"{v!r} is too long"),
    (re.compile(r"Expected `str[^`]*` matching regex (.*)"), lambda m, v: f"{v!r} does not match {m[1]}"),
    (re.compile(r"Expected `(?:int|float)[^`]*` >= (.*)"), lambda m, v: f"{v} is less than the minimum of {m[1]}"),
    (re.compile(r"Expected `(?:int|float)[^`]*` <= (.*)"), lambda m, v: f"{v} is greater than the maximum of {m[1]}"),
    (
        re.compile(r"Expected `([a-z |]+)`, got `.*`"),
        lambda m, v: f"{v!r} is not of type {', '.join(repr(_TYPES.get(t, t)) for t in m[1].split(' | '))}",
    ),
)


def reason_of(field: BadField) -> str:
    """msgspec's reason in the words of JSON schema validators, where there are such."""
    for pattern, words in _REASONS:
        found = pattern.fullmatch(field.reason)
        if found is not None:
            return words(found, field.value)
    return field.reason


class ComputeFaults(NovaFaults):
    def body(self, status: int, error: CloudError, request: FaultRequest) -> Any:
        field = error.details.get("field")
        if not isinstance(field, BadField):
            return super().body(status, error, request)
        message = reason_of(field)
        if field.name:
            message = f"Invalid input for field/attribute {field.name}. Value: {field.value}. {message}"
        return super().body(status, CloudError(message, status=status), request)
