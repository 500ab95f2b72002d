"""Has this host's agent work: builds and starts it on a thread of its own, and tries again until it does.

What an agent needs of its host may take long (probing KVM, starting libvirtd) or be absent for now; neither may keep an
API in the same process from answering. Why it does not work stands in a file (``problem``), which `cumulet status` and
`cumulet doctor` tell; the file is gone when it does. Nothing is ever given up.
"""

import logging
import threading
from collections.abc import Callable
from pathlib import Path

from cumulet.agent.errors import DriverError
from cumulet.agent.runtime.agent import Agent

_log = logging.getLogger(__name__)
_FIRST_PAUSE_SECONDS, _LAST_PAUSE_SECONDS = 1.0, 30.0


class AgentKeeper:
    """``build`` makes a new agent for each try; ``works`` is called once, on the keeper's thread."""

    def __init__(self, build: Callable[[], Agent], problem: Path, works: Callable[[], None]) -> None:
        self._build = build
        self._problem = problem
        self._works = works
        self._agent: Agent | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="agent-start", daemon=True)

    def start(self) -> None:
        """Returns at once."""
        self._problem.unlink(missing_ok=True)
        self._thread.start()

    def stop(self, seconds: float = 10.0) -> None:
        self._stopping.set()
        self._thread.join(seconds)
        if self._thread.is_alive():
            _log.warning("the agent was still starting")
        elif self._agent is not None:
            _end(self._agent)
        self._problem.unlink(missing_ok=True)

    def _run(self) -> None:
        pause = _FIRST_PAUSE_SECONDS
        while not self._stopping.is_set():
            why = self._try()
            if why is None:
                self._problem.unlink(missing_ok=True)
                self._works()
                return
            self._problem.parent.mkdir(parents=True, exist_ok=True)
            self._problem.write_text(why + "\n")
            self._stopping.wait(pause)
            pause = min(pause * 2, _LAST_PAUSE_SECONDS)

    def _try(self) -> str | None:
        """None, or why the agent does not work."""
        agent = None
        try:
            agent = self._build()
            agent.start()
        except Exception as error:  # noqa: BLE001 - told, logged and tried again
            if isinstance(error, DriverError):
                why = error.message
                _log.warning("the agent does not start: %s: %s", error.code, why)
            else:
                why = f"{type(error).__name__}: {error}"
                _log.exception("the agent does not start")
            if agent is not None:
                _end(agent)
            return why
        self._agent = agent
        return None


def _end(agent: Agent) -> None:
    try:
        agent.stop()
    except Exception:  # noqa: BLE001 - the file is let go of all the same
        _log.exception("the agent did not stop in order")
    agent.close()
