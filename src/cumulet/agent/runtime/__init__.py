"""The host agent: one per host, drivers inside, the bus outside. See `agent.runtime.agent`."""

from cumulet.agent.runtime.agent import Agent, AgentSettings
from cumulet.agent.runtime.keeper import AgentKeeper

__all__ = ["Agent", "AgentKeeper", "AgentSettings"]
