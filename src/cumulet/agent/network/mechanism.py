"""How networks are wired on a host: the seam between ports and Linux bridge or Open vSwitch.

A mechanism gives every network a place to plug devices into. `plug` and `unplug` are for one device; filters are set
before a device goes up. Everything is idempotent and compares with the kernel first.
"""

from collections.abc import Iterable, Iterator
from typing import Protocol

from cumulet.agent.contract import Drift, MendItem, PortDoc


class Mechanism(Protocol):
    name: str
    bridge_patterns: tuple[str, ...]  # names of the Linux bridges with guests' taps, as firewalls write them
    ovs_datapath: str | None  # "system", "netdev"; None: not Open vSwitch

    def prepare(self, port: PortDoc) -> str:
        """Have the port's network on this host; the bridge on which its device's frames are filtered."""
        ...

    def plug(self, port: PortDoc, device: str) -> None:
        """Connect an existing or (for a guest's tap) new device to its network and set it up or down."""
        ...

    def unplug(self, port_id: str, device: str) -> None:
        """Delete the device and, if it was the last of its network here, the network's wiring."""
        ...

    def refresh(self, network_ids: Iterable[str] = ()) -> None:
        """Documents of these networks changed or went: adjust tunnels to the peers they name. The wiring of any network
        that has neither documents nor devices here goes."""
        ...

    def guarded(self) -> list[str]:
        """Devices from which nothing may reach the host's own network stack."""
        ...

    @property
    def whole_checksums(self) -> bool:
        """True if devices in namespaces must compute checksums themselves (a datapath in user space)."""
        ...

    def is_private(self, bridge: str) -> bool:
        """True for a bridge made for one tenant network (or port), where the host itself has no business."""
        ...

    def astray(self, ports: Iterable[PortDoc]) -> Iterator[tuple[PortDoc, str]]:
        """Of plugged ports: those whose wires are not as documents say, and how, in words. The next `prepare` and
        `plug` of the port set it right."""
        ...

    def audit(self, ports: Iterable[PortDoc]) -> Iterator[Drift]:
        """What else of the wiring differs; ``ports``: all that this host is to have. Looks only."""
        ...

    def distrust(self) -> None:
        """What is remembered as done is not believed: `prepare` and `plug` look again."""
        ...

    def mend(self, item: MendItem) -> str | None:
        """Set right or be rid of what `audit` told without a document; what was done, None: not of this kind."""
        ...

    def lost(self) -> bool:
        """True after the host may have forgotten the wiring (a restart of ovs-vswitchd, or of ours), until `recover`
        succeeded."""
        ...

    def recover(self) -> None:
        """Put back what was lost, and be rid of what an earlier life did not come to."""
        ...

    def cleanup(self) -> None:
        """Remove everything this mechanism made."""
        ...
