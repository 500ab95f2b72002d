"""An OpenStack to test against: the same services over hosts that exist only in memory.

``Emulator(…)`` is one cloud; as many as one likes live in a process. See docs/emulator.md, and `cumulet.testing` for
the fixtures of pytest.
"""

from cumulet.emulator.access import Account
from cumulet.emulator.cloud import Emulator
from cumulet.emulator.host import EmulatedHost

__all__ = ["Account", "EmulatedHost", "Emulator"]
