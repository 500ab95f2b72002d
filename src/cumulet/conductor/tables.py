"""What the control plane knows of hosts, and which documents each is to have."""

from sqlalchemy import BigInteger, Column, Float, Index, Integer, String, Table

from cumulet.db import METADATA, Bool, Id, Json, Text, Time

HOSTS = Table(
    "hosts",
    METADATA,
    Column("name", String(255), primary_key=True),
    Column("uuid", Id, nullable=False, unique=True),
    Column("number", Integer, nullable=False, unique=True),  # for APIs that number hosts
    Column("roles", Json, nullable=False),
    Column("version", String(64), nullable=False),
    Column("ip", String(64), nullable=False),
    Column("tunnel_ip", String(64)),
    Column("speed_factor", Float, nullable=False),
    Column("mechanism", String(64), nullable=False),
    Column("virt_type", String(32), nullable=False),
    Column("bridge_mappings", Json, nullable=False),
    Column("resources", Json, nullable=False),
    Column("warnings", Json, nullable=False),
    Column("started", Time, nullable=False),  # of this run of the agent
    Column("seen_at", Time, nullable=False),
    Column("beats", BigInteger, nullable=False),
    Column("disabled", Json, nullable=False),  # role -> reason
    Column("disabled_at", Time),
    Column("forced_down", Bool, nullable=False),
    Column("created_at", Time, nullable=False),
    Column("updated_at", Time, nullable=False),
    Column("inventory_at", Time),  # when all that is on it was last compared with the rows
)

# ``absent`` rows are kept for a while, so that a host which was away still learns what to remove
DESIRED_DOCS = Table(
    "desired_docs",
    METADATA,
    Column("host", String(255), primary_key=True),
    Column("kind", String(16), primary_key=True),
    Column("object_id", Id, primary_key=True),
    Column("generation", BigInteger, nullable=False),
    Column("applied_generation", BigInteger, nullable=False),
    Column("error", Text),
    Column("absent", Bool, nullable=False),
    Column("updated_at", Time, nullable=False),
    Column("applied_at", Time),
    Index("ix_desired_docs_kind_object_id", "kind", "object_id"),
)

# Hosts that an operator wants empty: of servers, of volumes.
HOST_DRAINS = Table(
    "host_drains",
    METADATA,
    Column("host", String(255), primary_key=True),
    Column("asked_at", Time, nullable=False),  # moves that failed before then are tried again
)
