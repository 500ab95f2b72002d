"""Password hashes: argon2id, 19 MiB, two passes, one lane.

Hashing takes tens of milliseconds and memory, so at most two run at a time, and never inside a unit of work.
"""

import base64
import secrets
import threading

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from cumulet.kernel.errors import Unavailable

_AT_ONCE = 2
_WAIT_S = 20.0


class Passwords:
    def __init__(self, *, memory_kib: int = 19 * 1024, time_cost: int = 2) -> None:
        self._hasher = PasswordHasher(time_cost=time_cost, memory_cost=memory_kib, parallelism=1)
        self._turn = threading.BoundedSemaphore(_AT_ONCE)
        # what no password matches, and what takes as long to find out as for any other hash of these costs
        self._nobody = f"$argon2id$v=19$m={memory_kib},t={time_cost},p=1${_text(16)}${_text(32)}"

    def hash(self, password: str) -> str:
        with self._Turn(self._turn):
            return self._hasher.hash(password)

    def matches(self, stored: str | None, password: str) -> bool:
        """Takes as long for an unknown user (None) as for a known one."""
        with self._Turn(self._turn):
            try:
                self._hasher.verify(stored or self._nobody, password)
            except (VerificationError, InvalidHashError):
                return False
        return stored is not None

    class _Turn:
        def __init__(self, semaphore: threading.BoundedSemaphore) -> None:
            self._semaphore = semaphore

        def __enter__(self) -> None:
            if not self._semaphore.acquire(timeout=_WAIT_S):
                raise Unavailable("Too many passwords are being checked. Try again later.")

        def __exit__(self, *exc: object) -> None:
            self._semaphore.release()


def _text(size: int) -> str:
    return base64.b64encode(secrets.token_bytes(size)).decode().rstrip("=")
