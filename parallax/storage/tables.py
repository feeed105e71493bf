"""The schema, described once in SQLAlchemy Core. `store` builds every statement from it.

JSON columns hold text that `store` encodes: the journal's bytes are ours to hash. Times are unix seconds. Whoever
changes a table adds the same change to the newest unreleased module of `migrations/versions`; a test compares the two.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    text,
)

SCHEMA_VERSION: Final = "0003"

metadata = MetaData()

meta = Table("meta", metadata, Column("key", Text, primary_key=True), Column("value", Text, nullable=False))

bundles = Table(
    "bundles",
    metadata,
    Column("hash", Text, primary_key=True),
    Column("path", Text, nullable=False),
    Column("bundle", Text, nullable=False),
)

executions = Table(
    "executions",
    metadata,
    Column("id", Text, CheckConstraint("id <> ''"), primary_key=True),
    Column("pattern", Text, nullable=False),
    Column("version", Text, nullable=False),
    Column("hash", Text, ForeignKey("bundles.hash"), nullable=False),
    Column("input", Text, nullable=False),
    Column("repo", Text),
    Column("base", Text),
    Column("base_branch", Text),
    Column("state", Text, nullable=False),
    Column("reason", Text),
    Column("attempt", Integer, nullable=False, server_default="1"),
    Column("epoch", Integer, nullable=False, server_default="0"),
    Column("recoveries", Integer, nullable=False, server_default="0"),
    Column("parent", Text),
    Column("deadline_s", Float),
    Column("options", Text, nullable=False, server_default="{}"),
    Column("result", Text),
    Column("result_blob", Text),
    Column("confidence", Float),
    Column("usage", Text),
    Column("owner", Text),  # with several servers: whose lease it is, until when by the database's clock
    Column("lease_until", Float),
    Column("created_at", Float, nullable=False),
    Column("started_at", Float),
    Column("ended_at", Float),
    Index("executions_state", "state"),
)

journal = Table(
    "journal",
    metadata,
    Column("execution", Text, CheckConstraint("execution <> ''"), nullable=False),
    Column("seq", Integer, nullable=False),
    Column("step_key", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("input_hash", Text),
    Column("body", Text, nullable=False),
    Column("blob", Text),
    Column("at", Float, nullable=False),
    PrimaryKeyConstraint("execution", "seq"),
    # A step's result is recorded once, whoever tries: this index is the promise.
    Index(
        "journal_one_result",
        "execution",
        "step_key",
        unique=True,
        sqlite_where=text("kind IN ('result', 'join')"),
        postgresql_where=text("kind IN ('result', 'join')"),
    ),
    sqlite_with_rowid=False,
)

events = Table(
    "events",
    metadata,
    Column("execution", Text, nullable=False),
    Column("seq", Integer, nullable=False),
    Column("type", Text, nullable=False),
    Column("at", Float, nullable=False),
    Column("step_key", Text),
    Column("agent_id", Text),
    Column("data", Text, nullable=False),
    PrimaryKeyConstraint("execution", "seq"),
    sqlite_with_rowid=False,
)

questions = Table(
    "questions",
    metadata,
    Column("id", Text, primary_key=True),
    Column("execution", Text, nullable=False),
    Column("step_key", Text, nullable=False),
    Column("asker", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("text", Text, nullable=False),
    Column("topic", Text),
    Column("options", Text, nullable=False),
    Column("default", Text),
    Column("deadline_at", Float),
    Column("depth", Integer, nullable=False),
    Column("state", Text, nullable=False),
    Column("answer", Text),
    Column("answered_by", Text),
    Column("asked_at", Float, nullable=False),
    Index("questions_state", "state"),
)

idempotency = Table(
    "idempotency",
    metadata,
    Column("key", Text, primary_key=True),
    Column("body_hash", Text, nullable=False),
    Column("execution", Text, nullable=False),
    Column("at", Float, nullable=False),
)

# Where several servers share a database, large results lie in it; beside a SQLite file they are files.
blobs = Table(
    "blobs",
    metadata,
    Column("hash", Text, primary_key=True),
    Column("data", LargeBinary, nullable=False),
    Column("at", Float, nullable=False),
)

# One row per server of a shared database. `commits` counts its group commits: after a lost connection it says whether
# the last one was kept.
servers = Table(
    "servers",
    metadata,
    Column("name", Text, primary_key=True),
    Column("commits", BigInteger, nullable=False),
    Column("at", Float, nullable=False),
)

# What was spent, a row per model call and a row per turn of an agent. A call is `reserved` with the most that it may
# cost before it goes out, `settled` with what it did cost, and `lost` (still at its most) when the server died between.
calls = Table(
    "calls",
    metadata,
    Column("id", Text, primary_key=True),
    Column("execution", Text, nullable=False),
    Column("kind", Text, nullable=False),  # call, turn, or report: what a CLI said of calls that nobody saw
    Column("state", Text, nullable=False),
    Column("agent_id", Text, nullable=False),
    Column("role", Text, nullable=False),
    Column("step_key", Text, nullable=False),
    Column("task", Text, nullable=False),
    Column("provider", Text, nullable=False, server_default=""),
    Column("account", Text, nullable=False, server_default=""),
    Column("model", Text, nullable=False, server_default=""),
    Column("status", Integer),
    Column("priced", Text, nullable=False),
    Column("input_tokens", Integer, nullable=False),
    Column("output_tokens", Integer, nullable=False),
    Column("cached_tokens", Integer, nullable=False),
    Column("cache_write_tokens", Integer, nullable=False),
    Column("cost", Integer, nullable=False),
    Column("turns", Integer, nullable=False),
    Column("wall_s", Float, nullable=False),
    Column("at", Float, nullable=False),
    Index("calls_execution", "execution"),
    Index("calls_at", "at"),
)

# Every token for a git remote that was given out: who, what, when. `sealed` is the token, encrypted, while it lives.
credentials = Table(
    "credentials",
    metadata,
    Column("id", Text, primary_key=True),
    Column("execution", Text),
    Column("step", Text, nullable=False, server_default=""),
    Column("repo", Text, nullable=False),
    Column("access", Text, nullable=False),
    Column("source", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("sealed", Text),
    Column("asked_by", Text, nullable=False),
    Column("issued_at", Float, nullable=False),
    Column("expires_at", Float, nullable=False),
    Column("uses", Integer, nullable=False, server_default="0"),
    Column("used_at", Float),
    Column("revoked_at", Float),
    Column("why", Text),
    Index("credentials_execution", "execution"),
    Index("credentials_state", "state"),
)

# Every workspace and where it stands, also after its folder is gone.
workspaces = Table(
    "workspaces",
    metadata,
    Column("id", Text, primary_key=True),
    Column("execution", Text, nullable=False),
    Column("role", Text, nullable=False),
    Column("number", Integer, nullable=False),
    Column("kind", Text, nullable=False),
    Column("repo", Text, nullable=False),
    Column("base", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("cause", Text),
    Column("created_at", Float, nullable=False),
    Column("changed_at", Float, nullable=False),
    Index("workspaces_execution", "execution"),
    Index("workspaces_state", "state"),
)
