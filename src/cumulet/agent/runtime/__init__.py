"""The host agent: one per host, drivers inside, the bus outside. See `agent.runtime.agent`."""

from cumulet.agent.runtime.agent import Agent, AgentSettings

__all__ = ["Agent", "AgentSettings"]
