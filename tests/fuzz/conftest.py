"""One cloud for all of fuzzing, seeded with one of each noun; the log of defects."""

import logging
import random
from collections.abc import Iterator
from typing import Any

import pytest

from tests.fuzz.asgi import InProcess
from tests.fuzz.values import Pools
from tests.fuzz.world import World


class Defects(logging.Handler):
    """What the HTTP layer logs as a defect, also where the client was told something mild."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.seen: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.seen.append(logging.Formatter().format(record))

    def take(self) -> list[str]:
        seen, self.seen = self.seen, []
        return seen


@pytest.fixture(scope="session")
def fuzz_seed(request: pytest.FixtureRequest) -> int:
    number: int = request.config.getoption("--fuzz-seed")
    return number


@pytest.fixture(scope="session")
def world(cloud: Any, fuzz_seed: int) -> World:
    made = World(cloud, Pools(random.Random(fuzz_seed)))
    made.fill()
    return made


@pytest.fixture(scope="session")
def client(cloud: Any) -> Iterator[InProcess]:
    made = InProcess(cloud.control.http)
    yield made
    made.close()


@pytest.fixture
def defects() -> Iterator[Defects]:
    handler = Defects()
    logger = logging.getLogger("cumulet.http")
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)
