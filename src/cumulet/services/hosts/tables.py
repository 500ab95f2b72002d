"""What makes a machine a host of this cloud: one-time tokens, the cloud's authority, the certificates it gave."""

from sqlalchemy import Column, Index, Integer, String, Table

from cumulet.db import METADATA, Id, Json, Text, Time

# The secret itself is never stored. ``used_key``: whose request took the token, so that an answer that was lost can be
# asked for again by the same machine, and by no other.
HOST_TOKENS = Table(
    "host_tokens",
    METADATA,
    Column("id", Id, primary_key=True),
    Column("secret_hash", String(64), nullable=False),
    Column("host", String(255)),  # the only name it is good for; None: any new one
    Column("roles", Json),  # the most it is good for; None: all
    Column("created_by", Id),
    Column("created_at", Time, nullable=False),
    Column("expires_at", Time, nullable=False),
    Column("used_at", Time),
    Column("used_by", String(255)),
    Column("used_key", String(64)),
)

HOST_AUTHORITY = Table(
    "host_authority",
    METADATA,
    Column("id", Integer, primary_key=True),  # 1
    Column("certificate", Text, nullable=False),
    Column("key", Text, nullable=False),
    Column("created_at", Time, nullable=False),
)

HOST_CERTIFICATES = Table(
    "host_certificates",
    METADATA,
    Column("serial", String(64), primary_key=True),
    Column("host", String(255), nullable=False),
    Column("fingerprint", String(64), nullable=False),
    Column("key_hash", String(64), nullable=False),
    Column("issued_at", Time, nullable=False),
    Column("expires_at", Time, nullable=False),
    Column("revoked_at", Time),
    Index("ix_host_certificates_host", "host"),
)
