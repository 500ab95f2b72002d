"""A small cloud for saga tests: one table of things, and hosts that keep things in memory."""

import threading
from typing import Any

import msgspec
from sqlalchemy import Column, Integer, String, Table, bindparam, delete, select, update

from cumulet.agent import contract as c
from cumulet.bus import LocalBus, RemoteFault
from cumulet.db import METADATA, Database, Id
from cumulet.kernel.context import system_context
from cumulet.kernel.errors import Unavailable
from cumulet.saga import SagaEngine

THINGS = Table(
    "test_things",
    METADATA,
    Column("id", Id, primary_key=True),
    Column("status", String(32), nullable=False),
    Column("size", Integer, nullable=False),
)
GET = select(THINGS.c.status, THINGS.c.size).where(THINGS.c.id == bindparam("id"))
SET = update(THINGS).where(THINGS.c.id == bindparam("the_id")).values(status=bindparam("status"))
GROW = update(THINGS).where(THINGS.c.id == bindparam("the_id")).values(size=bindparam("size"))
DELETE = delete(THINGS).where(THINGS.c.id == bindparam("id"))
CTX = system_context("test")


class Params(msgspec.Struct):
    host: str = "h1"
    size: int = 1


class FakeHost:
    """Serves ``agent.<name>``; works on a thread of its own; keeps outcomes until they are taken, and epochs."""

    def __init__(self, bus: LocalBus, name: str) -> None:
        self.bus, self.name = bus, name
        self.state: set[str] = set()
        self.outcomes: dict[str, c.Outcome] = {}
        self.epochs: dict[str, int] = {}
        self.seen: list[str] = []
        self.fail: dict[str, str] = {}  # operation tag -> error code
        self.hold: set[str] = set()  # operation tags that never end
        self.lose: set[str] = set()  # op ids whose first Execute is lost
        self.up = True
        self.lock = threading.Lock()
        self.service = bus.serve(f"agent.{name}", self.handle)

    def handle(self, message: Any) -> Any:
        if isinstance(message, c.AskOutcome):
            found = self.outcomes.get(message.op_id)
            return found or c.Outcome(op_id=message.op_id, host=self.name, state="unknown")
        assert isinstance(message, c.Execute)
        with self.lock:
            if message.op_id in self.lose:
                self.lose.discard(message.op_id)
                return c.Accepted(op_id=message.op_id)
            if message.epoch < self.epochs.get(message.object_id, 0):
                return c.Refused(op_id=message.op_id, reason="stale epoch")
            self.epochs[message.object_id] = message.epoch
            self.seen.append(message.op_id)
            known = self.outcomes.get(message.op_id)
            if known is None:
                self.outcomes[message.op_id] = c.Outcome(op_id=message.op_id, host=self.name, state="running")
        if known is None or known.state != "running":
            threading.Thread(target=self.work, args=(message, known), daemon=True).start()
        return c.Accepted(op_id=message.op_id)

    def work(self, message: c.Execute, known: c.Outcome | None) -> None:
        outcome = known or self.perform(message)
        if outcome is None:
            return
        self.outcomes[message.op_id] = outcome
        for _ in range(50):
            try:
                self.bus.call("conductor", outcome)
                return
            except (Unavailable, RemoteFault):
                threading.Event().wait(0.02)

    def perform(self, message: c.Execute) -> c.Outcome | None:
        tag = message.body.__struct_config__.tag
        if tag in self.hold:
            return None
        if tag in self.fail:
            return c.Outcome(op_id=message.op_id, host=self.name, state="failed", error="no", error_code=self.fail[tag])
        body: Any = message.body
        with self.lock:
            match body:
                case c.CreateVolume():
                    self.state.add(f"volume {body.volume_id}")
                case c.DeleteVolume():
                    self.state.discard(f"volume {body.volume_id}")
                case c.ExportVolume():
                    self.state.add(f"export {body.volume_id}")
                case c.UnexportVolume():
                    self.state.discard(f"export {body.volume_id}")
        return c.Outcome(op_id=message.op_id, host=self.name, state="done", result={"on": self.name})


class World:
    """Database, bus, one host, one engine."""

    def __init__(
        self, db: Database, *, threads: int = 2, lease_seconds: float = 15, scan_seconds: float = 0.05
    ) -> None:
        self.db = db
        self.bus = LocalBus()
        self.host = FakeHost(self.bus, "h1")
        self.options = {"threads": threads, "lease_seconds": lease_seconds, "scan_seconds": scan_seconds}
        self.registered: list[Any] = []
        self.engine = self.make_engine("conductor")
        self.service = self.bus.serve("conductor", self.conduct)

    # -- as `saga.testing.Harness` --

    def start_control_plane(self) -> None:
        self.engine = self.make_engine("conductor")
        self.engine.register(*self.registered)
        self.engine.run()

    def stop_control_plane(self) -> None:
        self.engine.stop()

    def host_state(self) -> list[str]:
        return sorted(self.host.state)

    # --

    def make_engine(self, name: str) -> SagaEngine:
        return SagaEngine(self.db, self.bus, name=name, hosts=self, **self.options)  # type: ignore[arg-type]

    def conduct(self, message: Any) -> Any:
        if isinstance(message, c.Outcome):
            self.engine.outcome(message)
        else:
            self.engine.on_wake(message)

    def is_up(self, host: str) -> bool:
        return self.host.up

    def is_up_in(self, tx: Any, host: str) -> bool:
        return self.is_up(host)

    def speed_factor(self, host: str) -> float:
        return 1.0

    def add_thing(self, thing_id: str, status: str = "new") -> None:
        self.db.write(lambda tx: tx.insert(THINGS, {"id": thing_id, "status": status, "size": 1}))

    def thing(self, thing_id: str) -> Any:
        return self.db.read(lambda tx: tx.first(GET, {"id": thing_id}))

    def start(self, saga: Any, thing_id: str, params: Params | None = None) -> str:
        return self.db.write(lambda tx: self.engine.start(tx, saga, thing_id, params or Params(), CTX))

    def close(self) -> None:
        self.engine.stop()
        self.service.stop()
        self.host.service.stop()
        self.bus.close()
