"""Large results as blobs, leases and servers of a shared database, what was spent."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """From 0001 to 0002."""
    op.add_column("journal", sa.Column("blob", sa.Text))
    op.add_column("executions", sa.Column("result_blob", sa.Text))
    op.add_column("executions", sa.Column("owner", sa.Text))
    op.add_column("executions", sa.Column("lease_until", sa.Float))
    op.create_table(
        "blobs",
        sa.Column("hash", sa.Text, primary_key=True),
        sa.Column("data", sa.LargeBinary, nullable=False),
        sa.Column("at", sa.Float, nullable=False),
    )
    op.create_table(
        "servers",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("commits", sa.BigInteger, nullable=False),
        sa.Column("at", sa.Float, nullable=False),
    )
    _calls()


def _calls() -> None:
    texts = ("execution", "kind", "state", "agent_id", "role", "step_key", "task")
    counts = ("input_tokens", "output_tokens", "cached_tokens", "cache_write_tokens", "cost", "turns")
    op.create_table(
        "calls",
        sa.Column("id", sa.Text, primary_key=True),
        *(sa.Column(name, sa.Text, nullable=False) for name in texts),
        *(sa.Column(name, sa.Text, nullable=False, server_default="") for name in ("provider", "account", "model")),
        sa.Column("status", sa.Integer),
        sa.Column("priced", sa.Text, nullable=False),
        *(sa.Column(name, sa.Integer, nullable=False) for name in counts),
        sa.Column("wall_s", sa.Float, nullable=False),
        sa.Column("at", sa.Float, nullable=False),
    )
    op.create_index("calls_execution", "calls", ["execution"])
    op.create_index("calls_at", "calls", ["at"])
