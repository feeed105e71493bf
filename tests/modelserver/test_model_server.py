"""The scripted model answers in its four dialects, streamed and whole."""

from __future__ import annotations

import json
from typing import Any

import aiohttp
import pytest

from tests.modelserver.model_server import ModelServer, Script


async def post(url: str, body: Any) -> tuple[int, Any]:
    """The answer: a document, or the list of a stream's events."""
    async with aiohttp.ClientSession() as http, http.post(url, json=body, headers={"x-api-key": "k"}) as reply:
        if reply.content_type == "application/json":
            return reply.status, await reply.json()
        lines = (await reply.text()).splitlines()
        events = [line[5:].strip() for line in lines if line.startswith("data:")]
        return reply.status, [json.loads(event) for event in events if event != "[DONE]"]


WRITE = {"properties": {"file_path": {"type": "string"}, "content": {"type": "string"}}}
RUN = {"properties": {"command": {"type": "string"}, "quiet": {"type": "boolean"}}, "required": ["command", "quiet"]}
TOOLS = [{"name": "Write", "input_schema": WRITE}, {"name": "Bash", "input_schema": RUN}]
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
    assert json.loads(moves[1]) == {"command": "ls", "quiet": False}
    assert moves[2] == "done"


@pytest.mark.parametrize("stream", [True, False])
async def test_chat_completions_write_run_and_answer(stream: bool) -> None:
    tools = [
        {"type": "function", "function": {"name": name, "parameters": schema}}
        for name, schema in (("write_file", WRITE), ("run_shell_command", RUN))
    ]
    messages: list[dict[str, Any]] = [{"role": "user", "content": "in the directory: /w\nCreate it"}]
    moves = []
    async with ModelServer(Script(path="a.txt", content="x", command="ls", answer="done")) as server:
        for _ in range(3):
            body = {"messages": messages, "tools": tools, "stream": stream, "model": "m"}
            _, reply = await post(f"{server.url}/write/v1/chat/completions", body)
            choices = [chunk["choices"][0] for chunk in reply if chunk["choices"]] if stream else reply["choices"]
            deltas = [choice.get("delta") or choice.get("message") or {} for choice in choices]
            calls = [call["function"] for delta in deltas for call in delta.get("tool_calls") or ()]
            moves.append(calls[0] if calls else "".join(delta.get("content") or "" for delta in deltas))
            assert choices[-1]["finish_reason"] == ("tool_calls" if calls else "stop")
            assert (reply[-1] if stream else reply)["usage"]["total_tokens"] == 120
            messages += [{"role": "assistant"}, {"role": "tool", "content": "ok"}]
    assert [move["name"] for move in moves[:2]] == ["write_file", "run_shell_command"]
    assert json.loads(moves[0]["arguments"]) == {"file_path": "/w/a.txt", "content": "x"}
    assert moves[2] == "done"


@pytest.mark.parametrize("verb", ["generateContent", "streamGenerateContent"])
async def test_generate_content_writes_runs_and_answers(verb: str) -> None:
    tools = [{"functionDeclarations": [{"name": "write_file", "parametersJsonSchema": WRITE}]}]
    contents: list[dict[str, Any]] = [{"role": "user", "parts": [{"text": "Create it"}]}]
    result = {"role": "user", "parts": [{"functionResponse": {"name": "write_file"}}]}
    async with ModelServer(Script(path="a.txt", content="x")) as server:
        url = f"{server.url}/write/v1beta/models/m-1:{verb}?alt=sse"
        _, reply = await post(url, {"contents": contents, "tools": tools})
        last = _listed(reply)[-1]
        (part,) = last["candidates"][0]["content"]["parts"]
        assert part["functionCall"] == {"name": "write_file", "args": {"file_path": "a.txt", "content": "x"}}
        assert last["usageMetadata"]["totalTokenCount"] == 120
        _, reply = await post(url, {"contents": [*contents, result, result], "tools": tools})
        parts = [answer["candidates"][0]["content"]["parts"][0] for answer in _listed(reply)]
        assert "".join(part["text"] for part in parts) == server.script.answer
        schema = {
            "properties": {"next_speaker": {"enum": ["model", "user"]}, "why": {"type": "string"}},
            "required": ["why"],
        }
        _, reply = await post(url, {"contents": contents, "generationConfig": {"responseJsonSchema": schema}})
        text = "".join(answer["candidates"][0]["content"]["parts"][0]["text"] for answer in _listed(reply))
        assert json.loads(text) == {"next_speaker": "user", "why": "as asked"}


def _listed(reply: Any) -> list[Any]:
    return reply if isinstance(reply, list) else [reply]


async def test_without_tools_a_file_is_answered_as_text() -> None:
    body = {"messages": [{"role": "system", "content": "answer with a *file listing*"}], "model": "m"}
    async with ModelServer() as server:
        _, reply = await post(f"{server.url}/write/v1/chat/completions", body)
        assert reply["choices"][0]["message"]["content"].startswith("hello.txt\n```\nhello from the model\n```")
        body["messages"][0]["content"] = "a title"
        assert "hello" not in str(await post(f"{server.url}/write/v1/chat/completions", body))


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
        assert (await post(f"{server.url}/ratealways/v1/chat/completions", body))[0] == 429
        status, reply = await post(f"{server.url}/ratealways/v1beta/models/m:generateContent", body)
        assert (status, reply["error"]["status"]) == (429, "RESOURCE_EXHAUSTED")
        assert (await post(f"{server.url}/text/v1/messages/count_tokens", body))[1] == {"input_tokens": 100}
        assert (await post(f"{server.url}/text/v1/other", body))[0] == 404
        assert [recorded.scenario for recorded in server.requests[:3]] == ["rate", "rate", "ratealways"]
