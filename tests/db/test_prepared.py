"""Statements given straight to the driver do what SQLAlchemy does with them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Column, MetaData, Table, bindparam, func, select, text, update
from sqlalchemy.exc import IntegrityError, OperationalError, StatementError

from cumulet.db import Database
from cumulet.db.schema import Bool, Id, Json, Text, Time

THINGS = Table(
    "prepared_things",
    MetaData(),
    Column("id", Id, primary_key=True),
    Column("name", Text),
    Column("at", Time, nullable=False),
    Column("ready", Bool, nullable=False),
    Column("more", Json),
)
BY_ID = select(THINGS).where(THINGS.c.id == bindparam("id"))
SOME = select(THINGS.c.id, THINGS.c.more).where(THINGS.c.id.in_(bindparam("ids", expanding=True))).order_by(THINGS.c.id)
READY = select(func.count()).where(THINGS.c.ready.is_(True), THINGS.c.name != "other")
RENAME = update(THINGS).where(THINGS.c.id == bindparam("the_id")).values(name=bindparam("name"), at=THINGS.c.at + 1)
PLAIN = text("SELECT id, at FROM prepared_things WHERE at >= :at ORDER BY at")
ROWS = [
    {"id": "a", "name": "one", "at": 1, "ready": True, "more": {"x": [1, None]}},
    {"id": "b", "name": None, "at": 2, "ready": False, "more": None},
    {"id": "c", "name": "drei ✓", "at": 2**60, "ready": True, "more": []},
]


@pytest.fixture(params=["sqlite", "memory", pytest.param("postgres", marks=pytest.mark.postgres)])
def db(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    urls = {"sqlite": f"sqlite:///{tmp_path / 'p.db'}", "memory": "sqlite://"}
    url = urls.get(request.param) or request.getfixturevalue("postgres").new_database()
    made = Database(url)
    with made.engine.connect() as connection:
        connection.info["immediate"] = not made.is_postgres
        THINGS.metadata.create_all(connection)
        connection.commit()
    yield made
    made.close()


def twice(db: Database, work: Any) -> Any:
    """By SQLAlchemy, then prepared: the same."""
    first, second = db.read(work), db.read(work)
    assert first == second
    return second


def fill(db: Database) -> None:
    for row in ROWS:
        db.write(lambda tx, row=row: tx.insert(THINGS, row))  # the second and third are prepared


def test_what_goes_in_comes_out(db: Database) -> None:
    fill(db)
    for row in ROWS:
        found = twice(db, lambda tx, row=row: tx.first(BY_ID, {"id": row["id"]}))
        assert tuple(found) == tuple(row.values())
        assert (found.ready, found.more, found.id) == (row["ready"], row["more"], row["id"])
        assert type(found.ready) is bool
    assert twice(db, lambda tx: tx.first(BY_ID, {"id": "none"})) is None
    assert twice(db, lambda tx: tx.scalar(READY)) == 2


def test_lists(db: Database) -> None:
    fill(db)
    for ids in (["a"], ["a", "c", "none"], [], ["b", "a"]):
        found = twice(db, lambda tx, ids=ids: tx.rows(SOME, {"ids": ids}))
        assert [row.id for row in found] == sorted(set(ids) - {"none"})


def test_plain_text_has_names(db: Database) -> None:
    fill(db)
    assert [(row.id, row.at) for row in twice(db, lambda tx: tx.rows(PLAIN, {"at": 2}))] == [("b", 2), ("c", 2**60)]


def test_updates_count_rows_and_follow_their_parameters(db: Database) -> None:
    fill(db)
    for name in ("x", "y", "z"):
        assert db.write(lambda tx, name=name: tx.run(RENAME, {"the_id": "a", "name": name})) == 1
        assert db.write(lambda tx: tx.run(RENAME, {"the_id": "none", "name": "x"})) == 0
    row = db.read(lambda tx: tx.first(BY_ID, {"id": "a"}))
    assert (row.name, row.at) == ("z", 4)
    for more in ({}, {"name": "less"}, {"name": "more", "more": {"y": 1}}):  # each set of columns is a statement
        values = {"id": f"n{len(more)}", "at": 5, "ready": False, **more}
        db.write(lambda tx, values=values: tx.insert(THINGS, values))
    assert db.read(lambda tx: tx.first(BY_ID, {"id": "n2"})).more == {"y": 1}


def test_failures_are_sqlalchemys_and_roll_back(db: Database) -> None:
    fill(db)

    def doubled(tx: Any) -> None:
        tx.insert(THINGS, {**ROWS[0], "id": "new"})
        tx.insert(THINGS, ROWS[0])

    for _ in range(2):
        with pytest.raises(IntegrityError):
            db.write(doubled)
    assert db.read(lambda tx: tx.first(BY_ID, {"id": "new"})) is None
    for _ in range(2):
        with pytest.raises(StatementError):  # SQLAlchemy says which parameter is missing
            db.read(lambda tx: tx.rows(BY_ID))
    fill_again = {"id": "after", "name": None, "at": 0, "ready": False, "more": None}
    db.write(lambda tx: tx.insert(THINGS, fill_again))
    assert db.read(lambda tx: tx.first(BY_ID, {"id": "after"})).at == 0


def test_a_lost_connection_is_not_used_again(db: Database) -> None:
    if not db.is_postgres:
        pytest.skip("SQLite has none to lose")
    fill(db)
    twice(db, lambda tx: tx.scalar(READY))
    kill = text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = pg_backend_pid()")
    for _ in range(2):
        with pytest.raises(OperationalError):
            db.read(lambda tx: tx.rows(kill))
    assert db.read(lambda tx: tx.scalar(READY)) == 2


def test_statements_of_one_call_are_not_kept(db: Database) -> None:
    fill(db)
    for number in range(50):
        statement = select(THINGS.c.id).where(THINGS.c.at == number)
        db.read(lambda tx, statement=statement: tx.rows(statement))
        del statement
    assert len(db.statements_known) < 20
