"""History: what is done with the journal of an execution that is not running it: replay it, and fork it.

The doors call it. A replay calls nobody and writes nothing. A fork is a new execution like any other, taken in by
`intake`, that begins with a part of another one's journal.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from parallax import prism
from parallax.errors import UsageError
from parallax.events import Event
from parallax.execution.fork import Prefix, copied, prefix
from parallax.execution.intake import Intake, Submission
from parallax.execution.journal import input_hash
from parallax.execution.replay import Replay, Replayed
from parallax.execution.runtime_manager import RuntimeManager, names_of
from parallax.models import Execution, ExecutionState, Json, Usage, new_id
from parallax.patterns.engine import Pattern, PatternEngine, check_input
from parallax.patterns.plan import plan_of
from parallax.storage.statements import JournalEntry, Write, append
from parallax.storage.store import Store
from parallax.workspaces.integration import Integration
from parallax.workspaces.service import WorkspaceService


@dataclass(frozen=True, slots=True, kw_only=True)
class Fork:
    """What somebody asks for. Without `at`, the first effect that differs with the other pattern or input."""

    execution: str
    at: str | None = None
    input: Mapping[str, Json] | None = None
    pattern: str | None = None

    @property
    def hash(self) -> str:
        """What an idempotency key is tied to."""
        given = None if self.input is None else dict(self.input)
        asked = {"execution": self.execution, "at": self.at, "input": given, "pattern": self.pattern}
        return input_hash("fork", asked)


@dataclass(frozen=True, slots=True)
class _Program:
    """What a replay or a fork runs: the recorded program or another one."""

    program: prism.Program
    pattern: Pattern | None


class History:
    """Replays and forks of recorded executions."""

    def __init__(
        self,
        *,
        store: Store,
        patterns: PatternEngine,
        runtimes: RuntimeManager,
        workspaces: WorkspaceService,
        integration: Integration,
        intake: Intake,
    ) -> None:
        self._store = store
        self._patterns = patterns
        self._runtimes = runtimes
        self._workspaces = workspaces
        self._integration = integration
        self._intake = intake

    async def replay(self, execution_id: str, *, pattern: str | None = None) -> Replayed:
        """Run the program, or another pattern, against the journal; nothing is called and nothing is written."""
        execution = await self._store.execution(execution_id)
        entries = await self._store.journal(execution_id)
        running = await self._program(execution, pattern)
        return await Replay(execution, entries).run(running.program, names_of(execution))

    async def fork(self, fork: Fork, *, key: str | None = None) -> tuple[Execution, bool]:
        """Start an execution that shares the journal up to a step; returns it, and whether it is new.

        Raises UsageError where the program or the input would have taken another course before that step.
        """
        if (known := await self._intake.repeated(key, fork.hash)) is not None:
            return known, False
        old = await self._store.execution(fork.execution)
        entries = await self._store.journal(old.id)
        running = await self._program(old, fork.pattern)
        new = self._forked(old, fork, running)
        at = fork.at if fork.at is not None else await self._first_difference(new, old, entries, running, fork)
        shared = prefix(entries, at)
        kept = [copied(entry, old.id, new.id) for entry in shared.entries]
        await self._must_fit(new, kept, running, shared)
        await self._place_result(new, shared)
        new = replace(new, options=new.options | {"forked_from": {"execution": old.id, "step": shared.at}})
        told = Event(
            execution=new.id,
            type="execution.forked",
            data={"from": old.id, "step": shared.at, "shared": list(shared.steps)},
        )
        writes = [await self._append(entry) for entry in kept]
        return await self._intake.admit(new, running.program, key=key, asked_hash=fork.hash, shared=writes, told=[told])

    # -- what is run ---------------------------------------------------------------------------------------------------

    async def _program(self, execution: Execution, pattern: str | None) -> _Program:
        if pattern is not None:
            found = self._patterns.get(pattern)
            return _Program(found.program, found)
        path, bundle = await self._store.bundle(execution.hash)
        return _Program(await self._runtimes.program(path, bundle, execution.hash), self._unchanged(execution))

    def _unchanged(self, execution: Execution) -> Pattern | None:
        """The pattern that the program came from, if it is still there as it was: it knows the input's types."""
        try:
            found = self._patterns.get((execution.options or {}).get("path") or execution.pattern)
        except UsageError:
            return None
        return found if found.hash == execution.hash else None

    def _forked(self, old: Execution, fork: Fork, running: _Program) -> Execution:
        given: dict[str, Any] = dict(old.input) | dict(fork.input or {})
        options = dict(old.options or {})
        new = replace(
            old, id=new_id(), state=ExecutionState.QUEUED, created_at=time.time(), started_at=None, ended_at=None,
            reason=None, result=None, result_blob=None, confidence=None, usage=Usage(), epoch=0, recoveries=0,
            parent=None, owner=None, input=given, options=options,
        )  # fmt: skip
        if running.pattern is None:
            return new
        new = replace(new, input=check_input(running.pattern, given))
        if fork.pattern is None:
            return new
        asked = Submission(pattern=fork.pattern, input=given, agent=options.get("agent"), model=options.get("model"))
        agents = self._intake.agents_for(plan_of(running.pattern, new.input), asked)
        return replace(
            new, pattern=running.pattern.name, version=running.pattern.version, hash=running.program.hash,
            options=options | {"agents": agents, "path": running.pattern.path},
        )  # fmt: skip

    # -- where it may be forked ----------------------------------------------------------------------------------------

    async def _first_difference(
        self, new: Execution, old: Execution, entries: list[JournalEntry], running: _Program, fork: Fork
    ) -> str:
        if fork.pattern is None and fork.input is None:
            raise UsageError("name the step to fork at with --at (`parallax show --journal` lists them)")
        replayed = await Replay(old, entries).run(running.program, names_of(new) | _context(old), compare_end=False)
        known = {entry.step_key for entry in entries}
        step = None if replayed.divergence is None else replayed.divergence.step_key
        if step is None:
            raise UsageError("it takes the same course with that pattern and input: name a step to fork at with --at")
        if step in known:
            return step
        raise UsageError(f"the first difference is the new step '{step}': name the recorded step after it with --at")

    async def _must_fit(self, new: Execution, kept: list[JournalEntry], running: _Program, shared: Prefix) -> None:
        replayed = await Replay(new, kept).run(running.program, names_of(new), compare_end=False)
        if replayed.divergence is None:
            return
        where, how = replayed.divergence.step_key, replayed.divergence.how
        first = f"fork at '{where}' instead" if where in shared.steps else "fork at an earlier step"
        raise UsageError(f"what comes before '{shared.at}' would differ at '{where}' ({how}): {first}")

    async def _place_result(self, new: Execution, shared: Prefix) -> None:
        """The result branch begins where the old one stood before the step."""
        if new.repo is None or shared.result_head is None:
            return
        repo = await self._workspaces.open_repository(new.repo, new.base)
        if shared.result_head != repo.base_commit:
            await self._integration.begin(repo, new.id, shared.result_head)

    async def _append(self, entry: JournalEntry) -> Write:
        blob, size_b = await self._store.keep_if_large(entry.body, f"the {entry.kind} of step '{entry.step_key}'")
        return append(replace(entry, blob=blob, size_b=size_b))


def _context(execution: Execution) -> dict[str, Json]:
    return {"context": names_of(execution)["context"]}
