"""The cloud of compute's tests: the session's, with an image and flavors to boot from."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.compute.helpers import Nova


@pytest.fixture(scope="session")
def nova(cloud: Any) -> Iterator[Nova]:
    return Nova(cloud)
