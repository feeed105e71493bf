"""The life of an agent: what the table allows happens and is told once, all else is refused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from parallax.agents.registries.memory import MemoryAgentRegistry
from parallax.agents.states import FINAL, MOVES, Life
from parallax.agents.supervisor import AgentSupervisor, Lodging
from parallax.agents.turn import Silence
from parallax.errors import AgentCrashed, AgentError, ConflictError, HelpNeeded, LoginNeeded, ProviderLimited
from parallax.events import Event
from parallax.models import Agent, AgentState, Progress, Question, Task, TaskResult
from parallax.ports import AgentSession, Vitals
from parallax.redaction import Redactor

PENDING = Agent(
    id="e1.engineer.1", type="scripted", role="engineer", number=1, execution="e1", state=AgentState.PENDING, since=0.0
)
FORBIDDEN = [(a, b) for a in AgentState for b in AgentState if b not in MOVES[a]]


@pytest.mark.parametrize(("state", "other"), FORBIDDEN)
async def test_what_is_not_in_the_table_is_refused_and_changes_nothing(state: AgentState, other: AgentState) -> None:
    told: list[Event] = []

    async def tell(event: Event) -> None:
        told.append(event)

    life = Life(PENDING, tell, Redactor())
    before = life.agent = Agent(**{**_fields(PENDING), "state": state})
    with pytest.raises(ConflictError, match=f"is {state}: it cannot become {other}"):
        await life.move(other, "because")
    assert (life.agent, told) == (before, [])


def _fields(agent: Agent) -> dict[str, Any]:
    return {name: getattr(agent, name) for name in agent.__slots__}


def test_what_has_ended_stays_so_and_all_else_can_end() -> None:
    assert {state for state, following in MOVES.items() if not following} == FINAL
    assert all(AgentState.ERROR in MOVES[state] for state in AgentState if state not in FINAL)


class _Client:
    """An agent without a process: it does at once what the machine says next."""

    resumable = "session-1"
    pid = 7
    version = "1.0"

    def __init__(self, trouble: AgentError | None) -> None:
        self.trouble = trouble
        self.alive = False
        self.next: asyncio.Queue[Any] = asyncio.Queue()
        self.answers: dict[str, asyncio.Event] = {}

    async def open(self) -> str:
        if self.trouble is not None:
            raise self.trouble
        self.alive = True
        return "session-1"

    async def turn(self, task: Task) -> AsyncGenerator[Progress | Question | TaskResult, None]:
        while True:
            item = await self.next.get()
            if isinstance(item, Exception):
                raise item
            yield item
            if isinstance(item, TaskResult):
                return

    async def answer(self, question_id: str, answer: str) -> None:
        pass

    async def cancel(self) -> None:
        pass

    async def close(self) -> None:
        self.alive = False
        self.next.put_nowait(AgentCrashed("The agent was stopped"))

    def vitals(self) -> Vitals:
        return Vitals(output_s=0.0)

    def cpu_s(self) -> float:
        return 0.0

    def claim(self) -> TaskResult | None:
        return None


class _Doors:
    async def open_session(self, session: AgentSession) -> None:
        return None

    async def close_session(self, agent_id: str) -> None:
        pass

    def traffic(self, agent_id: str) -> None:
        return None


TASK = Task(id="e1/s1/1", execution="e1", step_key="s1", attempt=1, role="engineer", text="go")
RESULT = TaskResult(task_id="e1/s1/1", attempt=1, agent_id="e1.engineer.1", value=1, message="done", stop="end_turn")
SESSION = AgentSession(
    agent_id="e1.engineer.1", execution="e1", role="engineer", type="scripted", home=Path("/home"), tree=Path("/tree")
)
TROUBLES = st.sampled_from(["crash", "limit", "long limit", "login", "prompt"])


class _Dying(_Client):
    """An agent that crashes in the moment in which its turn is cancelled."""

    async def turn(self, task: Task) -> AsyncGenerator[Progress | Question | TaskResult, None]:
        turn = asyncio.current_task()
        assert turn is not None
        turn.cancel()
        raise AgentCrashed("The agent was stopped")
        yield RESULT


async def test_a_cancellation_in_the_moment_of_a_crash_is_not_lost() -> None:
    """A failing task group swallows it, and whoever pressed Ctrl-C would wait for the next attempt."""

    async def tell(event: Event) -> None:
        pass

    async def ask(question: Question) -> str:
        return ""

    supervisor = AgentSupervisor(
        open_client=lambda session: _Dying(None), registry=MemoryAgentRegistry(), doors=_Doors(), redact=Redactor(),
        tell=tell, silence=Silence(), sandbox="off", lodging=Lodging(),
    )  # type: ignore[arg-type]  # fmt: skip
    await supervisor.ensure(SESSION, number=1)
    with pytest.raises(asyncio.CancelledError):
        await asyncio.create_task(supervisor.turn(SESSION.agent_id, TASK, ask))
    await supervisor.close()


class SupervisorMachine(RuleBasedStateMachine):
    """One agent of a real supervisor, driven in any order; its events must be a walk through the table."""

    @initialize()
    def begin(self) -> None:
        self.runner = asyncio.Runner()
        self.events: list[Event] = []
        self.clients: list[_Client] = []
        self.trouble: AgentError | None = None
        self.asked: asyncio.Future[str] | None = None
        self.turning: asyncio.Task[Any] | None = None

        async def tell(event: Event) -> None:
            self.events.append(event)

        def open_client(session: AgentSession) -> _Client:
            self.clients.append(_Client(self.trouble))
            self.trouble = None
            return self.clients[-1]

        self.supervisor = AgentSupervisor(
            open_client=open_client, registry=MemoryAgentRegistry(), doors=_Doors(), redact=Redactor(), tell=tell,
            silence=Silence(), sandbox="off", lodging=Lodging(park_s=0.0, park_cap_s=0.0),
        )  # type: ignore[arg-type]  # fmt: skip

    def do(self, work: Any) -> Any:
        async def settled() -> Any:
            value = await work
            for _ in range(20):
                await asyncio.sleep(0)
            return value

        return self.runner.run(settled())

    @property
    def state(self) -> AgentState | None:
        agents = self.supervisor.agents()
        return agents[0].state if agents else None

    @staticmethod
    def error(trouble: str) -> AgentError:
        match trouble:
            case "crash":
                return AgentCrashed("it died")
            case "limit":
                return ProviderLimited("429")
            case "long limit":
                return ProviderLimited("window used up", 4e9)
            case "login":
                return LoginNeeded("not logged in")
            case _:
                return HelpNeeded("a dialogue")

    @rule(trouble=st.none() | TROUBLES)
    def start(self, trouble: str | None) -> None:
        self.trouble = None if trouble is None else self.error(trouble)
        try:
            self.do(self.supervisor.ensure(SESSION, number=1))
        except AgentError:
            assert self.state in {None, AgentState.PARKED, AgentState.ASKING}
        else:
            assert self.state in {AgentState.READY, AgentState.BUSY, AgentState.ASKING}

    @precondition(lambda self: self.state is AgentState.READY and self.turning is None)
    @rule()
    def turn(self) -> None:
        async def ask(question: Question) -> str:
            self.asked = asyncio.get_running_loop().create_future()
            return await self.asked

        async def begin() -> None:
            self.turning = asyncio.create_task(self.supervisor.turn(SESSION.agent_id, TASK, ask))

        self.do(begin())
        assert self.state is AgentState.BUSY

    @precondition(lambda self: self.state in {AgentState.BUSY, AgentState.ASKING} and self.turning is not None)
    @rule(what=st.sampled_from(["result", "ask"]) | TROUBLES)
    def show(self, what: str) -> None:
        question = Question(id="q", execution="e1", step_key="s1", asker=SESSION.agent_id, kind="question", text="?")
        item = {"result": RESULT, "ask": question}.get(what) or self.error(what)

        async def put() -> None:
            self.clients[-1].next.put_nowait(item)

        self.do(put())
        self.over()

    @precondition(lambda self: self.state is AgentState.ASKING and self.asked is not None and self.turning is not None)
    @rule()
    def answer(self) -> None:
        async def give() -> None:
            assert self.asked is not None
            if not self.asked.done():
                self.asked.set_result("yes")

        self.do(give())
        self.asked = None

    @precondition(lambda self: self.state is not None)
    @rule(what=st.sampled_from(["stop", "park", "wake", "die", "cancel", "release"]))
    def interfere(self, what: str) -> None:
        async def act() -> None:
            match what:
                case "stop":
                    await self.supervisor.stop(SESSION.agent_id, "a person")
                case "park":
                    await self.supervisor.park(SESSION.agent_id, 4e9, "limited")
                case "wake":
                    self.supervisor.wake(SESSION.agent_id)
                case "die":
                    self.clients[-1].alive = False
                case "cancel":
                    if self.turning is not None:
                        self.turning.cancel()
                case _:
                    await self.supervisor.release("e1")

        self.do(act())
        self.over()

    def over(self) -> None:
        if self.turning is not None and self.turning.done():
            assert self.turning.cancelled() or isinstance(self.turning.exception(), AgentError | None)
            self.turning = self.asked = None

    @invariant()
    def events_are_a_walk_through_the_table(self) -> None:
        at = AgentState.PENDING
        for event in getattr(self, "events", ()):
            name = event.type.partition(".")[2]
            if name not in set(AgentState):
                continue
            if at in FINAL:  # another life of the same agent
                at = AgentState.PENDING
            assert AgentState(name) in MOVES[at], f"{at} > {name}"
            at = AgentState(name)
        if getattr(self, "events", None):
            assert self.state is None if at in FINAL else self.state is at

    def teardown(self) -> None:
        if hasattr(self, "runner"):
            self.do(self.supervisor.close())
            assert self.supervisor.agents() == []
            self.over()
            assert self.turning is None
            self.runner.close()


TestSupervisorMachine = SupervisorMachine.TestCase
TestSupervisorMachine.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
