"""A host that exists only in memory (or in one file): every operation, query and document, and faults on demand.

Used by the emulator and by the tests of the control plane. It keeps the same conformance tests as the real drivers.
"""

from cumulet.agent.fake.faults import Faults
from cumulet.agent.fake.host import FakeHost
from cumulet.agent.fake.world import World

__all__ = ["FakeHost", "Faults", "World"]
