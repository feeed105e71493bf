"""The real CLIs, each in every way that Parallax speaks to it, against the scripted model: one set of tests for all.

No account and no network: the gateway adds a key that only the scripted model knows. A fault of a vendor's is written
where it shows (`FAULTS`), with what Parallax does instead, which is what is tested then. What every test saw becomes a
cell of the table in docs/agents.md.

The suite runs the quick ones; `make conformance` (PARALLAX_CONFORMANCE=all, or names of CLIs) runs the others.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable
from typing import Any

import psutil
import pytest
from agent_helpers import marked, play, task

from parallax.agents.runtimes.leash import MARK
from parallax.errors import AgentCrashed, AgentError, LoginNeeded, ProviderLimited
from parallax.models import Question
from tests.conformance.conformance_bench import KEYS, Bench
from tests.conformance.install import PACKAGES, QUICK
from tests.conformance.table import WAYS
from tests.modelserver.model_server import ASKED

Found = Callable[..., None]

pytestmark = [pytest.mark.real_cli, pytest.mark.timeout(300)]

CHOSEN = os.environ.get("PARALLAX_CONFORMANCE") or " ".join(QUICK)
TRIED = [way for way, (_, packages) in WAYS.items() if CHOSEN == "all" or packages[0] in CHOSEN.split()]
every_way = pytest.mark.parametrize("way", TRIED)


def scenario(name: str) -> pytest.MarkDecorator:
    """What the model does."""
    return pytest.mark.parametrize("bench", [name], indirect=True)


# Vendors' faults and what each CLI does otherwise than the rest: (way, column) -> what the table says.
FAULTS = {
    ("aider-headless", "runs"): "never: Parallax runs the checks",
    ("codex-acp", "asks"): "no: its sandbox decides",
    ("claude-headless", "asks"): "denies, and says so",
    ("codex-headless", "asks"): "no: its sandbox decides",
    ("aider-headless", "asks"): "no: it runs nothing",
    ("gemini-acp", "resumes"): "forgets; begins anew",
    ("codex-acp", "limit"): "in a normal end; read from its words",
    ("copilot-acp", "limit"): "in a normal end; read from its words",
    ("gemini-acp", "limit"): "retries in silence; the gateway tells",
    ("qwen-acp", "limit"): "retries in silence; the gateway tells",
    ("aider-headless", "tools"): "no MCP",
}
ASKS_NOBODY = {way for way, column in FAULTS if column == "asks"}
LIMIT_S = 90.0  # a rate limit is known to Parallax within this, whatever the CLI does: three times its silence limit


def split(way: str) -> tuple[str, str]:
    """Agent type and how it is spoken to."""
    type_, _, how = way.rpartition("-")
    return type_, how


def environments(owner: str) -> list[dict[str, str]]:
    """The environments of all processes that an owner's agents started."""
    found = []
    for process in psutil.process_iter():
        try:
            env = process.environ()
        except psutil.Error:
            continue
        if env.get(MARK, "").startswith(f"{owner}:"):
            found.append(env)
    return found


@every_way
async def test_it_edits_a_file_runs_a_command_and_reports(bench: Bench, way: str, found: Found) -> None:
    type_, how = split(way)
    client = await bench.start(type_, how)
    seen: list[dict[str, str]] = []
    shown: list[Any] = []
    async for item in client.turn(task("Create hello.txt")):
        seen += environments(bench.runtime.owner)
        shown.append(item)
        assert not isinstance(item, Question)
    *shown, result = shown
    assert (bench.place / "tree" / "hello.txt").read_text() == "hello from the model\n"
    assert "I wrote hello.txt." in result.value
    assert (result.reported, result.stop, result.denied) == (0.9, "end_turn", ())
    assert result.session_ref
    assert client.version == PACKAGES[type_].version
    assert any(item.kind == "tool" and item.data.get("status") == "completed" for item in shown)
    ran = "hello from the model" in str([request.body for request in bench.model.requests][-1])
    assert ran or (way, "runs") in FAULTS
    for env in seen:
        assert not set(KEYS.values()) & set(env.values())
    assert {env["HOME"] for env in seen if "HOME" in env} == {"/home/agent"}
    assert bench.model.keys() < set(KEYS.values())
    traffic = bench.gateway.traffic(bench.agent_id)
    assert traffic is not None
    sent = traffic.input_tokens + traffic.cached_tokens
    assert sent >= 100 * (3 if ran else 1)
    assert (sent, traffic.last_status) == (traffic.output_tokens * 5, 200)
    used = result.usage
    told = "nothing" if not used.tokens else "tokens" if not used.cost else "tokens and cost"
    if used.tokens and used.tokens < sent + traffic.output_tokens:
        told += ", not all; the gateway counts"
    await client.close()
    assert marked(bench.runtime.owner) == []
    found(
        edits="yes",
        runs=FAULTS.get((way, "runs"), "yes"),
        usage=told if told != "nothing" else "nothing; the gateway counts",
        stops="0",
    )


@every_way
@scenario("permission")
async def test_what_it_may_not_do_by_itself_is_asked_and_a_no_is_obeyed(bench: Bench, way: str, found: Found) -> None:
    client = await bench.start(*split(way), preset="standard")
    shown, result = await play(client, task("Create hello.txt"), answers={"": "reject"})
    asked = [item.text for item in shown if isinstance(item, Question)]
    assert (bench.place / "tree" / "hello.txt").exists()
    if way in ASKS_NOBODY:
        assert asked == []
        assert bool(result.denied) == (way == "claude-headless")
    else:
        assert [text for text in asked if ASKED in text]
        assert [text for text in result.denied if ASKED in text]
    found(asks=FAULTS.get((way, "asks"), "yes"))


@every_way
async def test_readonly_does_not_write(bench: Bench, way: str, found: Found) -> None:
    client = await bench.start(*split(way), preset="readonly")
    with contextlib.suppress(AgentError):  # some end a turn in which they may do nothing without a word
        await play(client, task("Create hello.txt"), answers={"": "reject"})
    assert bench.model.requests
    assert not (bench.place / "tree" / "hello.txt").exists()
    found(refuses="yes")


@every_way
@scenario("tool")
async def test_it_calls_the_team_tools(bench: Bench, way: str, found: Found) -> None:
    if (way, "tools") in FAULTS:
        return found(tools=FAULTS[way, "tools"])
    client = await bench.start(*split(way))
    await play(client, task("Tell the team."), answers={"": "allow"})
    assert bench.notes.calls == [(bench.agent_id, "post_note")]
    return found(tools="yes")


@every_way
@scenario("text")
async def test_a_session_goes_on_after_kill_9(bench: Bench, way: str, found: Found) -> None:
    client = await bench.start(*split(way))
    _, first = await play(client, task("The secret word is plum."))
    bench.model.scenario = "hang"
    before = len(bench.model.requests)
    turn = asyncio.create_task(play(client, task("Wait for me.")))
    while len(bench.model.requests) == before and not turn.done():
        await asyncio.sleep(0.05)
    for pid in marked(bench.runtime.owner):
        with contextlib.suppress(ProcessLookupError):  # it went with the one before
            os.kill(pid, signal.SIGKILL)
    with pytest.raises(AgentCrashed):
        await turn
    await client.close()
    bench.model.scenario = "text"
    client = await bench.start(*split(way), cli_session=first.session_ref)
    _, second = await play(client, task("Which word?"))
    assert second.stop == "end_turn"
    if (way, "resumes") in FAULTS:  # the work begins anew rather than never
        assert second.session_ref != first.session_ref
        assert "plum" not in str(bench.model.requests[-1].body)
    else:
        assert second.session_ref == first.session_ref
        assert "plum" in str(bench.model.requests[-1].body)
    found(resumes=FAULTS.get((way, "resumes"), "goes on"))


@every_way
@scenario("ratealways")
async def test_a_rate_limit_is_named(bench: Bench, way: str, found: Found) -> None:
    client = await bench.start(*split(way))
    turn = asyncio.create_task(play(client))
    silent = FAULTS.get((way, "limit"), "").startswith("retries in silence")
    async with asyncio.timeout(LIMIT_S):
        while not turn.done() and not (silent and _limited(bench)):
            await asyncio.sleep(0.05)
    assert _limited(bench)
    if not turn.done():
        await client.cancel()
        turn.cancel()
    with pytest.raises((ProviderLimited, asyncio.CancelledError) if silent else ProviderLimited):
        await turn
    found(limit=FAULTS.get((way, "limit"), "an error"))


def _limited(bench: Bench) -> bool:
    traffic = bench.gateway.traffic(bench.agent_id)
    return traffic is not None and traffic.limited


@every_way
@scenario("hang")
async def test_cancel_ends_a_hanging_turn(bench: Bench, way: str, found: Found) -> None:
    client = await bench.start(*split(way))
    rest = asyncio.create_task(_all(client.turn(task())))
    while not bench.model.requests:
        await asyncio.sleep(0.05)
    await client.cancel()
    async with asyncio.timeout(LIMIT_S):
        assert (await rest)[-1].stop == "cancelled"
    found(cancels="yes")


async def _all(turn: Any) -> list[Any]:
    return [item async for item in turn]


# --- what needs only some of them -------------------------------------------------------------------------------------

ADAPTED = [way for way in TRIED if way.startswith(("claude", "codex"))]


@pytest.mark.parametrize("way", ADAPTED)
async def test_autonomous_asks_nothing(bench: Bench, way: str) -> None:
    client = await bench.start(*split(way), preset="autonomous")
    shown, result = await play(client, task("Create hello.txt"))
    assert not [item for item in shown if isinstance(item, Question)]
    assert result.denied == ()
    assert (bench.place / "tree" / "hello.txt").exists()


@pytest.mark.parametrize("way", ADAPTED)
@scenario("err500")
async def test_a_failing_provider_is_no_success(bench: Bench, way: str) -> None:
    client = await bench.start(*split(way))
    with pytest.raises(AgentError):
        await play(client)


@pytest.mark.parametrize("way", ADAPTED)
@scenario("rate")
async def test_a_passing_rate_limit_is_passed_over(bench: Bench, way: str) -> None:
    client = await bench.start(*split(way))
    _, result = await play(client, task("Create hello.txt"))
    assert result.stop == "end_turn"
    assert (bench.place / "tree" / "hello.txt").exists()


@every_way
async def test_without_an_account_it_says_so(bench: Bench, way: str, monkeypatch: Any) -> None:
    monkeypatch.setenv("HOME", str(bench.place))  # a user who never logged in
    with pytest.raises(LoginNeeded, match="there is no key for it"):
        await bench.start(*split(way), door=False)


@pytest.mark.skipif("claude-headless" not in TRIED, reason="not among those that were chosen")
async def test_an_expired_login_is_named(bench: Bench) -> None:
    (bench.place / "home/.claude").mkdir(parents=True)
    (bench.place / "home/.claude/.credentials.json").write_text("{}")
    client = await bench.start("claude", "headless", door=False)
    with pytest.raises(LoginNeeded):
        await play(client)
