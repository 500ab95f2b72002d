"""ports of a network by what they are for"""

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("ports", schema=None) as batch_op:
        batch_op.create_index("ix_ports_network_owner", ["network_id", "device_owner"], unique=False)


def downgrade() -> None:
    raise NotImplementedError("a schema only goes forward; restore a backup")
