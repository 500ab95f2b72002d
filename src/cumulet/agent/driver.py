"""What a driver of the agent gives to the runtime, and what it gets from it.

A driver knows one field (compute, network, storage) of one host. The runtime (`agent.runtime`) does everything that
all of them need: journal, order, epochs, documents on disk, reports. A driver's functions run on worker threads;
those of one object (operations: the saga's object; documents: kind and id) never at the same time.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import msgspec

from cumulet.agent.contract import Absent, Audited, MendItem, Operation, PasswordTaken, Query, Result

Progress = Callable[..., None]
"""``progress(fraction=None)``: still alive, and how far (0..1). An operation that is silent for its
``stall_seconds`` is taken as failed."""

OperationBody = Callable[[Any, Progress], Result | None]
QueryBody = Callable[[Any], str | dict[str, Any]]  # text or data of the Answer


class DocumentApplier(Protocol):
    """One kind of documents. All three are idempotent and raise DriverError."""

    def apply(self, doc: Any) -> None:
        """Make it so. ``doc`` is the struct of the kind (PortDoc, NetworkDoc, …)."""
        ...

    def remove(self, object_id: str, generation: int) -> None:
        """Make it not so; it may never have been, and the document may be unknown by now."""
        ...

    def list(self) -> Iterable[str]:
        """The ids of what exists on the host, whether or not a document is known."""
        ...


class FoundServer(msgspec.Struct, frozen=True):
    server_id: str
    power_state: int  # 0 pending, 1 running, 3 paused, 4 shutdown, 6 crashed, 7 suspended
    reason: str = ""


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """A driver's part of the host's inventory: everything of ours that exists."""

    servers: list[FoundServer] = []
    ports: list[str] = []
    volumes: list[str] = []
    exports: list[tuple[str, str]] = []  # (volume id, attachment id)
    moving: list[str] = []  # servers: see contract.Inventory


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """A driver's part of the heartbeat. ``resources``: fields of HostResources. None: another driver knows."""

    resources: dict[str, Any] = {}
    virt_type: str | None = None
    mechanism: str | None = None
    speed_factor: float | None = None
    tunnel_ip: str | None = None
    bridge_mappings: dict[str, str] = {}
    warnings: list[dict[str, str]] = []  # code, message, cure


class Hooks(Protocol):
    """What a driver may tell the runtime, from any thread, at any time after ``start``. All but the last return at
    once."""

    def server_changed(self, server_id: str, power_state: int, reason: str = "") -> None:
        """A server does something else than before (an event of the hypervisor)."""
        ...

    def reapply(self, kind: str, ids: Iterable[str] | None = None) -> None:
        """What was applied is lost (Open vSwitch restarted): apply these documents again; None: all of the kind."""
        ...

    def document(self, kind: str, object_id: str) -> Any | None:
        """The last document of this id that was given to the host, if any."""
        ...

    def password_posted(self, server_id: str, password: str) -> PasswordTaken:
        """A guest gave its password to the metadata service: ask the control plane to keep it."""
        ...


class Driver:
    """Base of all drivers. Override what the driver has."""

    role: str = ""  # compute, network or storage

    def start(self, hooks: Hooks) -> None:
        """Look at what exists and take it over; never tear down first. Raises DriverError if the host cannot serve."""

    def stop(self) -> None:
        """Let go of connections and threads; servers, networks and exports stay."""

    def operations(self) -> dict[type[Operation], OperationBody]:
        return {}

    def queries(self) -> dict[type[Query], QueryBody]:
        return {}

    def documents(self) -> dict[str, DocumentApplier]:
        return {}

    def inventory(self) -> Found:
        return Found()

    def facts(self) -> Facts:
        """Called at every heartbeat: quick, cached where it is not."""
        return Facts()

    def remove_absent(self, absent: Absent) -> None:
        """Remove leftovers that the control plane says are nobody's. Ids of other drivers' things are to be ignored."""

    def audit(self, documents: Mapping[str, Mapping[str, Any]]) -> Audited:
        """Everything of ours that exists, and what of it differs from ``documents`` (kind -> id -> document: what the
        host is to have). Looks only."""
        return Audited()

    def mend(self, item: MendItem) -> str | None:
        """Be rid of one thing that nobody is to have, as an operator asked; what was done, None if it is not this
        driver's kind. What holds data is moved aside. Done twice, nothing more happens."""
        return None

    def distrust(self, item: MendItem) -> None:
        """The item's document is about to be applied again: whatever is remembered of it as done, look."""

    def cleanup_all(self) -> None:
        """``cumulet destroy``: remove from the host all that this driver ever made, guests and data included. Called
        without ``start``; done twice, nothing more happens."""
