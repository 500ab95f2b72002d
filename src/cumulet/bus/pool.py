"""Bounded worker threads for message handlers: started on demand, ended when idle.

Refuses work when its queue is full. One pool has a lane of threads for each depth of nested calls: a worker of depth
d only ever waits for workers of depth d+1, so there is no circle of waiting.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable

from cumulet.bus.model import MAX_DEPTH, Overloaded

_log = logging.getLogger(__name__)
_local = threading.local()
_IDLE_SECONDS = 60.0


def current_depth() -> int:
    """How deep in handlers this thread is: 0 outside of any."""
    depth: int = getattr(_local, "depth", 0)
    return depth


class _Lane:
    def __init__(self, name: str, depth: int, threads: int, backlog: int) -> None:
        self._name = name
        self._depth = depth
        self._limit = threads
        self._backlog = backlog
        self._work: deque[Callable[[], None]] = deque()
        self._state = threading.Condition()
        self._threads = 0
        self._idle = 0
        self._closed = False

    def submit(self, task: Callable[[], None]) -> None:
        with self._state:
            if self._closed or len(self._work) >= self._backlog:
                raise Overloaded(f"{self._name} takes no more messages now.")
            self._work.append(task)
            if self._idle >= len(self._work):
                self._state.notify()
            elif self._threads < self._limit:
                self._threads += 1
                threading.Thread(target=self._run, name=f"bus-{self._name}-{self._depth}", daemon=True).start()

    def _run(self) -> None:
        _local.depth = self._depth
        while True:
            with self._state:
                self._idle += 1
                while not self._work:
                    if self._closed or not self._state.wait(_IDLE_SECONDS):
                        if self._work:
                            break
                        self._idle -= 1
                        self._threads -= 1
                        self._state.notify_all()
                        return
                self._idle -= 1
                task = self._work.popleft()
            try:
                task()
            except Exception:  # noqa: BLE001 - a worker outlives any message
                _log.exception("a message handler of %s failed", self._name)

    def waiting(self) -> int:
        return len(self._work)

    def busy(self) -> int:
        with self._state:
            return len(self._work) + self._threads - self._idle

    def close(self, wait_seconds: float) -> None:
        with self._state:
            self._closed = True
            self._work.clear()
            self._state.notify_all()
            self._state.wait_for(lambda: self._threads == 0, wait_seconds)


class Pool:
    """``threads`` at most for each depth; ``backlog`` messages may wait at each depth."""

    def __init__(self, name: str, threads: int, backlog: int = 10_000) -> None:
        self._lanes = [_Lane(name, depth, threads, backlog) for depth in range(1, MAX_DEPTH + 1)]

    def submit(self, sender_depth: int, task: Callable[[], None]) -> None:
        if sender_depth >= len(self._lanes):
            raise Overloaded("Handlers call each other too deeply.")
        self._lanes[sender_depth].submit(task)

    def waiting(self) -> int:
        """Messages that wait for a thread."""
        return sum(lane.waiting() for lane in self._lanes)

    def busy(self) -> int:
        """How many messages wait or are being handled."""
        return sum(lane.busy() for lane in self._lanes)

    def close(self, wait_seconds: float = 5.0) -> None:
        for lane in self._lanes:
            lane.close(0 if current_depth() else wait_seconds)
