"""Statements: what a change of the store consists of. Built once from the schema, compiled once for each database.

`execution` makes a `Change` of writes and events; `Store.commit` makes it durable. A `Write` carries a SQLAlchemy Core
statement and its parameters, so that the same change fits SQLite and PostgreSQL.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any, Final

import orjson
from sqlalchemy import (
    Delete,
    Insert,
    ScalarSelect,
    Table,
    Update,
    bindparam,
    delete,
    func,
    insert,
    literal_column,
    select,
    update,
)
from sqlalchemy.dialects import postgresql

from parallax.events import Event
from parallax.models import Execution, ExecutionState, Json, Question
from parallax.storage import tables as t

_JSON_COLUMNS: Final = frozenset({"result", "usage", "options", "input"})


def dumps(value: Json) -> str:
    """Strict JSON text."""
    return orjson.dumps(value).decode()


@dataclass(frozen=True, slots=True)
class Write:
    """One statement. `expect` is the number of rows it must change, else the whole change is refused as fenced."""

    statement: Insert | Update | Delete
    params: dict[str, Any]
    expect: int | None = None


@dataclass(slots=True)
class Change:
    """What one transaction does: statements in order, then events."""

    writes: list[Write] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalEntry:
    """A line of the journal. kind: header, intent, result, join, timer, signal.

    A body over the inline limit lies in the blob that `blob` names; `size_b` is the length of its JSON.
    """

    execution: str
    step_key: str
    kind: str
    attempt: int
    epoch: int
    body: Json
    input_hash: str | None = None
    at: float = field(default_factory=time.time)
    seq: int = 0
    blob: str | None = None
    size_b: int = 0


def _next_seq(table: Table) -> ScalarSelect[Any]:
    # The number is given inside the commit: a rolled-back one would look like a gap.
    return (
        select(func.coalesce(func.max(table.c.seq), literal_column("0")) + literal_column("1"))
        .where(table.c.execution == bindparam("execution"))
        .scalar_subquery()
    )


def _appending(table: Table) -> Insert:
    values: dict[str, Any] = {column.name: bindparam(column.name) for column in table.c if column.name != "seq"}
    return insert(table).inline().values(**values, seq=_next_seq(table))


@cache
def insert_event() -> Insert:
    """Appends an event and returns its `seq`."""
    return _appending(t.events).returning(t.events.c.seq)


@cache
def insert_journal() -> Insert:
    """Appends to the journal."""
    return _appending(t.journal)


@cache
def update_guard() -> Update:
    """Touches the row only when the caller's epoch still owns it."""
    return _touch()


@cache
def update_current() -> Update:
    """The same words with another meaning, which a shared database tells apart: see `current`."""
    return _touch()


def _touch() -> Update:
    rows = t.executions
    return (
        update(rows)
        .where(rows.c.id == bindparam("b_id"), rows.c.epoch == bindparam("b_epoch"))
        .values(epoch=bindparam("b_epoch"))
    )


@cache
def _update_by_id(table_name: str, columns: tuple[str, ...]) -> Update:
    rows = t.metadata.tables[table_name]
    return update(rows).where(rows.c.id == bindparam("b_id")).values({name: bindparam(f"v_{name}") for name in columns})


@cache
def _end_guard() -> Update:
    rows = t.executions
    final: list[Any] = [literal_column(f"'{state}'") for state in ExecutionState if state.final]
    return update(rows).where(rows.c.id == bindparam("b_id"), rows.c.state.not_in(final)).values(id=bindparam("b_id"))


@cache
def _uncount() -> Update:
    rows = t.executions
    return (
        update(rows)
        .where(rows.c.id == bindparam("b_id"), rows.c.epoch == bindparam("b_epoch"))
        .where(rows.c.recoveries > literal_column("0"))
        .values(recoveries=rows.c.recoveries - literal_column("1"))
    )


@cache
def _insert(table_name: str, replace_row: bool) -> Insert:
    table = t.metadata.tables[table_name]
    values: dict[str, Any] = {column.name: bindparam(column.name) for column in table.c}
    if not replace_row:
        return insert(table).values(values)
    # PostgreSQL's words for it are SQLite's, too.
    upsert = postgresql.insert(table).values(values)
    changed = {column.name: upsert.excluded[column.name] for column in table.c if not column.primary_key}
    return upsert.on_conflict_do_update(index_elements=[column.name for column in table.primary_key], set_=changed)


def insert_row(table_name: str, row: dict[str, Any], *, replace_row: bool = False) -> Write:
    """Insert (or replace) one row; absent columns are NULL."""
    table = t.metadata.tables[table_name]
    return Write(_insert(table_name, replace_row), {column.name: row.get(column.name) for column in table.c})


def guard(execution: str, epoch: int) -> Write:
    """Refuse the change unless `epoch` still owns the execution."""
    return Write(update_guard(), {"b_id": execution, "b_epoch": epoch}, expect=1)


def current(execution: str, epoch: int) -> Write:
    """Refuse the change unless the execution is as it was read: for whoever does not own it, such as a person."""
    return Write(update_current(), {"b_id": execution, "b_epoch": epoch}, expect=1)


def not_ended(execution: str) -> Write:
    """Refuse the change when the execution is in a final state."""
    return Write(_end_guard(), {"b_id": execution}, expect=1)


def uncount_recovery(execution: str, epoch: int) -> Write:
    """Take back the count of a recovery that ended in good order."""
    return Write(_uncount(), {"b_id": execution, "b_epoch": epoch})


def set_execution(execution: str, **columns: Any) -> Write:
    """Set columns of one execution; JSON columns are encoded here."""
    values = {
        name: dumps(value) if name in _JSON_COLUMNS and value is not None else value for name, value in columns.items()
    }
    return _set("executions", execution, values)


def set_call(call_id: str, **columns: Any) -> Write:
    """Set columns of one row of what was spent."""
    return _set("calls", call_id, columns)


@cache
def _lost_calls() -> Update:
    rows = t.calls
    reserved = (rows.c.execution == bindparam("b_execution"), rows.c.state == literal_column("'reserved'"))
    return update(rows).where(*reserved).values(state=literal_column("'lost'"), priced=literal_column("'estimated'"))


def lost_calls(execution: str) -> Write:
    """What was in flight when its server died is spent as the most that it could be."""
    return Write(_lost_calls(), {"b_execution": execution})


@cache
def _update_question(columns: tuple[str, ...]) -> Update:
    rows = t.questions
    values: dict[str, Any] = {name: bindparam(f"v_{name}") for name in columns}
    return update(rows).where(rows.c.id == bindparam("b_id"), rows.c.state == bindparam("b_was")).values(values)


def set_question(question_id: str, was: str, **columns: Any) -> Write:
    """Set columns of a question that is in the state `was`; in another, the change is refused."""
    params = {"b_id": question_id, "b_was": was} | {f"v_{name}": value for name, value in columns.items()}
    return Write(_update_question(tuple(columns)), params, expect=1)


def _set(table_name: str, row_id: str, columns: dict[str, Any]) -> Write:
    params = {"b_id": row_id} | {f"v_{name}": value for name, value in columns.items()}
    return Write(_update_by_id(table_name, tuple(columns)), params, expect=1)


def append(entry: JournalEntry) -> Write:
    """Append to the journal; `seq` is given by the commit. With `blob`, the body is there and not in the row."""
    return Write(
        insert_journal(),
        {
            "execution": entry.execution,
            "step_key": entry.step_key,
            "kind": entry.kind,
            "attempt": entry.attempt,
            "epoch": entry.epoch,
            "input_hash": entry.input_hash,
            "body": dumps(entry.body if entry.blob is None else None),
            "blob": entry.blob,
            "at": entry.at,
        },
    )


def event_params(told: Event) -> dict[str, Any]:
    """An event as the parameters of `insert_event`."""
    return {
        "execution": told.execution,
        "type": told.type,
        "at": told.at,
        "step_key": told.step_key,
        "agent_id": told.agent_id,
        "data": dumps(told.data),
    }


@cache
def _delete(table_name: str, column: str) -> Delete:
    rows = t.metadata.tables[table_name]
    return delete(rows).where(rows.c[column] == bindparam("b_id"))


def forget(execution: str) -> list[Write]:
    """Delete the rows of an execution; what tokens it was given stays on record."""
    parts = [(name, "execution") for name in ("journal", "events", "questions", "idempotency", "calls", "workspaces")]
    return [Write(_delete(name, column), {"b_id": execution}) for name, column in [*parts, ("executions", "id")]]


@cache
def _forget_bundles() -> Delete:
    used = select(t.executions.c.hash)
    return delete(t.bundles).where(t.bundles.c.hash.not_in(used))


def forget_bundles() -> Write:
    """Delete programs that no execution is pinned to."""
    return Write(_forget_bundles(), {})


def execution_row(execution: Execution) -> dict[str, Any]:
    """An execution as a row of its table."""
    row = {f.name: getattr(execution, f.name) for f in fields(execution)}
    row["state"] = str(execution.state)
    for name in ("input", "options", "result"):
        row[name] = None if row[name] is None and name == "result" else dumps(row[name])
    row["usage"] = dumps(execution.usage)
    return row


def question_row(question: Question, asked_at: float) -> dict[str, Any]:
    """A question as a row of its table."""
    row = {f.name: getattr(question, f.name) for f in fields(question)}
    return row | {"options": dumps([dict(option) for option in question.options]), "asked_at": asked_at}
