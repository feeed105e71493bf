"""QuestionDesk: every question finds somebody, or takes its default.

A permission, a question of an agent, `askHuman`, `approve` and `escalate` are one `Question`. It goes by policy, then
to the agents that the org chart routes it to (each counts one depth), then to a person, then to its default. Every
move is a row and an event in one commit, so that a question outlives the server: its id is made of what is asked, so
whoever asks again after a restart finds it where it was, answered meanwhile or still open.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

import orjson

from parallax.errors import AgentError, ConflictError, FencedError, NotFoundError, StepFailed, UsageError
from parallax.events import Event, EventBus
from parallax.execution.clocks import Waits
from parallax.execution.journal import Journal
from parallax.failpoints import fp
from parallax.models import OrgChart, Question
from parallax.storage.statements import Change, JournalEntry, append, current, insert_row, question_row, set_question
from parallax.storage.store import Store

PERSON_S: Final = 24 * 3600.0
AFTER_RESTART_S: Final = 900.0  # a person has at least so long after a restart, or as long as the asker waits at all
LOOK_S: Final = 2.0  # how often an open question is looked up: another server may have taken its answer
OPEN: Final = ("open", "with_agent", "with_person")
PROGRAM: Final = "program"
MAX_ASKED_AGAIN: Final = 100

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
    """The roles that a question climbs through: topic route, routing rules, then the reporting line.

    A question that is asked while another is answered begins at that one's depth.
    """
    roles: list[str] = []
    escalation = chart.escalation
    if question.topic and (named := escalation.topic_routes.get(question.topic)):
        roles.append(named)
    for route in sorted(chart.routing, key=lambda r: -r.priority):
        fits = asker_role in route.sources or "*" in route.sources
        fits = fits and (not route.topics or question.topic in route.topics)
        if fits and (not route.message_types or question.kind in route.message_types):
            roles.append(route.target)
    if escalation.default_behavior == "route_to_reports_to":
        role = chart.roles.get(asker_role)
        while role is not None and role.reports_to:
            roles.append(role.reports_to)
            role = chart.roles.get(role.reports_to)
    seen = dict.fromkeys(name for name in roles if name != asker_role and name in chart.roles)
    return tuple(seen)[: max(0, escalation.max_depth - question.depth)]


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
    """An answer and who gave it: a role, `person`, `policy` or `default`."""

    answer: str
    by: str


Colleague = tuple[str, Callable[[Question], Awaitable[str]]]


class Bell(Protocol):
    """How a person hears that something waits."""

    def ring(self, question: Question) -> None:
        """Tell of a question; returns at once and never fails."""
        ...


@dataclass(slots=True)
class _Way:
    """What is left of a question's way. `again`: the first of `left` is asked a second time, after a restart."""

    question: Question
    left: tuple[Colleague, ...]
    patient_until: float = 0.0
    again: bool = False

    def __post_init__(self) -> None:
        self.patient_until = self.question.deadline_at or time.time() + PERSON_S

    def resumed(self, known: Question) -> _Way:
        """Where it was before a restart. The colleague who was asked last has died with its answer."""
        self.again = known.state == "with_agent"
        behind = known.depth - self.question.depth - self.again
        self.left = () if known.state == "with_person" else self.left[max(0, behind) :]
        self.question = replace(self.question, depth=known.depth, deadline_at=known.deadline_at)
        return self


class QuestionDesk:
    """All open questions of this server."""

    def __init__(self, store: Store, bus: EventBus, waits: Waits, bell: Bell | None = None) -> None:
        self._store = store
        self._bus = bus
        self._bell = bell
        self._waits = waits
        self._waiting: dict[str, asyncio.Event] = {}
        self._stopping = False

    def stop(self) -> None:
        """The server stops: what is open now stays open, and its askers find it at the next start."""
        self._stopping = True

    # -- asking ------------------------------------------------------------------------------------------------------

    async def ask(
        self, question: Question, journal: Journal, colleagues: Sequence[Colleague] = (), which: Sequence[int] = ()
    ) -> Answered:
        """Find an answer. `which` tells this question from others of the same asker and step with the same words.

        A question that was asked before a restart goes on where it was. Raises StepFailed when nobody answers before
        the deadline and there is no default.
        """
        question, known = await self._identified(question, which)
        if known is None:
            await self._insert(question, journal, "question.asked", kind=question.kind)
            way = _Way(question, tuple(colleagues))
        elif known.state in OPEN:
            way = _Way(replace(question, state=known.state), tuple(colleagues)).resumed(known)
        else:
            return _ended(known)
        try:
            return await self._find(way, journal)
        except asyncio.CancelledError:
            if not self._stopping:
                await self._withdraw(await self._store.question(question.id), journal)
            raise

    async def decided(self, question: Question, answer: str, journal: Journal, which: Sequence[int] = ()) -> Answered:
        """Record what a policy has answered: nobody was asked."""
        question, known = await self._identified(question, which)
        if known is None:
            question = replace(question, state="answered", answer=answer, answered_by="policy")
            await self._insert(question, journal, "question.answered", answer=answer, by="policy")
        return Answered(answer, "policy")

    async def _find(self, way: _Way, journal: Journal) -> Answered:
        question = way.question
        for name, ask_agent in way.left:
            if not way.again:
                question = await self._move(
                    question,
                    journal,
                    "question.routed",
                    state="with_agent",
                    depth=question.depth + 1,
                    told={"to": name},
                )
            way.again = False
            try:
                answer = read_answer(question, await ask_agent(question))
            except AgentError:
                continue  # the next one up; the agent's own failure is told by its events
            if answer is not None:
                return await self._end(question, journal.epoch, Answered(answer, name))
        return await self._ask_person(question, journal, way.patient_until)

    async def _ask_person(self, question: Question, journal: Journal, patient_until: float) -> Answered:
        known, event = question.state == "with_person", "question.surfaced"
        soonest = min(time.time() + AFTER_RESTART_S, patient_until)
        deadline_at = max(question.deadline_at or 0.0, soonest) if known else patient_until
        heard = self._waiting[question.id] = asyncio.Event()
        try:
            if not known:
                question = await self._move(question, journal, event, state="with_person", deadline_at=deadline_at)
            elif deadline_at != question.deadline_at:
                question = await self._move(question, journal, None, state="with_person", deadline_at=deadline_at)
            if self._bell is not None:
                self._bell.ring(question)
            with self._waits.asked(question.execution, question.step_key):
                return await self._answer_of(question, journal, heard)
        finally:
            self._waiting.pop(question.id, None)

    async def _answer_of(self, question: Question, journal: Journal, heard: asyncio.Event) -> Answered:
        """Wait for a person; at the deadline take the default."""
        assert question.deadline_at is not None
        while (left := question.deadline_at - time.time()) > 0:
            with suppress(TimeoutError):
                async with asyncio.timeout(min(left, LOOK_S)):  # `wait_for` would lose a cancellation
                    await heard.wait()
            if (stored := await self._store.question(question.id)).state not in OPEN:
                return _ended(stored)
        with suppress(FencedError):  # or a person was faster in the last moment
            if question.default is not None:
                return await self._end(question, journal.epoch, Answered(question.default, "default"), "defaulted")
            await self._move(question, journal, "question.failed", state="failed")
        return _ended(await self._store.question(question.id))

    # -- answering ---------------------------------------------------------------------------------------------------

    async def answer(self, question_id: str, answer: str, by: str = "person") -> Question:
        """A person answers. Raises NotFoundError, ConflictError (not open), UsageError (not one of the options)."""
        while True:
            question = await self._answerable(question_id, answer)
            execution = await self._store.execution(question.execution)
            fp("approval.received_before_record")
            with suppress(FencedError):  # it was taken over by the next start, or answered: look again
                await self._end(question, execution.epoch, Answered(question.answer or "", by))
                break
        if (heard := self._waiting.get(question_id)) is not None:
            heard.set()
        return replace(question, state="answered", answered_by=by)

    async def _answerable(self, question_id: str, answer: str) -> Question:
        """The question with what the answer comes to."""
        question = await self._store.question(question_id)
        execution = await self._store.execution(question.execution)
        if question.state != "with_person" or execution.state.final:
            state = question.state.replace("_", " ") if not execution.state.final else "of an execution that has ended"
            raise ConflictError(f"question '{question_id}' is {state}, not open to a person")
        if (chosen := read_answer(question, answer)) is None:
            offered = ", ".join(option["id"] for option in question.options) or "any words"
            raise UsageError(f"'{answer}' is not one of the answers to {question_id}: {offered}")
        return replace(question, answer=chosen)

    async def withdraw(self, journal: Journal, step_key: str | None = None) -> None:
        """What is open of a step (None: of the whole execution) and nobody waits for any more."""
        for question in await self._store.questions(execution=journal.execution, states=OPEN):
            of_step = step_key is None or f"{question.step_key}/".startswith(f"{step_key}/")
            if of_step and question.id not in self._waiting:
                await self._withdraw(question, journal)

    async def _withdraw(self, question: Question, journal: Journal) -> None:
        if question.state in OPEN:
            with suppress(FencedError):  # it was answered in the same moment
                await self._move(question, journal, "question.withdrawn", state="withdrawn")

    # -- moves: a row and its event, in one commit -------------------------------------------------------------------

    async def _identified(self, question: Question, which: Sequence[int]) -> tuple[Question, Question | None]:
        """The question with its id, and what is stored of it. What was withdrawn is asked anew.

        The id is as short as can be typed: `parallax answer q3f9a2c yes`.
        """
        options = [dict(option) for option in question.options]
        said = [question.execution, question.step_key, question.asker, question.kind, question.topic, question.text]
        for again in range(MAX_ASKED_AGAIN):
            digest = hashlib.sha256(orjson.dumps([said, options, list(which), again])).hexdigest()
            for length in range(6, len(digest), 3):
                named = replace(question, id=f"q{digest[:length]}")
                try:
                    known = await self._store.question(named.id)
                except NotFoundError:
                    return named, None
                if (known.execution, known.step_key, known.text) == (named.execution, named.step_key, named.text):
                    break  # else the short id stands for another question: a longer one
            if known.state != "withdrawn":
                return named, known
        raise StepFailed(f"'{question.text[:80]}' was asked and withdrawn {MAX_ASKED_AGAIN} times")

    async def _insert(self, question: Question, journal: Journal, event: str, **told: str) -> None:
        row = insert_row("questions", question_row(question, time.time()))
        await journal.commit([row], [_event(event, question, told)])

    async def _move(
        self, question: Question, journal: Journal, event: str | None, *, told: Mapping[str, str] | None = None,
        **changes: Any,
    ) -> Question:  # fmt: skip
        """Raises FencedError when the question is no longer in the state that it was."""
        moved = replace(question, **changes)
        events = [] if event is None else [_event(event, moved, told or {})]
        await journal.commit([set_question(question.id, question.state, **changes)], events)
        return moved

    async def _end(self, question: Question, epoch: int, given: Answered, state: str = "answered") -> Answered:
        ended = replace(question, state=state, answer=given.answer, answered_by=given.by)
        told = {"answer": given.answer, "by": given.by}
        signal = JournalEntry(
            execution=question.execution, step_key=question.step_key, kind="signal", attempt=1, epoch=epoch,
            body={"name": "answer", "data": {"question": question.id} | told},
        )  # fmt: skip
        writes = [
            current(question.execution, epoch),  # a person may answer by another server than the one that runs it
            set_question(question.id, question.state, state=state, answer=given.answer, answered_by=given.by),
            append(signal),
        ]
        self._bus.publish(await self._store.commit(Change(writes, [_event(f"question.{state}", ended, told)])))
        return given


def _event(type_: str, question: Question, told: Mapping[str, str]) -> Event:
    data = {"id": question.id, "text": question.text, "options": [dict(o) for o in question.options], **told}
    agent = None if question.asker == PROGRAM else question.asker
    return Event(execution=question.execution, type=type_, step_key=question.step_key, agent_id=agent, data=data)


def _ended(question: Question) -> Answered:
    """The answer of a question that has ended; raises StepFailed where there is none."""
    if question.state in {"answered", "defaulted"}:
        return Answered(question.answer or "", question.answered_by or "default")
    raise StepFailed(f"nobody answered '{question.text[:80]}' before its deadline")
