"""A stand-in for the conductor: keeps what agents tell it, answers what they ask, forgets to answer on demand."""

import threading
import time
from collections.abc import Callable
from typing import Any

import msgspec

from cumulet.agent import contract as c
from cumulet.bus import LocalBus
from tests.support.patience import SECONDS


class Conductor:
    def __init__(self, bus: LocalBus) -> None:
        self.bus = bus
        self.told: list[Any] = []
        self.wanted: dict[tuple[str, str], Any] = {}  # documents
        self.gone: dict[tuple[str, str], int] = {}  # absent: generation
        self.absent = c.Absent()
        self.before_absent: Callable[[], c.Absent] | None = None  # while an inventory waits for its answer
        self._state = threading.Condition()
        self._service: Any = None
        self.refuse: Callable[[Any], bool] = lambda message: False

    def start(self) -> None:
        self._service = self.bus.serve("conductor", self._handle)

    def stop(self) -> None:
        if self._service is not None:
            self._service.stop()
            self._service = None

    def _handle(self, message: Any) -> msgspec.Struct | None:
        if self.refuse(message):
            raise RuntimeError("refused by the test")
        with self._state:
            self.told.append(message)
            self._state.notify_all()
        if isinstance(message, c.Inventory) and self.before_absent is not None:
            return self.before_absent()
        with self._state:
            match message:
                case c.PullIndex():
                    return c.Index(entries=[(kind, i, doc.generation) for (kind, i), doc in self.wanted.items()])
                case c.Pull():
                    keys = [tuple(key) for key in message.keys]
                    return c.Documents(
                        documents=[
                            (k, msgspec.to_builtins(self.wanted[k, i])) for k, i in keys if (k, i) in self.wanted
                        ],
                        absent=[(k, i, self.gone[k, i]) for k, i in keys if (k, i) in self.gone],
                    )
                case c.Inventory():
                    return self.absent
        return None

    def heard(self, kind: type, where: Callable[[Any], bool] = lambda m: True) -> list[Any]:
        with self._state:
            return [message for message in self.told if isinstance(message, kind) and where(message)]

    def wait(self, kind: type, where: Callable[[Any], bool] = lambda m: True, seconds: float = SECONDS) -> Any:
        end = time.monotonic() + seconds
        with self._state:
            while True:
                for message in self.told:
                    if isinstance(message, kind) and where(message):
                        return message
                assert self._state.wait(max(end - time.monotonic(), 0)), f"no such {kind.__name__} came: {self.told}"

    def outcome(self, op_id: str, seconds: float = SECONDS) -> c.Outcome:
        return self.wait(c.Outcome, lambda m: m.op_id == op_id and m.state in ("done", "failed"), seconds)

    def want(self, doc: Any) -> None:
        with self._state:
            self.wanted[doc.kind, doc.id] = doc
            self.gone.pop((doc.kind, doc.id), None)

    def unwant(self, doc: Any, generation: int) -> None:
        with self._state:
            self.wanted.pop((doc.kind, doc.id), None)
            self.gone[doc.kind, doc.id] = generation
