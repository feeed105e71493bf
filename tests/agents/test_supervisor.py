"""The supervisor with real agents: parked and woken, helped, let go while idle, stopped, dead at the start."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from agent_helpers import marked, task

from parallax.agents.clients.acp import AcpClient
from parallax.agents.clients.headless import HeadlessClient
from parallax.agents.clis.claude import ClaudeHeadless
from parallax.agents.clis.scripted import ScriptedCLI
from parallax.agents.registries.memory import MemoryAgentRegistry
from parallax.agents.runtimes.local import LocalRuntime
from parallax.agents.supervisor import GO_ON, AgentSupervisor, Lodging
from parallax.agents.turn import Silence
from parallax.errors import AgentCrashed, AgentError, HelpNeeded, LoginNeeded, ProviderLimited
from parallax.events import Event
from parallax.models import AgentState, Question
from parallax.ports import AgentClient, AgentSession, Traffic
from parallax.redaction import Redactor

A, B = "e1.engineer.1", "e1.engineer.2"


class NoDoors:
    """Agents that need no model."""

    async def open_session(self, session: AgentSession) -> None:
        return None

    async def close_session(self, agent_id: str) -> None:
        pass

    def traffic(self, agent_id: str) -> Traffic | None:
        return None


class House:
    """A supervisor whose agents follow a script, and what it tells."""

    def __init__(self, place: Path, owner: str, rules: list[Any], **more: Any) -> None:
        self.place = place
        self.script = place / "script.json"
        self.script.write_text(json.dumps({"rules": rules}))
        self.events: list[Event] = []
        self.questions: list[Question] = []
        self.answers: list[str] = []
        self.sessions: list[str | None] = []
        self.runtime = LocalRuntime(owner, wish="off")
        self.program = sys.executable
        self.client: Callable[[AgentSession], AgentClient] | None = None
        self.registry = MemoryAgentRegistry()
        settings: dict[str, Any] = {"silence": Silence(stall_s=20, end_s=40), "doors": NoDoors()} | more
        self.supervisor = AgentSupervisor(
            open_client=self._client, registry=self.registry, redact=Redactor(), tell=self._tell,
            sandbox="off", **settings,
        )  # type: ignore[arg-type]  # fmt: skip

    async def _tell(self, event: Event) -> None:
        self.events.append(event)

    def _client(self, session: AgentSession) -> AgentClient:
        self.sessions.append(session.cli_session)
        if self.client is not None:
            return self.client(session)
        cli = ScriptedCLI(self.script, self.place / "ledger")
        return AcpClient(runtime=self.runtime, cli=cli, session=session, program=self.program, grace_s=1.0)

    async def ask(self, question: Question) -> str:
        self.questions.append(question)
        return self.answers.pop(0)

    async def ensure(self, agent_id: str = A) -> Any:
        tree = self.place / agent_id / "tree"
        tree.mkdir(parents=True, exist_ok=True)
        session = AgentSession(
            agent_id=agent_id, execution="e1", role="engineer", type="scripted", home=tree.parent / "home", tree=tree
        )
        return await self.supervisor.ensure(session, number=1)

    async def turn(self, text: str = "go", agent_id: str = A) -> Any:
        await self.ensure(agent_id)
        return await self.supervisor.turn(agent_id, task(text), self.ask)

    def states(self, agent_id: str = A) -> list[str]:
        names = [event.type.partition(".")[2] for event in self.events if event.agent_id == agent_id]
        return [name for name in names if name in set(AgentState)]

    def told(self, type_: str) -> dict[str, Any]:
        return [event.data for event in self.events if event.type == type_][-1]


Open = Callable[..., Any]


@pytest.fixture
def house(place: Path, owner: str) -> Open:
    """`async with house([rules]) as h:`; leaves no process behind."""

    @asynccontextmanager
    async def opened(rules: list[Any], **more: Any) -> AsyncIterator[House]:
        made = House(place, owner, rules, **more)
        try:
            yield made
        finally:
            await made.supervisor.close()
        assert marked(owner) == []
        assert await made.registry.find() == []

    return opened


SAY = {"do": [{"answer": {"value": "done", "confidence": 0.9}}]}


def limited(at: float | None, *, once: str) -> list[Any]:
    """The agent meets a limit unless it was told to go on."""
    message = "usage limit reached" if at is None else f"usage limit reached|{int(at)}"
    return [{"unless": once, "do": [{"fail": {"message": message, "kind": "rate_limit"}}]}, SAY]


async def test_a_limit_parks_the_agent_until_its_reset_and_it_goes_on_with_its_session(house: Open) -> None:
    resets_at = time.time() + 3600
    async with house(limited(resets_at, once="You were interrupted")) as h:
        with pytest.raises(ProviderLimited):
            await h.turn()
        agent = h.supervisor.agent(A)
        assert (agent.state, agent.until, agent.pid) == (AgentState.PARKED, int(resets_at), None)
        assert h.told("agent.parked")["until"] == int(resets_at)
        assert h.supervisor.goes_on(A)
        with pytest.raises(ProviderLimited):  # nobody gets past the clock
            await h.ensure()
        h.supervisor.wake(A)
        await h.supervisor.rest(A)
        assert (await h.turn()).value == "done"
        assert h.sessions[0] is None
        assert h.sessions[1] is not None
        assert h.states() == ["starting", "ready", "busy", "parked", "starting", "ready", "busy", "ready"]
        assert not h.supervisor.goes_on(A)


async def test_a_limit_without_an_end_is_waited_for_longer_each_time_and_a_wake_ends_it(house: Open) -> None:
    lodging = Lodging(park_s=100, park_cap_s=150)
    async with house([{"do": [{"fail": {"message": "429 slow down"}}]}], lodging=lodging) as h:
        waits = []
        for _ in range(3):
            with pytest.raises(ProviderLimited):
                await h.turn()
            waits.append(h.supervisor.agent(A).until - time.time())
            resting = asyncio.create_task(h.supervisor.rest(A))
            await asyncio.sleep(0.05)
            assert not resting.done()
            h.supervisor.wake(A)
            await resting
        assert waits == pytest.approx([100, 150, 150], abs=5)


class LimitedDoors(NoDoors):
    """The gateway has seen when a limit ends; the CLI does not say."""

    resets_at = time.time() + 3600.0

    def traffic(self, agent_id: str) -> Traffic | None:
        now = time.monotonic()
        return Traffic(
            agent_id=agent_id, last_byte_at=now, requests=1, last_status=429, limited=True, resets_at=self.resets_at
        )


async def test_the_end_of_a_limit_is_taken_from_the_gateway_where_the_cli_does_not_name_it(house: Open) -> None:
    async with house([{"do": [{"fail": {"message": "429 slow down"}}]}], doors=LimitedDoors()) as h:
        with pytest.raises(ProviderLimited) as caught:
            await h.turn()
        assert caught.value.resets_at == LimitedDoors.resets_at
        assert h.supervisor.agent(A).until == LimitedDoors.resets_at
        assert [event.data["kind"] for event in h.events if event.type == "agent.stalled"] == ["limit"]


async def test_an_agent_between_two_turns_is_parked_with_its_process(house: Open) -> None:
    async with house([SAY]) as h:
        first = await h.ensure()
        until = time.time() + 2
        await h.supervisor.park(A, until, "the window is used up")
        await h.supervisor.park(A, None, "nobody knows until when")
        assert h.supervisor.agent(A).state is AgentState.PARKED
        with pytest.raises(ProviderLimited, match="the window is used up"):
            await h.ensure()
        await h.supervisor.rest(A)
        assert time.time() >= until
        assert (await h.ensure()).pid == first.pid
        assert h.states() == ["starting", "ready", "parked", "ready"]


async def test_the_gateway_parks_an_agent_in_mid_turn(house: Open) -> None:
    async with house([{"do": [{"say": "I begin"}, {"hang": True}]}]) as h:
        await h.ensure()
        turning = asyncio.create_task(h.supervisor.turn(A, task(), h.ask))
        while "busy" not in h.states():
            await asyncio.sleep(0.02)
        await h.supervisor.park(A, time.time() + 3600, "limited until five")
        with pytest.raises(ProviderLimited, match="limited until five"):
            await turning
        assert h.supervisor.agent(A).state is AgentState.PARKED
        resting = asyncio.create_task(h.supervisor.rest(A))
        await asyncio.sleep(0)
        await h.supervisor.stop(A, "a person")
        assert not await resting
        assert h.states()[-3:] == ["parked", "stopping", "stopped"]


async def test_an_expired_login_asks_a_person_and_the_work_goes_on(house: Open) -> None:
    expired = {"unless": GO_ON[:20], "do": [{"fail": {"message": "Authentication required", "code": -32000}}]}
    async with house([expired, SAY]) as h:
        with pytest.raises(LoginNeeded) as caught:
            await h.turn()
        agent = h.supervisor.agent(A)
        assert agent.state is AgentState.ASKING
        assert agent.reason.startswith("login needed") or "not logged in" in agent.reason
        assert h.told("agent.asking")["kind"] == "login"
        h.answers = ["retry"]
        assert await h.supervisor.help(A, task(), caught.value, h.ask)
        (question,) = h.questions
        assert (question.kind, question.topic, question.step_key) == ("help", "login", "s1")
        assert [option["id"] for option in question.options] == ["retry", "end"]
        assert (await h.turn()).value == "done"
        assert h.states() == ["starting", "ready", "busy", "asking", "starting", "ready", "busy", "ready"]


async def test_help_that_is_refused_ends_the_agent_with_its_cause(house: Open) -> None:
    async with house([{"do": [{"garbage": "Do you trust this folder?"}, {"hang": True}]}],
                     silence=Silence(stall_s=0.5, end_s=60)) as h:  # fmt: skip
        with pytest.raises(HelpNeeded) as caught:
            await h.turn()
        assert caught.value.kind == "trust"
        h.answers = ["end"]
        assert not await h.supervisor.help(A, task(), caught.value, h.ask)
        assert h.supervisor.agents() == []
        assert "trust" in h.told("agent.error")["cause"]


async def test_an_idle_agent_is_let_go_and_comes_back_with_its_session(house: Open) -> None:
    async with house([SAY], lodging=Lodging(idle_s=0.4)) as h:
        await h.turn()
        async with asyncio.timeout(20):
            while h.supervisor.agents():
                await asyncio.sleep(0.05)
        assert h.told("agent.stopped")["reason"] == "idle for 0 s; its session is kept"
        await h.turn()
        assert h.sessions[1] is not None


async def test_an_agent_that_dies_while_it_waits_for_work_is_told_and_replaced(house: Open) -> None:
    async with house([SAY]) as h:
        await h.turn()
        process = psutil.Process(h.supervisor.agent(A).pid)
        process.kill()
        async with asyncio.timeout(20):
            while h.supervisor.agents():
                await asyncio.sleep(0.05)
        assert "exit code -9" in h.told("agent.error")["cause"]
        assert (await h.turn()).value == "done"


async def test_a_start_waits_while_memory_is_short_and_an_idle_agent_goes_for_it(house: Open) -> None:
    free = [10]
    async with house([SAY], free_memory=lambda: free[0]) as h:
        await h.turn(agent_id=A)  # alone it starts, whatever the memory
        assert (await h.turn(agent_id=B)).value == "done"
        assert h.told("agent.stopped")["reason"] == "memory was short; its session is kept"
        assert [agent.id for agent in h.supervisor.agents()] == [B]


async def test_a_start_that_waits_for_memory_says_so(house: Open) -> None:
    free = [10]
    async with house([{"do": [{"hang": True}]}], free_memory=lambda: free[0]) as h:
        await h.ensure(A)
        turning = asyncio.create_task(h.supervisor.turn(A, task(), h.ask))
        starting = asyncio.create_task(h.ensure(B))
        async with asyncio.timeout(20):
            while not (h.supervisor.agents()[-1].reason or "").startswith("waits for memory: 0.0 GB free"):
                await asyncio.sleep(0.02)
        assert h.supervisor.agent(B).state is AgentState.PENDING
        await h.supervisor.stop(B, "a person")
        with pytest.raises(AgentCrashed, match="was stopped before its start"):
            await starting
        starting = asyncio.create_task(h.ensure(B))
        await asyncio.sleep(0.1)
        free[0] = 10**10
        await starting
        turning.cancel()
        await asyncio.gather(turning, return_exceptions=True)
        assert h.states(A)[-2:] == ["stopping", "stopped"]


@pytest.mark.parametrize(
    ("actions", "words"),
    [
        ([{"daemon": 60}, {"crash": 3}], "exit code 3"),
        ([{"say": "x"}, {"crash": 0}], "exit code 0"),
        ([{"hang": "deaf"}], "no sign of life"),
        ([{"wait": 0}], "without a word or a deed"),
        ([{"close": True}], "closed its output"),
    ],
)
async def test_bad_agents_end_with_a_named_cause_and_leave_nothing(house: Open, actions: list[Any], words: str) -> None:
    silence = Silence(stall_s=0.5, end_s=1.0) if words == "no sign of life" else Silence()
    async with house([{"do": actions}], silence=silence) as h:
        with pytest.raises(AgentError, match=words) as caught:
            await h.turn()
        assert caught.value.retryable
        assert words in h.told("agent.error")["cause"]
        assert h.supervisor.agents() == []


HEADLESS = """#!{python} -S
import sys, time
sys.stdin.read()
print({lines!r}, flush=True)
time.sleep({seconds})
sys.exit({code})
"""
RESULT_LINE = json.dumps(
    {"type": "result", "subtype": "success", "is_error": False, "result": "done\n\nCONFIDENCE: 0.9", "session_id": "s1"}
)


@pytest.mark.parametrize(
    ("lines", "seconds", "code", "end", "kind"),
    [
        (RESULT_LINE, 300, 0, "done", "never_ends"),
        (RESULT_LINE, 0.2, 0, "done", None),
        ("", 0, 0, "ended with exit code 0 without a result", "nothing"),
        (json.dumps({"type": "system", "subtype": "init", "session_id": "s1"}), 300, 0, "no sign of life", "silent"),
    ],
)
async def test_headless_agents_that_stay_and_that_leave_with_nothing(
    house: Open, place: Path, lines: str, seconds: float, code: int, end: str, kind: str | None
) -> None:
    program = place / "claude"
    program.write_text(HEADLESS.format(python=sys.executable, lines=lines, seconds=seconds, code=code))
    program.chmod(0o755)
    async with house([], silence=Silence(stall_s=2, end_s=3)) as h:
        h.client = lambda session: HeadlessClient(
            runtime=h.runtime, cli=ClaudeHeadless(), session=replace(session, env={"ANTHROPIC_API_KEY": "x"}),
            program=str(program), grace_s=30.0,
        )  # fmt: skip
        began = time.monotonic()
        try:
            told = (await h.turn()).value
        except AgentError as error:
            told = str(error)
        assert end in told
        assert [event.data["kind"] for event in h.events if event.type == "agent.stalled"] == ([kind] if kind else [])
        assert time.monotonic() - began < 25  # not the client's patience of 30 s


async def test_a_crash_at_the_start_is_a_named_failure(house: Open, place: Path) -> None:
    async with house([SAY]) as h:
        broken = place / "broken"
        broken.write_text("#!/bin/sh\necho 'cannot find module' >&2\nexit 1\n")
        broken.chmod(0o755)
        h.program = str(broken)
        with pytest.raises(AgentCrashed, match="cannot find module"):
            await h.ensure()
        assert h.states() == ["starting", "error"]


async def test_whoever_ends_an_agent_waits_for_its_end(house: Open) -> None:
    async with house([SAY]) as h:
        await h.ensure()
        await asyncio.gather(h.supervisor.stop(A, "one"), h.supervisor.stop(A, "two"), h.supervisor.release("e1"))
        assert h.states() == ["starting", "ready", "stopping", "stopped"]
        assert h.supervisor.agents() == []
