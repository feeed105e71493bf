"""The real Claude Code and Codex, through their adapters and headless, against the scripted model.

No account and no network: the gateway adds a key that only the scripted model knows.
"""

from __future__ import annotations

import asyncio
from typing import Any

import psutil
import pytest
from agent_helpers import play, task
from conformance_bench import KEYS, Bench

from parallax.agents.runtimes.leash import MARK
from parallax.errors import AgentError, LoginNeeded, ProviderLimited
from parallax.models import Question

pytestmark = [pytest.mark.real_cli, pytest.mark.timeout(300)]

ALL = [("claude", "acp"), ("claude", "headless"), ("codex", "acp"), ("codex", "headless")]
ASKED = "python3 -c 'print(1)'"  # not among the commands that Claude Code takes for harmless
every_cli = pytest.mark.parametrize(("type_", "how"), ALL)


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


@every_cli
async def test_it_edits_a_file_runs_a_command_and_reports(bench: Bench, type_: str, how: str) -> None:
    client = await bench.start(type_, how)
    seen: list[dict[str, str]] = []
    shown: list[Any] = []
    async for item in client.turn(task("Create hello.txt")):
        seen += environments(bench.runtime.owner)
        shown.append(item)
        assert not isinstance(item, Question)
    *shown, result = shown
    assert (bench.place / "tree" / "hello.txt").read_text() == "hello from the model\n"
    assert result.value == "I wrote hello.txt."
    assert (result.reported, result.stop, result.denied) == (0.9, "end_turn", ())
    assert result.session_ref
    assert result.usage.input_tokens + result.usage.cached_tokens == 300
    assert result.usage.output_tokens == 60
    assert result.usage.cost == (2400 if type_ == "claude" else 0)
    assert any(item.kind == "tool" and item.data.get("status") == "completed" for item in shown)

    provider = "anthropic" if type_ == "claude" else "openai"
    assert bench.model.keys() == {KEYS[provider]}
    assert seen
    for env in seen:
        assert not set(KEYS.values()) & set(env.values())
    assert {env["HOME"] for env in seen if "HOME" in env} == {"/home/agent"}
    traffic = bench.gateway.traffic(bench.agent_id)
    assert traffic is not None
    assert (traffic.requests, traffic.input_tokens, traffic.output_tokens, traffic.last_status) == (3, 300, 60, 200)


@every_cli
async def test_readonly_does_not_write(bench: Bench, type_: str, how: str) -> None:
    client = await bench.start(type_, how, "readonly")
    await play(client, task("Create hello.txt"), answers={"": "reject"})
    assert not (bench.place / "tree" / "hello.txt").exists()


@every_cli
async def test_autonomous_asks_nothing(bench: Bench, type_: str, how: str) -> None:
    client = await bench.start(type_, how, "autonomous")
    shown, result = await play(client, task("Create hello.txt"))
    assert not [item for item in shown if isinstance(item, Question)]
    assert result.denied == ()
    assert (bench.place / "tree" / "hello.txt").exists()


async def test_a_command_is_asked_for_and_a_refusal_is_in_the_result(bench: Bench) -> None:
    bench.model.script.command = ASKED
    client = await bench.start("claude", "acp", "standard")
    shown, result = await play(client, task("Create hello.txt"), answers={ASKED: "reject"})
    assert [item.kind for item in shown if isinstance(item, Question)] == ["permission"]
    assert result.denied == (ASKED,)
    assert (bench.place / "tree" / "hello.txt").exists()


async def test_headless_a_refusal_is_in_the_result(bench: Bench) -> None:
    bench.model.script.command = ASKED
    client = await bench.start("claude", "headless", "standard")
    _, result = await play(client, task("Create hello.txt"))
    assert result.denied == (f"Bash: {ASKED}",)


@every_cli
@pytest.mark.parametrize("bench", ["text"], indirect=True)
async def test_a_session_is_resumed_by_a_new_process(bench: Bench, type_: str, how: str) -> None:
    client = await bench.start(type_, how)
    _, first = await play(client, task("The secret word is plum."))
    await client.close()
    client = await bench.start(type_, how, cli_session=first.session_ref)
    _, second = await play(client, task("Which word?"))
    assert second.session_ref == first.session_ref
    assert "plum" in str(bench.model.requests[-1].body)


@every_cli
@pytest.mark.parametrize("bench", ["ratealways"], indirect=True)
async def test_a_rate_limit_is_named(bench: Bench, type_: str, how: str) -> None:
    client = await bench.start(type_, how)
    with pytest.raises(ProviderLimited):
        await play(client)
    traffic = bench.gateway.traffic(bench.agent_id)
    assert traffic is not None
    assert traffic.limited
    assert traffic.resets_at is not None


@every_cli
@pytest.mark.parametrize("bench", ["err500"], indirect=True)
async def test_a_failing_provider_is_no_success(bench: Bench, type_: str, how: str) -> None:
    client = await bench.start(type_, how)
    with pytest.raises(AgentError):
        await play(client)


@every_cli
@pytest.mark.parametrize("bench", ["rate"], indirect=True)
async def test_a_passing_rate_limit_is_passed_over(bench: Bench, type_: str, how: str) -> None:
    client = await bench.start(type_, how)
    _, result = await play(client, task("Create hello.txt"))
    assert result.stop == "end_turn"
    assert (bench.place / "tree" / "hello.txt").exists()


@every_cli
@pytest.mark.parametrize("bench", ["hang"], indirect=True)
async def test_cancel_ends_a_hanging_turn(bench: Bench, type_: str, how: str) -> None:
    client = await bench.start(type_, how)
    turn = client.turn(task())
    rest = asyncio.create_task(_all(turn))
    while not bench.model.requests:
        await asyncio.sleep(0.05)
    await client.cancel()
    assert (await rest)[-1].stop == "cancelled"


@every_cli
async def test_without_an_account_it_says_so(bench: Bench, type_: str, how: str, monkeypatch: Any) -> None:
    monkeypatch.setenv("HOME", str(bench.place))  # a user who never logged in
    with pytest.raises(LoginNeeded, match="there is no key for it and no /"):
        await bench.start(type_, how, door=False)


async def test_an_expired_login_is_named(bench: Bench) -> None:
    (bench.place / "home/.claude").mkdir(parents=True)
    (bench.place / "home/.claude/.credentials.json").write_text("{}")
    client = await bench.start("claude", "headless", door=False)
    with pytest.raises(LoginNeeded):
        await play(client)


async def _all(turn: Any) -> list[Any]:
    return [item async for item in turn]
