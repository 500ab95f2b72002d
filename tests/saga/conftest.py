from collections.abc import Iterator
from pathlib import Path

import pytest

from cumulet.db import Database
from tests.saga.world import World


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    db = Database(f"sqlite:///{tmp_path / 'saga.db'}", durable=False)
    db.create_all()
    made = World(db)
    yield made
    made.close()
    db.close()
