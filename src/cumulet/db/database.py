"""Units of work over SQLite or PostgreSQL.

Owns: connections, transactions, retries, serialisation of what must be serial, hooks that run after commit.
Refuses: I/O, RPC or hashing inside a unit of work (they are retried whole, so they must be pure functions of the
database); a unit of work inside another on the same thread.
Fails: with `kernel.errors.Unavailable` when the database cannot be reached or stays locked.

SQLite: WAL, synchronous=FULL (NORMAL may lose the last commits at power loss, and the saga journal drives outside
effects), one writer at a time under a process lock with BEGIN IMMEDIATE, reads gated one at a time because pysqlite
releases the GIL at each row and threads would fight for it (measured: half the CPU time). PostgreSQL: READ COMMITTED
and transaction-scoped advisory locks.
"""

import hashlib
import logging
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, TypeVar, cast

from sqlalchemy import Connection, Executable, Select, Table, bindparam, create_engine, event, insert, text, update
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError
from sqlalchemy.pool import QueuePool, StaticPool

from cumulet.db.prepared import Statements
from cumulet.db.schema import METADATA
from cumulet.kernel.clock import Clock, SystemClock
from cumulet.kernel.errors import Unavailable
from cumulet.kernel.trace import current_transactions

_log = logging.getLogger(__name__)
T = TypeVar("T")
Params = Mapping[str, Any] | Sequence[Mapping[str, Any]] | None
_NOTHING: dict[str, Any] = {}
_WRITE_ATTEMPTS = 8
_RETRYABLE_PG = {"40001", "40P01", "55P03"}  # serialization failure, deadlock, lock not available
_INTEGRITY_ATTEMPTS = 3


class Tx:
    """One transaction. Every statement of the product goes through ``rows``, ``first``, ``scalar``, ``run`` or
    ``insert``. ``now`` is the same for the whole transaction."""

    def __init__(self, db: "Database", connection: Connection, *, writing: bool) -> None:
        self._db = db
        self._connection = connection
        self._gate = db.gate if not writing else None
        self._hooks: list[Callable[[], object]] = []
        self.writing = writing
        self.statements = 0
        self.written = 0  # statements that may have changed something
        self._locks: set[tuple[str, str]] = set()
        self.now = db.clock.now()

    def rows(self, statement: Executable, params: Params = None) -> Sequence[Any]:
        self.statements += 1
        self._db.count_statement()
        bound = self._bound(statement, params)
        if self._gate is None:
            return self._fetch(statement, params, bound)
        with self._gate:
            return self._fetch(statement, params, bound)

    def _bound(self, statement: Executable, params: Params) -> Any:
        """(prepared, text, values) if the driver can be asked directly."""
        if params is None:
            params = _NOTHING
        elif not isinstance(params, dict):
            return None
        prepared = self._db.statements_known.prepare(statement, params)
        bound = None if prepared is None else prepared.bind(params)
        return None if bound is None else (prepared, *bound)

    def _fetch(self, statement: Executable, params: Params, bound: Any) -> Sequence[Any]:
        if bound is None:
            return self._connection.execute(statement, params).fetchall()
        prepared, text, values = bound
        found: list[Any] = prepared.rows(self._execute(text, values))
        return found

    def _execute(self, text: str, values: Any, *, many: bool = False) -> Any:
        driver = self._connection.connection.dbapi_connection
        assert driver is not None
        try:
            cursor = driver.cursor()
            (cursor.executemany if many else cursor.execute)(text, values)
        except Exception as error:
            raise self._db.failed(self._connection, text, values, error) from error
        return cursor

    def first(self, statement: Executable, params: Params = None) -> Any:
        found = self.rows(statement, params)
        return found[0] if found else None

    def scalar(self, statement: Executable, params: Params = None) -> Any:
        row = self.first(statement, params)
        return None if row is None else row[0]

    def run(self, statement: Executable, params: Params = None) -> int:
        """Execute a writing statement; the number of rows it touched."""
        assert self.writing, "a read unit of work does not write"
        self.statements += 1
        self.written += 1
        self._db.count_statement()
        if isinstance(params, list):
            if len(params) == 1:
                params = params[0]
            elif not self._db.is_postgres:
                return self._run_many(statement, params)
        bound = self._bound(statement, params)
        if bound is None:
            return self._connection.execute(statement, params).rowcount
        _, text, values = bound
        count: int = self._execute(text, values).rowcount
        return count

    def _run_many(self, statement: Executable, params: list[Mapping[str, Any]]) -> int:
        found = [self._bound(statement, one) for one in params]
        texts = {None if bound is None else bound[1] for bound in found}
        if len(texts) != 1 or None in texts:
            return self._connection.execute(statement, params).rowcount
        count: int = self._execute(str(texts.pop()), [bound[2] for bound in found], many=True).rowcount
        return count

    def insert(self, table: Table, values: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> None:
        if values:
            self.run(self._db.insert_statement(table), values)

    def update(self, table: Table, id: str, values: Mapping[str, Any]) -> int:
        """Set columns of the row whose column ``id`` is this."""
        return self.run(self._db.update_statement(table, tuple(sorted(values))), {**values, "the_id": id})

    def lock(self, kind: str, key: str) -> None:
        """Serialise with every other unit of work that takes the same lock, until the end of this one.

        On SQLite BEGIN IMMEDIATE already did. Take locks in the order of ``(kind, key)``."""
        assert self.writing
        if self._db.is_postgres and (kind, key) not in self._locks:
            self._locks.add((kind, key))
            digest = hashlib.blake2b(f"{kind}:{key}".encode(), digest_size=8).digest()
            number = int.from_bytes(digest, "big", signed=True)
            self.rows(_ADVISORY_LOCK, {"key": number})

    def hold(self, statement: Executable, params: Params) -> None:
        """Take the rows of a `to_change` or `to_refer` now that are changed or referred to later, so that all units of
        work take rows in one order. On SQLite nothing is to be done."""
        assert self.writing
        if self._db.is_postgres:
            self.rows(statement, params)

    def after_commit(self, hook: Callable[[], object]) -> None:
        """Run after the commit, on this thread. A hook is a hint: it may be lost with the process."""
        self._hooks.append(hook)

    def run_hooks(self) -> None:
        for hook in self._hooks:
            hook()


_ADVISORY_LOCK = text("SELECT pg_advisory_xact_lock(:key)")


def to_change(statement: Select[Any], *, unreferred: bool = False) -> Select[Any]:
    """The same rows, for a unit of work that decides by them what to change: nobody else changes or deletes them until
    its end, and it sees them as the last who did has left them. Others may still refer to them, unless
    ``unreferred``: then who does so by `to_refer` waits, or was waited for.

    On SQLite BEGIN IMMEDIATE already saw to it. To lock one row is cheaper than `Tx.lock`, which is for what has no row
    or for many at once."""
    return statement.with_for_update(key_share=not unreferred)


def to_refer(statement: Select[Any]) -> Select[Any]:
    """The same rows, for a unit of work that will refer to them where no foreign key says so: they stay until its
    end. Any number may do so at once."""
    return statement.with_for_update(read=True, key_share=True)


class Database:
    """``url``: ``sqlite:///PATH``, ``sqlite://`` (in memory, one process) or ``postgresql://…``."""

    def __init__(self, url: str, *, clock: Clock | None = None, durable: bool = True) -> None:
        self.url = url
        self.clock = clock or SystemClock()
        self.is_postgres = url.startswith("postgresql")
        self.in_memory = url == "sqlite://"
        self.gate: threading.Lock | None = None if self.is_postgres else threading.Lock()
        self._write_lock = threading.Lock()
        self._local = threading.local()
        self._inserts: dict[str, Executable] = {}
        self._updates: dict[tuple[str, tuple[str, ...]], Executable] = {}
        self.statements = 0
        self._readers: deque[Connection] = deque()  # of SQLite: connections are kept, not asked for each time
        self._writer: Connection | None = None
        self._closed = False
        if self.is_postgres:
            self.engine = create_engine(
                url.replace("postgresql://", "postgresql+psycopg2://", 1),
                pool_size=16,
                max_overflow=16,
                pool_pre_ping=True,
            )
        else:
            self.engine = create_engine(
                url,
                poolclass=StaticPool if self.in_memory else QueuePool,
                connect_args={"check_same_thread": False, "timeout": 30, "isolation_level": None},
                **({} if self.in_memory else {"pool_size": 32, "max_overflow": 32}),
            )
            event.listen(self.engine, "connect", _sqlite_pragmas(durable))
            event.listen(self.engine, "begin", _sqlite_begin)
        self.statements_known = Statements(self.engine.dialect)

    # -- units of work ---------------------------------------------------------------------------------

    def read(self, work: Callable[[Tx], T]) -> T:
        """Run ``work`` on a consistent view; it must not write."""
        if getattr(self._local, "tx", None) is not None:
            raise RuntimeError("a unit of work inside another")
        with self._begin(writing=False) as tx:
            return work(tx)

    def write(self, work: Callable[[Tx], T]) -> T:
        """Run ``work`` in one serialised transaction and commit. It is retried whole when the database says
        so, and so must have no effect outside of it. Hooks given to ``after_commit`` run after the commit."""
        if getattr(self._local, "tx", None) is not None:
            raise RuntimeError("a unit of work inside another")
        for attempt in range(_WRITE_ATTEMPTS):
            try:
                with self._begin(writing=True) as tx:
                    result = work(tx)
                break
            except DBAPIError as error:
                if attempt == _WRITE_ATTEMPTS - 1 or not self._retryable(error, attempt):
                    raise
                _log.info("another unit of work was in the way, this one is tried again: %s", error.orig)
        noted = current_transactions()
        if noted is not None:
            noted.append((tx.now, self.clock.now(), tx.statements))
        tx.run_hooks()
        return result

    def glance(self, statement: Executable, params: dict[str, Any]) -> Sequence[Any]:
        """The rows of one SELECT on committed data, without a unit of work around it. For checks that every request
        makes."""
        if self.in_memory or self.is_postgres:
            return self.read(lambda tx: tx.rows(statement, params))
        try:
            connection = self._take(False)
        except OperationalError as error:
            raise Unavailable("The database cannot be reached. Try again later.") from error
        connection.info["begun"] = True  # each statement by itself
        try:
            return Tx(self, connection, writing=False).rows(statement, params)
        finally:
            self._end(connection, "rollback")
            self._give_back(connection, False)

    @contextmanager
    def _begin(self, *, writing: bool) -> Iterator[Tx]:
        serial = self.in_memory or (writing and not self.is_postgres)
        if serial and not self._write_lock.acquire(timeout=60):
            raise Unavailable("The database is busy. Try again later.")
        try:
            try:
                connection = self._take(writing)
            except OperationalError as error:
                raise Unavailable("The database cannot be reached. Try again later.") from error
            try:
                if not self.is_postgres:
                    self._raw(connection, "BEGIN IMMEDIATE" if writing else "BEGIN")
                    connection.info["begun"] = True
                tx = Tx(self, connection, writing=writing)
                self._local.tx = tx
                yield tx
                self._end(connection, "commit")
            except BaseException:
                self._end(connection, "rollback")
                raise
            finally:
                self._local.tx = None
                self._give_back(connection, writing)
        finally:
            if serial:
                self._write_lock.release()

    def _take(self, writing: bool) -> Connection:
        if self.is_postgres:
            return self.engine.connect()
        if writing:
            kept, self._writer = self._writer, None
            return kept or self.engine.connect()
        try:
            return self._readers.pop()
        except IndexError:
            return self.engine.connect()

    def _give_back(self, connection: Connection, writing: bool) -> None:
        if self.is_postgres or connection.invalidated or self._closed:
            connection.close()
        elif writing:
            self._writer = connection
        else:
            self._readers.append(connection)

    def _end(self, connection: Connection, how: Literal["commit", "rollback"]) -> None:
        """Whoever began it: SQLAlchemy does with the first statement that it executes."""
        if connection.invalidated:
            connection.rollback()
            return
        connection.info.pop("begun", None)
        if connection.in_transaction():
            getattr(connection, how)()
            return
        driver = connection.connection.dbapi_connection
        assert driver is not None
        if self.is_postgres:
            try:
                getattr(driver, how)()
            except Exception as error:
                raise self.failed(connection, how, None, error) from error
        elif driver.in_transaction:
            self._raw(connection, how)

    def _raw(self, connection: Connection, text: str) -> None:
        driver: Any = connection.connection.dbapi_connection
        try:
            driver.execute(text)
        except Exception as error:
            raise self.failed(connection, text, None, error) from error

    def failed(self, connection: Connection, text: str, values: Any, error: Exception) -> BaseException:
        """What the driver raised, as SQLAlchemy raises it; a connection that is lost is not used again."""
        driver = connection.connection.dbapi_connection
        wrapped = self.statements_known.failure(text, values, error, self.engine.dialect.dbapi, driver)
        if getattr(wrapped, "connection_invalidated", False):
            connection.invalidate(wrapped)
        return wrapped

    def _retryable(self, error: DBAPIError, attempt: int) -> bool:
        if self.is_postgres:
            if isinstance(error, IntegrityError):  # what was checked, another unit of work has changed: check again
                return attempt < _INTEGRITY_ATTEMPTS - 1
            return getattr(error.orig, "pgcode", None) in _RETRYABLE_PG or error.connection_invalidated
        return isinstance(error, OperationalError) and "locked" in str(error.orig)

    # -- small services ----------------------------------------------------------------------------------

    def insert_statement(self, table: Table) -> Executable:
        found = self._inserts.get(table.name)
        if found is None:
            found = self._inserts[table.name] = insert(table)
        return found

    def update_statement(self, table: Table, columns: tuple[str, ...]) -> Executable:
        found = self._updates.get((table.name, columns))
        if found is None:
            found = update(table).where(table.c.id == bindparam("the_id")).values({n: bindparam(n) for n in columns})
            self._updates[table.name, columns] = found
        return found

    def count_statement(self) -> None:
        self.statements += 1
        counter = getattr(self._local, "counter", None)
        if counter is not None:
            counter[0] += 1

    @contextmanager
    def counting(self) -> Iterator[list[int]]:
        """Count the statements that this thread executes: ``with db.counting() as n: …; n[0]``."""
        outer = getattr(self._local, "counter", None)
        self._local.counter = counter = [0]
        try:
            yield counter
        finally:
            self._local.counter = outer
            if outer is not None:
                outer[0] += counter[0]

    def alone(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """SQLite: run on the driver's connection while nobody writes, and in memory nobody reads (the emulator, which
        copies whole databases)."""
        assert not self.is_postgres
        with self._write_lock:
            connection = self.engine.raw_connection()
            try:
                return work(cast(sqlite3.Connection, connection.driver_connection))
            finally:
                connection.close()

    def create_all(self) -> None:
        """Create every registered table that is missing (the emulator and tests; others migrate)."""
        with self.engine.connect() as connection:
            connection.info["immediate"] = not self.is_postgres
            with connection.begin():
                METADATA.create_all(connection)
            connection.info["immediate"] = False

    def close(self) -> None:
        self._closed = True
        for connection in [*self._readers, *filter(None, [self._writer])]:
            connection.close()
        self._readers.clear()
        self._writer = None
        self.engine.dispose()


def _sqlite_pragmas(durable: bool) -> Callable[[Any, Any], None]:
    def on_connect(connection: Any, record: Any) -> None:
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.execute("PRAGMA cache_size=-2000")  # KiB, of each of a dozen connections; the system caches the file
        cursor.close()

    return on_connect


def _sqlite_begin(connection: Connection) -> None:
    """SQLAlchemy begins with the first statement that it executes; mostly a transaction is open by then."""
    if not connection.info.get("begun"):
        connection.exec_driver_sql("BEGIN IMMEDIATE" if connection.info.get("immediate") else "BEGIN")
