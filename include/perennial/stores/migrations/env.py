"""What Alembic runs: `upgrade` hands it an open connection, whose transaction is the lock against other upgrades."""

from alembic import context

from perennial.stores.database import VERSION_TABLE, metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSION_TABLE,
    # the connection's own transaction spans all migrations
    transactional_ddl=False,
)
context.run_migrations()
