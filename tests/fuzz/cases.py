"""schemathesis' own requests for one operation of an OpenAPI document, in a fixed order for a seed."""

from collections.abc import Iterator
from typing import Any

import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode

_QUIET = list(HealthCheck)


def operations(document: dict[str, Any]) -> list[Any]:
    """GET first and DELETE last, so that what the others work on is still there."""
    schema = schemathesis.openapi.from_dict(document)
    found = [result.ok() for result in schema.get_all_operations()]
    order = {"get": 0, "head": 0, "post": 1, "put": 2, "patch": 2, "delete": 4}
    return sorted(found, key=lambda operation: order[operation.method.lower()])


def cases(operation: Any, count: int, number: int) -> Iterator[tuple[bool, Any]]:
    """``count`` pairs (negative?, case); half of them negative where the operation can be sent something wrong."""
    takes_input = bool(list(operation.body)) or bool(list(operation.headers)) or bool(list(operation.query))
    negative = count // 2 if takes_input else 0
    made = list(_generate(operation, GenerationMode.NEGATIVE, negative, number))
    yield from ((False, case) for case in _generate(operation, GenerationMode.POSITIVE, count - len(made), number))
    yield from ((True, case) for case in made)


def _generate(operation: Any, mode: GenerationMode, count: int, number: int) -> list[Any]:
    found: list[Any] = []
    if count == 0:
        return found

    @seed(number)
    @settings(max_examples=count, database=None, deadline=None, phases=[Phase.generate], suppress_health_check=_QUIET)
    @given(operation.as_strategy(generation_mode=mode))
    def run(case: Any) -> None:
        found.append(case)

    try:
        run()
    except Unsatisfiable:
        return found
    size = len(found)
    while size and len(found) < count:  # few values are possible; the rest differs in ids and versions
        found.append(found[len(found) % size])
    return found
