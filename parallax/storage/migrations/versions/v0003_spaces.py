"""Grants of tokens for git remotes, and the states of workspaces."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """From 0002 to 0003."""
    op.create_table(
        "credentials",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("execution", sa.Text),
        sa.Column("step", sa.Text, nullable=False, server_default=""),
        *(sa.Column(name, sa.Text, nullable=False) for name in ("repo", "access", "source", "state")),
        sa.Column("sealed", sa.Text),
        sa.Column("asked_by", sa.Text, nullable=False),
        sa.Column("issued_at", sa.Float, nullable=False),
        sa.Column("expires_at", sa.Float, nullable=False),
        sa.Column("uses", sa.Integer, nullable=False, server_default="0"),
        sa.Column("used_at", sa.Float),
        sa.Column("revoked_at", sa.Float),
        sa.Column("why", sa.Text),
    )
    op.create_index("credentials_execution", "credentials", ["execution"])
    op.create_index("credentials_state", "credentials", ["state"])
    op.create_table(
        "workspaces",
        sa.Column("id", sa.Text, primary_key=True),
        *(sa.Column(name, sa.Text, nullable=False) for name in ("execution", "role")),
        sa.Column("number", sa.Integer, nullable=False),
        *(sa.Column(name, sa.Text, nullable=False) for name in ("kind", "repo", "base", "state")),
        sa.Column("cause", sa.Text),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("changed_at", sa.Float, nullable=False),
    )
    op.create_index("workspaces_execution", "workspaces", ["execution"])
    op.create_index("workspaces_state", "workspaces", ["state"])
