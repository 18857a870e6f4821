"""Alembic's entry point: runs the migrations on the connection that `database.migrate` brings."""

from alembic import context

from tollkeeper.adapters.sql.database import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    # SQLite alters tables by copying them.
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
