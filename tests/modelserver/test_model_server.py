"""The scripted model answers in both dialects, streamed and whole."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import aiohttp
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from model_server import ModelServer, Script


async def post(url: str, body: Any) -> tuple[int, Any]:
    """The answer: a document, or the list of a stream's events."""
    async with aiohttp.ClientSession() as http, http.post(url, json=body, headers={"x-api-key": "k"}) as reply:
        if reply.content_type == "application/json":
            return reply.status, await reply.json()
        lines = (await reply.text()).splitlines()
        return reply.status, [json.loads(line[5:]) for line in lines if line.startswith("data:")]


TOOLS = [{"name": "Write"}, {"name": "Bash", "input_schema": {"properties": {"command": {"type": "string"}}}}]
RESULT = {"role": "user", "content": [{"type": "tool_result", "content": "ok"}]}


@pytest.mark.parametrize("stream", [True, False])
async def test_messages_write_run_and_answer(stream: bool) -> None:
    messages: list[dict[str, Any]] = [{"role": "user", "content": "Working directory: /w\nCreate it"}]
    moves = []
    async with ModelServer(Script(path="a.txt", content="x", command="ls", answer="done")) as server:
        for _ in range(3):
            body = {"messages": messages, "tools": TOOLS, "stream": stream}
            status, reply = await post(f"{server.url}/write/v1/messages?beta=true", body)
            assert status == 200
            if stream:
                assert [reply[0]["type"], reply[-1]["type"]] == ["message_start", "message_stop"]
                deltas = [event["delta"] for event in reply if event["type"] == "content_block_delta"]
                moves.append("".join(delta.get("text") or delta.get("partial_json") for delta in deltas))
            else:
                block = reply["content"][0]
                moves.append(block.get("text") or json.dumps(block["input"]))
            messages += [{"role": "assistant", "content": "x"}, RESULT]
        assert server.keys() == {"k"}
    assert json.loads(moves[0]) == {"file_path": "/w/a.txt", "content": "x"}
    assert json.loads(moves[1]) == {"command": "ls"}
    assert moves[2] == "done"


async def test_responses_use_the_shell_or_the_patch_tool() -> None:
    shell = {"type": "function", "name": "exec_command", "parameters": {"properties": {"cmd": {}}}}
    asked = {"role": "user", "content": "<cwd>/w</cwd>"}
    async with ModelServer() as server:
        url = f"{server.url}/write/v1/responses"
        _, reply = await post(url, {"input": [asked], "tools": [shell]})
        assert "> '/w/hello.txt'" in json.loads(reply["output"][0]["arguments"])["cmd"]
        patch = {"type": "custom", "name": "apply_patch"}
        _, reply = await post(url, {"input": [asked], "tools": [shell, patch], "stream": True})
        assert reply[-1]["type"] == "response.completed"
        assert reply[-1]["response"]["output"][0]["input"].startswith("*** Begin Patch\n*** Add File: hello.txt")
        done = {"type": "function_call_output"}
        _, reply = await post(url, {"input": [asked, done, done], "tools": [shell]})
        assert "CONFIDENCE: 0.9" in reply["output"][0]["content"][0]["text"]


async def test_trouble() -> None:
    body: dict[str, Any] = {"messages": [], "input": []}
    async with ModelServer() as server:
        assert (await post(f"{server.url}/rate/v1/messages", body))[0] == 429
        assert (await post(f"{server.url}/rate/v1/messages", body))[0] == 200
        assert (await post(f"{server.url}/ratealways/v1/responses", body))[0] == 429
        assert (await post(f"{server.url}/err500/v1/responses", body))[0] == 500
        assert (await post(f"{server.url}/text/v1/messages/count_tokens", body))[1] == {"input_tokens": 100}
        assert (await post(f"{server.url}/text/v1/other", body))[0] == 404
        assert [recorded.scenario for recorded in server.requests[:3]] == ["rate", "rate", "ratealways"]
