"""volumes move between hosts"""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "volume_copies",
        sa.Column("volume_id", sa.String(length=64), nullable=False),
        sa.Column("host", sa.String(length=64), nullable=False),
        sa.Column("noted_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("volume_id", "host", name=op.f("pk_volume_copies")),
    )
    with op.batch_alter_table("volume_copies", schema=None) as batch_op:
        batch_op.create_index("ix_volume_copies_host", ["host"], unique=False)


def downgrade() -> None:
    raise NotImplementedError("a schema only goes forward; restore a backup")
