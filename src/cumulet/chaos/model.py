"""What the clients know: every object they asked for, and what was acknowledged, refused or never answered.

An acknowledgement is a promise. A request without an answer may have been done or not: nothing is concluded from it.
"""

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from cumulet.chaos.session import Reply

# kind -> (service, path of one, key of one)
KINDS: dict[str, tuple[str, str, str]] = {
    "server": ("compute", "/servers", "server"),
    "volume": ("block-storage", "/volumes", "volume"),
    "snapshot": ("block-storage", "/snapshots", "snapshot"),
    "image": ("image", "/images", ""),
    "port": ("network", "/ports", "port"),
    "floatingip": ("network", "/floatingips", "floatingip"),
    "network": ("network", "/networks", "network"),
    "subnet": ("network", "/subnets", "subnet"),
    "router": ("network", "/routers", "router"),
    "security_group": ("network", "/security-groups", "security_group"),
}


@dataclass(frozen=True)
class Event:
    verb: str
    began: float
    ended: float
    reply: Reply
    other: str = ""  # the object at the other end
    details: Any = None

    @property
    def maybe(self) -> bool:
        """It was done, or may have been."""
        return not self.reply.refused


@dataclass
class Thing:
    kind: str
    id: str
    name: str
    project: str
    owner: int
    created: Reply
    details: dict[str, Any] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)

    @property
    def path(self) -> str:
        return f"{KINDS[self.kind][1]}/{self.id}"

    @property
    def service(self) -> str:
        return KINDS[self.kind][0]

    def of(self, *verbs: str) -> list[Event]:
        return [event for event in self.events if event.verb in verbs]

    @property
    def delete_acknowledged(self) -> Event | None:
        return next((event for event in self.of("delete") if event.reply.acknowledged), None)

    @property
    def maybe_deleted(self) -> bool:
        return any(event.maybe for event in self.of("delete"))


class Record:
    """Shared by all clients of a run."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.things: dict[str, Thing] = {}
        self.counts: dict[str, int] = {}
        self.acknowledged: set[str] = set()  # what was, at least once
        self.refusals: dict[str, int] = {}
        self.defects: list[tuple[str, Reply]] = []  # answers that no disturbance explains
        self.replies = {"acknowledged": 0, "refused": 0, "failed": 0, "unanswered": 0}

    def add(self, thing: Thing) -> None:
        with self._lock:
            self.things[thing.id] = thing

    def note(self, thing: Thing, event: Event) -> None:
        with self._lock:
            thing.events.append(event)

    def count(self, what: str, reply: Reply) -> None:
        with self._lock:
            self.counts[what] = self.counts.get(what, 0) + 1
            if reply.acknowledged:
                self.replies["acknowledged"] += 1
                self.acknowledged.add(what)
            elif reply.refused:
                self.replies["refused"] += 1
                key = f"{what} {reply.status}"
                self.refusals[key] = self.refusals.get(key, 0) + 1
            elif reply.status:
                self.replies["failed"] += 1
                if reply.status not in (502, 503, 504):
                    self.defects.append((what, reply))
            else:
                self.replies["unanswered"] += 1

    def living(self, kind: str, project: str, owner: int | None = None) -> list[Thing]:
        """What may still be there, in the order in which it was made."""
        with self._lock:
            return [
                thing
                for thing in self.things.values()
                if thing.kind == kind
                and thing.project == project
                and (owner is None or thing.owner == owner)
                and not thing.maybe_deleted
            ]

    def all(self, *kinds: str) -> Iterator[Thing]:
        for thing in list(self.things.values()):
            if not kinds or thing.kind in kinds:
                yield thing


now = time.monotonic
