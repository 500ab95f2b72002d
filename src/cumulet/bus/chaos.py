"""Harm to messages, for tests and `cumulet chaos`: lost, doubled, delayed, overtaken, repeatably from a seed.

A transport that has a ``Chaos`` asks it for the copies of each message. `follow` gives a bus the chaos that a file
says, as long as the file is there: so that it can be brought upon other processes.
"""

import contextlib
import json
import os
import random
import threading
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

_LOOK_SECONDS = 0.1


@dataclass
class Chaos:
    """How often (0..1) a message is harmed. A delayed message is overtaken by those sent after it."""

    seed: int = field(default_factory=lambda: random.SystemRandom().randrange(1 << 32))
    drop: float = 0.0
    double: float = 0.0
    delay: float = 0.0
    delay_seconds: float = 0.02
    drop_seconds: float = 0.2  # how soon the caller of a dropped call gets its time-out
    quiet: bool = False

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._lock = threading.Lock()
        if not self.quiet:
            print(f"bus chaos: {self!r}")  # shown by pytest when the test fails

    def copies(self) -> list[float]:
        """The delays, in seconds, with which copies of one message arrive; empty: it is lost."""
        with self._lock:
            if self._random.random() < self.drop:
                return []
            number = 2 if self._random.random() < self.double else 1
            return [
                self._random.uniform(0, self.delay_seconds) if self._random.random() < self.delay else 0.0
                for _ in range(number)
            ]

    def write(self, path: Path) -> None:
        """For those who `follow` the file; removing it ends the harm."""
        part = path.with_name(path.name + ".part")
        part.write_text(json.dumps(asdict(self)))
        os.replace(part, path)


def follow(bus: Any, path: Path) -> None:
    """On a thread that lives as long as the process: ``bus.chaos`` is what the file says, None without it."""

    def look() -> None:
        seen = None
        while True:
            about = None
            with contextlib.suppress(FileNotFoundError):
                about = path.stat().st_mtime_ns
                if about != seen:
                    bus.chaos = Chaos(**json.loads(path.read_text()))
            if about is None:
                bus.chaos = None
            seen = about
            pause.wait(_LOOK_SECONDS)

    pause = threading.Event()
    threading.Thread(target=look, name="bus-chaos", daemon=True).start()
