"""${message}."""

import sqlalchemy as sa
from alembic import op

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}


def upgrade() -> None:
    """Go forward; set `REVISION` in `perennial/stores/ledger.py` to ${repr(up_revision)}."""
    ${upgrades if upgrades else "raise NotImplementedError"}
