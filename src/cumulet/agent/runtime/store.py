"""What an agent keeps on disk: journal of operations, outbox of outcomes and reports, last documents.

One SQLite file of the host's own, mode 0600 (operation bodies may hold a password until they are done). WAL with
synchronous=NORMAL: nothing is lost when a process dies; at power loss the last commits may be, which the protocol
heals: the conductor asks about an operation, hears ``unknown`` and sends it again (bodies are idempotent), and
documents and inventory are compared at every start.
"""

import sqlite3
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from cumulet.agent.contract import Execute, Outcome, ServerReport

_SCHEMA = """
CREATE TABLE IF NOT EXISTS operations (
    op_id TEXT PRIMARY KEY, object_id TEXT NOT NULL, body BLOB, outcome BLOB,
    acknowledged INTEGER NOT NULL DEFAULT 0, changed INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS unfinished ON operations (changed) WHERE acknowledged = 0;
CREATE TABLE IF NOT EXISTS epochs (object_id TEXT PRIMARY KEY, epoch INTEGER NOT NULL, changed INTEGER NOT NULL)
    WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS documents (
    kind TEXT NOT NULL, id TEXT NOT NULL, generation INTEGER NOT NULL, body BLOB NOT NULL,
    PRIMARY KEY (kind, id)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS reports (server_id TEXT PRIMARY KEY, sequence INTEGER NOT NULL, body BLOB NOT NULL)
    WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS numbers (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
"""


def dump_sqlite(source: sqlite3.Connection) -> bytes:
    """A whole database as bytes, whatever journal its file has."""
    memory = sqlite3.connect(":memory:")
    try:
        source.backup(memory, sleep=0.002)
        content = bytearray(memory.serialize())
        content[18:20] = b"\x01\x01"  # no write-ahead log: one in memory cannot be opened
        return bytes(content)
    finally:
        memory.close()


def load_sqlite(target: sqlite3.Connection, content: bytes) -> None:
    """Put such bytes in the place of a database."""
    memory = sqlite3.connect(":memory:")
    try:
        memory.deserialize(content)
        memory.backup(target, sleep=0.002)
    finally:
        memory.close()


_DAY = 86_400 * 1_000_000
_encode = msgspec.json.Encoder().encode
_execute = msgspec.json.Decoder(Execute)
_outcome = msgspec.json.Decoder(Outcome)
_report = msgspec.json.Decoder(ServerReport)


class AgentStore:
    """``path`` None: in memory (tests, the emulator). Every method is one transaction; any thread may call."""

    def __init__(self, path: Path | None) -> None:
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(mode=0o600)
        self._lock = threading.Lock()
        self._db = sqlite3.connect(":memory:" if path is None else path, isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._db.executescript(_SCHEMA)

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def dump(self) -> bytes:
        """All that is kept now, for `load`."""
        with self._lock:
            return dump_sqlite(self._db)

    def load(self, content: bytes) -> None:
        """Keep this, and nothing else."""
        with self._lock:
            load_sqlite(self._db, content)

    def _write(self, *statements: tuple[str, tuple[Any, ...]]) -> None:
        with self._lock:
            if len(statements) == 1:
                self._db.execute(*statements[0])
                return
            self._db.execute("BEGIN IMMEDIATE")
            try:
                for sql, values in statements:
                    self._db.execute(sql, values)
                self._db.execute("COMMIT")
            except BaseException:
                self._db.execute("ROLLBACK")
                raise

    def _rows(self, sql: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        with self._lock:
            return self._db.execute(sql, values).fetchall()

    # -- operations ------------------------------------------------------------

    def accept(self, execute: Execute, now: int) -> None:
        self._write(
            (
                "INSERT INTO operations (op_id, object_id, body, changed) VALUES (?, ?, ?, ?)",
                (execute.op_id, execute.object_id, _encode(execute), now),
            ),
            _set_epoch(execute.object_id, execute.epoch, now),
        )

    def set_epoch(self, object_id: str, epoch: int, now: int) -> None:
        self._write(_set_epoch(object_id, epoch, now))

    def finish(self, outcome: Outcome, now: int) -> None:
        """The end of an operation; its body (and any secret in it) is forgotten."""
        self._write(
            (
                "UPDATE operations SET outcome = ?, body = NULL, changed = ? WHERE op_id = ?",
                (_encode(outcome), now, outcome.op_id),
            )
        )

    def acknowledge(self, op_id: str, now: int) -> None:
        self._write(("UPDATE operations SET acknowledged = 1, changed = ? WHERE op_id = ?", (now, op_id)))

    def outcome(self, op_id: str) -> Outcome | None:
        """Of a finished operation."""
        rows = self._rows("SELECT outcome FROM operations WHERE op_id = ? AND outcome IS NOT NULL", (op_id,))
        return _outcome.decode(rows[0][0]) if rows else None

    def unfinished(self) -> list[Execute]:
        """Taken and not ended, in the order in which they came."""
        rows = self._rows("SELECT body FROM operations WHERE outcome IS NULL ORDER BY changed, op_id")
        return [_execute.decode(row[0]) for row in rows]

    def unacknowledged(self) -> list[Outcome]:
        rows = self._rows(
            "SELECT outcome FROM operations WHERE acknowledged = 0 AND outcome IS NOT NULL ORDER BY changed"
        )
        return [_outcome.decode(row[0]) for row in rows]

    def epochs(self) -> dict[str, int]:
        return dict(self._rows("SELECT object_id, epoch FROM epochs"))

    def prune(self, now: int, days: int = 2, epoch_days: int = 60) -> None:
        """Forget acknowledged operations, and epochs of objects that nobody touched for long."""
        self._write(
            ("DELETE FROM operations WHERE acknowledged = 1 AND changed < ?", (now - days * _DAY,)),
            ("DELETE FROM epochs WHERE changed < ?", (now - epoch_days * _DAY,)),
        )

    # -- documents ------------------------------------------------------------

    def documents(self) -> list[tuple[str, str, int, bytes]]:
        return self._rows("SELECT kind, id, generation, body FROM documents ORDER BY kind, id")

    def save_document(self, kind: str, object_id: str, generation: int, body: bytes) -> None:
        self._write(
            (
                "INSERT INTO documents (kind, id, generation, body) VALUES (?, ?, ?, ?) ON CONFLICT (kind, id)"
                " DO UPDATE SET generation = excluded.generation, body = excluded.body",
                (kind, object_id, generation, body),
            )
        )

    def forget_document(self, kind: str, object_id: str) -> None:
        self._write(("DELETE FROM documents WHERE kind = ? AND id = ?", (kind, object_id)))

    # -- reports ------------------------------------------------------------

    def last_sequence(self) -> int:
        rows = self._rows("SELECT value FROM numbers WHERE name = 'sequence'")
        return rows[0][0] if rows else 0

    def save_report(self, report: ServerReport) -> None:
        """The last report of a server waits until it is acknowledged; an earlier one is superseded."""
        self._write(
            (
                "INSERT INTO numbers (name, value) VALUES ('sequence', ?)"
                " ON CONFLICT (name) DO UPDATE SET value = excluded.value",
                (report.sequence,),
            ),
            (
                "INSERT INTO reports (server_id, sequence, body) VALUES (?, ?, ?) ON CONFLICT (server_id)"
                " DO UPDATE SET sequence = excluded.sequence, body = excluded.body",
                (report.server_id, report.sequence, _encode(report)),
            ),
        )

    def save_sequence(self, sequence: int) -> None:
        self._write(
            (
                "INSERT INTO numbers (name, value) VALUES ('sequence', ?)"
                " ON CONFLICT (name) DO UPDATE SET value = excluded.value",
                (sequence,),
            )
        )

    def forget_reports(self, reports: Iterable[ServerReport]) -> None:
        self._write(
            *(
                ("DELETE FROM reports WHERE server_id = ? AND sequence <= ?", (report.server_id, report.sequence))
                for report in reports
            )
        )

    def reports(self) -> list[ServerReport]:
        return [_report.decode(row[0]) for row in self._rows("SELECT body FROM reports ORDER BY sequence")]


def _set_epoch(object_id: str, epoch: int, now: int) -> tuple[str, tuple[Any, ...]]:
    return (
        "INSERT INTO epochs (object_id, epoch, changed) VALUES (?, ?, ?)"
        " ON CONFLICT (object_id) DO UPDATE SET epoch = max(epoch, excluded.epoch), changed = excluded.changed",
        (object_id, epoch, now),
    )
