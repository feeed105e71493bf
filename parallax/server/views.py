"""What the API shows: the shapes of the inside as JSON. One function per thing; routes return what these make."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from parallax.execution.intake import Prepared
from parallax.execution.journal import step_from_json
from parallax.execution.replay import Replayed
from parallax.execution.verification import reason
from parallax.models import Agent, Execution, Question, hash12
from parallax.patterns.engine import Pattern
from parallax.patterns.plan import plan_json
from parallax.storage.statements import JournalEntry


def execution(e: Execution, *, waiting: int = 0) -> dict[str, Any]:
    """An execution; `waiting` counts its questions that wait for a person."""
    shown = asdict(e)
    options = shown.pop("options") or {}
    return shown | {
        "state": str(e.state),
        "final": e.state.final,
        "agents": options.get("agents", {}),
        "forked_from": options.get("forked_from"),
        **_budgets(options),
        "auto_resume": options.get("auto_resume", True),
        "questions_waiting": waiting,
    }


def _budgets(options: Mapping[str, Any]) -> dict[str, Any]:
    """What the run may use: micro-dollars, tokens, turns, seconds; null without a limit."""
    return {name: options.get(name) for name in ("budget", "budget_tokens", "budget_turns", "budget_time_s")}


def steps(entries: list[JournalEntry]) -> list[dict[str, Any]]:
    """The steps of an execution, as the journal has them: what each came to, and why it is believed."""
    begun: dict[str, JournalEntry] = {}
    shown: list[dict[str, Any]] = []
    for entry in entries:
        if entry.kind == "intent":
            begun[entry.step_key] = entry
        elif entry.kind == "result" and "outcome" in entry.body:
            intent = begun.pop(entry.step_key, None)
            shown.append(_finished(entry, intent))
    running = [
        {
            "step": key, "id": hash12(key), "state": "running", "word": e.body["effect"],
            "task": e.body["request"]["task"], "agent": e.body["agent"], "attempt": e.attempt,
        }
        for key, e in begun.items()
    ]  # fmt: skip
    return shown + running


def _finished(entry: JournalEntry, intent: JournalEntry | None) -> dict[str, Any]:
    outcome = entry.body["outcome"]
    shown: dict[str, Any] = {
        "step": entry.step_key,
        "id": hash12(entry.step_key),
        "state": "failed" if outcome.get("error") else "succeeded",
        "word": intent.body["effect"] if intent else None,
        "task": intent.body["request"]["task"] if intent else None,
        "attempt": entry.attempt,
        "value": outcome.get("value"),
        "confidence": outcome.get("confidence"),
        "error": outcome.get("error"),
        "at": entry.at,
    }
    if (recorded := entry.body.get("step")) is not None:
        step = step_from_json(recorded)
        shown |= {
            "role": step.role,
            "agent": step.agent_id,
            "source": str(step.source),
            "action": str(step.action),
            "evidence": [asdict(evidence) for evidence in step.evidence],
            "why": reason(step),
            "reported": step.reported,
            "commit": step.commit,
            "branch": step.branch,
            "turns": step.attempts,
            "usage": asdict(step.usage),
        }
    return shown


def journal(entry: JournalEntry) -> dict[str, Any]:
    """A line of the journal."""
    return asdict(entry)


def replayed(r: Replayed) -> dict[str, Any]:
    """What a replay came to."""
    different = None if r.divergence is None else {"step": r.divergence.step_key, "how": r.divergence.how}
    return {
        "execution": r.execution, "same": r.same, "end": r.end, "effects": list(r.effects), "divergence": different,
    }  # fmt: skip


def question(q: Question) -> dict[str, Any]:
    """A question."""
    return asdict(q) | {"options": [dict(option) for option in q.options]}


def agent(a: Agent) -> dict[str, Any]:
    """An agent."""
    return asdict(a) | {"state": str(a.state), "labels": dict(a.labels)}


def pattern(p: Pattern) -> dict[str, Any]:
    """A pattern, with the Prism that it compiles to."""
    return {
        "name": p.name,
        "version": p.version,
        "format": p.format,
        "description": p.description,
        "origin": p.origin,
        "path": p.path,
        "hash": p.hash,
        "input": dict(p.input_schema),
        "metadata": dict(p.metadata),
        "prism": p.prism,
        "warnings": [str(warning) for warning in p.warnings],
    }


def prepared(p: Prepared) -> dict[str, Any]:
    """A submission that was looked at, before anybody agreed to it."""
    repo = p.repo
    return plan_json(p.plan) | {
        "input": p.input,
        "agents": p.agents,
        **_budgets(p.submission.budgets),
        "repository": None
        if repo is None
        else {
            "location": repo.location, "base_branch": repo.base_branch, "base_commit": repo.base_commit,
            "dirty": repo.dirty, "with_changes": p.submission.with_changes,
        },
    }  # fmt: skip
