"""TurnHelp: what an agent can turn to while its turn runs. Its questions find somebody, its team tools act.

`turns` opens one around every turn and gives it to the supervisor (for what the agent asks through its protocol) and to
`team_tools` (for what it asks through a tool). It ends with the turn, and with it everything that was begun through it.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from parallax.errors import AgentError
from parallax.execution.agent_proxy import Slot
from parallax.execution.course import Course
from parallax.execution.questions import Answered, by_preset
from parallax.models import Json, Question, StepResult, Task, TaskResult

MAX_QUESTIONS: Final = 50  # of one turn; beyond it an agent only asks in a circle

Route = Callable[[Question, Sequence[int]], Awaitable[Answered]]
Delegate = Callable[[str, str], Awaitable[StepResult]]


class TurnEnded(AgentError):
    """A call came after, or was cut off by, the end of the turn that it belonged to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What an agent gave to `report_result`. It outranks the agent's last words; evidence outranks both."""

    value: Json
    confidence: float | None = None
    verdict: str | None = None
    artifacts: tuple[str, ...] = ()


class TurnHelp:
    """The help of one turn. `round_` counts the turns of its step; without `delegate` nothing can be handed on."""

    def __init__(
        self, course: Course, slot: Slot, task: Task, tree: Path, *, route: Route, delegate: Delegate | None,
        round_: int, depth: int,
    ) -> None:  # fmt: skip
        self.course = course
        self.slot = slot
        self.task = task
        self.tree = tree
        self.delegate = delegate
        self.report: Report | None = None
        self._route = route
        self._round = round_
        self._depth = depth
        self._asked: Counter[Hashable] = Counter()
        self._lasting: dict[Hashable, asyncio.Task[Any]] = {}
        self._ended = asyncio.Event()

    def begin(self) -> None:
        """Another try of the same turn: it asks the same questions again, and gets the answers that it had got."""
        self._asked.clear()
        self.report = None

    async def end(self) -> None:
        """Cut off what is still under way."""
        self._ended.set()
        for work in self._lasting.values():
            work.cancel()
        await asyncio.gather(*self._lasting.values(), return_exceptions=True)
        self._lasting.clear()

    def applied(self, result: TaskResult) -> TaskResult:
        """The turn's result, with what was reported by tool in place of the last words."""
        report = self.report
        if report is None:
            return result
        told = report.value if isinstance(report.value, str) else ""
        return replace(
            result, value=report.value, message=result.message or told, verdict=report.verdict,
            reported=result.reported if report.confidence is None else report.confidence, artifacts=report.artifacts,
        )  # fmt: skip

    # -- questions ---------------------------------------------------------------------------------------------------

    async def ask(self, question: Question) -> str:
        """What the agent asks through its protocol: by the preset, by colleagues up the org chart, by a person."""
        return (await self._put(self._mine(question))).answer

    async def ask_by_tool(self, topic: str | None, text: str, options: Sequence[str]) -> Answered:
        """What it asks by the tool `ask`. A caller whose connection broke may ask again and finds its question."""
        question = self._mine(
            Question(
                id="", execution="", step_key="", asker="", kind="question", text=text, topic=topic,
                options=tuple({"id": option, "label": option} for option in options),
            )
        )  # fmt: skip
        answered: Answered = await self.lasting(("ask", topic, text, *options), lambda: self._put(question))
        return answered

    def _mine(self, question: Question) -> Question:
        task = self.task
        text = self.course.tools.redact(question.text)
        return replace(
            question, id="", execution=task.execution, step_key=task.step_key, asker=self.slot.agent_id, text=text,
            depth=self._depth,
        )  # fmt: skip

    async def _put(self, question: Question) -> Answered:
        same = (question.kind, question.topic, question.text, tuple(option["id"] for option in question.options))
        which = (self._round, self._asked[same])
        self._asked[same] += 1
        if question.kind == "permission" and (chosen := by_preset(question, self.slot.role.preset)) is not None:
            return await self.course.desk.decided(question, chosen, self.course.journal, which)
        if self._asked.total() > MAX_QUESTIONS:
            raise AgentError(
                f"{self.slot.agent_id} has asked {MAX_QUESTIONS} questions in one turn, which is the limit"
            )
        return await self._route(question, which)

    # -- work that lasts longer than the call that began it ----------------------------------------------------------

    async def lasting(self, key: Hashable, begin: Callable[[], Awaitable[Any]]) -> Any:
        """Await something long. A caller that goes leaves it running until the turn ends: asked again, it is found.

        Raises TurnEnded when the turn ends before.
        """
        if self._ended.is_set():
            raise TurnEnded("your turn has ended")
        work = self._lasting.get(key)
        if work is None:
            work = self._lasting[key] = asyncio.create_task(_awaited(begin), name=f"{key} of {self.slot.agent_id}")
        try:
            await asyncio.wait([work])  # a cancelled caller leaves the work alone
        finally:
            if work.done():
                self._lasting.pop(key, None)
        if work.cancelled():
            raise TurnEnded("your turn ended before there was an answer")
        return work.result()


async def _awaited(begin: Callable[[], Awaitable[Any]]) -> Any:
    return await begin()
