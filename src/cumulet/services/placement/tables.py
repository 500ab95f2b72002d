"""Providers, their inventories, traits and aggregates; consumers and their allocations."""

from sqlalchemy import BigInteger, Column, Float, Index, Integer, String, Table

from cumulet.db import METADATA, Id, Time

PROVIDERS = Table(
    "resource_providers",
    METADATA,
    Column("uuid", Id, primary_key=True),
    Column("name", String(255), nullable=False, unique=True),
    Column("generation", BigInteger, nullable=False),
    Column("parent_uuid", Id),
    Column("root_uuid", Id, nullable=False),
    Column("created_at", Time, nullable=False),
    Column("updated_at", Time, nullable=False),
    Index("ix_resource_providers_root_uuid", "root_uuid"),
)

INVENTORIES = Table(
    "inventories",
    METADATA,
    Column("provider_uuid", Id, primary_key=True),
    Column("resource_class", String(255), primary_key=True),
    Column("total", Integer, nullable=False),
    Column("reserved", Integer, nullable=False),
    Column("min_unit", Integer, nullable=False),
    Column("max_unit", Integer, nullable=False),
    Column("step_size", Integer, nullable=False),
    Column("allocation_ratio", Float, nullable=False),
    Column("updated_at", Time, nullable=False),
)

# only those that users made; the standard ones are data of the release
RESOURCE_CLASSES = Table(
    "resource_classes",
    METADATA,
    Column("name", String(255), primary_key=True),
    Column("updated_at", Time, nullable=False),
)

TRAITS = Table(
    "traits", METADATA, Column("name", String(255), primary_key=True), Column("updated_at", Time, nullable=False)
)

PROVIDER_TRAITS = Table(
    "resource_provider_traits",
    METADATA,
    Column("provider_uuid", Id, primary_key=True),
    Column("trait", String(255), primary_key=True),
    Index("ix_resource_provider_traits_trait", "trait"),
)

PROVIDER_AGGREGATES = Table(
    "resource_provider_aggregates",
    METADATA,
    Column("provider_uuid", Id, primary_key=True),
    Column("aggregate_uuid", Id, primary_key=True),
)

CONSUMERS = Table(
    "consumers",
    METADATA,
    Column("uuid", Id, primary_key=True),
    Column("project_id", String(255), nullable=False),
    Column("user_id", String(255), nullable=False),
    Column("consumer_type", String(255)),  # None: unknown
    Column("generation", BigInteger, nullable=False),
    Column("updated_at", Time, nullable=False),
    Index("ix_consumers_project_id", "project_id"),
)

ALLOCATIONS = Table(
    "allocations",
    METADATA,
    Column("consumer_uuid", Id, primary_key=True),
    Column("provider_uuid", Id, primary_key=True),
    Column("resource_class", String(255), primary_key=True),
    Column("used", Integer, nullable=False),
    Column("updated_at", Time, nullable=False),
    Index("ix_allocations_provider_uuid", "provider_uuid", "resource_class", "used"),
)
