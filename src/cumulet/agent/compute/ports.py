"""What the compute driver asks of the network driver of the same host: that a port's tap is there when a domain is
started, and that it goes when the server does.

The compute driver never makes, moves or filters a network device itself. A domain's NIC is
``<interface type='ethernet'><target dev='tap…' managed='no'/>``: the tap exists before the domain starts and outlives
it, so that a guest that is stopped, rebooted or migrated keeps its place in the bridge and its filters.
"""

from typing import Protocol

from cumulet.agent.contract import PortDoc


class PortPlugger(Protocol):
    """Implemented by `agent.network`. Every method is idempotent and raises `agent.errors.DriverError`."""

    def plug(self, port: PortDoc) -> None:
        """Make the persistent tap ``port.tap`` (up, MTU of the segment, no carrier needed yet), put it into its bridge
        with its VLAN or tunnel, and its filters and spoofing guards in force before this returns. Plugging a port
        again applies what changed in ``port``."""
        ...

    def unplug(self, port_id: str) -> None:
        """Remove the tap of this port with all that hangs on it. Nothing to do if there is none."""
        ...

    def plugged(self) -> list[str]:
        """Ids of the ports that have a tap on this host (the id's first 11 characters name it; what is not known in
        full is not listed)."""
        ...


class NoNetwork:
    """For hosts without a network driver: servers without ports work, a port is refused."""

    def plug(self, port: PortDoc) -> None:
        from cumulet.agent.errors import DriverError

        raise DriverError("no-network", f"this host has no network driver to plug port {port.id} with")

    def unplug(self, port_id: str) -> None:
        """There are no taps to remove."""

    def plugged(self) -> list[str]:
        return []
