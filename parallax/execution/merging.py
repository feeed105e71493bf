"""How accepted work comes together: conflicts find somebody, a merge that is red finds the one who broke it.

A conflict goes back to the owner of the work with both sides and both intents, at most twice; then to the owner's lead;
then to a person, who may send it round again or leave it out. Nothing is dropped without its name being said. `steps`
calls `merge` for one piece of work, `host` at joins and for `integrate`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from parallax.errors import MergeConflict, StepFailed
from parallax.execution import prompts
from parallax.execution.agent_proxy import Slot, role_of
from parallax.execution.course import Course
from parallax.execution.questions import PROGRAM
from parallax.execution.turns import Turns
from parallax.execution.verification import Oracles, critique, first_line, red_before, summary
from parallax.models import Action, Evidence, Question, Role, Source, StepResult
from parallax.workspaces.service import result_branch

if TYPE_CHECKING:
    from parallax.execution.steps import StepRunner, Work

CONFLICT_ROUNDS: Final = 2
MENDS: Final = 3  # pieces of work that may be found guilty of one red merge before a person has to look


@dataclass(frozen=True, slots=True, kw_only=True)
class Conflict:
    """What a conflict was about, and who resolved it; None where the work was left out of the merge."""

    step: str
    files: tuple[str, ...]
    resolved_by: str | None
    cause: str | None = None

    def told(self) -> dict[str, Any]:
        """As `integrate` tells it to the program."""
        told = {"step": self.step, "files": list(self.files), "resolvedBy": self.resolved_by}
        return told if self.cause is None else told | {"cause": self.cause}


class Merging:
    """The merges of one execution."""

    def __init__(self, course: Course, turns: Turns, steps: StepRunner) -> None:
        self._course = course
        self._turns = turns
        self._steps = steps
        self.conflicts: dict[str, Conflict] = {}
        self._asked: dict[str, int] = {}

    # -- one piece of work ---------------------------------------------------------------------------------------------

    async def later(self, key: str, step: StepResult, *, on_conflict: str = "owner") -> StepResult:
        """At a join: merge accepted work of a branch. Raises StepFailed when it stays in conflict."""
        course = self._course
        try:
            return await self._merged(key, step, course.tasks.get(key, key))
        except MergeConflict as conflict:
            if on_conflict == "fail":
                files = ", ".join(conflict.files)
                raise StepFailed(f"'{key}' conflicts with what was merged before it, in {files}") from conflict
            number = int((step.agent_id or ".1").rpartition(".")[2])
            async with course.proxy.hold(self._owner(step), number=number) as slot:
                work = await self.reopened(key, step, slot)
                return await self.merge(work, slot, step, on_conflict=on_conflict)

    async def merge(self, work: Work, slot: Slot, step: StepResult, *, on_conflict: str = "owner") -> StepResult:
        """Merge work whose owner holds this place; whoever reconciles it, it is checked again."""
        lead = self._lead(work)
        tries = ["owner"] * CONFLICT_ROUNDS if on_conflict != "lead" or lead is None else []
        tries += ["lead"] * CONFLICT_ROUNDS if lead is not None else []
        by, round_ = "", 0
        while True:
            try:
                merged = await self._merged(work.key, step, work.text)
            except MergeConflict as conflict:
                round_ += 1
                self.conflicts[work.key] = Conflict(step=work.key, files=conflict.files, resolved_by=None)
                await self._tell(work, slot, step, conflict, round_)
                reason = f"it conflicts with the work before it in {', '.join(conflict.files)}"
                step, by = await self._resolved(work, slot, step, reason, tries)
            else:
                if work.key in self.conflicts:
                    self.conflicts[work.key] = replace(self.conflicts[work.key], resolved_by=by)
                return merged

    async def _resolved(
        self, work: Work, slot: Slot, step: StepResult, reason: str, tries: list[str]
    ) -> tuple[StepResult, str]:
        """The next one in turn reconciles; who cannot does not get it again, and after the last a person decides."""
        while True:
            if not tries:
                await self._ask_person(work, step, reason)
                tries.append("lead" if self._lead(work) else "owner")
            who = tries.pop(0)
            try:
                if who == "owner":
                    return await self._reconciled(work, slot, step), slot.agent_id
                return await self._by_lead(work, step, reason)
            except StepFailed as failed:
                reason = str(failed)
                tries[:] = [other for other in tries if other != who]

    async def _reconciled(self, work: Work, slot: Slot, step: StepResult) -> StepResult:
        """A turn on the two sides, in the copy that `work` stands on; what comes of it is checked as the work was."""
        course = self._course
        assert work.place is not None
        merging = await course.workspaces.merge_into(work.place, await course.head())
        others = await self._others(merging.conflicts, but=work.key)
        await self._steps.turn(work, slot, prompts.conflict(merging.conflicts, work.text, others))
        await self._steps.verify(work)
        if work.unresolved or (work.verdict.source is Source.EVIDENCE and work.decision(0) is Action.ESCALATE):
            raise StepFailed(f"'{work.key}' no longer passes after the merge: {summary(work.evidence)}")
        return _after(work, step)

    async def _by_lead(self, work: Work, step: StepResult, reason: str) -> tuple[StepResult, str]:
        """The owner's lead reconciles, in a copy of their own."""
        course, lead = self._course, self._lead(work)
        assert lead is not None
        assert step.commit is not None
        await course.journal.tell(
            course.journal.event("step.escalated", step_key=work.key, to=lead.name, cause=first_line(reason, 300))
        )
        async with course.proxy.hold(lead) as slot:
            place = await self._turns.open(slot, kind="agent")
            assert place is not None
            place = await self._turns.moved(place, step.commit)
            taken = replace(work, place=place, by=slot.agent_id, snapshot=None, commit=step.commit)
            return await self._reconciled(taken, slot, step), slot.agent_id

    async def _ask_person(self, work: Work, step: StepResult, reason: str) -> None:
        """Returns when it shall be tried once more; raises StepFailed when it is left out."""
        course = self._course
        asked = self._asked[work.key] = self._asked.get(work.key, 0) + 1
        question = Question(
            id="",  # the desk's to give
            execution=course.execution.id,
            step_key=work.key,
            asker=PROGRAM,
            kind="question",
            # With its count, since the same words would be the same question, whose answer is known.
            text=f"The work of step '{work.key}' (branch {step.branch}) cannot be merged, try {asked}: "
            f"{first_line(reason, 300)}",
            options=(
                {"id": "again", "label": "let them try once more"},
                {"id": "leave", "label": "leave it out; it stays on its branch"},
            ),
            default="leave",
        )
        given = await course.desk.ask(question, course.journal)
        if given.answer != "again":
            raise StepFailed(
                f"'{work.key}' is done and kept on {step.branch}, but left out of the result ({given.by}): {reason}"
            )

    def left_out(self, key: str, cause: str) -> None:
        """Work that nobody could bring in: named in the result, never dropped in silence."""
        files = self.conflicts[key].files if key in self.conflicts else ()
        self.conflicts[key] = Conflict(step=key, files=files, resolved_by=None, cause=cause)

    async def forget_unmerged(self) -> None:
        """After a crash in the middle of mending, the result may lack what was merged once: it is merged again."""
        course = self._course
        assert course.repo is not None
        head = await course.head()
        for key, commit in list(course.merged.items()):
            if not await course.integration.holds(course.repo, head, commit):
                del course.merged[key]

    # -- a red merge ---------------------------------------------------------------------------------------------------

    async def mended(self, keys: Sequence[str], oracles: Oracles, found: list[Evidence]) -> list[Evidence]:
        """Where the merged tree is red: the work that broke it is found, left out by name and sent back.

        It is taken in again if it is good then. Returns the evidence of what the result is in the end.
        """
        course = self._course
        assert course.repo is not None
        base = await self._turns.check(oracles, course.repo.base_commit)
        for _ in range(MENDS):
            if not _red(found, base):
                break
            guilty = await self._guilty([key for key in course.merged if key in keys], oracles, base)
            if guilty is None:
                break
            found = await self._sent_back(guilty, oracles, base, found)
        return found

    async def _guilty(self, keys: Sequence[str], oracles: Oracles, base: list[Evidence]) -> str | None:
        """The first piece of work with which the result is red, by halving; None where none of these is."""
        course = self._course
        assert course.repo is not None
        heads = await course.integration.heads(course.repo, course.execution.id, [course.merged[key] for key in keys])
        low, high = 0, len(keys) - 1
        while low < high:
            middle = (low + high) // 2
            red = _red(await self._turns.check(oracles, heads[middle]), base)
            low, high = (low, middle) if red else (middle + 1, high)
        if not keys or not _red(await self._turns.check(oracles, heads[low]), base):
            return None
        before = await course.integration.before(course.repo, heads[low])
        return None if _red(await self._turns.check(oracles, before), base) else keys[low]

    async def _sent_back(
        self, guilty: str, oracles: Oracles, base: list[Evidence], found: list[Evidence]
    ) -> list[Evidence]:
        course, step = self._course, self._course.steps[guilty]
        assert course.repo is not None
        cause = f"with it the merged tree is red: {summary([e for e in found if e.passed is False])}"
        left = await self._without(guilty)
        for key in left:
            why = cause if key == guilty else f"it is built on '{guilty}', which is left out"
            self.conflicts[key] = Conflict(step=key, files=(), resolved_by=None, cause=why)
            event = course.journal.event(
                "workspace.conflict", step_key=key, agent_id=course.steps[key].agent_id,
                branch=course.steps[key].branch, files=[], round=1,
            )  # fmt: skip
            await course.journal.tell(event)
        number = int((step.agent_id or ".1").rpartition(".")[2])
        async with course.proxy.hold(self._owner(step), number=number) as slot:
            work = await self.reopened(guilty, step, slot)
            assert work.place is not None
            merging = await course.workspaces.merge_into(work.place, await course.head())
            told = critique(found, "")
            await self._steps.turn(work, slot, prompts.red_merge(merging.conflicts, work.text, told))
            await self._steps.verify(work)
            mended = await self._turns.check(oracles, work.commit)
            if not work.unresolved and not _red(mended, base):
                course.steps[guilty] = await self._merged(guilty, _after(work, step), work.text)
                self.conflicts[guilty] = replace(self.conflicts[guilty], resolved_by=slot.agent_id)
                for key in left[1:]:
                    course.steps[key] = await self.later(key, course.steps[key])
                    self.conflicts[key] = replace(self.conflicts[key], resolved_by=slot.agent_id)
        return await self._turns.check(oracles, await course.head())

    async def _without(self, guilty: str) -> list[str]:
        """Make the result anew without a piece of work; returns it with those that are built on it."""
        course, order = self._course, list(self._course.merged)
        assert course.repo is not None
        commit, later = course.merged[guilty], order[order.index(guilty) + 1 :]
        (head,) = await course.integration.heads(course.repo, course.execution.id, [commit])
        before = await course.integration.before(course.repo, head)
        left = [guilty]
        left += [key for key in later if await course.integration.holds(course.repo, course.merged[key], commit)]
        await course.integration.reset(course.repo, course.execution.id, before)
        course.result_head = before
        for key in (guilty, *later):
            del course.merged[key]
        for key in later:
            if key not in left:
                course.steps[key] = await self.later(key, course.steps[key])
        return left

    # -- the parts -----------------------------------------------------------------------------------------------------

    async def reopened(self, key: str, step: StepResult, slot: Slot) -> Work:
        """A finished piece of work that its owner takes up again, in a copy that stands on it."""
        place = await self._turns.open(slot, kind="agent")
        assert place is not None
        assert step.commit is not None
        place = await self._turns.moved(place, step.commit)
        return self._steps.reopened(key, slot.role, step, place)

    def _lead(self, work: Work) -> Role | None:
        return self._course.chart.roles.get(work.role.reports_to or "")

    def _owner(self, step: StepResult) -> Role:
        return role_of(self._course.chart, step.role)[0]

    async def _others(self, files: Sequence[str], *, but: str) -> str:
        """The tasks of those whose merged work changed these files; of all where no name tells."""
        course = self._course
        assert course.repo is not None
        touched = [
            key
            for key, commit in course.merged.items()
            if set(files) & set(await course.workspaces.changed_by(course.repo.mirror, commit))
        ]
        return "\n".join(f"- {course.tasks.get(key, key)}" for key in (touched or course.merged) if key != but)

    async def _tell(self, work: Work, slot: Slot, step: StepResult, conflict: MergeConflict, round_: int) -> None:
        await self._course.journal.tell(
            self._course.journal.event(
                "workspace.conflict",
                step_key=work.key,
                agent_id=slot.agent_id,
                branch=step.branch,
                files=list(conflict.files),
                round=round_,
            )
        )

    async def _merged(self, key: str, step: StepResult, text: str) -> StepResult:
        course = self._course
        assert course.repo is not None
        assert step.commit is not None
        merged = await course.integration.merge(
            course.repo,
            course.execution.id,
            step.commit,
            message=f"Merge {key}: {first_line(text, 60)}",
            trailers={"Parallax-Execution": course.execution.id, "Parallax-Step": key},
        )
        course.merged[key], course.result_head = step.commit, merged.sha
        await course.journal.tell(
            course.journal.event(
                "workspace.merged",
                step_key=key,
                agent_id=step.agent_id,
                branch=step.branch,
                commit=merged.sha,
                files=merged.files,
                into=result_branch(course.execution.id),
            )
        )
        return step


def _after(work: Work, step: StepResult) -> StepResult:
    """The result of a step whose work was taken up again."""
    confidence = min(step.confidence, work.verdict.confidence) if work.checked else step.confidence
    return replace(
        step, commit=work.commit, confidence=confidence, evidence=work.checked or step.evidence,
        attempts=step.attempts + 1, usage=step.usage + work.usage,
    )  # fmt: skip


def _red(found: Sequence[Evidence], base: Sequence[Evidence]) -> bool:
    """Whether checks fail that did not fail so before the work."""
    return any(red_before(now, then).passed is False for now, then in zip(found, base, strict=True))
