"""Turns: an agent of a role in its workspace; what it asks is answered, what it reviews becomes a verdict.

`steps` asks for turns of work, `host` for reviews and routed questions. Here is what all of them share: opening the
place, running checks on it, and the way of a question through the team.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

import orjson

from parallax.agents.clients.report import read_report
from parallax.errors import AgentStalled, StepFailed, WorkspaceFull
from parallax.execution import prompts
from parallax.execution.agent_proxy import Reset, Slot
from parallax.execution.course import Course
from parallax.execution.questions import Answered, routed_to
from parallax.execution.turn_help import Delegate, TurnHelp
from parallax.execution.verification import Oracles, could_not_run, first_line
from parallax.models import Evidence, Json, Question, Role, Source, Task, TaskResult, Usage, Workspace

TURN_S: Final = 7200.0
LOOK_S: Final = 2.0  # between two looks at how large a workspace is
SUBJECT_CHARS: Final = 6000
CAPS: Final = {"approve": 1.0, "revise": 0.6, "reject": 0.3}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reviewed:
    """A reviewer's verdict; the confidence is that the subject is good."""

    verdict: str
    feedback: str
    confidence: float
    by: str
    usage: Usage

    @property
    def approved(self) -> bool:
        """Only `approve` approves."""
        return self.verdict == "approve"

    def evidence(self, role: str) -> Evidence:
        """The review as evidence of the work."""
        return Evidence(
            oracle=f"review by {role}", passed=self.approved, score=self.confidence, detail=first_line(self.feedback)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Where a turn stands among others: which turn of its step it is, how deep in questions, who waits for it.

    With a depth it answers a colleague's question. `waiting` are roles whose only agent waits for this turn; `lent`
    says that it runs in the place of one of them.
    """

    round_: int = 1
    depth: int = 0
    waiting: frozenset[str] = frozenset()
    lent: bool = False


class Turns:
    """The turns of one execution."""

    def __init__(self, course: Course) -> None:
        self._course = course

    # -- workspaces --------------------------------------------------------------------------------------------------

    async def open(self, slot: Slot, *, kind: str) -> Workspace | None:
        course = self._course
        if course.repo is None or slot.role.workspace == "none":
            return None
        place = await course.workspaces.create(
            course.execution.id, slot.role.name, slot.number, course.repo, kind=kind, base_commit=await course.head()
        )
        slot.env = await course.workspaces.ports.of(place.path, course.profile.ports)
        if (
            course.profile.setup and (await course.checks.profile(course.repo))[1]
        ):  # a guess may fail, and forbids nothing
            await self._equip(slot, place)
        return place

    async def _equip(self, slot: Slot, place: Workspace) -> None:
        """Give the agent what the repository's set-up built. Raises StepFailed: without it no work can be judged."""
        course, home = self._course, self._course.proxy.home(slot)
        assert course.repo is not None
        await asyncio.to_thread(partial(home.mkdir, mode=0o700, parents=True, exist_ok=True))
        setup, slot.shared = await course.checks.equip(course.repo, place.tree, home, place.head, course.profile)
        if failed := setup.failed:
            raise StepFailed(
                f"the repository's set-up does not work, so no agent was asked: {failed.oracle} ({failed.detail}). "
                f"Put `setup` in .parallax.yaml right, or what it reads. Its last words: {(failed.log or '')[-500:]}"
            )
        laid = [name.removeprefix("tree/") for name in setup.built if name.startswith("tree/")]
        await course.workspaces.exclude(place, laid)

    async def moved(self, place: Workspace, commit: str) -> Workspace:
        await self._course.workspaces.move_to(place, commit)
        return replace(place, head=commit)

    async def restored(self, place: Workspace, snapshot: str) -> Workspace:
        await self._course.workspaces.restore(place, snapshot)
        return replace(place, head=await self._course.workspaces.head(place))

    def tree(self, slot: Slot, place: Workspace | None) -> Path:
        if place is not None:
            return place.tree
        scratch = (
            self._course.workspaces.root / self._course.execution.id / f"{slot.role.name}.{slot.number}" / "scratch"
        )
        scratch.mkdir(parents=True, exist_ok=True)
        return scratch

    # -- a turn and what it asks ---------------------------------------------------------------------------------------

    async def call(
        self, slot: Slot, task: Task, place: Workspace | None, *, preset: str, reset: Reset | None = None,
        retries: int | None = None, delegate: Delegate | None = None, standing: Standing | None = None,
    ) -> TaskResult:  # fmt: skip
        """One turn of an agent, with its questions, its team tools, and what a person has told it."""
        course, standing = self._course, standing or Standing()
        tree = self.tree(slot, place)
        help_ = TurnHelp(
            course, slot, task, tree, route=partial(self._route, slot, standing), delegate=delegate,
            round_=standing.round_, depth=standing.depth,
        )  # fmt: skip

        async def again() -> None:
            help_.begin()
            if reset is not None:
                await reset()

        told = self._told(slot.agent_id)
        task = replace(task, text="\n\n".join((task.text, *map(prompts.told, told))))
        async with course.tools.serving(help_), self._within(slot, place):
            if standing.depth > 0:
                result = await course.proxy.consult(slot, task, tree, help_.ask, preset=preset)
            else:
                result = await course.proxy.call(
                    slot, task, tree, help_.ask, preset=preset, reset=again, retries=retries, lent=standing.lent
                )
        if told:  # not before: whoever is cut off in the middle hears it again
            await course.journal.signal("heard", task.step_key, {"agent": slot.agent_id, "count": len(told)})
        return help_.applied(result)

    @asynccontextmanager
    async def _within(self, slot: Slot, place: Workspace | None) -> AsyncIterator[None]:
        """While a turn runs, its workspace must not outgrow its limit: the turn ends with that cause."""
        if place is None:
            yield
            return
        watch = asyncio.create_task(self._watch_size(slot, place), name=f"size of {place.id}")
        try:
            yield
        finally:
            watch.cancel()
            await asyncio.wait({watch})

    async def _watch_size(self, slot: Slot, place: Workspace) -> None:
        workspaces = self._course.workspaces
        while True:
            await asyncio.sleep(LOOK_S)
            if (size := await workspaces.size_b(place)) > workspaces.max_b:
                self._course.proxy.interrupt(slot, WorkspaceFull(
                    f"the workspace {place.id} holds {size / 1e9:.3g} GB, and may hold {workspaces.max_b / 1e9:.3g} "
                    "(PARALLAX_WORKSPACE_MAX_GB)"
                ))  # fmt: skip

    def _told(self, agent_id: str) -> list[str]:
        """What a person has said to an agent and no turn of it has carried yet."""
        journal = self._course.journal
        heard = sum(entry["count"] for entry in journal.signals("heard") if entry["agent"] == agent_id)
        return [entry["text"] for entry in journal.signals("tell") if entry["agent"] == agent_id][heard:]

    async def _route(self, slot: Slot, standing: Standing, question: Question, which: Sequence[int]) -> Answered:
        about = self._course.tasks.get(question.step_key)
        waiting = standing.waiting | ({slot.role.name} if slot.role.instances[1] == 1 else set())
        return await self.ask(question, slot.role.name, about, which, waiting)

    async def ask(
        self, question: Question, asker_role: str, about: str | None, which: Sequence[int] = (),
        waiting: frozenset[str] = frozenset(),
    ) -> Answered:  # fmt: skip
        """Route a question through the team, then to a person. Nobody who waits for the asker is asked."""
        course = self._course
        # Help is for a person: no colleague can log an agent in, or answer a dialogue on a terminal.
        routed = () if question.kind == "help" else routed_to(question, asker_role, course.chart)
        colleagues = [
            (name, partial(self._consult, course.chart.roles[name], about, waiting))
            for name in routed
            if name not in waiting
        ]
        return await course.desk.ask(question, course.journal, colleagues, which)

    async def _consult(self, role: Role, about: str | None, waiting: frozenset[str], question: Question) -> str:
        course = self._course
        try:
            async with asyncio.timeout(course.chart.escalation.timeout_s), course.proxy.hold(role) as slot:
                place = await self.open(slot, kind="agent")
                task = Task(
                    id=f"{question.execution}/{question.step_key}/{question.id}", execution=question.execution,
                    step_key=question.step_key, attempt=1, role=role.name, text=prompts.question(question, about),
                )  # fmt: skip
                standing = Standing(depth=question.depth, waiting=waiting)
                result = await self.call(slot, task, place, preset="readonly", standing=standing)
                if place is not None:
                    await self.moved(place, place.head)  # an answer changes nothing
        except TimeoutError as error:
            raise AgentStalled(f"{role.name} did not answer {question.id} in time") from error
        return str(result.value if isinstance(result.value, str) else result.message)

    async def review(
        self, key: str, role: Role, *, subject: str, commit: str | None, since: str | None, task: str | None,
        evidence: str, final: bool, timeout_s: float | None = None,
    ) -> Reviewed:  # fmt: skip
        """One review by one agent of the role, on a read-only copy of the work."""
        course = self._course
        changes = ""
        if course.repo is not None and commit is not None:
            changes = await course.workspaces.diff(
                course.repo.mirror, since or course.repo.base_commit, commit, stat=True
            )
        text = prompts.review(
            role,
            course.chart,
            subject=subject[:SUBJECT_CHARS],
            task=task,
            changes=changes,
            evidence=evidence,
            final=final,
        )
        journal = course.journal
        async with course.proxy.hold(role) as slot:
            place = await self.open(slot, kind="readonly")
            if place is not None and commit is not None:
                place = await self.moved(place, commit)
            attempt = journal.attempts(key.partition("/")[0]) or 1
            task_ = Task(
                id=f"{course.execution.id}/{key}/{attempt}", execution=course.execution.id, step_key=key,
                attempt=attempt, role=role.name, text=text, timeout_s=timeout_s or role.timeout_s or TURN_S,
            )  # fmt: skip
            await journal.tell(
                journal.event(
                    "step.started",
                    step_key=key,
                    agent_id=slot.agent_id,
                    word="review",
                    role=role.name,
                    task=f"review: {first_line(task or subject)}",
                    attempt=attempt,
                    agent=slot.agent_id,
                )
            )
            result = await self.call(slot, task_, place, preset="readonly")
        reviewed = read_review(result, slot.agent_id)
        await journal.tell(
            journal.event(
                "step.finished",
                step_key=key,
                agent_id=slot.agent_id,
                word="review",
                role=role.name,
                action=reviewed.verdict,
                confidence=reviewed.confidence,
                source=Source.REPORTED,
                commit=None,
                detail=first_line(reviewed.feedback),
                attempts=1,
            )
        )
        return reviewed

    async def check(self, oracles: Oracles, commit: str | None, *, timeout_s: float | None = None) -> list[Evidence]:
        """Run the checks on a clean checkout of the commit, one after the other."""
        course = self._course
        if course.repo is None or commit is None:
            return [could_not_run(name, "there is no repository to check") for name in oracles.names]
        found: list[Evidence] = []
        for check in oracles.checks:
            for wanted in self._expanded(check):
                if wanted == "":
                    found.append(could_not_run(str(check), "the repository's profile has no check (`parallax init`)"))
                    continue
                found.append(
                    await course.checks.run(course.repo, commit, wanted, profile=course.profile, timeout_s=timeout_s)
                )
        return found

    def _expanded(self, check: str | tuple[str, ...]) -> list[str | list[str]]:
        """`quick` and `full` stand for the checks that the profile names so, unless a check has that very name."""
        profile = self._course.profile
        if check == "quick" and check not in profile.checks:
            return list(profile.default_checks("quick") or ("",))
        if check == "full" and check not in profile.checks:
            return list(profile.default_checks("full") or ("",))
        return [check if isinstance(check, str) else list(check)]

    async def tell_evidence(self, key: str, agent_id: str | None, found: Sequence[Evidence]) -> None:
        """Each piece of evidence is one event."""
        event = self._course.journal.event
        await self._course.journal.tell(
            *(
                event(
                    "evidence.recorded",
                    step_key=key,
                    agent_id=agent_id,
                    oracle=e.oracle,
                    passed=e.passed,
                    score=e.score,
                    detail=e.detail,
                    duration_s=round(e.duration_s, 3),
                )
                for e in found
            )
        )


def read_review(result: TaskResult, by: str) -> Reviewed:
    """The verdict that was reported by tool, else the last VERDICT of the reviewer's words; without one the work is
    not approved. Confidence is capped by it.
    """
    if result.verdict is not None:
        value, reported, verdict = result.value, result.reported, result.verdict
    else:
        value, reported, said = read_report(result.message, None)
        verdict = said or "revise"
    stated = reported if reported is not None else {"approve": 0.9, "revise": 0.6, "reject": 0.3}[verdict]
    feedback = value if isinstance(value, str) else orjson.dumps(value).decode()
    return Reviewed(
        verdict=verdict, feedback=feedback, confidence=min(stated, CAPS[verdict]), by=by, usage=result.usage
    )


def seconds(milliseconds: Json) -> float | None:
    """Programs count in milliseconds, the inside in seconds."""
    return milliseconds / 1000 if isinstance(milliseconds, int | float) else None
