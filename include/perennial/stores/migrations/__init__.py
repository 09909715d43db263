"""Alembic migrations of the ledger's tables; `perennial.stores.ledger.upgrade` runs them."""
