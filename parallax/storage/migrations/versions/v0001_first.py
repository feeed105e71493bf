"""The first schema. A new database is made from `storage.tables`, so nothing is ever upgraded to this one."""

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Where the line of migrations begins."""
