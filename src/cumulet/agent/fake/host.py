"""A fake host: one world, one set of faults, three drivers."""

from pathlib import Path

from cumulet.agent.driver import Driver
from cumulet.agent.fake.compute import FakeCompute
from cumulet.agent.fake.faults import Faults
from cumulet.agent.fake.network import FakeNetwork
from cumulet.agent.fake.storage import FakeStorage
from cumulet.agent.fake.world import World
from cumulet.kernel.clock import Clock


class FakeHost:
    """``boot_seconds``: how long a start takes, on ``clock``. The sizes are what it tells the scheduler."""

    def __init__(
        self,
        name: str = "fake-1",
        *,
        path: Path | None = None,
        roles: tuple[str, ...] = ("compute", "network", "storage"),
        boot_seconds: float = 0.0,
        vcpus: int = 32,
        memory_mb: int = 131072,
        local_gb: int = 2000,
        volume_gb: int = 4000,
        bridge_mappings: dict[str, str] | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.name = name
        self.world = World(path)
        self.faults = Faults(clock)
        self.compute = FakeCompute(
            self.world,
            self.faults,
            name,
            boot_seconds=boot_seconds,
            vcpus=vcpus,
            memory_mb=memory_mb,
            local_gb=local_gb,
        )
        self.network = FakeNetwork(self.world, self.faults, bridge_mappings or {"public": "br-ex"})
        self.storage = FakeStorage(self.world, self.faults, name, volume_gb=volume_gb)
        every: dict[str, Driver] = {"compute": self.compute, "network": self.network, "storage": self.storage}
        self.drivers: list[Driver] = [every[role] for role in roles]
        if "network" not in roles:  # every host plugs and filters its own ports and answers metadata
            self.drivers.append(FakeNetwork(self.world, self.faults, {}, kinds=("port", "group", "metadata"), role=""))

    def empty(self) -> bool:
        return not self.world.leftovers()
