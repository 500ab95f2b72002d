"""Requests at the same time, and units of work so slow that they meet.

``at_once(first, second, …)`` calls each on a thread of its own and gives their answers in order. Meanwhile every
unit of work that writes waits before its first change and before its commit: whatever checks first and writes later,
without a lock that the others take, is overtaken for certain. SQLite serialises units of work: there the same tests
say that what is asked for at once is answered as if one came first.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from cumulet.db.database import Database, Tx
from tests.support.cloud import Answer, Cloud

BEFORE_CHANGE_SECONDS = 0.06
BEFORE_COMMIT_SECONDS = 0.03


@contextmanager
def slow_writes() -> Iterator[None]:
    run, end = Tx.run, Database._end

    def slow_run(tx: Tx, *arguments: Any) -> int:
        if tx.written == 0 and tx._db.is_postgres:
            time.sleep(BEFORE_CHANGE_SECONDS)
        return run(tx, *arguments)

    def slow_end(db: Database, connection: Any, how: Any) -> None:
        tx = getattr(db._local, "tx", None)
        if how == "commit" and db.is_postgres and tx is not None and tx.written:
            time.sleep(BEFORE_COMMIT_SECONDS)
        end(db, connection, how)

    with mock.patch.object(Tx, "run", slow_run), mock.patch.object(Database, "_end", slow_end):
        yield


def at_once(*calls: Callable[[], Any]) -> list[Any]:
    start = threading.Barrier(len(calls))
    answers: list[Any] = [None] * len(calls)

    def ask(at: int) -> None:
        start.wait()
        try:
            answers[at] = calls[at]()
        except BaseException as error:  # noqa: BLE001 - the caller's thread raises it
            answers[at] = error

    threads = [threading.Thread(target=ask, args=(at,)) for at in range(len(calls))]
    with slow_writes():
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for answer in answers:
        if isinstance(answer, BaseException):
            raise answer
    return answers


def statuses(answers: list[Answer]) -> list[int]:
    found = [answer.status for answer in answers]
    assert max(found) < 500, [answer.text for answer in answers]
    return found


def rounds(cloud: Cloud) -> range:
    """How often a pair is tried: where units of work are serial anyway, once is enough."""
    return range(3 if cloud.control.db.is_postgres else 1)
