"""Fills a private cloud's database with as many rows as a large cloud has: copies of rows that the cloud itself wrote.

A copy of a server has all that the server has (port, address, allocations, sagas and their steps, actions), under ids
of its own that are scattered as random ones are. Only SQLite, and only while nobody else writes.
Fails: with `sqlite3.Error` when a table or column that it knows is not there.
"""

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

_BATCH = 5000
GROUP = 100  # ports in one security group
_SCATTER = 2_654_435_761  # odd: n -> n * it (mod 2**32) gives every number once

Vary = Callable[[int], object]


def scattered(uid: str, n: int) -> str:
    """An id like this one, another for each ``n``."""
    return f"{n * _SCATTER & 0xFFFFFFFF:08x}{uid[8:]}"


class Rows:
    """Rows of one table that are copied for each new object."""

    def __init__(self, table: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        self.table, self.columns, self.rows = table, list(columns), rows


class Crowd:
    def __init__(self, database: Path) -> None:
        self._connection = sqlite3.connect(database, isolation_level=None, timeout=60)
        self._connection.execute("PRAGMA synchronous=OFF")

    def close(self) -> None:
        self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self._connection.close()

    def one(self, sql: str, *values: object) -> object:
        found = self._connection.execute(sql, values).fetchone()
        return None if found is None else found[0]

    def find(self, table: str, column: str, values: Iterable[object]) -> Rows:
        """The rows of which copies are to be made."""
        wanted = list(values)
        marks = ",".join("?" * len(wanted))
        cursor = self._connection.execute(f"SELECT * FROM {table} WHERE {column} IN ({marks})", wanted)
        return Rows(table, [one[0] for one in cursor.description], cursor.fetchall())

    def copy(
        self,
        rows: Rows,
        numbers: Sequence[int],
        *,
        ids: Iterable[str] = (),
        words: Callable[[int], dict[str, str]] = lambda n: {},
        vary: dict[str, Vary] | None = None,
    ) -> None:
        """Each row once for each number. ``ids`` get another value per number wherever they stand, also inside text;
        ``words(n)`` are replaced likewise; ``vary``: columns with a value of their own."""
        given = {rows.columns.index(column): value for column, value in (vary or {}).items()}
        known = list(ids)
        marks = ",".join("?" * len(rows.columns))
        sql = f"INSERT INTO {rows.table} ({','.join(rows.columns)}) VALUES ({marks})"
        patterns = [list(self._plan(row, given, known, words(numbers[0]))) for row in rows.rows]
        for first in range(0, len(numbers), _BATCH):
            self._connection.execute("BEGIN IMMEDIATE")
            batch = numbers[first : first + _BATCH]
            self._connection.executemany(sql, self._made(rows, patterns, batch, known, words))
            self._connection.execute("COMMIT")

    @staticmethod
    def _plan(
        row: Sequence[object], given: dict[int, Vary], ids: list[str], words: dict[str, str]
    ) -> Iterator[tuple[int, Vary | None]]:
        """(column, its own value, or None: text in which something is replaced); other columns stay."""
        for place, value in enumerate(row):
            if place in given:
                yield place, given[place]
            elif isinstance(value, str) and any(word in value for word in (*ids, *words)):
                yield place, None

    @staticmethod
    def _made(
        rows: Rows,
        patterns: list[list[tuple[int, Vary | None]]],
        numbers: Sequence[int],
        ids: list[str],
        words: Callable[[int], dict[str, str]],
    ) -> Iterator[list[object]]:
        for n in numbers:
            fresh = {uid: scattered(uid, n) for uid in ids} | words(n)
            for row, pattern in zip(rows.rows, patterns, strict=True):
                made = list(row)
                for place, value in pattern:
                    if value is not None:
                        made[place] = value(n)
                        continue
                    text = made[place]
                    exact = fresh.get(text)  # type: ignore[call-overload]
                    if exact is None:
                        exact = str(text)
                        for old, new in fresh.items():
                            exact = exact.replace(old, new)
                    made[place] = exact
                yield made


def hosts(crowd: Crowd, like: str, numbers: Sequence[int]) -> None:
    """Compute hosts like this one. They are taken for alive; nobody answers there."""
    rows = crowd.find("hosts", "name", [like])
    uid = str(crowd.one("SELECT uuid FROM hosts WHERE name = ?", like))
    top = int(str(crowd.one("SELECT max(number) FROM hosts")))
    later = int(str(crowd.one("SELECT max(seen_at) FROM hosts"))) + 24 * 3600 * 1_000_000
    crowd.copy(
        rows,
        numbers,
        ids=[uid],
        words=lambda n: {like: host_name(n)},
        vary={"number": lambda n: top + n, "roles": lambda n: '["compute"]', "seen_at": lambda n: later},
    )
    provider = str(crowd.one("SELECT uuid FROM resource_providers WHERE name = ?", like))
    crowd.copy(
        crowd.find("resource_providers", "uuid", [provider]),
        numbers,
        ids=[provider],
        words=lambda n: {like: host_name(n)},
    )
    for table in ("inventories", "resource_provider_traits"):
        crowd.copy(crowd.find(table, "provider_uuid", [provider]), numbers, ids=[provider])


def host_name(n: int) -> str:
    return f"crowd-{n:04d}"


def groups(crowd: Crowd, like: str, numbers: Sequence[int]) -> None:
    """Security groups like the one of this server's port, with its rules."""
    group = _group_of(crowd, like)
    rules = [str(row[0]) for row in crowd.find("security_group_rules", "security_group_id", [group]).rows]
    crowd.copy(
        crowd.find("security_groups", "id", [group]),
        numbers,
        ids=[group],
        vary={"name": lambda n: f"crowd-{n}", "default_for": lambda n: None},
    )
    crowd.copy(crowd.find("security_group_rules", "id", rules), numbers, ids=[group, *rules])


def _group_of(crowd: Crowd, server: str) -> str:
    return str(
        crowd.one(
            "SELECT security_group_id FROM port_security_groups JOIN ports ON ports.id = port_id WHERE device_id = ?",
            server,
        )
    )


def servers(crowd: Crowd, like: str, numbers: Sequence[int], *, hosts: int) -> None:
    """Servers like this ACTIVE one with its one port, spread over the crowd's hosts, a hundred in each group."""
    group = _group_of(crowd, like)
    host = str(crowd.one("SELECT host FROM servers WHERE id = ?", like))
    name = str(crowd.one("SELECT name FROM servers WHERE id = ?", like))
    provider = str(crowd.one("SELECT uuid FROM resource_providers WHERE name = ?", host))
    port = str(crowd.one("SELECT id FROM ports WHERE device_id = ?", like))
    sagas = [str(row[0]) for row in crowd.find("sagas", "object_id", [like]).rows]
    ids = [like, port, *sagas]
    top = int(str(crowd.one("SELECT max(number) FROM servers")))
    born = int(str(crowd.one("SELECT created_at FROM servers WHERE id = ?", like)))

    def words(n: int) -> dict[str, str]:
        return {
            host: host_name((n - 1) % hosts + 1),
            name: f"{name}-{n}",
            provider: scattered(provider, (n - 1) % hosts + 1),
            group: scattered(group, (n - 1) // GROUP + 1),
        }

    def copy(table: str, column: str, values: Iterable[object], **vary: Vary) -> None:
        crowd.copy(crowd.find(table, column, values), numbers, ids=ids, words=words, vary=vary)

    copy("servers", "id", [like], number=lambda n: top + n, created_at=lambda n: born + n)
    copy("vmms", "server_id", [like])
    copy("server_interfaces", "server_id", [like])
    copy("sagas", "object_id", [like])
    copy("saga_steps", "saga_id", sagas)
    copy("saga_owners", "object_id", [like])
    copy("server_actions", "server_id", [like])
    copy("consumers", "uuid", [like])
    copy("allocations", "consumer_uuid", [like])
    copy("ports", "id", [port], mac_address=mac)
    start = 1 << 16
    copy("port_addresses", "port_id", [port], ip_address=lambda n: address(start + n), position=lambda n: start + n)
    copy("port_security_groups", "port_id", [port])
    copy("desired_docs", "object_id", [port, like])
    firsts = [n for n in numbers if (n - 1) % GROUP < hosts]  # a host is told of a group once
    crowd.copy(crowd.find("desired_docs", "object_id", [group]), firsts, words=words)


def mac(n: int) -> str:
    return f"fa:16:3f:{n >> 16 & 255:02x}:{n >> 8 & 255:02x}:{n & 255:02x}"


def address(position: int) -> str:
    return f"10.{position >> 16 & 255}.{position >> 8 & 255}.{position & 255}"


def users(crowd: Crowd, like: str, numbers: Sequence[int]) -> None:
    """Users like this one, each with its role in the same project."""
    name = str(crowd.one("SELECT name FROM identity_users WHERE id = ?", like))
    rows = crowd.find("identity_users", "id", [like])
    crowd.copy(rows, numbers, ids=[like], words=lambda n: {name: f"{name}-{n}"})
    crowd.copy(crowd.find("identity_assignments", "actor_id", [like]), numbers, ids=[like])
