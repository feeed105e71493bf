"""Replay: a program runs against a journal with no live call, and the courses are compared.

`history` uses it for `parallax replay`, and before a fork for what is shared. A `ReplayHost` answers each effect
with what is recorded. Within one branch effects come in order, so the first that differs is known: an effect asked with
another request, one that is not recorded, one that is recorded and passed over, or another end.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import orjson

from parallax import prism
from parallax.errors import ReplayDivergence, leaf
from parallax.execution.journal import input_hash
from parallax.models import Execution, ExecutionState, Json
from parallax.prism import Effect, Outcome
from parallax.storage.statements import JournalEntry

POLL_S: Final = 0.02
QUIET_S: Final = 2.0  # nothing was asked for so long while recorded effects are left: they are passed over
Chain: TypeAlias = tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """An effect with its result, as the journal has it. `word` is empty in journals of earlier releases."""

    key: str
    seq: int
    input_hash: str | None
    outcome: Json
    word: str
    chain: Chain


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """What came of it. `end`: the program ended, or waits at what the journal has no result of yet, or differs."""

    execution: str
    effects: tuple[str, ...]
    end: str
    divergence: ReplayDivergence | None = None

    @property
    def same(self) -> bool:
        """Whether it took the recorded course."""
        return self.divergence is None


def recorded_effects(entries: Iterable[JournalEntry]) -> dict[str, Recorded]:
    """Every effect that has a result, in the order of the results; parts of a step are not effects."""
    found: dict[str, Recorded] = {}
    for entry in entries:
        if entry.kind not in {"result", "join"} or "/candidate[" in entry.step_key:
            continue
        found[entry.step_key] = Recorded(
            key=entry.step_key, seq=entry.seq, input_hash=entry.input_hash, outcome=entry.body["outcome"],
            word=entry.body.get("word", ""), chain=tuple((key, index) for key, index in entry.body.get("branch", ())),
        )  # fmt: skip
    return found


def on_course(effect: Recorded, effects: Mapping[str, Recorded]) -> bool:
    """Whether a replay comes by: not in a branch that lost its race, nor beside the one that failed."""
    for join, index in effect.chain:
        if (ended := effects.get(join)) is not None:
            course = ended.outcome["value"] or {}
            if "winner" in course and course["winner"] != index:
                return False
            if course.get("failed") not in (None, index):
                return False
    return True


class ReplayHost:
    """Answers from a journal and does nothing else."""

    def __init__(self, entries: Iterable[JournalEntry], *, whole: bool) -> None:
        entries = list(entries)
        self._effects = recorded_effects(entries)
        self._intents = {entry.step_key: entry for entry in entries if entry.kind == "intent"}
        self._whole = whole  # nothing was in flight at the end: what is not recorded was not asked
        self._expected: dict[Chain, deque[Recorded]] = {}
        for effect in self._effects.values():
            if effect.word and on_course(effect, self._effects):
                self._expected.setdefault(effect.chain, deque()).append(effect)
        self.asked: list[str] = []
        self.divergence: ReplayDivergence | None = None
        self.waiting = asyncio.Event()  # something was asked that the journal has no result of yet

    @property
    def left(self) -> list[Recorded]:
        """Recorded effects that were not asked yet, in order."""
        return sorted((effect for queue in self._expected.values() for effect in queue), key=lambda effect: effect.seq)

    async def perform(self, effect: Effect) -> Outcome:
        """What is recorded. Raises ReplayDivergence; waits for ever at the end of what is recorded."""
        self._stopped()
        recorded, expected = self._effects.get(effect.key), self._expected.get(effect.branch)
        if expected and expected[0].key != effect.key:
            raise self._differs(expected[0].key, f"the journal has {expected[0].word}() here, not {_call(effect)}")
        kept = recorded.input_hash if recorded else self._intent_hash(effect.key)
        if kept is not None and kept != input_hash(effect.kind, effect.request):
            raise self._differs(effect.key, f"it was recorded with another request than {_call(effect)}")
        if recorded is None:
            if self._whole:
                raise self._differs(effect.key, f"the program asks for {_call(effect)}, which is not in the journal")
            self.waiting.set()
            await asyncio.Event().wait()
            raise AssertionError("unreachable")
        self._take(recorded)
        return Outcome(**recorded.outcome)

    def recall(self, key: str) -> Outcome | None:
        """The recorded course of a `parallel` or `race`."""
        self._stopped()
        if (recorded := self._effects.get(key)) is None:
            return None
        expected = self._expected.get(recorded.chain)
        if recorded.word and expected and expected[0].key != key:
            raise self._differs(expected[0].key, f"the journal has {expected[0].word}() here, not '{key}'")
        self._take(recorded)
        return Outcome(**recorded.outcome)

    def print(self, line: str) -> None:
        """Lines were told when the execution ran."""

    def finish(self) -> None:
        """The program has ended. Raises ReplayDivergence where the journal goes on."""
        self._stopped()
        for effect in self.left:
            raise self._differs(effect.key, f"the program does not ask for the recorded {effect.word}()")

    def _intent_hash(self, key: str) -> str | None:
        entry = self._intents.get(key)
        return entry.input_hash if entry else None

    def _take(self, effect: Recorded) -> None:
        if effect.word and (expected := self._expected.get(effect.chain)):
            expected.popleft()
        self.asked.append(effect.key)

    def _differs(self, key: str | None, how: str) -> ReplayDivergence:
        self.divergence = ReplayDivergence(key, how)
        return self.divergence

    def _stopped(self) -> None:
        if self.divergence is not None:  # a `finally` of the program, or a branch beside: the first is what counts
            raise self.divergence


def _call(effect: Effect) -> str:
    request = orjson.dumps(effect.request).decode()
    return f"{effect.kind}({request if len(request) <= 120 else request[:119] + '…'})"


@dataclass(slots=True)
class Replay:
    """One run of a program against the journal of an execution."""

    execution: Execution
    entries: list[JournalEntry]
    whole: bool = field(init=False)

    def __post_init__(self) -> None:
        begun = {entry.step_key for entry in self.entries if entry.kind == "intent"}
        finished = {entry.step_key for entry in self.entries if entry.kind in {"result", "join"}}
        state = self.execution.state
        failed_by_itself = state is ExecutionState.FAILED and bool(self.entries) and begun <= finished
        self.whole = state is ExecutionState.SUCCEEDED or failed_by_itself

    async def run(self, program: prism.Program, names: Mapping[str, Any], *, compare_end: bool = True) -> Replayed:
        """Run it to its end, to the end of the journal, or to the first difference."""
        host = ReplayHost(self.entries, whole=self.whole)
        runtime = prism.PrismRuntime(program, host, globals=dict(names), limits=prism.Limits.hosted())
        running = asyncio.create_task(runtime.run(), name=f"replay {self.execution.id}")
        try:
            end = await self._followed(host, running, compare_end=compare_end)
        except ReplayDivergence as difference:
            return self._came_to(host, "differs", difference)
        finally:
            running.cancel()
            await asyncio.wait([running])
        return self._came_to(host, end)

    def _came_to(self, host: ReplayHost, end: str, difference: ReplayDivergence | None = None) -> Replayed:
        return Replayed(execution=self.execution.id, effects=tuple(host.asked), end=end, divergence=difference)

    async def _followed(self, host: ReplayHost, running: asyncio.Task[prism.Evaluation], *, compare_end: bool) -> str:
        await _settled(host, running)
        if not running.done():
            host.finish()
            return "waiting"
        try:
            evaluation = running.result()
        except (BaseExceptionGroup, ReplayDivergence, prism.PrismError) as error:
            self._failed(host, leaf(error), compare_end=compare_end)
            return "ended"
        host.finish()
        if compare_end:
            self._compare(evaluation)
        return "ended"

    def _failed(self, host: ReplayHost, error: BaseException, *, compare_end: bool) -> None:
        if host.divergence is not None:
            raise host.divergence
        if not isinstance(error, prism.PrismError):
            raise error
        host.finish()
        if compare_end and (self.execution.state is not ExecutionState.FAILED or not self._said(error.message)):
            raise ReplayDivergence(None, f"the program fails now: {error.message}")

    def _said(self, message: str) -> bool:
        return (self.execution.reason or "").startswith(message)

    def _compare(self, evaluation: prism.Evaluation) -> None:
        execution = self.execution
        if execution.state is ExecutionState.FAILED:
            raise ReplayDivergence(None, "the program comes to a result now, it had failed")
        if execution.state is not ExecutionState.SUCCEEDED:
            return
        if not _equal(evaluation.value, execution.result):
            raise ReplayDivergence(None, "the program comes to another result")
        if evaluation.confidence != execution.confidence:
            raise ReplayDivergence(None, "the program comes to another confidence")


async def _settled(host: ReplayHost, running: asyncio.Task[Any]) -> None:
    """Wait until the run has ended, or waits for what is not recorded and no branch asks for anything else."""
    waiting = asyncio.create_task(host.waiting.wait())
    try:
        await asyncio.wait([running, waiting], return_when=asyncio.FIRST_COMPLETED)
        quiet_s, asked = 0.0, len(host.asked)
        while not running.done() and host.left and quiet_s < QUIET_S:
            await asyncio.wait([running], timeout=POLL_S)
            quiet_s = quiet_s + POLL_S if len(host.asked) == asked else 0.0
            asked = len(host.asked)
    finally:
        waiting.cancel()


def _equal(one: Json, other: Json) -> bool:
    option = orjson.OPT_SORT_KEYS
    return orjson.dumps(one, option=option) == orjson.dumps(other, option=option)
