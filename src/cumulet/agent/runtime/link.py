"""The agent's calls to a conductor, and whether one answers.

`send` is tried at once; while the last try failed, everything waits for the outbox's next round instead of every
worker thread waiting for its own time-out.
"""

import logging
import threading
from typing import Any

import msgspec

from cumulet.bus import Bus, RemoteFault
from cumulet.kernel.errors import Unavailable

_log = logging.getLogger(__name__)
CONDUCTOR = "conductor"


class Link:
    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._up = threading.Event()
        self._up.set()

    @property
    def up(self) -> bool:
        return self._up.is_set()

    def call(self, message: msgspec.Struct, timeout: float | None = None) -> Any:
        """Raises Unavailable (no conductor, or not in time) and RemoteFault (it could not digest the message)."""
        try:
            answer = self._bus.call(CONDUCTOR, message, timeout)
        except Unavailable as error:
            if self._up.is_set():
                _log.warning("no conductor answers: %s", error.message)
            self._up.clear()
            raise
        if not self._up.is_set():
            _log.info("a conductor answers again")
            self._up.set()
        return answer

    def send(self, message: msgspec.Struct, timeout: float | None = None, *, only_if_up: bool = False) -> bool:
        """True if a conductor took it; False: try again later."""
        if only_if_up and not self._up.is_set():
            return False
        try:
            self.call(message, timeout)
        except Unavailable:
            return False
        except RemoteFault as error:
            _log.warning("the conductor could not take a %s: %s", type(message).__name__, error)
            return False
        return True

    def hint(self, message: msgspec.Struct) -> None:
        self._bus.cast(CONDUCTOR, message)
