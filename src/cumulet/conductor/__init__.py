"""What the control plane knows of hosts: who is there, what they are to have, what they say."""

from cumulet.conductor.conductor import Conductor, ask
from cumulet.conductor.desired import Desired
from cumulet.conductor.hosts import HostRegistry, HostRow

__all__ = ["Conductor", "Desired", "HostRegistry", "HostRow", "ask"]
