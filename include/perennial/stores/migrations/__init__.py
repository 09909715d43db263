"""Alembic migrations of the ledger's tables; `perennial.stores.database.upgrade` runs them."""
