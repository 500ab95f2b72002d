"""A whole cloud in one process, for `test_kill`: control plane and a host with real files, killed where it is told.

``python -m tests.saga.killed DIRECTORY start POINT POSITION STATUS [fail]`` or ``… DIRECTORY resume [fail]``
"""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from cumulet.agent.fake import FakeHost
from cumulet.agent.runtime.agent import Agent, AgentSettings
from cumulet.agent.runtime.store import AgentStore
from cumulet.bus import LocalBus
from cumulet.conductor import Conductor, Desired, HostRegistry
from cumulet.db import Database
from cumulet.kernel.errors import CloudError
from cumulet.saga import SagaEngine, journal
from cumulet.saga.stepper import Probe
from tests.saga import sagas
from tests.saga.world import CTX, GET, THINGS, Params


class Killer(Probe):
    def __init__(self, where: tuple[str, int, str] | None, fail: bool) -> None:
        self.where, self.fail = where, fail

    def at(self, point: str, row: Any, step: Any) -> None:
        if (point, row.position, row.status) == self.where:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.fail and point == "finish":
            raise CloudError("told to fail", code="told")


def main() -> None:
    directory, mode, *rest = sys.argv[1:]
    fail = "fail" in rest
    where = (rest[0], int(rest[1]), rest[2]) if mode == "start" else None
    db = Database(f"sqlite:///{directory}/c.db")
    db.create_all()
    bus = LocalBus()
    engine = SagaEngine(db, bus, scan_seconds=0.05)
    engine.register(sagas.BUILD)
    hosts = HostRegistry(db)
    conductor = Conductor(db, bus, engine, hosts, Desired(bus))
    conductor.start()
    engine.stepper.probe = Killer(where, fail)
    fake = FakeHost("h1", path=Path(directory) / "world.db")
    agent = Agent(
        AgentSettings(host="h1", heartbeat_seconds=0.2), bus, AgentStore(Path(directory) / "agent.db"), fake.drivers
    )
    agent.start()
    while not hosts.is_up("h1"):
        time.sleep(0.005)
    if mode == "start":
        db.write(lambda tx: tx.insert(THINGS, {"id": "t", "status": "new", "size": 1}))
        db.write(lambda tx: engine.start(tx, sagas.BUILD, "t", Params(host="h1"), CTX))
    end = time.monotonic() + 15
    while time.monotonic() < end:
        (row, steps), *_ = db.read(lambda tx: journal.of_object(tx, "thing", "t"))
        if row.ended_at is not None:
            break
        time.sleep(0.005)
    thing = db.read(lambda tx: tx.first(GET, {"id": "t"}))
    print(
        json.dumps(
            {
                "status": row.status,
                "error": row.error_code,
                "thing": list(thing or ()),
                "left": fake.world.leftovers(),
                "steps": [(step.name, step.state) for step in steps],
            }
        )
    )
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
