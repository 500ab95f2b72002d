from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from cumulet.db import METADATA, Database


@pytest.fixture(scope="session")
def postgres_database(request: pytest.FixtureRequest) -> Iterator[Database]:
    """One for all tests: making the tables takes a second."""
    made = Database(request.getfixturevalue("postgres").new_database())
    made.create_all()
    yield made
    made.close()


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def db(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    if request.param == "postgres":
        shared: Database = request.getfixturevalue("postgres_database")
        names = ", ".join(f'"{table.name}"' for table in METADATA.sorted_tables)
        shared.write(lambda tx: tx.run(text(f"TRUNCATE {names}")))
        yield shared
        return
    made = Database(f"sqlite:///{tmp_path / 'c.db'}", durable=False)
    made.create_all()
    yield made
    made.close()
