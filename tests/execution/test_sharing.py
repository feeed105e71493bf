"""Several servers on one PostgreSQL: each execution runs in one of them, any of them answers for it."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from parallax.models import ExecutionState
from tests.conftest import running_team
from tests.execution.test_recovery import SLOW_SECOND, THREE, starts, until
from tests.execution.test_team import answer, script
from tests.postgres import Cluster

pytestmark = pytest.mark.usefixtures("postgres")


class Servers:
    """Servers with data directories of their own, one database and one directory of workspaces."""

    def __init__(self, place: Path, repository: Path, url: str, stack: AsyncExitStack) -> None:
        self.place = place
        self.repository = repository
        self.url = url
        self.stack = stack

    def server(self, name: str, agents: Any, **settings: Any) -> Any:
        more = {"data_dir": self.place / name, "workspaces_dir": self.place / "ws", "database_url": self.url}
        return running_team(self.place, agents, self.repository, **(more | settings))


@pytest.fixture
async def servers(place: Path, repository: Path, postgres: Cluster) -> Any:
    async with AsyncExitStack() as stack:
        yield Servers(place, repository, await postgres.database(), stack)


async def test_what_one_server_takes_in_another_runs_and_both_tell_of_it(servers: Servers) -> None:
    async with (
        servers.server("door", SLOW_SECOND, execution_engine=False) as door,
        servers.server("worker", SLOW_SECOND) as worker,
    ):
        execution = await door.start(THREE)
        heard = [event.type async for event in door.parallax.bus.stream(execution.id)]
        done = await door.parallax.store.execution(execution.id)
        assert (done.state, done.result) == (ExecutionState.SUCCEEDED, "one two three")
        assert heard[0] == "execution.queued"
        assert heard[-1] == "execution.succeeded"
        assert len(heard) == len(await worker.events(done))
        assert door.parallax.engine.running == ()


async def test_a_person_cancels_and_answers_at_any_server(servers: Servers) -> None:
    waiting = script(engineer=[{"wait": 60}, answer("never")])
    async with (
        servers.server("door", waiting, execution_engine=False) as door,
        servers.server("worker", waiting) as worker,
    ):
        execution = await door.start(THREE)
        await until(worker, execution, "step.started", "a")
        cancelled = await door.parallax.engine.cancel(execution.id, "a test")
        assert cancelled.state is ExecutionState.CANCELLING
        async with asyncio.timeout(10):
            done = await door.finish(execution)
        assert (done.state, done.reason) == (ExecutionState.CANCELLED, "cancelled by a test")
        assert worker.parallax.supervisor.agents(execution.id) == []
        asking = await door.start('return askHuman("Go on?", {id: "q"})')
        await until(worker, asking, "question.surfaced", "q")
        (question,) = await door.parallax.store.questions(states=("with_person",))
        await door.parallax.desk.answer(question.id, "yes")
        async with asyncio.timeout(15):
            assert (await door.finish(asking)).result == "yes"


async def test_a_server_that_stops_in_order_leaves_its_executions_to_the_others_at_once(servers: Servers) -> None:
    a = await servers.stack.enter_async_context(servers.server("a", SLOW_SECOND))
    execution = await a.start(THREE)
    await until(a, execution, "step.started", "b")
    async with servers.server("b", SLOW_SECOND) as b:
        assert b.parallax.engine.running == ()
        await servers.stack.aclose()
        async with asyncio.timeout(20):
            done = await b.finish(execution)
        assert done.result == "one two three"
        assert starts(b) == ["a/1", "b/1", "b/2", "c/1"]
        assert (await b.told(done, "execution.resumed"))[0]["finished"] == ["a"]
        assert done.recoveries == 0
        assert [b.branch_file(done, f"{name}.txt") for name in ("one", "two", "three")] == ["1\n", "2\n", "3\n"]
        assert b.branch_file(done, "debris.txt") is None


async def test_a_server_that_lost_a_lease_stops_its_agents_and_writes_no_more(servers: Servers) -> None:
    waiting = script(engineer=[{"wait": 60}, answer("never")])
    async with servers.server("a", waiting) as a:
        execution = await a.start(THREE)
        await until(a, execution, "step.started", "a")
        before = await a.parallax.store.journal(execution.id)
        other = a.parallax.store._database
        await other._once("UPDATE executions SET owner = 'other', lease_until = lease_until + 60")
        async with asyncio.timeout(10):
            while a.parallax.engine.running:
                await asyncio.sleep(0.05)
        assert a.parallax.supervisor.agents(execution.id) == []
        stored = await a.parallax.store.execution(execution.id)
        assert (stored.state, stored.owner) == (ExecutionState.RUNNING, "other")
        assert await a.parallax.store.journal(execution.id) == before
