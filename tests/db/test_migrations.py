"""The migrations make exactly the tables that the code declares, on both databases."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import MetaData, Table, inspect

from cumulet.db import Database, migrate
from cumulet.db.migrations import HEAD

HINT = "the tables changed: run `python -m cumulet.db.migrate initial` and `ruff format` what it writes"


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'm.db'}"
    else:
        yield request.getfixturevalue("postgres").new_database()


def product_tables() -> MetaData:
    """Without the tables that tests register."""
    metadata = MetaData(naming_convention=migrate.load_tables().naming_convention)
    for table in migrate.load_tables().sorted_tables:
        if not table.name.startswith("test_"):
            table.to_metadata(metadata)
    return metadata


def test_the_migrations_make_what_the_tables_declare(url: str) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.runtime.migration import MigrationContext

    assert migrate.upgrade(url)
    db = Database(url)
    with db.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, product_tables()) == [], HINT
    db.close()


def shape(db: Database) -> dict[str, Any]:
    """Columns, keys and indexes as the database has them."""
    found = inspect(db.engine)
    return {
        name: {
            "columns": [(c["name"], str(c["type"]), c["nullable"], c["default"]) for c in found.get_columns(name)],
            "key": found.get_pk_constraint(name),
            "unique": sorted(map(str, found.get_unique_constraints(name))),
            "foreign": sorted(map(str, found.get_foreign_keys(name))),
            "indexes": sorted(map(_index, found.get_indexes(name))),
            "checks": sorted(map(str, found.get_check_constraints(name))),
        }
        for name in found.get_table_names()
        if name != "alembic_version" and not name.startswith("test_")
    }


def _index(index: Any) -> str:
    options = {name: str(value) for name, value in index.get("dialect_options", {}).items()}  # of partial ones
    return str({**index, "dialect_options": options})


def test_migrating_and_creating_at_once_are_the_same(url: str, tmp_path: Path, request: Any) -> None:
    migrate.upgrade(url)
    other = (
        request.getfixturevalue("postgres").new_database()
        if url.startswith("postgresql")
        else f"sqlite:///{tmp_path / 'other.db'}"
    )
    migrated, created = Database(url), Database(other)
    tables: list[Table] = list(product_tables().sorted_tables)
    with created.engine.connect() as connection:
        connection.info["immediate"] = True
        with connection.begin():
            tables[0].metadata.create_all(connection)
    assert shape(migrated) == shape(created), HINT
    migrated.close()
    created.close()


def test_the_newest_revision_is_known_without_alembic() -> None:
    from alembic.script import ScriptDirectory

    assert ScriptDirectory.from_config(migrate._config()).get_current_head() == HEAD


def test_upgrading_again_does_nothing_and_imports_nothing(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'm.db'}"
    assert migrate.upgrade(url)
    code = (
        "import sys; from cumulet.db import migrate; "
        f"assert migrate.upgrade({url!r}) is False; assert 'alembic' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_several_processes_may_upgrade_at_once(url: str) -> None:
    failures: list[BaseException] = []

    def upgrade() -> None:
        try:
            migrate._with_alembic(db, "upgrade")
        except BaseException as error:  # noqa: BLE001 - shown by the assertion
            failures.append(error)

    db = Database(url)
    threads = [threading.Thread(target=upgrade) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert migrate.current(db) == HEAD
    assert migrate.upgrade(db) is False
    db.close()


def test_the_command_says_what_it_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = f"sqlite:///{tmp_path / 'm.db'}"
    assert migrate.main(["upgrade", url]) == 0
    assert migrate.main(["upgrade", url]) == 0
    assert capsys.readouterr().out.endswith("upgraded\nup to date\n")
    assert migrate.main(["sideways"]) == 2
