"""QuestionDesk: every question finds somebody, or takes its default.

A permission, a question of an agent, `askHuman`, `approve` and `escalate` are one `Question`. It goes by policy, then
to the agents that the org chart routes it to (each counts one depth), then to a person, then to its default. Every
move is a row and an event in one commit, so that a question outlives the server.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from parallax.errors import AgentError, ConflictError, StepFailed, UsageError
from parallax.execution.journal import Journal
from parallax.failpoints import fp
from parallax.models import OrgChart, Question
from parallax.storage.statements import insert_row, question_row
from parallax.storage.store import Store

PERSON_S: Final = 24 * 3600.0

# What an agent may do without asking, by preset and by the kind of tool (the kinds are ACP's).
_READING: Final = frozenset({"read", "search", "think", "fetch"})
_WORKING: Final = _READING | {"edit", "delete", "move", "execute"}
PRESETS: Final[dict[str, tuple[frozenset[str], bool]]] = {
    # allowed kinds, and whether everything else is refused instead of asked
    "readonly": (_READING, True),
    "standard": (_WORKING, False),
    "permissive": (_WORKING | {"switch_mode", "other"}, False),
    "autonomous": (_WORKING | {"switch_mode", "other"}, False),
}


def new_question_id() -> str:
    """Short enough to type: `parallax answer q3f9a2c yes`."""
    return f"q{secrets.token_hex(3)}"


def by_preset(question: Question, preset: str) -> str | None:
    """The option that the preset chooses for a permission, or None to ask somebody."""
    allowed, refuses = PRESETS[preset]
    kind = question.topic or "other"
    if kind in allowed or preset == "autonomous":
        return pick(question, "allow")
    return pick(question, "reject") if refuses else None


def pick(question: Question, wish: str) -> str | None:
    """The id of the option that says `allow` or `reject`; the narrower one (`once`) first."""
    fitting = [o["id"] for o in question.options if (o.get("kind") or o["id"]).startswith(wish)]
    once = [o["id"] for o in question.options if o["id"] in fitting and "once" in (o.get("kind") or o["id"])]
    return next(iter(once or fitting), None)


def routed_to(question: Question, asker_role: str, chart: OrgChart) -> tuple[str, ...]:
    """The roles that a question climbs through: topic route, routing rules, then the reporting line."""
    roles: list[str] = []
    escalation = chart.escalation
    if question.topic and (named := escalation.topic_routes.get(question.topic)):
        roles.append(named)
    for route in sorted(chart.routing, key=lambda r: -r.priority):
        fits = asker_role in route.sources or "*" in route.sources
        if fits and (not route.topics or question.topic in route.topics):
            roles.append(route.target)
    if escalation.default_behavior == "route_to_reports_to":
        role = chart.roles.get(asker_role)
        while role is not None and role.reports_to:
            roles.append(role.reports_to)
            role = chart.roles.get(role.reports_to)
    seen = dict.fromkeys(name for name in roles if name != asker_role and name in chart.roles)
    return tuple(seen)[: escalation.max_depth]


def read_answer(question: Question, text: str) -> str | None:
    """The answer in an agent's words: one of the options where there are any, else the text. None: it gave none."""
    text = text.strip()
    if not question.options:
        return text or None
    lowered = text.lower()
    for option in question.options:
        if lowered in {option["id"].lower(), option.get("label", "").lower()}:
            return option["id"]
    named = [option["id"] for option in question.options if option["id"].lower() in lowered]
    return named[0] if len(named) == 1 else None


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer and who gave it: an agent's id, `person`, `policy` or `default`."""

    answer: str
    by: str


Colleague = tuple[str, Callable[[Question], Awaitable[str]]]


class QuestionDesk:
    """All open questions of this server."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiting: dict[str, asyncio.Future[Answered]] = {}
        self._journals: dict[str, Journal] = {}

    async def ask(self, question: Question, journal: Journal, colleagues: Sequence[Colleague] = ()) -> Answered:
        """Find an answer. A question with an id that is stored already goes on where it was.

        Raises StepFailed when nobody answers before the deadline and there is no default.
        """
        known = await self._known(question)
        if known is not None and known.state in {"answered", "defaulted"}:
            return Answered(known.answer or "", known.answered_by or "default")
        if known is None:
            await self._save(question, journal, "question.asked", kind=question.kind)
        for name, ask_agent in colleagues:
            question = replace(question, state="with_agent", depth=question.depth + 1)
            await self._save(question, journal, "question.routed", to=name)
            try:
                answer = read_answer(question, await ask_agent(question))
            except AgentError:
                continue  # the next one up; the agent's own failure is told by its events
            if answer is not None:
                return await self._answered(question, journal, Answered(answer, name))
        return await self._ask_person(question, journal, known)

    async def _ask_person(self, question: Question, journal: Journal, known: Question | None) -> Answered:
        deadline_at = (known.deadline_at if known else None) or question.deadline_at or time.time() + PERSON_S
        question = replace(question, state="with_person", deadline_at=deadline_at)
        waiter = self._waiting.setdefault(question.id, asyncio.get_running_loop().create_future())
        self._journals[question.id] = journal
        if known is None or known.state != "with_person":
            await self._save(question, journal, "question.surfaced")
        try:
            async with asyncio.timeout(max(0.0, deadline_at - time.time())):
                given = await waiter
        except asyncio.CancelledError:
            if question.asker != "program":  # its turn is over; the program's own questions outlive the server
                await self._save(replace(question, state="withdrawn"), journal, "question.withdrawn")
            raise
        except TimeoutError:
            if question.default is not None:
                return await self._answered(question, journal, Answered(question.default, "default"), "defaulted")
            await self._save(replace(question, state="failed"), journal, "question.failed")
            raise StepFailed(f"nobody answered '{question.text[:80]}' before its deadline") from None
        finally:
            self._waiting.pop(question.id, None)
            self._journals.pop(question.id, None)
        return given

    async def answer(self, question_id: str, answer: str, by: str = "person") -> Question:
        """A person answers. Raises NotFoundError, ConflictError (not open), UsageError (not one of the options)."""
        question = await self._store.question(question_id)
        if (waiter := self._waiting.get(question_id)) is None or question.state != "with_person":
            raise ConflictError(f"question '{question_id}' is {question.state.replace('_', ' ')}, not open to a person")
        if question.options and (chosen := read_answer(question, answer)) is None:
            offered = ", ".join(option["id"] for option in question.options)
            raise UsageError(f"'{answer}' is not one of the answers to {question_id}: {offered}")
        chosen = read_answer(question, answer) or answer
        answered = Answered(chosen, by)
        fp("approval.received_before_record")
        await self._answered(question, self._journals[question_id], answered)
        if not waiter.done():
            waiter.set_result(answered)
        return replace(question, state="answered", answer=chosen, answered_by=by)

    async def withdraw(self, journal: Journal) -> None:
        """After a restart: what agents had asked is void, they will ask again; the program's own questions stay."""
        for question in await self._store.questions(
            execution=journal.execution, states=("open", "with_agent", "with_person")
        ):
            if question.kind != "approval" and question.asker != "program":
                await self._save(replace(question, state="withdrawn"), journal, "question.withdrawn")

    async def _answered(
        self, question: Question, journal: Journal, given: Answered, state: str = "answered"
    ) -> Answered:
        question = replace(question, state=state, answer=given.answer, answered_by=given.by)
        await self._save(question, journal, f"question.{state}", answer=given.answer, by=given.by)
        return given

    async def _known(self, question: Question) -> Question | None:
        stored = await self._store.questions(execution=question.execution)
        return next((entry for entry in stored if entry.id == question.id), None)

    async def _save(self, question: Question, journal: Journal, event: str, **data: str) -> None:
        told = {"id": question.id, "text": question.text, "options": [dict(o) for o in question.options]} | data
        await journal.commit(
            [insert_row("questions", question_row(question, time.time()), replace_row=True)],
            [journal.event(event, step_key=question.step_key, agent_id=_agent(question), **told)],
        )


def _agent(question: Question) -> str | None:
    return None if question.asker == "program" else question.asker
