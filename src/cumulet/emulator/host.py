"""One host of an emulated cloud: a fake host and its agent, which can be lost and come back."""

from pathlib import Path

import msgspec

from cumulet.agent.fake import FakeHost
from cumulet.agent.runtime import Agent, AgentSettings
from cumulet.agent.runtime.store import AgentStore
from cumulet.bus import Bus
from cumulet.kernel.clock import Clock


class HostState(msgspec.Struct):
    """All that is on a host: what exists there, and what its agent keeps."""

    world: bytes
    store: bytes


class EmulatedHost:
    """``path``: the file in which the agent keeps its journal; None: in memory, over any number of its lives."""

    def __init__(self, bus: Bus, fake: FakeHost, settings: AgentSettings, clock: Clock, path: Path | None) -> None:
        self._bus = bus
        self._settings = settings
        self._clock = clock
        self._path = path
        self._kept = AgentStore(None) if path is None else None
        self.fake = fake
        self.agent: Agent | None = None

    @property
    def name(self) -> str:
        return self.fake.name

    @property
    def lost(self) -> bool:
        return self.agent is None

    def start(self) -> None:
        """The agent runs, and takes over what is there."""
        if self.agent is not None:
            return
        store = self._kept or AgentStore(self._path)
        agent = Agent(self._settings, self._bus, store, self.fake.drivers, self._clock)
        agent.start()
        self.agent = agent

    def lose(self, seconds: float = 0.2) -> None:
        """The agent is gone, without a word; what runs on the host stays. Its threads are waited for so long."""
        if self.agent is not None:
            self.fake.faults.die()
            self.agent.stop(seconds)
            self.agent = None

    def restart(self) -> None:
        self.lose()
        self.start()

    # -- taking and giving back all of it; the agent must not run -----------------------------------------------------

    def state(self) -> HostState:
        """Of this moment; the agent may run if nothing is under way."""
        store = self._kept or AgentStore(self._path)
        kept = HostState(self.fake.world.dump(), store.dump())
        if store is not self._kept:
            store.close()
        return kept

    def put_back(self, kept: HostState) -> None:
        assert self.agent is None
        self.fake.world.load(kept.world)
        store = self._kept or AgentStore(self._path)
        store.load(kept.store)
        if store is not self._kept:
            store.close()
