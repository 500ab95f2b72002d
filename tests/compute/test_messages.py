"""Bodies that do not fit their schema are refused in nova's words."""

from typing import Any

import pytest

from tests.compute.helpers import Nova

CASES = [
    ({}, "'server' is a required property"),
    ({"server": {"name": "a"}}, "Invalid input for field/attribute server. Value: {'name': 'a'}. 'flavorRef' is"),
    ({"server": {"name": "", "flavorRef": "1"}}, "Invalid input for field/attribute name. Value: . '' is too short"),
    ({"server": {"name": 3, "flavorRef": "1"}}, "field/attribute name. Value: 3. 3 is not of type 'string'"),
    ({"server": {"name": "a", "flavorRef": "1", "min_count": 0}}, "0 is less than the minimum of 1"),
    ({"server": {"name": "a", "flavorRef": "1", "metadata": {"a": 5}}}, "field/attribute metadata. Value: {'a': 5}."),
    ({"server": {"name": "a", "flavorRef": "1", "tags": ["a", "b" * 61]}}, "is too long"),
    ({"server": {"name": "a", "flavorRef": "1", "x": 1}}, "Additional properties are not allowed ('x' was unexpected)"),
    ({"server": []}, "Invalid input for field/attribute server. Value: []. [] is not of type 'object'"),
]


@pytest.mark.parametrize(("body", "message"), CASES, ids=str)
def test_schema_errors(nova: Nova, body: dict[str, Any], message: str) -> None:
    answer = nova.post("/servers", body)
    assert answer.status == 400
    assert message in answer["badRequest"]["message"]
