"""What processes noted of requests (a row for each request, process and batch of notes), how they are doing, and what
degrades the cloud."""

from sqlalchemy import BigInteger, Column, Index, Integer, String, Table

from cumulet.db import METADATA, Id, Json, Text, Time

REQUEST_TRACES = Table(
    "request_traces",
    METADATA,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("request_id", Id, nullable=False),
    Column("process", String(255), nullable=False),
    Column("written_at", Time, nullable=False),
    Column("summary", Json),  # of the API call, if this batch has it
    Column("notes", Json, nullable=False),  # [[at, kind, data], …] as `kernel.trace` has them
    Index("ix_request_traces_request_id", "request_id"),
)

PROCESSES = Table(
    "processes",
    METADATA,
    Column("name", String(255), primary_key=True),
    Column("seen_at", Time, nullable=False),
    Column("vitals", Json, nullable=False),
)

# one row for each thing that is or was wrong with one object; found again, it is the same row
CONDITIONS = Table(
    "conditions",
    METADATA,
    Column("id", Id, primary_key=True),  # code and a digest of the object
    Column("code", String(64), nullable=False),
    Column("severity", String(16), nullable=False),  # info, warning, error
    Column("object_kind", String(32), nullable=False),
    Column("object_id", String(255), nullable=False),
    Column("host", String(255)),
    Column("message", Text, nullable=False),
    Column("cure", Text, nullable=False),
    Column("count", BigInteger, nullable=False),  # how often it began
    Column("first_seen", Time, nullable=False),
    Column("last_seen", Time, nullable=False),
    Column("resolved_at", Time),
    Index("ix_conditions_resolved_at", "resolved_at"),
)
