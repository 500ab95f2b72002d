"""The journal: sagas, the steps they have finished, and who owns which object.

A saga's row says all about the step it is in; ``saga_steps`` holds one row for each step that has ended. ``epoch``
rises with every write of the journal and never falls for an object: it is at once the optimistic lock of the row,
the lease's number, and what agents compare.
"""

from sqlalchemy import BigInteger, Column, Index, Integer, String, Table, text

from cumulet.db import METADATA, Bool, Id, Json, Text, Time

SAGAS = Table(
    "sagas",
    METADATA,
    Column("id", Id, primary_key=True),
    Column("kind", String(64), nullable=False),
    Column("version", Integer, nullable=False),
    Column("object_kind", String(32), nullable=False),
    Column("object_id", Id, nullable=False),
    Column("parent_id", Id),
    Column("parent_position", Integer),
    Column("owns", Bool, nullable=False),  # holds the object's slot (a child of the owner does not)
    Column("request_id", Id, nullable=False),
    Column("project_id", Id),
    Column("user_id", Id),
    Column("params", Json),
    Column("status", String(16), nullable=False),  # queued, running, unwinding, finished, failed
    Column("position", Integer, nullable=False),
    Column("phase", String(16), nullable=False),  # ready, called, waiting, retrying (an undo), ended
    Column("attempt", Integer, nullable=False),
    Column("op_host", String(255)),
    Column("op_id", String(200)),
    Column("step_started_at", Time, nullable=False),
    Column("deadline_at", Time),
    Column("patience", BigInteger, nullable=False),  # microseconds without progress that a called host is given
    Column("wake_at", Time),  # nobody looks at it before, but for an event; of a running step: the lease's end
    Column("lease_owner", String(255)),
    Column("epoch", BigInteger, nullable=False),
    Column("cancel_requested", Bool, nullable=False),
    Column("cancelled", Bool, nullable=False),
    Column("error", Text),
    Column("error_code", String(64)),
    Column("error_details", Json),
    Column("created_at", Time, nullable=False),
    Column("updated_at", Time, nullable=False),
    Column("ended_at", Time),
    Index("ix_sagas_object", "object_kind", "object_id"),
    Index("ix_sagas_status_wake_at", "status", "wake_at"),
    Index("ix_sagas_parent_id", "parent_id"),
    Index("ix_sagas_request_id", "request_id"),
)

_BADLY = text("state IN ('undo_skipped', 'undo_failed')")
SAGA_STEPS = Table(
    "saga_steps",
    METADATA,
    Column("saga_id", Id, primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("name", String(64), nullable=False),
    # done, skipped (its host was down), failed; then undone, or undo_skipped, undo_failed
    Column("state", String(16), nullable=False),
    Column("host", String(255)),
    Column("output", Json),
    Column("error", Text),
    Column("started_at", Time, nullable=False),
    Column("ended_at", Time, nullable=False),
    Column("undone_at", Time),
    Index("ix_saga_steps_badly_undone", "undone_at", sqlite_where=_BADLY, postgresql_where=_BADLY),
)

SAGA_OWNERS = Table(
    "saga_owners",
    METADATA,
    Column("object_kind", String(32), primary_key=True),
    Column("object_id", Id, primary_key=True),
    Column("saga_id", Id),
    Column("next_saga_id", Id),  # a preempting saga that waits for the owner to unwind
    Column("epoch", BigInteger, nullable=False),
)
