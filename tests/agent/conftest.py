"""``rig``: an agent with a fake host over a local bus, a stand-in conductor, and ways to kill and restart the agent."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from cumulet.agent import contract as c
from cumulet.agent.fake import FakeHost
from cumulet.agent.runtime import Agent, AgentSettings
from cumulet.agent.runtime.store import AgentStore
from cumulet.bus import Chaos, LocalBus
from tests.agent.conductor import Conductor


class Rig:
    def __init__(self, directory: Path, chaos: Chaos | None = None) -> None:
        self.bus = LocalBus(chaos)
        self.conductor = Conductor(self.bus)
        self.conductor.start()
        self.host = FakeHost("h1")
        self.path = directory / "agent.db"
        self._numbers = itertools.count(1)
        self.agent = self._make()

    def _make(self) -> Agent:
        settings = AgentSettings(host="h1", heartbeat_seconds=0.1, compare_seconds=0.3, inventory_seconds=0.3)
        return Agent(settings, self.bus, AgentStore(self.path), self.host.drivers)

    def start(self) -> "Rig":
        self.agent.start()
        return self

    def restart(self, *, host: FakeHost | None = None) -> None:
        """A new life over the same files; what the old one still does is not waited for."""
        self.agent.stop(0.1)
        self.host = host or self.host
        self.agent = self._make()
        self.agent.start()

    def close(self) -> None:
        self.host.faults.clear()
        self.agent.stop(2)
        self.bus.close()

    def execute(self, body: c.OperationBody, *, op_id: str | None = None, epoch: int = 1, object_id: str = "o1") -> str:
        op_id = op_id or f"op-{next(self._numbers)}"
        answer = self.bus.call(
            "agent.h1", c.Execute(op_id=op_id, epoch=epoch, object_id=object_id, request_id="req-1", body=body)
        )
        assert isinstance(answer, c.Accepted), answer
        return op_id


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    made.start()
    yield made
    made.close()
