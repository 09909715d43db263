"""The ledger's first tables."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


# over 50 lines: a list of five tables, and it stays as it was applied
def upgrade() -> None:
    """Create them. Written out, not taken from the code: a migration must not change when the code does."""
    op.create_table(
        "decisions",
        sa.Column("position", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("seq", sa.Integer, nullable=False),
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("verdict", sa.Text, nullable=False),
        sa.Column("as_of", sa.Text, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("run", sa.Text, nullable=False),
        sa.Column("key", sa.Text),
        sa.Column("deployment", sa.Text),
        sa.Column("previous", sa.Text, nullable=False),
        sa.Column("hash", sa.Text, nullable=False),
        sa.UniqueConstraint("model", "seq", name="decisions_model_seq"),
        sa.UniqueConstraint("model", "key", name="decisions_model_key"),
        sa.UniqueConstraint("id", name="decisions_id"),
    )
    op.create_index("decisions_model_kind", "decisions", ["model", "kind", "seq"])
    op.create_table(
        "chain_heads",
        sa.Column("model", sa.Text, primary_key=True),
        sa.Column("seq", sa.Integer, nullable=False),
        sa.Column("hash", sa.Text, nullable=False),
    )
    op.create_table(
        "deployments",
        sa.Column("model", sa.Text, primary_key=True),
        sa.Column("revision", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("champion", sa.Text, nullable=False),
        sa.Column("challenger", sa.Text),
        sa.Column("split", sa.Double, nullable=False),
        sa.Column("strategy", sa.Text, nullable=False),
        sa.Column("stage", sa.Integer, nullable=False),
        sa.Column("salt", sa.Text, nullable=False),
        sa.Column("rollout_id", sa.Text),
        sa.Column("since", sa.Text),
    )
    op.create_table(
        "measurements",
        sa.Column("model", sa.Text, primary_key=True),
        sa.Column("partition", sa.Text, primary_key=True),
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("version", sa.Text, primary_key=True),
        sa.Column("slice", sa.Text, primary_key=True),
        sa.Column("as_of", sa.Text, primary_key=True),
        sa.Column("value", sa.Double, nullable=False),
        sa.Column("rows", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "leases",
        sa.Column("model", sa.Text, primary_key=True),
        sa.Column("purpose", sa.Text, primary_key=True),
        sa.Column("holder", sa.Text, nullable=False),
        sa.Column("as_of", sa.Text, nullable=False),
    )
