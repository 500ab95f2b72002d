"""Waiting for what must become true: patiently, since the machine may be busy. A test of how quick something is
measures it."""

import time
from collections.abc import Callable
from typing import Any

SECONDS = 60.0


def eventually(holds: Callable[[], Any], seconds: float = SECONDS, *, every: float = 0.01) -> Any:
    """Until ``holds()`` is true; what it returned."""
    end = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < end, f"did not become true in {seconds:g} seconds"
        time.sleep(every)
    return found
