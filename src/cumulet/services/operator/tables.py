"""What processes noted of requests: one row for each request, process and batch of notes."""

from sqlalchemy import BigInteger, Column, Index, Integer, String, Table

from cumulet.db import METADATA, Id, Json, Time

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
