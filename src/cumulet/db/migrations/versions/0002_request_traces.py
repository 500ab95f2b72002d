"""what processes noted of requests; sagas by request"""

import sqlalchemy as sa
from alembic import op

import cumulet.db.schema

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "request_traces",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("request_id", sa.String(length=64), nullable=False),
        sa.Column("process", sa.String(length=255), nullable=False),
        sa.Column("written_at", sa.BigInteger(), nullable=False),
        sa.Column("summary", cumulet.db.schema.Json(), nullable=True),
        sa.Column("notes", cumulet.db.schema.Json(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_request_traces")),
    )
    with op.batch_alter_table("request_traces", schema=None) as batch_op:
        batch_op.create_index("ix_request_traces_request_id", ["request_id"], unique=False)

    with op.batch_alter_table("sagas", schema=None) as batch_op:
        batch_op.create_index("ix_sagas_request_id", ["request_id"], unique=False)


def downgrade() -> None:
    raise NotImplementedError("a schema only goes forward; restore a backup")
