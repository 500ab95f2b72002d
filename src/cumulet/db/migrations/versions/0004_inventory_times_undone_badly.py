"""inventory times, undone badly"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("hosts", schema=None) as batch_op:
        batch_op.add_column(sa.Column("inventory_at", sa.BigInteger(), nullable=True))

    with op.batch_alter_table("saga_steps", schema=None) as batch_op:
        batch_op.create_index(
            "ix_saga_steps_badly_undone",
            ["undone_at"],
            unique=False,
            sqlite_where=sa.text("state IN ('undo_skipped', 'undo_failed')"),
            postgresql_where=sa.text("state IN ('undo_skipped', 'undo_failed')"),
        )


def downgrade() -> None:
    raise NotImplementedError("a schema only goes forward; restore a backup")
