"""Pages: what is asked for, and that walking them meets every row once, in order."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Column, Integer, MetaData, String, Table, create_engine, insert, select

from cumulet.http import Query, ordered, page_of, paged_in_memory
from cumulet.kernel.errors import BadInput, NotFound

THINGS = Table(
    "things", MetaData(), Column("id", String, primary_key=True), Column("name", String), Column("size", Integer)
)
COLUMNS = {"id": THINGS.c.id, "name": THINGS.c.name, "size": THINGS.c.size}
ROWS = st.lists(
    st.tuples(st.sampled_from([None, "a", "b", "c"]), st.sampled_from([None, 1, 2])), min_size=1, max_size=12
)
SORT = st.lists(
    st.tuples(st.sampled_from(["name", "size"]), st.sampled_from(["asc", "desc"])), max_size=2, unique_by=lambda p: p[0]
)


@settings(max_examples=60, deadline=None)
@given(rows=ROWS, sort=SORT, size=st.integers(1, 5), last=st.sampled_from(["asc", "desc"]))
def test_walking_pages_meets_every_row_once(rows: Any, sort: Any, size: int, last: str) -> None:
    engine = create_engine("sqlite://")
    THINGS.create(engine)
    values = [{"id": f"{i:03}", "name": name, "size": number} for i, (name, number) in enumerate(rows)]
    order = (*sort, ("id", last))
    with engine.begin() as connection:
        connection.execute(insert(THINGS), values)
        whole = [row.id for row in connection.execute(ordered(select(THINGS), COLUMNS, order, None))]
        met: list[str] = []
        marker: Any = None
        while True:
            page = connection.execute(ordered(select(THINGS), COLUMNS, order, marker).limit(size)).fetchall()
            met += [row.id for row in page]
            if len(page) < size:
                break
            marker = page[-1]._mapping
    assert met == whole
    assert sorted(met) == sorted(value["id"] for value in values)


@pytest.mark.parametrize(
    "query,sort,limit",
    [
        ("", (("created_at", "desc"), ("id", "desc")), None),
        ("limit=3", (("created_at", "desc"), ("id", "desc")), 3),
        ("limit=5000", (("created_at", "desc"), ("id", "desc")), 1000),
        ("sort_key=name&sort_dir=asc", (("name", "asc"), ("id", "asc")), None),
        ("sort_key=name&sort_key=size&sort_dir=asc", (("name", "asc"), ("size", "asc"), ("id", "asc")), None),
        ("sort=name:asc,size", (("name", "asc"), ("size", "desc"), ("id", "desc")), None),
        ("sort_dir=asc", (("created_at", "asc"), ("id", "asc")), None),
    ],
)
def test_what_is_asked_for(query: str, sort: Any, limit: int | None) -> None:
    page = page_of(Query(query), sort_keys={"name", "size"})
    assert (page.sort, page.limit) == (sort, limit)


@pytest.mark.parametrize(
    "query",
    ["limit=-1", "limit=1.5", "limit=٣", "sort_key=x", "sort=name:up", "sort_key=name&sort_dir=asc&sort_dir=asc"],
)
def test_what_is_refused(query: str) -> None:
    with pytest.raises(BadInput):
        page_of(Query(query), sort_keys={"name"})


def test_short_lists_are_paged_alike() -> None:
    items = [{"id": str(i), "name": name} for i, name in enumerate("cab")]

    def page(query: str) -> list[str]:
        wanted = page_of(Query(query), sort_keys={"name"}, default=(("name", "asc"),))
        found = paged_in_memory(items, wanted, key=lambda item, name: item[name], marker_missing=NotFound("x"))
        return [item["name"] for item in found]

    assert page("") == ["a", "b", "c"]
    assert page("marker=1&limit=1") == ["b"]
    with pytest.raises(NotFound):
        page("marker=9")
