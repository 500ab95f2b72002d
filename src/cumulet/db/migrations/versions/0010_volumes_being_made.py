"""what a volume is being made of is found quickly"""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("volumes", schema=None) as batch_op:
        batch_op.create_index(
            "ix_volumes_being_made",
            ["source_volid", "snapshot_id"],
            unique=False,
            sqlite_where=sa.text("base = 'creating'"),
            postgresql_where=sa.text("base = 'creating'"),
        )


def downgrade() -> None:
    raise NotImplementedError("a schema only goes forward; restore a backup")
