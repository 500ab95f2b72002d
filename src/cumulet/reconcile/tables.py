"""Each reconciler's lease and how its last run went."""

from sqlalchemy import BigInteger, Column, String, Table

from cumulet.db import METADATA, Text, Time

RECONCILERS = Table(
    "reconcilers",
    METADATA,
    Column("name", String(64), primary_key=True),
    Column("lease_owner", String(255)),
    Column("lease_until", Time, nullable=False),
    Column("next_at", Time, nullable=False),
    Column("status", String(16), nullable=False),  # new, running, ok, error
    Column("summary", Text),
    Column("error", Text),
    Column("started_at", Time),
    Column("ended_at", Time),
    Column("runs", BigInteger, nullable=False),
    Column("failures", BigInteger, nullable=False),
)
