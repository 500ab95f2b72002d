"""servers move between hosts"""

import sqlalchemy as sa
from alembic import op

import cumulet.db.schema

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "server_migrations",
        sa.Column("number", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("server_id", sa.String(length=64), nullable=False),
        sa.Column("type", sa.String(length=16), nullable=False),
        sa.Column("status", sa.String(length=32), nullable=False),
        sa.Column("source", sa.String(length=255), nullable=False),
        sa.Column("dest", sa.String(length=255), nullable=True),
        sa.Column("old_flavor", sa.BigInteger(), nullable=True),
        sa.Column("new_flavor", sa.BigInteger(), nullable=True),
        sa.Column("user_id", sa.String(length=64), nullable=True),
        sa.Column("project_id", sa.String(length=64), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_server_migrations")),
        sa.UniqueConstraint("id", name=op.f("uq_server_migrations_id")),
        sqlite_autoincrement=True,
    )
    with op.batch_alter_table("server_migrations", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_server_migrations_server_id"), ["server_id"], unique=False)
        batch_op.create_index("ix_server_migrations_created", ["created_at", "number"], unique=False)

    op.create_table(
        "host_drains",
        sa.Column("host", sa.String(length=255), nullable=False),
        sa.Column("asked_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("host", name=op.f("pk_host_drains")),
    )
    with op.batch_alter_table("server_block_devices", schema=None) as batch_op:
        batch_op.add_column(sa.Column("move", cumulet.db.schema.Json(), nullable=True))
    with op.batch_alter_table("ports", schema=None) as batch_op:
        batch_op.add_column(sa.Column("moving", sa.String(length=255), server_default="", nullable=False))


def downgrade() -> None:
    raise NotImplementedError("a schema only goes forward; restore a backup")
