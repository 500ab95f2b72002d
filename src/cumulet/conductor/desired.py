"""Which documents each host is to have: (host, kind, object) with the generation wanted and the one applied.

The documents themselves are built when a host pulls them, by the service that knows the kind; here is only the index.
A generation never falls, not even over removal: a new row begins at the present microsecond, an old one adds one.
Hints (``LookAgain``) leave after the commit, one for each host; a lost one costs time, nothing else.
"""

from collections.abc import Callable, Collection, Iterable
from operator import itemgetter
from typing import Any
from weakref import WeakKeyDictionary

import msgspec
from sqlalchemy import bindparam, delete, or_, select, text, update

from cumulet.agent.contract import Applied, Document, Documents, Index, LookAgain, Pull
from cumulet.bus import Bus
from cumulet.conductor.tables import DESIRED_DOCS as D
from cumulet.db import Tx
from cumulet.kernel.clock import SECOND

Builder = Callable[[Tx, str, str, int], Document | None]
AppliedHolder = Callable[[Tx, str, Iterable[tuple[str, str]]], object]
AppliedListener = Callable[[Tx, str, str, str, int, str | None], object]

_UPSERT = (
    "INSERT INTO desired_docs (host, kind, object_id, generation, applied_generation, absent, updated_at)"
    " VALUES (:host, :kind, :object_id, :now, 0, :absent, :now)"
    " ON CONFLICT (host, kind, object_id) DO UPDATE SET generation = desired_docs.generation + 1,"
    " absent = excluded.absent, updated_at = excluded.updated_at WHERE :revive OR NOT desired_docs.absent"
)
_TOUCH = text(_UPSERT + " RETURNING generation")
_TOUCH_MANY = text(_UPSERT)
_ME = (
    D.c.host == bindparam("the_host"),
    D.c.kind == bindparam("the_kind"),
    D.c.object_id == bindparam("the_object"),
)
_REMOVE = (
    update(D)
    .where(*_ME, D.c.absent.is_(False))
    .values(absent=True, generation=D.c.generation + 1, updated_at=bindparam("now"))
)
_ONE = select(D.c.generation, D.c.applied_generation, D.c.error, D.c.absent).where(*_ME)
_HOLDERS = (
    select(D.c.host)
    .where(D.c.kind == bindparam("the_kind"), D.c.object_id == bindparam("the_object"), D.c.absent.is_(False))
    .order_by(D.c.host)
)
_HELD = select(D.c.host, D.c.object_id).where(
    D.c.kind == bindparam("the_kind"), D.c.object_id.in_(bindparam("ids", expanding=True)), D.c.absent.is_(False)
)
_HELD_BY = select(D.c.kind, D.c.object_id).where(D.c.host == bindparam("the_host"), D.c.absent.is_(False))
_INDEX = select(D.c.kind, D.c.object_id, D.c.generation).where(
    D.c.host == bindparam("the_host"), or_(D.c.absent.is_(False), D.c.applied_generation < D.c.generation)
)
_SOME = select(D.c.kind, D.c.object_id, D.c.generation, D.c.absent).where(
    D.c.host == bindparam("the_host"),
    D.c.kind == bindparam("the_kind"),
    D.c.object_id.in_(bindparam("ids", expanding=True)),
)
_APPLIED = (
    update(D)
    .where(*_ME, D.c.generation >= bindparam("the_generation"), D.c.applied_generation <= bindparam("the_generation"))
    .values(applied_generation=bindparam("the_generation"), error=bindparam("error"), applied_at=bindparam("now"))
)
_FAILED = (
    update(D)
    .where(*_ME, D.c.generation >= bindparam("the_generation"), D.c.applied_generation <= bindparam("the_generation"))
    .values(error=bindparam("error"), applied_at=bindparam("now"))
)
_BEHIND = select(D.c.host, D.c.kind, D.c.object_id, D.c.generation, D.c.applied_generation, D.c.error).where(
    D.c.applied_generation < D.c.generation
)
_LATE = select(
    D.c.host, D.c.kind, D.c.object_id, D.c.generation, D.c.applied_generation, D.c.error, D.c.updated_at
).where(D.c.applied_generation < D.c.generation)
_PURGE = delete(D).where(
    D.c.absent.is_(True), D.c.applied_generation == D.c.generation, D.c.updated_at < bindparam("before")
)
_FORGET = delete(D).where(D.c.host == bindparam("the_host"))
_HINTED_AT_MOST = 500  # keys in one hint; more mean "compare everything"


class Desired:
    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._builders: dict[str, Builder] = {}
        self._listeners: list[AppliedListener] = []
        self._holders: list[AppliedHolder] = []
        self._hints: WeakKeyDictionary[Tx, dict[str, set[tuple[str, str]]]] = WeakKeyDictionary()

    def register(self, kind: str, build: Builder) -> None:
        """``build(tx, host, object_id, generation)``: the document, or None if the object is no more."""
        if kind in self._builders:
            raise ValueError(f"document kind {kind} has a builder")
        self._builders[kind] = build

    def on_applied(self, listener: AppliedListener) -> None:
        """``fn(tx, host, kind, object_id, generation, error)``, in the transaction that records a report."""
        self._listeners.append(listener)

    def before_applied(self, holder: AppliedHolder) -> None:
        """``fn(tx, host, [(kind, object_id)])``, before anything of a report is recorded: takes the rows that its
        listener may change. Who changes them and then says that documents changed never waits for a report that waits
        for it."""
        self._holders.append(holder)

    # -- wanting --------------------------------------------------------------------------------------------------

    def touch(self, tx: Tx, host: str, kind: str, object_id: str) -> int:
        """The host is to have this document in its present form; the generation."""
        values = {"host": host, "kind": kind, "object_id": object_id, "now": tx.now, "absent": False, "revive": True}
        generation = int(tx.scalar(_TOUCH, values))
        self._hint(tx, host, kind, object_id)
        return generation

    def touch_many(
        self,
        tx: Tx,
        keys: Iterable[tuple[str, str, str]],
        *,
        hint: bool = True,
        of_others: Collection[tuple[str, str, str]] = (),
    ) -> None:
        """`touch` for many (host, kind, object) in one statement. Without a hint the hosts find out when they next
        compare: for documents that come to them otherwise. ``of_others``: those that only change their form; what
        another unit of work removed meanwhile stays removed."""
        wanted = list(keys)
        if not wanted:
            return
        tx.run(
            _TOUCH_MANY,
            [
                {
                    "host": key[0],
                    "kind": key[1],
                    "object_id": key[2],
                    "now": tx.now,
                    "absent": False,
                    "revive": key not in of_others,
                }
                for key in wanted
            ],
        )
        for key in wanted if hint else ():
            self._hint(tx, *key)

    def touch_holders(self, tx: Tx, kind: str, object_id: str) -> list[str]:
        """Every host that has this document is to have it in its present form; those hosts."""
        hosts = self.holders(tx, kind, object_id)
        for host in hosts:
            self.touch(tx, host, kind, object_id)
        return hosts

    def remove(self, tx: Tx, host: str, kind: str, object_id: str) -> None:
        """The host is not to have it any more."""
        key = {"the_host": host, "the_kind": kind, "the_object": object_id, "now": tx.now}
        if tx.run(_REMOVE, key):
            self._hint(tx, host, kind, object_id)

    def applied(self, tx: Tx, host: str, kind: str, object_id: str) -> tuple[int, int, str | None] | None:
        """(generation wanted, generation applied, error); None if the host never was to have it. A removed document is
        applied when the host reported its removal."""
        row = tx.first(_ONE, {"the_host": host, "the_kind": kind, "the_object": object_id})
        return None if row is None else (row[0], row[1], row[2])

    def holders(self, tx: Tx, kind: str, object_id: str) -> list[str]:
        """The hosts that are to have it."""
        return [row[0] for row in tx.rows(_HOLDERS, {"the_kind": kind, "the_object": object_id})]

    def held(self, tx: Tx, kind: str, ids: Iterable[str]) -> set[tuple[str, str, str]]:
        """The (host, kind, object) under which hosts are to have these objects."""
        return {(row[0], kind, row[1]) for row in tx.rows(_HELD, {"the_kind": kind, "ids": sorted(ids)})}

    def behind(self, tx: Tx) -> list[tuple[str, str, str, int, int, str | None]]:
        """What hosts have not applied: (host, kind, id, generation, applied, error)."""
        return [tuple(row) for row in tx.rows(_BEHIND)]

    def late(self, tx: Tx) -> list[tuple[str, str, str, int, int, str | None, int]]:
        """`behind`, with the time since when it is wanted."""
        return [tuple(row) for row in tx.rows(_LATE)]

    def forget_host(self, tx: Tx, host: str) -> int:
        """The host is no more."""
        return tx.run(_FORGET, {"the_host": host})

    def purge(self, tx: Tx, older_seconds: float = 86_400) -> int:
        return tx.run(_PURGE, {"before": tx.now - int(older_seconds * SECOND)})

    def _hint(self, tx: Tx, host: str, kind: str, object_id: str) -> None:
        hints = self._hints.get(tx)
        if hints is None:
            hints = self._hints[tx] = {}
            tx.after_commit(lambda: self._send_hints(hints))
        hints.setdefault(host, set()).add((kind, object_id))

    def _send_hints(self, hints: dict[str, set[tuple[str, str]]]) -> None:
        for host, keys in hints.items():
            self._bus.cast(f"agent.{host}", LookAgain(keys=sorted(keys) if len(keys) <= _HINTED_AT_MOST else []))

    # -- hosts ask and report -----------------------------------------------------------------------------------------

    def held_by(self, tx: Tx, host: str) -> list[tuple[str, str]]:
        """(kind, object) of all that the host is to have."""
        return [(row[0], row[1]) for row in tx.rows(_HELD_BY, {"the_host": host})]

    def index(self, tx: Tx, host: str) -> Index:
        """What it is to have, and what it did not yet report removed: it may never have had it, or have died between
        the removal and its report."""
        return Index(entries=[(row[0], row[1], row[2]) for row in tx.rows(_INDEX, {"the_host": host})])

    def pull(self, tx: Tx, message: Pull) -> Documents:
        """What is wanted is built; what was removed, or is no more, is named absent; what was never heard of is not
        named (the host keeps and reports it)."""
        wanted: dict[str, list[str]] = {}
        for kind, object_id in message.keys:
            wanted.setdefault(kind, []).append(object_id)
        documents: list[tuple[str, dict[str, Any]]] = []
        absent: list[tuple[str, str, int]] = []
        for kind, ids in wanted.items():
            build = self._builders.get(kind)
            if build is None:
                continue
            for row in tx.rows(_SOME, {"the_host": message.host, "the_kind": kind, "ids": ids}):
                document = None if row[3] else build(tx, message.host, row[1], row[2])
                if document is None:
                    absent.append((kind, row[1], row[2]))
                else:
                    documents.append((kind, msgspec.to_builtins(document)))
        return Documents(documents=documents, absent=absent)

    def report(self, tx: Tx, message: Applied) -> None:
        """Rows are changed in the order of `touch_many`'s callers, so that the two never wait for each other."""
        entries = sorted(message.entries, key=itemgetter(0, 1))
        for holder in self._holders:
            holder(tx, message.host, [(entry[0], entry[1]) for entry in entries])
        for kind, object_id, generation, error in entries:
            values = {
                "the_host": message.host, "the_kind": kind, "the_object": object_id, "the_generation": generation,
                "error": error, "now": tx.now,
            }  # fmt: skip
            if not tx.run(_APPLIED if error is None else _FAILED, values):
                continue  # an old report, or of something we do not know
            for listener in self._listeners:
                listener(tx, message.host, kind, object_id, generation, error)

    def kinds(self) -> Iterable[str]:
        return self._builders.keys()
