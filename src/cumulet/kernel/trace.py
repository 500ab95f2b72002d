"""Notes of what a request made this process do, for `cumulet explain request`.

Owns: a bounded ring of notes and one thread that hands them on in batches, off the path of the work they tell of (a
note costs about a microsecond). Refuses nothing and never raises: notes that cannot be kept are dropped and counted.
A killed process loses those of its last half second; the saga journal, which says what was done, does not depend on
them. Times are of this process's own clock: whoever draws them together judges by cause (`services.operator.sequence`).
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

_log = logging.getLogger(__name__)
_local = threading.local()
_BATCH_SECONDS = 0.5
_KEPT = 20_000
Transactions = list[tuple[int, int, int]]


class Note(NamedTuple):
    request_id: str
    at: int  # microseconds since the epoch
    kind: str  # request, taken, moved, call, message
    data: dict[str, Any]


class Tracer:
    """``process`` names this process to people. ``write`` keeps a batch (in a unit of work of its own); without it, or
    with ``enabled`` False, nothing is noted."""

    def __init__(self, process: str = "", write: Callable[[str, list[Note]], object] | None = None) -> None:
        self.process = process
        self.write = write
        self.enabled = True
        self.dropped = 0
        self._notes: deque[Note] = deque(maxlen=_KEPT)
        self._wanted = threading.Event()
        self._stopping = threading.Event()
        self._life = threading.Lock()
        self._flushing = threading.Lock()
        self._thread: threading.Thread | None = None

    def note(self, request_id: str | None, kind: str, at: int, **data: Any) -> None:
        if not request_id or self.write is None or not self.enabled:
            return
        if len(self._notes) == _KEPT:
            self.dropped += 1
        self._notes.append(Note(request_id, at, kind, data))
        if not self._wanted.is_set():
            self._wanted.set()
            if self._thread is None:
                self._begin()

    def _begin(self) -> None:
        with self._life:
            if self._thread is None and not self._stopping.is_set():
                self._thread = threading.Thread(target=self._run, name="traces", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._wanted.wait()
            self._stopping.wait(_BATCH_SECONDS)
            self._wanted.clear()
            self.flush()

    def flush(self) -> None:
        """Hand on what was noted until now. Never inside a unit of work."""
        with self._flushing:
            batch = []
            while self._notes:
                batch.append(self._notes.popleft())
            if not batch or self.write is None:
                return
            try:
                self.write(self.process, batch)
            except Exception as error:  # noqa: BLE001 - the work itself must not suffer from its record
                self.dropped += len(batch)
                _log.warning("%d notes of requests are lost: %s", len(batch), error)

    def close(self) -> None:
        self._stopping.set()
        self._wanted.set()
        with self._life:
            thread = self._thread
        if thread is not None:
            thread.join(5)
        self.flush()


@contextmanager
def transactions() -> Iterator[Transactions]:
    """Collect this thread's writing units of work: (began, committed, statements)."""
    before = getattr(_local, "transactions", None)
    collected: Transactions = []
    _local.transactions = collected
    try:
        yield collected
    finally:
        _local.transactions = before


def current_transactions() -> Transactions | None:
    found: Transactions | None = getattr(_local, "transactions", None)
    return found
