"""Tables of the compute service. A deleted server stays as a tombstone (``deleted_at`` set), outside quota sums.

``goal``, ``failed``, ``deleting`` are intent; ``vmms`` is what hosts report; ``vm_state``, ``task_state``,
``power_state`` and ``status`` are computed from both and written only by `state.settle`.
"""

from sqlalchemy import BigInteger, Column, Float, Index, Integer, String, Table, UniqueConstraint

from cumulet.db import METADATA, Bool, Id, Json, SharedJson, Text, Time

_Serial = BigInteger().with_variant(Integer, "sqlite")

SERVERS = Table(
    "servers",
    METADATA,
    Column("number", _Serial, primary_key=True, autoincrement=True),  # of instance-0000000a
    Column("id", Id, nullable=False, unique=True),
    Column("project_id", Id, nullable=False),
    Column("user_id", Id, nullable=False),
    Column("name", String(255), nullable=False),
    Column("hostname", String(255), nullable=False),
    Column("description", String(255)),
    Column("created_at", Time, nullable=False),
    Column("updated_at", Time),
    Column("deleted_at", Time),
    Column("launched_at", Time),
    Column("terminated_at", Time),
    # intent
    Column("goal", String(32), nullable=False),
    Column("failed", Bool, nullable=False),
    Column("deleting", Bool, nullable=False),
    # visible
    Column("vm_state", String(32), nullable=False),
    Column("task_state", String(64)),
    Column("power_state", Integer, nullable=False),
    Column("status", String(32), nullable=False),
    # what it is
    Column("host", String(255)),
    Column("availability_zone", String(255)),  # asked for: the server is pinned to it
    Column("image_id", Id),
    Column("image_properties", SharedJson, nullable=False),
    Column("flavor_id", String(255), nullable=False),
    Column("flavor", SharedJson, nullable=False),
    Column("vcpus", Integer, nullable=False),
    Column("memory_mb", Integer, nullable=False),
    Column("root_gb", Integer, nullable=False),
    Column("ephemeral_gb", Integer, nullable=False),
    Column("key_name", String(255)),
    Column("public_key", Text),
    Column("user_data", Text),
    Column("config_drive", Bool, nullable=False),
    Column("access_ip_v4", String(39)),
    Column("access_ip_v6", String(39)),
    Column("disk_config", String(8), nullable=False),
    Column("metadata", Json, nullable=False),
    Column("locked", Bool, nullable=False),
    Column("locked_by", String(16)),
    Column("locked_reason", String(255)),
    Column("reservation_id", String(32), nullable=False),
    Column("launch_index", Integer, nullable=False),
    Column("root_device_name", String(32)),
    Column("scheduler_hints", SharedJson, nullable=False),
    Column("password", Text),  # encrypted by the guest with the owner's key (os-server-password)
    Column("rescue", Json),  # while rescued: image id and properties
    Column("resize", Json),  # while resized: what to go back to
    Index("ix_servers_project", "project_id", "deleted_at", "created_at"),
    Index("ix_servers_created", "created_at", "id"),
    Index("ix_servers_host", "host"),
    sqlite_autoincrement=True,
)

# One row per QEMU process per host, as its agent last reported it.
VMMS = Table(
    "vmms",
    METADATA,
    Column("server_id", Id, primary_key=True),
    Column("host", String(255), primary_key=True),
    Column("power_state", Integer, nullable=False),
    Column("reason", String(255), nullable=False),
    Column("sequence", BigInteger, nullable=False),
    Column("reported_at", Time, nullable=False),
)

SERVER_FAULTS = Table(
    "server_faults",
    METADATA,
    Column("server_id", Id, primary_key=True),
    Column("created_at", Time, nullable=False),
    Column("code", Integer, nullable=False),
    Column("message", String(255), nullable=False),
    Column("details", Text),
)

SERVER_TAGS = Table(
    "server_tags",
    METADATA,
    Column("server_id", Id, primary_key=True),
    Column("tag", String(60), primary_key=True),
    Index("ix_server_tags_tag", "tag"),
)

# A disk of a server that is a volume. ``attachment_id`` is the volume service's.
BLOCK_DEVICES = Table(
    "server_block_devices",
    METADATA,
    Column("id", Id, primary_key=True),
    Column("server_id", Id, nullable=False, index=True),
    Column("volume_id", Id, nullable=False, index=True),
    Column("attachment_id", Id),
    Column("device", String(255)),
    Column("boot_index", Integer),
    Column("tag", String(60)),
    Column("delete_on_termination", Bool, nullable=False),
    Column("connection", Json),
    Column("created_at", Time, nullable=False),
    Column("move", Json),  # while its server moves live: attachment_id and connection for the other host
)

# A move of a server between hosts, under way or over: what os-migrations shows. Until it is over, ``id`` is the
# consumer of what the server takes of the host that it is to leave.
MIGRATIONS = Table(
    "server_migrations",
    METADATA,
    Column("number", _Serial, primary_key=True, autoincrement=True),
    Column("id", Id, nullable=False, unique=True),
    Column("server_id", Id, nullable=False, index=True),
    Column("type", String(16), nullable=False),  # migration, resize, live-migration, evacuation
    Column("status", String(32), nullable=False),
    Column("source", String(255), nullable=False),
    Column("dest", String(255)),  # None: no host was found yet
    Column("old_flavor", BigInteger),  # numbers of flavors
    Column("new_flavor", BigInteger),
    Column("user_id", Id),
    Column("project_id", Id),
    Column("created_at", Time, nullable=False),
    Column("updated_at", Time, nullable=False),
    Index("ix_server_migrations_created", "created_at", "number"),
    sqlite_autoincrement=True,
)

# Which ports belong to a server, in the order of its NICs.
INTERFACES = Table(
    "server_interfaces",
    METADATA,
    Column("port_id", Id, primary_key=True),
    Column("server_id", Id, nullable=False, index=True),
    Column("position", BigInteger, nullable=False),
    Column("tag", String(60)),
)

FLAVORS = Table(
    "flavors",
    METADATA,
    Column("number", _Serial, primary_key=True, autoincrement=True),
    Column("id", String(255), nullable=False, unique=True),
    Column("name", String(255), nullable=False, unique=True),
    Column("description", Text),
    Column("vcpus", Integer, nullable=False),
    Column("memory_mb", Integer, nullable=False),
    Column("root_gb", Integer, nullable=False),
    Column("ephemeral_gb", Integer, nullable=False),
    Column("swap_mb", Integer, nullable=False),
    Column("rxtx_factor", Float, nullable=False),
    Column("is_public", Bool, nullable=False),
    Column("extra_specs", Json, nullable=False),
    Column("created_at", Time, nullable=False),
    Column("updated_at", Time),
    sqlite_autoincrement=True,
)

FLAVOR_ACCESS = Table(
    "flavor_access",
    METADATA,
    Column("flavor_id", String(255), primary_key=True),
    Column("project_id", String(255), primary_key=True),
)

KEYPAIRS = Table(
    "keypairs",
    METADATA,
    Column("number", _Serial, primary_key=True, autoincrement=True),
    Column("user_id", String(255), nullable=False),
    Column("name", String(255), nullable=False),
    Column("type", String(8), nullable=False),
    Column("fingerprint", String(255), nullable=False),
    Column("public_key", Text, nullable=False),
    Column("created_at", Time, nullable=False),
    UniqueConstraint("user_id", "name"),
    sqlite_autoincrement=True,
)

# ``scope``: "project:<id>", "user:<project id>:<user id>" or "class:default".
QUOTAS = Table(
    "compute_quotas",
    METADATA,
    Column("scope", String(255), primary_key=True),
    Column("resource", String(64), primary_key=True),
    Column("hard_limit", BigInteger, nullable=False),
)

SERVER_GROUPS = Table(
    "server_groups",
    METADATA,
    Column("id", Id, primary_key=True),
    Column("project_id", Id, nullable=False, index=True),
    Column("user_id", Id, nullable=False),
    Column("name", String(255), nullable=False),
    Column("policy", String(32), nullable=False),
    Column("rules", Json, nullable=False),
    Column("created_at", Time, nullable=False),
)

SERVER_GROUP_MEMBERS = Table(
    "server_group_members",
    METADATA,
    Column("group_id", Id, primary_key=True),
    Column("server_id", Id, primary_key=True),
    Index("ix_server_group_members_server", "server_id"),
)

AGGREGATES = Table(
    "aggregates",
    METADATA,
    Column("id", _Serial, primary_key=True, autoincrement=True),
    Column("uuid", Id, nullable=False, unique=True),
    Column("name", String(255), nullable=False, unique=True),
    Column("metadata", Json, nullable=False),
    Column("created_at", Time, nullable=False),
    Column("updated_at", Time),
    sqlite_autoincrement=True,
)

AGGREGATE_HOSTS = Table(
    "aggregate_hosts",
    METADATA,
    Column("aggregate_id", BigInteger, primary_key=True),
    Column("host", String(255), primary_key=True),
)

# Which sagas were started for a server: os-instance-actions is a view over the saga journal through this.
SERVER_ACTIONS = Table(
    "server_actions",
    METADATA,
    Column("saga_id", Id, primary_key=True),
    Column("server_id", Id, nullable=False, index=True),
    Column("request_id", Id, nullable=False),
    Column("action", String(64), nullable=False),
    Column("user_id", Id),
    Column("project_id", Id),
    Column("started_at", Time, nullable=False),
    Column("object_kind", String(32), nullable=False),  # what the saga works on: the server, an attachment, a port
    Column("object_id", Id, nullable=False),
)
