"""Which lost pings Open vSwitch is held responsible for, upon three hosts."""

import pytest

from tests.hosts.chaos import lost_to_links

CHANGE = 100.0


@pytest.mark.parametrize(
    ("lost", "excused"),
    [
        ({500}, {500}),
        ({500, 501}, {500, 501}),
        ({499, 501}, {499, 501}),
        ({499, 500, 501}, set()),
        ({500, 501, 502, 503}, set()),
        ({510}, set()),  # long after
        ({510, 500}, {500}),
        ({502, 503}, {502}),  # one of them is too late for the change
    ],
)
def test_few_near_a_change_of_links(lost: set[int], excused: set[int]) -> None:
    sent_at = {number: number * 0.2 for number in range(1000)}
    assert lost_to_links(lost, sent_at, [CHANGE]) == excused


def test_none_without_a_change() -> None:
    assert lost_to_links({500}, {500: CHANGE}, []) == set()
