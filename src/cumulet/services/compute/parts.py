"""What the compute service's workflows and calls work with: the other services and the engine, put together once."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cumulet.kernel.clock import Clock


@dataclass(kw_only=True)
class Parts:
    """Collaborators of compute. Types are loose on purpose: only their public methods are used, always with ``tx``
    first, and each of them may be a stand-in in tests."""

    clock: Clock
    sagas: Any  # saga engine
    hosts: Any  # conductor: host registry
    desired: Any  # conductor: desired documents
    images: Any
    placement: Any
    scheduler: Any
    network: Any
    volumes: Any
    ask: Any = None  # conductor: (host, query) -> Answer
    moved: Callable[[], object] = lambda: None  # told when a move is over: the next may begin
    unreached: Callable[[], object] = lambda: None  # told when a volume of a server is exported to nobody
    default_zone: str = "nova"
    max_attempts: int = 3
