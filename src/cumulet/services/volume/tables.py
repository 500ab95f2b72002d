"""Tables of the volume service.

A volume's visible ``status`` is written by `state.settle` alone, from what the other columns and the attachments say:
``base`` (is it made, did something break), ``busy`` (what a saga does to it now), ``legacy`` (the old reserve and
begin_detaching calls), ``override`` (an administrator's reset-state, until the next event). Deleted rows stay.
"""

from sqlalchemy import BigInteger, Column, Index, Integer, Table, text

from cumulet.db import METADATA, Bool, Id, Json, Text, Time

BEING_MADE = text("base = 'creating'")  # a query names it by a literal too, else its planner leaves the index alone

VOLUMES = Table(
    "volumes",
    METADATA,
    Column("id", Id, primary_key=True),
    Column("project_id", Id, nullable=False),
    Column("user_id", Id),
    Column("name", Text),
    Column("description", Text),
    Column("size_gb", Integer, nullable=False),
    Column("status", Id, nullable=False),
    Column("base", Id, nullable=False),  # creating, ready, error, error_deleting, error_extending, error_restoring
    Column("busy", Id),
    Column("legacy", Id),  # attaching, detaching
    Column("override", Id),
    Column("volume_type_id", Id),
    Column("availability_zone", Id, nullable=False),
    Column("host", Id),
    Column("snapshot_id", Id),
    Column("source_volid", Id),
    Column("image_id", Id),
    Column("server_id", Id),  # the server it was made for
    Column("bootable", Bool, nullable=False),
    Column("multiattach", Bool, nullable=False),
    Column("metadata", Json, nullable=False),
    Column("admin_metadata", Json, nullable=False),
    Column("image_metadata", Json),
    Column("migration_status", Id),
    Column("transfer", Bool, nullable=False),
    Column("created_at", Time, nullable=False),
    Column("updated_at", Time),
    Column("deleted_at", Time),
    Index("ix_volumes_project", "project_id", "deleted_at", "created_at"),
    Index("ix_volumes_being_made", "source_volid", "snapshot_id", sqlite_where=BEING_MADE, postgresql_where=BEING_MADE),
)

# Copies of a volume on hosts where it is not: the one that a move is making (its room is claimed), and those that a
# move left behind while their host was down or would not let go. A host's inventory says when they are gone.
COPIES = Table(
    "volume_copies",
    METADATA,
    Column("volume_id", Id, primary_key=True),
    Column("host", Id, primary_key=True),
    Column("noted_at", Time, nullable=False),
    Index("ix_volume_copies_host", "host"),
)

SNAPSHOTS = Table(
    "volume_snapshots",
    METADATA,
    Column("id", Id, primary_key=True),
    Column("volume_id", Id, nullable=False, index=True),
    Column("project_id", Id, nullable=False),
    Column("user_id", Id),
    Column("name", Text),
    Column("description", Text),
    Column("size_gb", Integer, nullable=False),
    Column("status", Id, nullable=False),
    Column("progress", Id),
    Column("metadata", Json, nullable=False),
    Column("created_at", Time, nullable=False),
    Column("updated_at", Time),
    Column("deleted_at", Time),
    Index("ix_volume_snapshots_project", "project_id", "deleted_at", "created_at"),
)

# The status of a connection that belongs to no attachment; what looks for attachments does not see it.
EXPORTED = "exported"

ATTACHMENTS = Table(
    "volume_attachments",
    METADATA,
    Column("id", Id, primary_key=True),
    Column("volume_id", Id, nullable=False, index=True),
    Column("project_id", Id, nullable=False),
    Column("server_id", Id, index=True),
    Column("status", Id, nullable=False),  # reserved, attaching, attached, detaching; exported
    Column("generation", Integer, nullable=False),
    Column("host", Id),  # that connects
    Column("device", Text),
    Column("mode", Id),
    Column("connector", Json),
    Column("connection", Json),
    Column("attached_at", Time),
    Column("created_at", Time, nullable=False),
)

TYPES = Table(
    "volume_types",
    METADATA,
    Column("id", Id, primary_key=True),
    Column("name", Text, nullable=False),
    Column("description", Text),
    Column("is_public", Bool, nullable=False),
    Column("extra_specs", Json, nullable=False),
    Column("qos_specs_id", Id),
    Column("encryption", Json),
    Column("created_at", Time, nullable=False),
    Column("updated_at", Time),
)

TYPE_ACCESS = Table(
    "volume_type_access",
    METADATA,
    Column("volume_type_id", Id, primary_key=True),
    Column("project_id", Id, primary_key=True),
)

GROUP_TYPES = Table(
    "volume_group_types",
    METADATA,
    Column("id", Id, primary_key=True),
    Column("name", Text, nullable=False),
    Column("description", Text),
    Column("is_public", Bool, nullable=False),
    Column("group_specs", Json, nullable=False),
    Column("created_at", Time, nullable=False),
    Column("updated_at", Time),
)

DEFAULT_TYPES = Table(
    "volume_default_types",
    METADATA,
    Column("project_id", Id, primary_key=True),
    Column("volume_type_id", Id, nullable=False),
)

QOS_SPECS = Table(
    "volume_qos_specs",
    METADATA,
    Column("id", Id, primary_key=True),
    Column("name", Text, nullable=False),
    Column("consumer", Id, nullable=False),
    Column("specs", Json, nullable=False),
    Column("created_at", Time, nullable=False),
)

BACKUPS = Table(
    "volume_backups",
    METADATA,
    Column("id", Id, primary_key=True),
    Column("volume_id", Id, nullable=False, index=True),
    Column("snapshot_id", Id),
    Column("parent_id", Id, index=True),
    Column("data_id", Id, nullable=False),  # under which the data is stored: an imported record may have another id
    Column("project_id", Id, nullable=False),
    Column("user_id", Id),
    Column("name", Text),
    Column("description", Text),
    Column("container", Text),
    Column("availability_zone", Id),
    Column("host", Id),
    Column("size_gb", Integer, nullable=False),
    Column("object_count", Integer, nullable=False),
    Column("status", Id, nullable=False),
    Column("fail_reason", Text),
    Column("metadata", Json, nullable=False),
    # Of the volume at the time of the backup: metadata, image_metadata, bootable.
    Column("described", Json, nullable=False),
    Column("data_timestamp", Time, nullable=False),
    Column("created_at", Time, nullable=False),
    Column("updated_at", Time),
    Column("deleted_at", Time),
)

TRANSFERS = Table(
    "volume_transfers",
    METADATA,
    Column("id", Id, primary_key=True),
    Column("volume_id", Id, nullable=False, index=True),
    Column("name", Text),
    Column("project_id", Id, nullable=False),
    Column("destination_project_id", Id),
    Column("accepted", Bool, nullable=False),
    Column("no_snapshots", Bool, nullable=False),
    Column("salt", Id, nullable=False),
    Column("auth_hash", Text, nullable=False),
    Column("created_at", Time, nullable=False),
    Column("deleted_at", Time),
)

MESSAGES = Table(
    "volume_messages",
    METADATA,
    Column("id", Id, primary_key=True),
    Column("project_id", Id, nullable=False, index=True),
    Column("request_id", Id),
    Column("resource_type", Id),
    Column("resource_uuid", Id),
    Column("event_id", Id, nullable=False),
    Column("message_level", Id, nullable=False),
    Column("user_message", Text, nullable=False),
    Column("created_at", Time, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
)

QUOTAS = Table(
    "volume_quotas",
    METADATA,
    Column("project_id", Id, primary_key=True),
    Column("resource", Text, primary_key=True),
    Column("hard_limit", Integer, nullable=False),
)

QUOTA_CLASSES = Table(
    "volume_quota_classes",
    METADATA,
    Column("class_name", Id, primary_key=True),
    Column("resource", Text, primary_key=True),
    Column("hard_limit", Integer, nullable=False),
)
