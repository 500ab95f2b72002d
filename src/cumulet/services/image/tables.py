"""Tables of the image service.

An image's tags and custom properties stand in its row: they are read with it each time, and filtered by a text match
that is checked again in Python (`store.list_images`). A deleted image stays as a tombstone: its id is never reused.
"""

from sqlalchemy import BigInteger, Column, Index, Integer, Table

from cumulet.db import METADATA, Bool, Id, Json, Text, Time

IMAGES = Table(
    "images",
    METADATA,
    Column("id", Id, primary_key=True),
    Column("name", Text),
    Column("owner", Id),
    Column("status", Id, nullable=False),
    Column("visibility", Id, nullable=False),
    Column("protected", Bool, nullable=False),
    Column("os_hidden", Bool, nullable=False),
    Column("disk_format", Id),
    Column("container_format", Id),
    Column("size", BigInteger),
    Column("virtual_size", BigInteger),
    Column("checksum", Id),
    Column("os_hash_algo", Id),
    Column("os_hash_value", Text),
    Column("min_ram", Integer, nullable=False),
    Column("min_disk", Integer, nullable=False),
    Column("tags", Json, nullable=False),
    Column("properties", Json, nullable=False),
    Column("created_at", Time, nullable=False),
    Column("updated_at", Time, nullable=False),
    Column("deleted_at", Time),
    # Who writes the data now: a token of the one upload whose end may settle the image, who runs it ("agent" for a
    # snapshot that a host makes, else process), and when it was last seen writing.
    Column("upload_id", Id),
    Column("upload_by", Text),
    Column("upload_seen", Time),
    Index("ix_images_owner", "owner"),
    Index("ix_images_created", "deleted_at", "created_at"),
)

MEMBERS = Table(
    "image_members",
    METADATA,
    Column("image_id", Id, primary_key=True),
    Column("member_id", Id, primary_key=True),
    Column("status", Id, nullable=False),
    Column("created_at", Time, nullable=False),
    Column("updated_at", Time, nullable=False),
    Index("ix_image_members_member", "member_id"),
)

TASKS = Table(
    "image_tasks",
    METADATA,
    Column("id", Id, primary_key=True),
    Column("type", Id, nullable=False),
    Column("status", Id, nullable=False),
    Column("owner", Id),
    Column("image_id", Id, index=True),
    Column("user_id", Id),
    Column("request_id", Id),
    Column("input", Json),
    Column("result", Json),
    Column("message", Text, nullable=False),
    Column("created_at", Time, nullable=False),
    Column("updated_at", Time, nullable=False),
    Column("expires_at", Time),
)

# Metadata definitions: a namespace, and what stands in it (kind: object, property, tag, resource_type).
NAMESPACES = Table(
    "metadef_namespaces",
    METADATA,
    Column("namespace", Id, primary_key=True),
    Column("display_name", Text),
    Column("description", Text),
    Column("visibility", Id, nullable=False),
    Column("protected", Bool, nullable=False),
    Column("owner", Id),
    Column("created_at", Time, nullable=False),
    Column("updated_at", Time, nullable=False),
)

DEFINITIONS = Table(
    "metadef_items",
    METADATA,
    Column("namespace", Id, primary_key=True),
    Column("kind", Id, primary_key=True),
    Column("name", Id, primary_key=True),
    Column("body", Json, nullable=False),
    Column("created_at", Time, nullable=False),
    Column("updated_at", Time, nullable=False),
)

# The key that signs URLs for agents; every process of the cloud reads the same.
KEYS = Table(
    "image_keys",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("secret", Id, nullable=False),
    Column("created_at", Time, nullable=False),
)
