"""Hosts that an operator wants empty, and since when: what failed to leave before then may be tried again. Each service
has what is its own leave; that nothing new comes is said by the host's disabled roles."""

from sqlalchemy import bindparam, delete, select, text

from cumulet.conductor.tables import HOST_DRAINS
from cumulet.db import Tx

_ASK = text(
    "INSERT INTO host_drains (host, asked_at) VALUES (:host, :now)"
    " ON CONFLICT (host) DO UPDATE SET asked_at = excluded.asked_at"
)
_FORGET = delete(HOST_DRAINS).where(HOST_DRAINS.c.host == bindparam("the_host"))
_ALL = select(HOST_DRAINS.c.host, HOST_DRAINS.c.asked_at).order_by(HOST_DRAINS.c.host)
_ASKED = select(HOST_DRAINS.c.asked_at).where(HOST_DRAINS.c.host == bindparam("the_host"))


def ask(tx: Tx, host: str) -> None:
    tx.run(_ASK, {"host": host, "now": tx.now})


def forget(tx: Tx, host: str) -> None:
    """It may keep what it has."""
    tx.run(_FORGET, {"the_host": host})


def hosts(tx: Tx) -> list[tuple[str, int]]:
    """Those that are to be empty, and when that was last asked for."""
    return [(row[0], row[1]) for row in tx.rows(_ALL)]


def asked_at(tx: Tx, host: str) -> int | None:
    found: int | None = tx.scalar(_ASKED, {"the_host": host})
    return found
