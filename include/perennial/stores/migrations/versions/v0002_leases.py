"""Leases with a sign of life."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add it. A lease from before has none: its silence begins when somebody first looks at it."""
    op.add_column("leases", sa.Column("alive_at", sa.Text))
    op.add_column("leases", sa.Column("process", sa.Text))
