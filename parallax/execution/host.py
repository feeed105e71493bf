"""ExecutionHost: answers Prism's effects. Recorded? Return it. Else intent, act, result, each one durable commit.

One per execution, built by `running`, called by PrismRuntime. The words that call agents are done by `steps`; this
module holds the cycle, the joins and the small words. Accepted work is merged at once, inside `parallel` at the join in
submission order, of a `race` only the winner's.
"""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias

from parallax.errors import ParallaxError, RunStopped, StepFailed, StorageError, UsageError, leaf
from parallax.events import Event
from parallax.execution.agent_proxy import role_of
from parallax.execution.course import Course
from parallax.execution.interrupts import Interrupts
from parallax.execution.journal import input_hash, step_from_json, step_to_json
from parallax.execution.questions import PROGRAM, Answered
from parallax.execution.steps import StepRunner, step_finished
from parallax.execution.turns import Reviewed, Turns, seconds
from parallax.execution.verification import (
    Oracles,
    evidence_json,
    first_line,
    judge,
    oracles_of,
    score_of,
    summary,
)
from parallax.failpoints import fp
from parallax.models import Action, Json, Question, Source, StepResult
from parallax.patterns.org_chart import chart_of
from parallax.prism import Effect, Outcome
from parallax.workspaces.service import result_branch

NO_CHECK_CONFIDENCE: Final = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """What an effect came to: the outcome for the program, and the step's result where there is one."""

    outcome: Outcome
    step: StepResult | None = None
    events: tuple[Event, ...] = ()
    parts: tuple[str, ...] = ()  # keys of parts that have a result of their own


Word: TypeAlias = Callable[[Effect, str], Coroutine[Any, Any, Done]]


STOOD: Final = "stood"  # a signal of the journal


class ExecutionHost:
    """The program's only window on the world."""

    def __init__(self, course: Course, *, printed: int = 0) -> None:
        self._course = course
        self.interrupts = Interrupts(course.journal)
        self._turns = Turns(course)
        self._steps = StepRunner(course, self._turns)
        self._printed_before = printed  # lines told before a restart: the replay prints them again, we do not
        self._reconciled: dict[str, StepResult] = {}
        self._waiting: dict[str, list[tuple[tuple[tuple[str, int], ...], str]]] = {}  # outermost join -> its work
        self._joined: set[str] = set()
        self._printed: list[str] = []
        self._words: dict[str, Word] = {
            "assign": self._assign,
            "fanout": self._fanout,
            "review": self._review,
            "approve": self._approve,
            "verify": self._verify,
            "integrate": self._integrate,
            "askHuman": self._ask_human,
            "escalate": self._escalate,
            "llm": self._llm,
            "select": self._select,
            "org": self._org,
            "emit": self._emit,
            "now": self._now,
            "random": self._random,
            "uuid": self._uuid,
            "sleep": self._sleep,
            "join": self._join,
        }

    # -- the cycle ---------------------------------------------------------------------------------------------------

    async def perform(self, effect: Effect) -> Outcome:
        """Answer one effect. Raises what ends the execution (fencing, divergence); other failures are outcomes."""
        await self.flush()
        asked = input_hash(effect.kind, effect.request)
        if (recorded := self._course.journal.result(effect.key, asked)) is not None:
            return await self._recalled(effect, recorded)
        await self.interrupts.gate()
        with self._course.waits.acting(self._course.execution.id, effect.key):
            outcome = await self._done(effect, asked)
        await self._keep_time(effect.key)
        if self._course.journal.resumed:  # what was asked in a former life and not asked again
            await self._course.desk.withdraw(self._course.journal, effect.key)
        return outcome

    async def _keep_time(self, key: str) -> None:
        """Record how long a run of limited time stood still: that does not count in its next life, either."""
        course = self._course
        if course.clock is None or course.meter.limit.wall_s is None:
            return
        if (stood_s := course.clock.untold_s()) > 0:
            await course.journal.signal(STOOD, key, {"s": stood_s})

    async def _done(self, effect: Effect, asked: str) -> Outcome:
        word = self._words.get(effect.kind)
        if word is None:
            return await self._failed(effect, asked, f"{effect.kind}() is not available in this version of Parallax")
        try:
            refuse_unserved(effect)
            done = await self.interrupts.act(effect, word(effect, asked))
            if effect.kind != "join":  # a join has written its own entry, together with what it merged
                await self._finish(effect, asked, done)
        except (StorageError, RunStopped):
            raise
        except ParallaxError as error:
            return await self._failed(effect, asked, str(error), retryable=error.retryable)
        return done.outcome

    async def _recalled(self, effect: Effect, recorded: Json) -> Outcome:
        if recorded.get("step") is not None:
            self._remember(effect, effect.key, step_from_json(recorded["step"]))
            if (intent := self._course.journal.intent(effect.key)) is not None:
                self._course.tasks[effect.key] = intent["request"]["task"]
        for part in recorded.get("parts", ()):
            kept: dict[str, Any] = self._course.journal.result(part) or {}
            self._course.steps[part] = step_from_json(kept["step"])
        if effect.kind == "org":
            self._course.chart = chart_of(effect.request)
        self._course.result_head = recorded.get("result_head", self._course.result_head)
        return Outcome(**recorded["outcome"])

    async def _finish(self, effect: Effect, asked: str, done: Done) -> None:
        journal, step = self._course.journal, done.step
        body = self._body(effect, done.outcome)
        if step is not None:
            body["step"] = step_to_json(step)
        if done.parts:
            body["parts"] = list(done.parts)
        events = list(done.events)
        if step is not None:
            events.append(step_finished(journal, effect.key, effect.kind, step))
        elif effect.kind in {"review", "approve", "verify", "askHuman", "escalate"}:
            events.append(
                journal.event(
                    "step.finished", step_key=effect.key, word=effect.kind, role=None, action=Action.ACCEPT,
                    confidence=done.outcome.confidence, source=None, commit=None,
                    detail=first_line(str(done.outcome.value)), attempts=1,
                )
            )  # fmt: skip
        fp("result.before_commit")
        await journal.write("result", effect.key, body, asked_hash=asked, events=events)
        if step is not None:
            self._remember(effect, effect.key, step)
            fp("result.committed_before_continue")

    async def _failed(self, effect: Effect, asked: str, message: str, *, retryable: bool = False) -> Outcome:
        outcome = Outcome(error=message)
        journal = self._course.journal
        event = journal.event("step.failed", step_key=effect.key, error=message, retryable=retryable)
        await journal.write(
            "result",
            effect.key,
            self._body(effect, outcome),
            asked_hash=asked,
            events=[event],
        )
        return outcome

    def _body(self, effect: Effect, outcome: Outcome) -> dict[str, Any]:
        """What every result says: what was asked where in the program, what came of it, where the result stands."""
        span = effect.span
        body: dict[str, Any] = {  # by hand: `asdict` would copy every value deeply, for each effect
            "word": effect.kind, "branch": [list(place) for place in effect.branch],
            "span": {"path": span.path, "line": span.line, "column": span.column},
            "outcome": {
                "value": outcome.value, "confidence": outcome.confidence, "error": outcome.error,
                "catchable": outcome.catchable,
            },
        }  # fmt: skip
        if self._course.result_head is not None:
            body["result_head"] = self._course.result_head
        return body

    def _remember(self, effect: Effect, key: str, step: StepResult) -> None:
        step = self._reconciled.get(key, step)  # its commit after the join, if a conflict was resolved there
        self._course.steps[key] = step
        if effect.kind != "assign" or step.commit is None:
            return
        if effect.branch and effect.branch[0][0] not in self._joined:
            self._waiting.setdefault(effect.branch[0][0], []).append((effect.branch, key))
            self._course.waiting.add(key)
        else:
            self._course.merged.setdefault(key, step.commit)

    def print(self, line: str) -> None:
        """A line of `print`: kept until the next effect's commit, so that a printing loop costs no commit each."""
        if self._printed_before > 0:
            self._printed_before -= 1
        else:
            self._printed.append(line)

    async def flush(self) -> None:
        """Tell what was printed since the last effect: at the next one, and at the end of the program."""
        if not self._printed:
            return
        lines, self._printed = self._printed, []
        journal = self._course.journal
        await journal.tell(*(journal.event("log.printed", line=line) for line in lines))

    # -- joins -------------------------------------------------------------------------------------------------------

    def recall(self, key: str) -> Outcome | None:
        """The recorded course of a `parallel` or `race`, if it has ended before."""
        recorded = self._course.journal.result(key)
        if recorded is None:
            return None
        self._joined.add(key)
        self._course.result_head = recorded.get("result_head", self._course.result_head)
        for merged, step in recorded.get("merged", {}).items():
            self._reconciled[merged] = step_from_json(step)
        return Outcome(**recorded["outcome"])

    async def _join(self, effect: Effect, asked: str) -> Done:
        course, winner = self._course, effect.request.get("winner")
        outermost = effect.branch[0][0] if effect.branch else effect.key
        waiting = self._waiting.get(outermost, [])
        if effect.request["word"] == "race":
            lost = [
                entry for entry in waiting if any(join == effect.key and index != winner for join, index in entry[0])
            ]
            waiting[:] = [entry for entry in waiting if entry not in lost]
            course.waiting -= {key for _, key in lost}
        merged: dict[str, Json] = {}
        if not effect.branch:
            self._joined.add(effect.key)
            for _, key in sorted(waiting, key=lambda entry: [place[1] for place in entry[0]]):
                if key not in course.merged:
                    course.steps[key] = await self._steps.merging.later(key, course.steps[key])
                    merged[key] = step_to_json(course.steps[key])
            self._waiting.pop(effect.key, None)
            course.waiting -= {key for _, key in waiting}
        course_taken = {
            name: effect.request[name] for name in ("winner", "failed") if effect.request.get(name) is not None
        }
        if effect.request["word"] == "race":
            course_taken.setdefault("winner", None)
        outcome = Outcome(value=course_taken)
        await course.journal.write(
            "join", effect.key, self._body(effect, outcome) | {"merged": merged}, asked_hash=asked
        )
        return Done(outcome=outcome)

    # -- words that call agents ----------------------------------------------------------------------------------------

    async def _assign(self, effect: Effect, asked: str) -> Done:
        role, number = role_of(self._course.chart, effect.request["target"])
        step = await self._steps.work(
            effect.key,
            role,
            number,
            effect.request,
            asked,
            word="assign",
            branch=effect.branch,
            merge=not effect.branch,
        )
        return Done(outcome=Outcome(value=step.value, confidence=step.confidence), step=step)

    async def _fanout(self, effect: Effect, asked: str) -> Done:
        course, request = self._course, effect.request
        role, _ = role_of(course.chart, request["selector"])
        selector = request["selector"] if isinstance(request["selector"], dict) else {}
        count = int(selector.get("max") or selector.get("min") or role.instances[1])
        options = request["options"]
        keys = [f"{effect.key}/candidate[{index}]" for index in range(count)]
        try:
            async with (
                asyncio.TaskGroup() as group
            ):  # one effect, several agents: each candidate is journaled by itself
                tasks = [
                    group.create_task(self._candidate(key, role, index + 1, effect, asked))
                    for index, key in enumerate(keys)
                ]
        except BaseExceptionGroup as group_failed:
            raise leaf(group_failed) from group_failed
        records = [task.result() for task in tasks]
        good = sum(record["error"] is None for record in records)
        wanted = options.get("minResults") or selector.get("min") or 1
        if good < wanted:
            failed = next(record["error"] for record in records if record["error"] is not None)
            raise StepFailed(f"fanout got {good} of the {wanted} results it needs: {failed}")
        value = [{k: v for k, v in record.items() if k != "error" or v is not None} for record in records]
        done = [key for key, record in zip(keys, records, strict=True) if record["step"]]
        return Done(outcome=Outcome(value=value), parts=tuple(done))

    async def _candidate(self, key: str, role: Any, number: int, effect: Effect, asked: str) -> dict[str, Any]:
        course, journal, request = self._course, self._course.journal, effect.request
        recorded = journal.result(key)
        if recorded is None:
            try:
                step: StepResult | None = await self._steps.work(
                    key, role, number, {"task": request["task"], "options": request["options"]}, asked,
                    word="fanout", branch=effect.branch, merge=False,
                )  # fmt: skip
                error = None
            except (StorageError, RunStopped):
                raise
            except ParallaxError as failure:
                step, error = None, str(failure)
            recorded = {"outcome": {"error": error}, "step": step and step_to_json(step)}
            await journal.write("result", key, recorded)
        if recorded["step"] is None:
            return {"agent": None, "value": None, "confidence": 0, "error": recorded["outcome"]["error"], "step": None}
        step = step_from_json(recorded["step"])
        course.steps[key] = step
        return {
            "agent": step.agent_id, "value": step.value, "confidence": step.confidence, "error": None, "step": key,
        }  # fmt: skip

    async def _review(self, effect: Effect, asked: str) -> Done:
        reviewed = await self._judged(effect, final=False)
        return Done(outcome=_review_outcome(reviewed))

    async def _approve(self, effect: Effect, asked: str) -> Done:
        if effect.request["role"] == "human":
            return await self._approve_human(effect)
        reviewed = await self._judged(effect, final=True)
        return Done(outcome=_review_outcome(reviewed))

    async def _judged(self, effect: Effect, *, final: bool) -> Reviewed:
        course, subject = self._course, effect.request["subject"]
        role, _ = role_of(course.chart, effect.request["role"])
        behind = course.step_behind(subject)
        commit, since = None, None
        if course.repo is not None:
            commit = behind.commit if behind and behind.commit else await course.head()
            since = course.repo.base_commit
        return await self._turns.review(
            f"{effect.key}/turn", role, subject=str(subject["value"]), commit=commit, since=since,
            task=course.tasks.get(subject["step"] or ""),
            evidence=summary(behind.evidence) if behind else "", final=final,
            timeout_s=seconds(effect.request["options"].get("timeout")),
        )  # fmt: skip

    async def _approve_human(self, effect: Effect) -> Done:
        subject = effect.request["subject"]
        question = self._question(
            effect,
            text=f"Do you approve? {first_line(str(subject['value']), 300)}",
            kind="approval",
            options=({"id": "approve", "label": "take it"}, {"id": "revise", "label": "not yet"},
                     {"id": "reject", "label": "no"}),
        )  # fmt: skip
        given: Answered = await self._course.desk.ask(question, self._course.journal)
        verdict = given.answer
        confidence = {"approve": 0.9, "revise": 0.6, "reject": 0.3}[verdict]
        value = {"approved": verdict == "approve", "verdict": verdict, "feedback": f"answered by {given.by}"}
        return Done(outcome=Outcome(value=value, confidence=confidence))

    # -- evidence ------------------------------------------------------------------------------------------------------

    async def _verify(self, effect: Effect, asked: str) -> Done:
        course = self._course
        behind = course.step_behind(effect.request["options"].get("input"))
        commit = None
        if course.repo is not None:
            commit = behind.commit if behind and behind.commit else await course.head()
        limit_s = seconds(effect.request["options"].get("timeout"))
        found = await self._turns.check(oracles_of(effect.request["check"]), commit, timeout_s=limit_s)
        await self._turns.tell_evidence(effect.key, None, found)
        score = min(score_of(entry) for entry in found)
        passed = all(entry.passed for entry in found)
        value = {"passed": passed, "score": score, "detail": summary(found)}
        return Done(outcome=Outcome(value=value, confidence=score))

    async def _integrate(self, effect: Effect, asked: str) -> Done:
        course, request = self._course, effect.request
        if course.repo is None:
            raise UsageError("integrate() needs a repository; this execution has none")
        refs = request["results"]
        keys = list(course.steps) if refs is None else [ref["step"] for ref in refs]
        behind = [(key, course.steps[key]) for key in keys if key in course.steps]
        merging, on_conflict = self._steps.merging, request["options"].get("onConflict") or "owner"
        await merging.forget_unmerged()
        for key, step in behind:
            if step.commit is None or key in course.merged:
                continue
            try:
                course.steps[key] = await merging.later(key, step, on_conflict=on_conflict)
            except StepFailed as failed:
                if on_conflict == "fail":
                    raise
                merging.left_out(key, str(failed))
        named = request["options"].get("verify")
        oracles = oracles_of(named) if named is not None else Oracles(checks=course.profile.default_checks("full"))
        found = await self._turns.check(oracles, await course.head()) if oracles else []
        if oracles:
            found = await merging.mended([key for key, _ in behind], oracles, found)
        await self._turns.tell_evidence(effect.key, None, found)
        wanted = {key for key, _ in behind}
        merged = [key for key in course.merged if key in wanted]
        value = {
            "merged": merged,
            "conflicts": [merging.conflicts[key].told() for key, _ in behind if key in merging.conflicts],
            "branch": result_branch(course.execution.id),
            "checks": [evidence_json(entry) for entry in found],
        }
        if found:
            confidence = judge(found, None).confidence
        else:
            least = min((step.confidence for _, step in behind), default=NO_CHECK_CONFIDENCE)
            confidence = min(NO_CHECK_CONFIDENCE, least)
        step = StepResult(
            value=value, confidence=confidence, source=Source.EVIDENCE if found else Source.PRIOR,
            action=Action.ACCEPT, evidence=tuple(found), commit=await course.head(),
            branch=result_branch(course.execution.id),
        )  # fmt: skip
        return Done(outcome=Outcome(value=value, confidence=confidence), step=step)

    # -- people --------------------------------------------------------------------------------------------------------

    def _question(
        self, effect: Effect, *, text: str, kind: str = "question", options: tuple[dict[str, str], ...] = ()
    ) -> Question:
        timeout = effect.request["options"].get("timeout")
        return Question(
            id="",  # the desk's to give
            execution=self._course.execution.id,
            step_key=effect.key,
            asker=PROGRAM,
            kind=kind,
            text=text,
            options=options,
            deadline_at=time.time() + timeout / 1000 if timeout else None,
        )

    async def _ask_human(self, effect: Effect, asked: str) -> Done:
        text = effect.request["question"]
        shown = effect.request["options"].get("input")
        if isinstance(shown, dict) and shown.get("value") is not None:
            text = f"{text}\n{first_line(str(shown['value']), 300)}"
        given = await self._course.desk.ask(self._question(effect, text=text), self._course.journal)
        return Done(outcome=Outcome(value=given.answer, confidence=1.0))

    async def _escalate(self, effect: Effect, asked: str) -> Done:
        role, _ = role_of(self._course.chart, effect.request["from"])
        question = self._question(effect, text=effect.request["question"])
        given = await self._turns.ask(replace(question, asker=role.name), role.name, None)
        return Done(outcome=Outcome(value=given.answer, confidence=1.0))

    # -- small words -------------------------------------------------------------------------------------------------

    async def _llm(self, effect: Effect, asked: str) -> Done:
        reply = await self._course.llm.ask(effect.key, effect.request["prompt"], effect.request["options"])
        value = {
            "content": reply.content, "model": reply.model, "provider": reply.provider, "tokensUsed": reply.tokens,
        }  # fmt: skip
        return Done(outcome=Outcome(value=value, confidence=reply.confidence))

    async def _select(self, effect: Effect, asked: str) -> Done:
        role, _ = role_of(self._course.chart, effect.request["role"])
        number = self._course.proxy.free(role) or 1
        return Done(outcome=Outcome(value=f"{self._course.execution.id}.{role.name}.{number}"))

    async def _org(self, effect: Effect, asked: str) -> Done:
        self._course.chart = chart_of(effect.request)
        return Done(outcome=Outcome())

    async def _emit(self, effect: Effect, asked: str) -> Done:
        name, data = effect.request["name"], effect.request["data"]
        event = Event(execution=self._course.execution.id, type=f"custom.{name}", step_key=effect.key, data=data)
        return Done(outcome=Outcome(), events=(event,))

    async def _now(self, effect: Effect, asked: str) -> Done:
        return Done(outcome=Outcome(value=int(time.time() * 1000)))

    async def _random(self, effect: Effect, asked: str) -> Done:
        return Done(outcome=Outcome(value=random.random()))  # noqa: S311 - a journaled word, no secret

    async def _uuid(self, effect: Effect, asked: str) -> Done:
        return Done(outcome=Outcome(value=str(uuid.uuid4())))

    async def _sleep(self, effect: Effect, asked: str) -> Done:
        journal = self._course.journal
        timer = journal.timer(effect.key)
        if timer is None:
            seconds = max(0.0, effect.request["ms"] / 1000)
            timer = {"due_at": time.time() + seconds, "remaining_s": seconds}
            await journal.write("timer", effect.key, timer)
        # A clock that jumped while the server was down must not stretch the wait beyond what was asked.
        await asyncio.sleep(min(timer["remaining_s"], max(0.0, timer["due_at"] - time.time())))
        fp("timer.fired_before_record")
        return Done(outcome=Outcome())


# Options that the language has and this version does not act on: a test of the value, by word and option.
_UNSERVED: Final[dict[str, dict[str, Callable[[Json], bool]]]] = {
    "assign": {
        "workspace": lambda value: value != "agent", "session": lambda value: value not in ("fresh", "keep"),
    },
    "llm": {"includeReasoning": lambda value: value is True},
    "fanout": {"waitForAll": lambda value: value is False},
}  # fmt: skip


def refuse_unserved(effect: Effect) -> None:
    """An option that would change nothing is an error: a program must not be let to rely on it."""
    for option, unserved in _UNSERVED.get(effect.kind, {}).items():
        value = effect.request["options"].get(option)
        if value is not None and unserved(value):
            raise UsageError(f"{effect.kind}() {option} {value!r} is not served in this version")
    criteria = effect.request.get("criteria") if effect.kind == "select" else None
    if criteria not in (None, "availability"):
        raise UsageError(f"select() criteria {criteria!r} is not served in this version")


def _review_outcome(reviewed: Reviewed) -> Outcome:
    value = {"approved": reviewed.approved, "verdict": reviewed.verdict, "feedback": reviewed.feedback}
    return Outcome(value=value, confidence=reviewed.confidence)
