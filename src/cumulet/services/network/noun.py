"""What all nouns of the network service share: reading, showing, standard attributes, visibility.

A noun (`networks.Networks`, `ports.Ports`, …) owns the rows of one resource and the rules that concern it; it takes
a `work.Work` for changes, and never commits.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from sqlalchemy import Table, bindparam, delete, select, update

from cumulet.db import Tx, to_change
from cumulet.kernel.clock import SECOND, iso
from cumulet.kernel.context import RequestContext
from cumulet.services.network import tables as t
from cumulet.services.network.faults import missing
from cumulet.services.network.intake import Given
from cumulet.services.network.query import Condition
from cumulet.services.network.resources import Resource

if TYPE_CHECKING:
    from cumulet.services.network.public import NetworkService
    from cumulet.services.network.work import Work


@lru_cache(maxsize=4096)
def _second(seconds: int) -> str | None:
    return iso(seconds * SECOND)


R = TypeVar("R", bound=t.Row)

_TAGS_OF = select(t.TAGS.c.resource_id, t.TAGS.c.tag).where(t.TAGS.c.resource_id.in_(bindparam("ids", expanding=True)))
_DELETE_TAGS = delete(t.TAGS).where(t.TAGS.c.resource_id.in_(bindparam("ids", expanding=True)))
CHUNK = 10_000  # ids in one IN list; SQLite takes 32 766 parameters


def chunks(ids: Iterable[str]) -> Iterable[list[str]]:
    found = list(dict.fromkeys(ids))
    for at in range(0, len(found), CHUNK):
        yield found[at : at + CHUNK]


def rows_in(tx: Tx, statement: Any, ids: Iterable[str]) -> list[Any]:
    """Run a statement with an expanding parameter ``ids``, in pieces."""
    found: list[Any] = []
    for piece in chunks(ids):
        found.extend(tx.rows(statement, {"ids": piece}))
    return found


def grouped(rows: Iterable[Any], key: int = 0) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for row in rows:
        found.setdefault(row[key], []).append(row)
    return found


class Noun(Generic[R]):
    resource: ClassVar[Resource]
    row: type[R]
    found_to_change: ClassVar[bool] = False  # whoever finds one while it writes is about to change it

    def __init__(self, service: "NetworkService") -> None:
        self.service = service
        table: Table = self.resource.table
        self._one = select(table).where(table.c.id == bindparam("id"))
        self._one_to_change = to_change(self._one)
        self._many = select(table).where(table.c.id.in_(bindparam("ids", expanding=True)))
        self._many_to_change = to_change(self._many.order_by(table.c.id))
        changeable = [c for c in table.c if c.name not in ("id", "created_at")]
        self._update = (
            update(table).where(table.c.id == bindparam("_id")).values({c: bindparam(c.name) for c in changeable})
        )
        self._update_names = [c.name for c in changeable]
        self._delete = delete(table).where(table.c.id.in_(bindparam("ids", expanding=True)))

    # -- reading ---------------------------------------------------------------------------------------------

    def find(self, tx: Tx, id: str, *, change: bool = False) -> R | None:
        """``change``: nobody else changes it until the end of a writing unit of work (`cumulet.db.to_change`)."""
        change = tx.writing and (change or self.found_to_change)
        row = tx.first(self._one_to_change if change else self._one, {"id": id})
        return None if row is None else self.row(*row)

    def get(self, tx: Tx, id: str, *, change: bool = False) -> R:
        row = self.find(tx, id, change=change)
        if row is None:
            raise self.not_found(id)
        return row

    def many(self, tx: Tx, ids: Iterable[str]) -> dict[str, R]:
        change = tx.writing and self.found_to_change
        return {row[0]: self.row(*row) for row in rows_in(tx, self._many_to_change if change else self._many, ids)}

    def not_found(self, id: str) -> Exception:
        return missing(self.resource.not_found, self.resource.label, id)

    def special_filter(self, tx: Tx, name: str, values: list[str]) -> Condition | None:
        """Conditions for filters that are not one column; None: it is one."""
        return None

    def scope(self, tx: Tx, ctx: RequestContext) -> list[Condition]:
        """What a caller without the right to see all may see, as far as SQL can tell: what meets one of these; policy
        has the last word. None that many rows meet overlaps another: each may be looked up by an index of its own."""
        return [self.resource.table.c.project_id == (ctx.project_id or "")]

    # -- showing ---------------------------------------------------------------------------------------------

    def views(self, tx: Tx, rows: Sequence[R]) -> list[dict[str, Any]]:
        """All attributes, in full; policy and ``fields`` take away later."""
        raise NotImplementedError

    def targets(self, tx: Tx, views: Sequence[dict[str, Any]]) -> Sequence[Mapping[str, Any]]:
        """What policy looks at, for each view."""
        return views

    def tags(self, tx: Tx, rows: Sequence[Any]) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for id, tag in rows_in(tx, _TAGS_OF, (row.id for row in rows)):
            found.setdefault(id, []).append(tag)
        return found

    @staticmethod
    def standard(row: Any) -> dict[str, Any]:
        return {
            "id": row.id,
            "tenant_id": row.project_id,
            "project_id": row.project_id,
            "description": row.description,
            "created_at": _second(row.created_at // SECOND),
            "updated_at": _second(row.updated_at // SECOND),
            "revision_number": row.revision,
        }

    # -- changing ----------------------------------------------------------------------------------------------

    def create_targets(self, tx: Tx, items: Sequence[Given]) -> Sequence[Mapping[str, Any]]:
        """What the create rule looks at, for each."""
        return items

    def create(self, work: "Work", items: list[Given]) -> list[R]:
        raise NotImplementedError

    def update(self, work: "Work", row: R, given: Given) -> R:
        raise NotImplementedError

    def delete(self, work: "Work", row: R) -> None:
        raise NotImplementedError

    @staticmethod
    def stamps(tx: Tx) -> dict[str, Any]:
        return {"created_at": tx.now, "updated_at": tx.now, "revision": 0}

    def save(self, tx: Tx, row: Any, *, bump: bool = True) -> None:
        if bump:
            row.revision += 1
            row.updated_at = tx.now
        values = {name: getattr(row, name) for name in self._update_names}
        tx.run(self._update, {**values, "_id": row.id})

    def remove(self, tx: Tx, ids: list[str]) -> None:
        for piece in chunks(ids):
            tx.run(_DELETE_TAGS, {"ids": piece})
            tx.run(self._delete, {"ids": piece})


def plain(given: Given, *names: str) -> dict[str, Any]:
    return {name: given[name] for name in names}


def apply(row: Any, given: Given, *names: str) -> None:
    """Copy simple attributes that were given onto the row."""
    for name in names:
        if name in given.explicit:
            setattr(row, name, given[name])
