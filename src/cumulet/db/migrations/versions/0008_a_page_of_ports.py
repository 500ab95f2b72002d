"""a page of ports"""

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("ports", schema=None) as batch_op:
        batch_op.create_index("ix_ports_network_project", ["network_id", "project_id", "id"], unique=False)
        batch_op.create_index("ix_ports_page", ["project_id", "id"], unique=False)


def downgrade() -> None:
    raise NotImplementedError("a schema only goes forward; restore a backup")
