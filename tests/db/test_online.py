"""Migrations are applied online: what runs meanwhile, of the release before too, goes on; repeating one is harmless."""

import ast
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from cumulet.db import Database, migrate
from cumulet.db.migrations import HEAD

VERSIONS = sorted((Path(migrate.__file__).parent / "migrations" / "versions").glob("[0-9]*.py"))
_ADDS = {"create_table", "create_index", "batch_alter_table", "add_column", "f", "execute"}
_INSERT = text(
    "INSERT INTO server_tags (server_id, tag) VALUES (:server_id, :tag)"
)  # a table that every revision has, written as the first one did


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'm.db'}"
    else:
        yield request.getfixturevalue("postgres").new_database()


def at_revision(url: str, revision: str) -> Database:
    """A database as the release with this revision left it."""
    from alembic import command

    db = Database(url, durable=False)
    with db.engine.connect() as connection:
        connection.info["immediate"] = not db.is_postgres
        with connection.begin():
            config = migrate._config(connection)
            config.attributes["batch"] = not db.is_postgres
            command.upgrade(config, revision)
        connection.info["immediate"] = False
    return db


def test_writers_go_on_while_the_schema_is_brought_up_to_date(url: str) -> None:
    """Three writers of the first release, through every migration there is; the second upgrade does nothing."""
    db = at_revision(url, "0001")
    others = [Database(url, durable=False) for _ in range(3)]
    stop = threading.Event()
    failures: list[BaseException] = []
    written, slowest = [0] * 3, [0.0] * 3

    def write(number: int) -> None:
        try:
            while not stop.is_set():
                began = time.monotonic()
                values = {"server_id": f"s{number}", "tag": str(written[number])}
                others[number].write(lambda tx: tx.run(_INSERT, values))  # noqa: B023 - done before the next round
                slowest[number] = max(slowest[number], time.monotonic() - began)
                written[number] += 1
        except BaseException as error:  # noqa: BLE001 - shown by the assertion
            failures.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()

    def each_went_on(before: list[int]) -> bool:
        """SQLite's writers wait for each other without a queue: one may starve for a while."""
        end = time.monotonic() + 30
        while time.monotonic() < end and not failures:
            if all(now > then for now, then in zip(written, before, strict=True)):
                return True
            time.sleep(0.01)
        return False

    try:
        before_went_on = each_went_on([0] * 3)
        assert migrate.upgrade(db)
        went_on = each_went_on(list(written))
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)
    assert failures == []
    assert before_went_on
    assert went_on
    assert db.read(lambda tx: tx.scalar(text("SELECT count(*) FROM server_tags"))) == sum(written)
    assert migrate.current(db) == HEAD
    assert migrate.upgrade(db) is False
    print(f"longest wait of a writer: {max(slowest):.3f} s")
    for one in (db, *others):
        one.close()


def test_an_upgrade_that_is_killed_is_taken_up_again(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is one transaction: half of it is none of it."""
    from alembic.operations import Operations

    db = at_revision(url, "0001")
    create_table = Operations.create_table
    made: list[str] = []

    def dies(self: Any, name: str, *more: Any, **options: Any) -> Any:
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(name)
        return create_table(self, name, *more, **options)

    monkeypatch.setattr(Operations, "create_table", dies)
    with pytest.raises(KeyboardInterrupt):
        migrate.upgrade(db)
    monkeypatch.undo()
    assert migrate.current(db) == "0001"
    assert migrate.upgrade(db)
    assert migrate.current(db) == HEAD
    db.close()


@pytest.mark.parametrize("path", VERSIONS[1:], ids=lambda path: path.stem)
def test_a_migration_only_adds(path: Path) -> None:
    """The release before still runs on the new schema: nothing it knows is taken or changed, and what is new has a
    value when it is not given. What contracts says so (``CONTRACTS = "why nobody needs it any more"``)."""
    tree = ast.parse(path.read_text())
    names = {
        node.targets[0].id
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    if "CONTRACTS" in names:
        return
    (upgrade,) = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "upgrade"]
    for call in [node for node in ast.walk(upgrade) if isinstance(node, ast.Call)]:
        function = call.func
        if not (isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name)):
            continue
        if function.value.id not in ("op", "batch_op"):
            continue
        assert function.attr in _ADDS, f"{path.name}: {function.attr} is not for a release that others run beside"
        if function.attr == "add_column":
            column = next(a for a in call.args if isinstance(a, ast.Call))
            given = {keyword.arg: keyword.value for keyword in column.keywords}
            nullable = given.get("nullable")
            free = nullable is None or (isinstance(nullable, ast.Constant) and nullable.value is True)
            assert free or "server_default" in given, f"{path.name}: the release before cannot insert into this table"
