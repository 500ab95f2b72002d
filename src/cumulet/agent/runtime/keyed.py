"""Worker threads that run the tasks of one key in order and never two of them at once."""

import logging
import threading
from collections import deque
from collections.abc import Callable, Hashable

_log = logging.getLogger(__name__)
_IDLE_SECONDS = 60.0
Task = Callable[[], None]


class KeyedExecutor:
    """At most ``threads`` threads, started on demand and ended when idle. Tasks handle their own errors; one that
    escapes is logged."""

    def __init__(self, name: str, threads: int) -> None:
        self._name = name
        self._limit = threads
        self._state = threading.Condition()
        self._waiting: dict[Hashable, deque[Task]] = {}  # a key is here while one of its tasks is ready or running
        self._ready: deque[tuple[Hashable, Task]] = deque()
        self._threads = 0
        self._idle = 0
        self._running = 0
        self._closed = False
        self._watched = 0  # callers of idle and close; nobody else waits for the end of a task

    def submit(self, key: Hashable, task: Task) -> None:
        with self._state:
            if self._closed:
                return
            queue = self._waiting.get(key)
            if queue is not None:
                queue.append(task)
                return
            self._waiting[key] = deque()
            self._make_ready(key, task)

    def _make_ready(self, key: Hashable, task: Task) -> None:
        self._ready.append((key, task))
        if self._idle >= len(self._ready):
            self._state.notify()
        elif self._threads < self._limit:
            self._threads += 1
            threading.Thread(target=self._run, name=f"{self._name}-{self._threads}", daemon=True).start()

    def _run(self) -> None:
        while True:
            with self._state:
                self._idle += 1
                while not self._ready:
                    if self._closed or not self._state.wait(_IDLE_SECONDS):
                        if self._ready:
                            break
                        self._idle -= 1
                        self._threads -= 1
                        self._state.notify_all()
                        return
                self._idle -= 1
                key, task = self._ready.popleft()
                self._running += 1
            try:
                task()
            except Exception:  # noqa: BLE001 - a worker outlives any task
                _log.exception("a task of %s failed", key)
            except SystemExit:  # a fake host's: its agent is as if killed, and so is what its threads were at
                with self._state:
                    self._running -= 1
                    self._threads -= 1
                    self._state.notify_all()
                return
            with self._state:
                self._running -= 1
                queue = self._waiting[key]
                if queue and not self._closed:
                    self._make_ready(key, queue.popleft())
                else:
                    del self._waiting[key]
                if self._watched:
                    self._state.notify_all()

    def busy(self) -> int:
        """How many tasks run or could."""
        with self._state:
            return len(self._ready) + self._running

    def idle(self, seconds: float) -> bool:
        """Wait until nothing runs or waits; True if so in time."""
        with self._state:
            self._watched += 1
            try:
                return self._state.wait_for(
                    lambda: not self._ready and not self._running and not self._waiting, seconds
                )
            finally:
                self._watched -= 1

    def close(self, seconds: float) -> bool:
        """Drop what waits, let what runs end. True if all ended in time."""
        with self._state:
            self._closed = True
            self._watched += 1
            for key, _ in self._ready:
                del self._waiting[key]
            self._ready.clear()
            self._state.notify_all()
            return self._state.wait_for(lambda: self._running == 0, seconds)
