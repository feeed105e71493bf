"""How one piece of work is done: a turn, a commit, evidence, a decision; again, or up, or accepted and merged.

`host` calls `StepRunner` for `assign`, for candidates of `fanout`, and at joins. The loop below is the only one in the
house that reworks and escalates.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, Final

from parallax.errors import (
    AgentUnavailable,
    BudgetExhausted,
    ParallaxError,
    RunStopped,
    StepFailed,
    StorageError,
    UsageError,
)
from parallax.events import Event
from parallax.execution import prompts
from parallax.execution.agent_proxy import Slot, role_of
from parallax.execution.course import Course
from parallax.execution.journal import Journal, input_hash, step_from_json, step_to_json
from parallax.execution.merging import Merging
from parallax.execution.turns import TURN_S, Reviewed, Standing, Turns, seconds
from parallax.execution.verification import (
    Oracles,
    Verdict,
    check_schema,
    claims_evidence,
    critique,
    decide,
    first_line,
    judge,
    oracles_of,
    protected_evidence,
    reason,
    red_before,
    schema_evidence,
    summary,
)
from parallax.failpoints import fp
from parallax.models import (
    Action,
    Budget,
    Evidence,
    Json,
    Policy,
    Role,
    StepResult,
    Task,
    TaskResult,
    Usage,
    Workspace,
    hash12,
)
from parallax.prism import Outcome
from parallax.workspaces.profile import matching
from parallax.workspaces.service import slug

DELEGATE: Final = "/delegate["
DELEGATE_DEPTH: Final = 2
MAX_DELEGATED: Final = 20  # parts of one task


@dataclass(frozen=True, slots=True, kw_only=True)
class Handed:
    """What a delegated task inherits: the commit that it begins at, and the roles whose only agent waits for it."""

    start: str | None
    waiting: frozenset[str]


@dataclass(slots=True)
class Work:
    """The state of one piece of work while it is done."""

    key: str
    role: Role
    text: str
    options: dict[str, Any]
    oracles: Oracles
    policy: Policy | None
    attempt: int
    place: Workspace | None
    start: str | None  # the commit that the work begins at
    snapshot: str | None  # the state that another attempt begins with
    commit: str | None = None
    unresolved: tuple[str, ...] = ()
    result: TaskResult | None = None
    checked: tuple[Evidence, ...] = ()
    reviewed: Reviewed | None = None
    reviews: int = 0
    turns: int = 0
    usage: Usage = field(default_factory=Usage)
    by: str = ""
    handed: Handed | None = None
    delegating: asyncio.Lock = field(default_factory=asyncio.Lock)
    delegated: set[str] = field(default_factory=set)

    @property
    def evidence(self) -> tuple[Evidence, ...]:
        if self.reviewed is None:
            return self.checked
        return (*self.checked, self.reviewed.evidence(self.options["review"]["role"]))

    @property
    def verdict(self) -> Verdict:
        return judge(self.evidence, self.result.reported if self.result else None)

    def decision(self, rounds_left: int) -> Action:
        """What the policy makes of it now. Failed evidence is never waved through for want of a policy."""
        policy = self.policy
        if policy is None and not all(entry.passed for entry in self.checked):
            policy = Policy()
        return decide(self.verdict, policy, rounds_left=rounds_left)


class StepRunner:
    """Does the steps of one execution."""

    def __init__(self, course: Course, turns: Turns) -> None:
        self._course = course
        self._turns = turns
        self.merging = Merging(course, turns, self)

    # -- work --------------------------------------------------------------------------------------------------------

    async def work(
        self,
        key: str,
        role: Role,
        number: int | None,
        request: Json,
        asked_hash: str,
        *,
        word: str,
        branch: Sequence[tuple[str, int]],
        merge: bool,
        handed: Handed | None = None,
    ) -> StepResult:
        """One task for one agent, until it is accepted. Raises StepFailed, AgentError, BudgetExhausted.

        `handed`: an agent has delegated it and waits for it, so it begins with that one's files, waits for nobody, and
        what it cannot do goes back to its giver.
        """
        course = self._course
        before = course.journal.intent(key) if handed is None else None
        number = before["number"] if before else number
        async with course.proxy.hold(role, number=number, wait=handed is None) as slot:
            if before and merge and course.repo is not None:
                # It may have been merged right before the crash; alone at its place, nothing else can have been since.
                await course.integration.reset(course.repo, course.execution.id, before["result_head"])
            work = await self._begin(key, slot, request, asked_hash, before, word, branch, handed)
            if work.options.get("session") == "fresh":
                await course.proxy.renew(slot)
            await self._until_accepted(work, slot)
            step = self._step(work, slot)
            if merge and step.commit is not None:
                step = await self.merging.merge(work, slot, step)
            fp("snapshot_done_before_result")
            return step

    async def _begin(
        self,
        key: str,
        slot: Slot,
        request: Json,
        asked_hash: str,
        before: Json,
        word: str,
        branch: Sequence[tuple[str, int]],
        handed: Handed | None,
    ) -> Work:
        role, options = slot.role, request["options"]
        place, snapshot = await self._placed(key, slot, before, handed)
        given = oracles_of(options.get("verify") if "verify" in options else role.verify)
        if (schema := options.get("schema")) is not None:
            check_schema(schema)
        needs_policy = bool(given) or schema is not None
        work = Work(
            key=key,
            role=role,
            text=request["task"],
            options=options,
            oracles=given,
            policy=role.policy or (Policy() if needs_policy else None),
            attempt=0,
            place=place,
            start=place.head if place else None,
            snapshot=snapshot,
            by=slot.agent_id,
            handed=handed,
        )
        self._course.tasks[key] = work.text
        began_as = {"effect": word, "branch": [list(place) for place in branch], "request": request}
        why = "the one it had before the restart" if before else "the first free of its role"
        await self._intend(work, slot, began_as, asked_hash, why)
        return work

    async def _placed(
        self, key: str, slot: Slot, before: Json, handed: Handed | None
    ) -> tuple[Workspace | None, str | None]:
        """The agent's workspace at the commit that the step begins with, and the snapshot of it."""
        place = await self._turns.open(slot, kind="agent")
        if place is None:
            return None, None
        if before:
            # A step in flight at a crash begins again where it began; what it had half done is kept aside.
            return await self._turns.restored(place, before["snapshot"]), before["snapshot"]
        start = handed.start if handed is not None and handed.start else await self._start_of(place, slot)
        place = await self._turns.moved(place, start)
        return place, await self._course.workspaces.snapshot(place, f"{slug(slot.role.name)}-{hash12(key)}")

    async def _intend(self, work: Work, slot: Slot, began_as: dict[str, Json], asked_hash: str, why: str) -> None:
        """Record, before anything is done, that the step begins, and with which agent."""
        course, journal, key = self._course, self._course.journal, work.key
        fp("intent.before_commit")
        work.attempt = await journal.write(
            "intent",
            key,
            began_as
            | {
                "task_id": f"{course.execution.id}/{key}",
                "agent": slot.agent_id,
                "number": slot.number,
                "snapshot": work.snapshot,
                "result_head": None if course.repo is None else await course.head(),
            },
            asked_hash=asked_hash,
            events=[
                journal.event(
                    "agent.chosen",
                    step_key=key,
                    agent_id=slot.agent_id,
                    role=slot.role.name,
                    type=slot.type,
                    reason=why,
                ),
                journal.event(
                    "step.started",
                    step_key=key,
                    agent_id=slot.agent_id,
                    word=began_as["effect"],
                    role=slot.role.name,
                    task=first_line(work.text),
                    attempt=journal.attempts(key) + 1,
                    agent=slot.agent_id,
                ),
            ],
        )
        fp("intent.committed_before_spawn")

    async def _until_accepted(self, work: Work, slot: Slot) -> None:
        """The one loop: turn, evidence, decision."""
        policy = work.policy or Policy()
        prompt, rework = self._assignment(work), 0
        while True:
            await self.turn(work, slot, prompt)
            await self.verify(work)
            action = work.decision(policy.max_rounds - rework)
            if action is Action.RETRY:
                rework += 1
                found = critique(work.evidence, work.result.message if work.result else "")
                prompt = prompts.rework(found, rework, policy.max_rounds)
                await self._tell_retry(work, slot, found)
                continue
            if action is Action.ESCALATE:
                break
            feedback = await self._reviewed(work)
            if feedback is None:
                break
            prompt = prompts.rework(feedback, work.reviews, work.options["review"].get("maxRounds", 2))
            await self._tell_retry(work, slot, feedback)
        if work.decision(0) is Action.ESCALATE:
            await self._escalate(work)

    async def _escalate(self, work: Work) -> None:
        """The lead takes the task over in a copy of its own, once; then it stands or falls."""
        course = self._course
        lead = course.chart.roles.get(work.role.reports_to or "")
        found = critique(work.evidence, work.result.message if work.result else "")
        if lead is not None and work.place is not None and work.handed is None:
            await course.journal.tell(
                course.journal.event("step.escalated", step_key=work.key, to=lead.name, cause=first_line(found))
            )
            async with course.proxy.hold(lead) as slot:
                place = await self._turns.open(slot, kind="agent")
                assert place is not None
                begin = work.commit or work.start
                assert begin is not None
                work.place = await self._turns.moved(place, begin)
                work.by, work.start, work.snapshot = slot.agent_id, begin, None
                await self.turn(work, slot, prompts.takeover(lead, course.chart, work.text, work.role.name, found))
                await self.verify(work)
        if work.decision(0) is Action.ESCALATE:
            told = summary(work.evidence) or f"confidence {work.verdict.confidence:.2f}"
            raise StepFailed(f"'{work.key}' was not accepted after {work.turns} turn{'s' * (work.turns != 1)}: {told}")

    # -- what an agent hands on ----------------------------------------------------------------------------------------

    async def _delegated(self, work: Work, slot: Slot, name: str, text: str) -> StepResult:
        """A part of somebody's task, done by a colleague: a step of its own below the asking one, checked like any.

        It is journaled under `<step>/delegate[n]`. When its giver begins again after a restart and hands on the same,
        the recorded result is used. Raises UsageError, StepFailed, AgentError, BudgetExhausted.
        """
        course = self._course
        async with work.delegating:  # one after another: nobody but Prism runs two agents side by side
            role = course.chart.roles.get(name)
            if role is None:
                raise UsageError(f"there is no role '{name}' (roles: {', '.join(course.chart.roles)})")
            if work.key.count(DELEGATE) >= DELEGATE_DEPTH:
                raise UsageError("this task was handed on twice already: do it yourself, or report what is in the way")
            asked = input_hash("delegate", {"role": name, "task": text})
            key, recorded = self._delegation(work, asked)
            start = None
            if work.place is not None:
                start = await course.workspaces.snapshot(work.place, f"{slug(work.role.name)}-{hash12(key)}-given")
            elif course.repo is not None and role.workspace != "none":
                raise UsageError(f"you have no files of your own that the {name}'s work could come into")
            if recorded is None:
                recorded = await self._handed_on(work, slot, key, role, text, asked, start)
            work.delegated.add(key)
            if recorded["step"] is None:
                raise StepFailed(f"the {name} could not do it: {recorded['outcome']['error']}")
            step = step_from_json(recorded["step"])
            work.usage += step.usage
            await self._taken(work, name, step, recorded["start"])
            return step

    def _delegation(self, work: Work, asked: str) -> tuple[str, Json]:
        """The key of a delegated task, and its record if it was done before a restart."""
        for number in range(1, MAX_DELEGATED + 1):
            key = f"{work.key}{DELEGATE}{number}]"
            recorded = self._course.journal.result(key)
            if recorded is None or (recorded["asked"] == asked and key not in work.delegated):
                return key, recorded
        raise UsageError(f"this task has handed on {MAX_DELEGATED} parts, which is the limit: do the rest yourself")

    async def _handed_on(
        self, work: Work, slot: Slot, key: str, role: Role, text: str, asked: str, start: str | None
    ) -> Json:
        journal = self._course.journal
        waiting = work.handed.waiting if work.handed else frozenset()
        if slot.role.instances[1] == 1:
            waiting |= {slot.role.name}
        step: StepResult | None = None
        try:
            step = await self.work(
                key, role, None, {"task": text, "options": {}}, asked, word="delegate", branch=(), merge=False,
                handed=Handed(start=start, waiting=waiting),
            )  # fmt: skip
            outcome = Outcome(value=step.value, confidence=step.confidence)
            event = step_finished(journal, key, "delegate", step)
        except (StorageError, RunStopped, AgentUnavailable):
            raise  # not the colleague's failure: another try may go well
        except ParallaxError as error:
            outcome = Outcome(error=str(error))
            event = journal.event("step.failed", step_key=key, error=str(error), retryable=error.retryable)
        body = {"outcome": asdict(outcome), "step": step and step_to_json(step), "asked": asked, "start": start}
        await journal.write("result", key, body, asked_hash=asked, events=[event])
        return journal.result(key)

    async def _taken(self, work: Work, name: str, step: StepResult, start: str | None) -> None:
        """A colleague's changes come into the giver's files, as work not yet committed."""
        if work.place is None or step.commit is None or start is None:
            return
        taken = await self._course.workspaces.take(work.place, step.commit, since=start)
        if taken.conflicts:
            raise UsageError(
                f"the {name} has done it, on the branch {step.branch}, but its changes do not fit yours in "
                f"{', '.join(taken.conflicts)}: nothing of it was brought in"
            )

    # -- one turn ----------------------------------------------------------------------------------------------------

    def _assignment(self, work: Work) -> str:
        given = work.options.get("input")
        return prompts.assignment(
            work.role,
            self._course.chart,
            work.text,
            input_value=given["value"] if isinstance(given, dict) and "step" in given else given,
            schema=work.options.get("schema"),
            checks=work.oracles.names,
            writes=work.place is not None and work.role.preset != "readonly",
        )

    async def turn(self, work: Work, slot: Slot, prompt: str) -> None:
        course = self._course
        work.turns += 1
        task = Task(
            id=f"{course.execution.id}/{work.key}/{work.attempt}",
            execution=course.execution.id,
            step_key=work.key,
            attempt=work.attempt,
            role=work.role.name,
            text=prompt,
            schema=work.options.get("schema"),
            timeout_s=seconds(work.options.get("timeout")) or work.role.timeout_s or TURN_S,
            budget=_budget(work),
        )

        async def reset() -> None:
            if work.place is None:
                return
            if work.commit is None and work.snapshot is not None:
                work.place = await self._turns.restored(work.place, work.snapshot)
            else:
                work.place = await self._turns.moved(work.place, work.place.head)

        handed = work.handed
        standing = Standing(
            round_=work.turns, waiting=handed.waiting if handed else frozenset(), lent=handed is not None
        )
        try:
            result = await self._turns.call(
                slot, task, work.place, preset=slot.role.preset, reset=reset, retries=work.options.get("retries"),
                delegate=partial(self._delegated, work, slot), standing=standing,
            )  # fmt: skip
        except BudgetExhausted as error:
            await self._keep(work, slot, str(error))
            raise
        work.result, work.usage = result, work.usage + result.usage
        fp("agent_exited_before_snapshot")
        await self._commit(work, slot)

    async def _keep(self, work: Work, slot: Slot, cause: str) -> None:
        """A turn that the budget ended: what is in the agent's tree is kept on the step's branch, for a person."""
        if work.turns and work.place is not None:
            await self._commit_tree(work, slot, f"Unfinished: {cause}")

    async def _commit(self, work: Work, slot: Slot) -> None:
        if work.place is not None and work.result is not None:
            await self._commit_tree(work, slot, work.result.message[:2000])

    async def _commit_tree(self, work: Work, slot: Slot, told: str) -> None:
        course = self._course
        assert work.place is not None
        made = await course.workspaces.commit(
            work.place,
            message=f"{first_line(work.text, 72)}\n\n{told}".strip(),
            author=work.role.name,
            branch=course.branch(work.role, work.key),
            trailers={
                "Parallax-Execution": course.execution.id,
                "Parallax-Step": work.key,
                "Parallax-Agent": slot.agent_id,
            },
        )
        if made is not None:
            work.commit, work.unresolved = made.sha, made.unresolved
            work.place = replace(work.place, head=made.sha)

    async def verify(self, work: Work) -> None:
        """Collect evidence of the work as it stands now; earlier reviews were of earlier work."""
        course, found = self._course, list[Evidence]()
        work.reviewed = None
        found += claims_evidence(work.result, work.unresolved)
        found += protected_evidence(await self._protected(work))
        if (schema := work.options.get("schema")) is not None:
            found.append(schema_evidence(work.result.value if work.result else None, schema))
        if work.oracles and all(entry.passed for entry in found):
            event = course.journal.event(
                "step.verifying", step_key=work.key, agent_id=work.by, oracles=work.oracles.names
            )
            await course.journal.tell(event)
            found += await self._checked(work)
        work.checked = tuple(found)
        if found:
            await self._turns.tell_evidence(work.key, work.by, found)

    async def _protected(self, work: Work) -> list[str]:
        """The protected paths that the work changes against the commit it began at."""
        course = self._course
        if course.repo is None or not course.profile.protected or work.commit is None or work.start is None:
            return []
        changed = await course.workspaces.changed(course.repo.mirror, work.start, work.commit)
        return matching(changed, course.profile.protected)

    async def _checked(self, work: Work) -> list[Evidence]:
        """The checks on the work; where one is red, whether it was red before the work, too."""
        found = await self._turns.check(work.oracles, work.commit or work.start)
        if work.commit is None or all(entry.passed for entry in found):
            return found
        before = await self._turns.check(work.oracles, work.start)
        return [red_before(now, then) for now, then in zip(found, before, strict=True)]

    async def _tell_retry(self, work: Work, slot: Slot, found: str) -> None:
        event = self._course.journal.event
        await self._course.journal.tell(
            event(
                "step.retrying",
                step_key=work.key,
                agent_id=slot.agent_id,
                attempt=work.turns + 1,
                critique=found[:2000],
                next_s=0,
            )
        )

    # -- the result --------------------------------------------------------------------------------------------------

    def _step(self, work: Work, slot: Slot) -> StepResult:
        assert work.result is not None
        value = work.result.value
        if work.reviews:
            judged = {"rounds": work.reviews, "approved": bool(work.reviewed and work.reviewed.approved)}
            value = value | judged if isinstance(value, dict) else {"report": value} | judged
        verdict = work.verdict
        return StepResult(
            value=value,
            confidence=verdict.confidence,
            source=verdict.source,
            action=work.decision(0),
            evidence=work.evidence,
            commit=work.commit,
            branch=self._course.branch(work.role, work.key) if work.commit else None,
            role=work.role.name,
            agent_id=work.by or slot.agent_id,
            attempts=work.turns,
            usage=work.usage,
            reported=work.result.reported,
            artifacts=work.result.artifacts,
        )

    def reopened(self, key: str, role: Role, step: StepResult, place: Workspace) -> Work:
        """A finished piece of work that is taken up again in this copy."""
        intent = self._course.journal.intent(key) or {"request": {"task": key, "options": {}}}
        options = dict(intent["request"]["options"])
        options.pop("schema", None)  # what comes back is a merge, not the report that the schema is of
        oracles = oracles_of(options.get("verify") if "verify" in options else role.verify)
        return Work(
            key=key, role=role, text=intent["request"]["task"], options=options, oracles=oracles,
            policy=role.policy or Policy(), attempt=self._course.journal.attempts(key), place=place,
            start=step.commit, snapshot=None, commit=step.commit, by=step.agent_id or "",
        )  # fmt: skip

    # -- reviews -----------------------------------------------------------------------------------------------------

    async def _reviewed(self, work: Work) -> str | None:
        """Hold one review if the step asks for it; returns the feedback when the work goes back, else None."""
        wanted = work.options.get("review")
        if wanted is None:
            return None
        limit = wanted.get("maxRounds", 2)
        if work.reviews >= limit:
            return None
        work.reviews += 1
        role, _ = role_of(self._course.chart, wanted["role"])
        key = f"{work.key}/{wanted.get('id', 'review')}/{work.reviews}"
        reported = work.result.message if work.result else ""
        reviewed = await self._turns.review(
            key, role, subject=reported, commit=work.commit or work.start, since=work.start,
            task=work.text, evidence=summary(work.checked), final=False,
        )  # fmt: skip
        work.reviewed, work.usage = reviewed, work.usage + reviewed.usage
        await self._turns.tell_evidence(work.key, reviewed.by, [reviewed.evidence(role.name)])
        if reviewed.approved or work.reviews >= limit:
            return None
        return f"{role.name} reviewed it ({reviewed.verdict}):\n{reviewed.feedback}"

    async def _start_of(self, place: Workspace, slot: Slot) -> str:
        """Where a fresh step begins: at the result, or on this agent's accepted work that waits for its join.

        Candidates of a `fanout` wait for nothing: unless `integrate` picks them, nothing is ever built on them.
        """
        course = self._course
        waiting = [
            step.commit
            for key, step in course.steps.items()
            if key in course.waiting and step.agent_id == slot.agent_id and step.commit is not None
        ]
        if place.head in waiting:
            return place.head
        return waiting[-1] if waiting else await course.head()  # the last: its workspace is new, as in a fork


def _budget(work: Work) -> Budget:
    """What the step may use, by its option. Raises UsageError."""
    try:
        return Budget.read(work.options.get("budget"))
    except ValueError as error:
        raise UsageError(f"step '{work.key}': {error}") from None


def step_finished(journal: Journal, key: str, word: str, step: StepResult) -> Event:
    """How the end of a step with a result is told."""
    return journal.event(
        "step.finished",
        step_key=key,
        agent_id=step.agent_id,
        word=word,
        role=step.role,
        action=step.action,
        confidence=step.confidence,
        source=step.source,
        commit=step.commit,
        detail=reason(step),
        attempts=step.attempts,
    )
