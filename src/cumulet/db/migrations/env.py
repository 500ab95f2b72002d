"""Alembic's environment: one connection, given by `cumulet.db.migrate`."""

from alembic import context

from cumulet.db.migrate import load_tables

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=load_tables(),
    render_as_batch=context.config.attributes["batch"],
    compare_type=True,
)
with context.begin_transaction():
    context.run_migrations()
