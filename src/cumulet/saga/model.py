"""How a saga is declared. A workflow file begins with a table of these steps; the engine (`saga.runner`) does the rest.

A saga changes one object (its ``object_kind`` and id), which it owns while it runs (`saga.owners`). Each step has at
most one effect: in our own database (``Transact``), on one host (``Call``), or none (``Wait``, ``Children``). The
engine journals every step's start and output; after ``kill -9`` a step whose end is not in the journal is repeated
(``Call``: asked about first), so every do and undo must be idempotent. When a step fails, the finished steps are undone
in reverse, then ``failed`` runs in one transaction with the end of the saga. A ``Call`` that was sent and failed, or
whose outcome stays unknown, may have left something and is undone too: its undo must not need its own output. (A
``Transact`` that failed was rolled back.) An undo that fails is tried again, in the end noted as failed, and the others
go on.

To fail a step, raise a `kernel.errors.CloudError` from ``do``, ``done`` or ``until``: its message, ``details["code"]``
and details become the saga's error. ``do`` and ``until`` of a step may run several times; nothing of them lasts but
what their last transaction wrote.

``undo`` is required: write ``nothing_to_undo("why")`` when there is nothing to take back.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from cumulet.agent.contract import Operation
from cumulet.db import Tx


@dataclass
class Run:
    """What a step sees of its saga. ``outputs``: step name -> what it returned (plain JSON data). ``memo``: what an
    earlier step of this conductor worked out and a later one need not again; it may be empty at any time."""

    saga_id: str
    object_id: str
    request_id: str
    params: Any
    outputs: dict[str, Any]
    project_id: str | None = None
    user_id: str | None = None
    kind: str = ""  # of the saga
    error: str | None = None  # while unwinding and in ``failed``: why, for people
    error_code: str | None = None
    error_details: dict[str, Any] = field(default_factory=dict)
    memo: dict[Any, Any] = field(default_factory=dict)
    cancelled: bool = False  # unwinding because a preempting saga (a delete) asked for it
    # step name -> done, skipped (its host was down) or failed; once it was undone: undone, undo_skipped or undo_failed
    ends: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class NothingToUndo:
    why: str


def nothing_to_undo(why: str) -> NothingToUndo:
    return NothingToUndo(why)


@dataclass(frozen=True)
class Transact:
    """Effect in our own database, in one transaction with its journal entry. The return value is the output."""

    name: str
    do: Callable[[Tx, Run], Any]
    undo: Callable[[Tx, Run], None] | NothingToUndo
    task_state: str | None = None  # shown while the step runs
    event: str | None = None  # name in os-instance-actions events (compute__do_build_and_run_instance, ...)


HostCall = tuple[str, Operation]  # host name, operation


@dataclass(frozen=True)
class Call:
    """Effect on one host: an agent operation. ``do`` and ``undo`` only read (in a transaction) and say what to ask of
    whom; None: nothing to do. ``done`` writes what came of it, with the journal entry. ``if_host_down``: ``wait`` until
    the deadline, ``fail`` at once, or ``skip`` (a delete: the host's inventory is compared when it returns; so does
    every undo)."""

    name: str
    do: Callable[[Tx, Run], HostCall | None]
    undo: Callable[[Tx, Run], HostCall | None] | NothingToUndo
    done: Callable[[Tx, Run, dict[str, Any] | None], Any] | None = None
    undone: Callable[[Tx, Run], None] | None = None
    if_host_down: Literal["wait", "fail", "skip"] = "fail"
    task_state: str | None = None
    event: str | None = None


@dataclass(frozen=True)
class Wait:
    """Parks the saga in its row, holding no thread, until ``until`` returns something other than None (the output).
    It is asked again whenever the object is signalled (`SagaEngine.wake`) and once every ``poll_seconds``."""

    name: str
    until: Callable[[Tx, Run], Any | None]
    deadline_seconds: float = 300
    on_deadline: Literal["fail", "continue"] = "fail"
    poll_seconds: float = 2.0
    task_state: str | None = None
    event: str | None = None


@dataclass(frozen=True)
class Children:
    """Starts child sagas and parks until all have ended; fails if one failed unless ``tolerate``. The output is a list
    of ``{"id", "status", "error", "error_code", "error_details"}`` in the order of starting. A child may have the same
    object as its parent (trying another host): it then works under the parent's ownership. ``undo`` starts children
    that take back what finished ones did, also when another failed or the saga was cancelled meanwhile."""

    name: str
    start: Callable[[Tx, Run], Sequence["Start"]]
    tolerate: bool = False
    undo: Callable[[Tx, Run], Sequence["Start"]] | NothingToUndo = NothingToUndo("what failed has unwound itself")
    task_state: str | None = None
    event: str | None = None


Step = Transact | Call | Wait | Children


@dataclass(frozen=True)
class Saga:
    """``settle`` runs inside every transaction that moves the saga (and only there may the object's visible state
    change): with the step that begins (at the start of the saga the first one; while unwinding the one being undone),
    at the end with None, after ``finished`` or ``failed``. ``Run.error`` is set while unwinding."""

    kind: str  # "server.create"
    object_kind: str  # "server"
    params: type[msgspec.Struct]
    steps: tuple[Step, ...]
    settle: Callable[[Tx, Run, Step | None], None] | None = None
    finished: Callable[[Tx, Run], None] | None = None
    failed: Callable[[Tx, Run], None] | None = None
    version: int = 1
    # Asks an owner that preempts less (1: a hard reboot, 2: a delete) to unwind, then runs. True is 1.
    preempts: int = 0
    repeats: bool = False  # asked for while it runs, it runs once more afterwards; else the one that runs is meant
    action: str | None = None  # instance action name (create, delete, reboot, ...): shown by os-instance-actions
    secrets: tuple[str, ...] = ()  # fields of the params that the end of the saga, good or bad, wipes from the journal

    def hold(self, tx: Tx, object_id: str) -> None:
        """What settles an object has its lock before all else, as requests and reports take it: none of them then waits
        for another that waits for it."""
        if self.settle is not None:
            tx.lock(self.object_kind, object_id)


@dataclass(frozen=True)
class Start:
    """A child to start."""

    saga: Saga
    object_id: str
    params: msgspec.Struct
