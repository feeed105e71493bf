"""A scripted model on loopback: Anthropic Messages and OpenAI Responses, with streaming and tool calls.

Real CLIs run against it without an account. The base URL names the scenario: `http://127.0.0.1:PORT/write` (Anthropic),
`http://127.0.0.1:PORT/write/v1` (OpenAI). In `write` the model edits a file with the CLI's own tool, runs a command and
then says so; it decides by the request alone, so restarts and resumed sessions do not confuse it.

Run by hand: python tests/modelserver/model_server.py [PORT]
"""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

SCENARIOS = ("write", "text", "rate", "ratealways", "err500", "slow", "hang")
CWD = re.compile(r'(?:[Ww]orking directory: ?|<cwd>)(/[^\s<\\"]+)')
SHELLS = ("exec_command", "shell_command", "shell", "local_shell", "Bash")


@dataclass
class Script:
    """What the model does in `write`: one edit, one command, one answer."""

    path: str = "hello.txt"
    content: str = "hello from the model\n"
    command: str = "cat hello.txt"
    answer: str = "I wrote hello.txt.\n\nCONFIDENCE: 0.9"


@dataclass
class Recorded:
    """One request as it arrived."""

    scenario: str
    path: str
    key: str
    body: Any
    at: float = field(default_factory=time.time)


@dataclass
class Call:
    """A tool call of the model. `custom`: the tool takes free text."""

    name: str
    arguments: Any
    custom: bool = False


class ModelServer:
    """`async with ModelServer() as server: server.url`."""

    def __init__(self, script: Script | None = None, port: int = 0) -> None:
        self.script = script or Script()
        self.requests: list[Recorded] = []
        self._port = port
        self._limited = 0
        self._ids = itertools.count(1)
        self._runner: web.AppRunner | None = None
        self.url = ""

    async def __aenter__(self) -> ModelServer:
        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.router.add_post("/{scenario}/v1/messages", self._messages)
        app.router.add_post("/{scenario}/v1/messages/count_tokens", self._count)
        app.router.add_post("/{scenario}/v1/responses", self._responses)
        app.router.add_route("*", "/{scenario}/{tail:.*}", self._other)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self._port).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    def keys(self) -> set[str]:
        """Every key that arrived."""
        return {recorded.key for recorded in self.requests}

    async def _record(self, request: web.Request) -> tuple[str, Any]:
        raw = await request.read()
        body = json.loads(raw) if raw else None
        key = request.headers.get("x-api-key") or request.headers.get("Authorization", "").removeprefix("Bearer ")
        scenario = request.match_info["scenario"]
        self.requests.append(Recorded(scenario, request.path_qs, key, body))
        return scenario, body

    def _trouble(self, scenario: str, kind: str) -> web.Response | None:
        """The error of a scenario, if it is due."""
        if scenario == "err500":
            return _error(500, kind, "api_error", "Internal server error")
        self._limited += scenario == "rate"
        if scenario == "ratealways" or (scenario == "rate" and self._limited == 1):
            return _error(429, kind, "rate_limit_error", "Rate limit reached, try again later", {"retry-after": "1"})
        return None

    async def _other(self, request: web.Request) -> web.Response:
        await self._record(request)
        return web.json_response({"error": {"message": "not found"}}, status=404)

    async def _count(self, request: web.Request) -> web.Response:
        await self._record(request)
        return web.json_response({"input_tokens": 100})

    # --- Anthropic Messages -------------------------------------------------------------------------------------------

    async def _messages(self, request: web.Request) -> web.StreamResponse:
        scenario, body = await self._record(request)
        if trouble := self._trouble(scenario, "anthropic"):
            return trouble
        tools = {tool.get("name"): tool for tool in body.get("tools") or ()}
        move = self._move(scenario, tools, _anthropic_results(body["messages"]), json.dumps(body))
        if isinstance(move, str):
            block: dict[str, Any] = {"type": "text", "text": move}
        else:
            block = {"type": "tool_use", "id": f"toolu_{next(self._ids)}", "name": move.name, "input": move.arguments}
        message = {
            "id": f"msg_{next(self._ids)}",
            "type": "message",
            "role": "assistant",
            "model": body.get("model", "fake"),
            "content": [block],
            "stop_reason": "end_turn" if block["type"] == "text" else "tool_use",
            "stop_sequence": None,
            "usage": {"input_tokens": 100, "output_tokens": 20},
        }
        if not body.get("stream"):
            return web.json_response(message)
        return await _stream(request, _anthropic_events(message, block, scenario))

    def _move(self, scenario: str, tools: dict[Any, Any], results: int, text: str) -> str | Call:
        """What the model does next, by how many tool results it has seen since it was asked."""
        if scenario == "text" or not tools or results >= 2:
            return self.script.answer if tools else "Write a file"
        shell = next((name for name in SHELLS if name in tools), None)
        if "exec" in tools:  # Codex's code mode: one tool that runs JavaScript, the others are functions in it
            script = f"text(await tools.exec_command({json.dumps({'cmd': self.script.command})}))"
            if results == 0:
                script = f"text(await tools.apply_patch({json.dumps(self._patch())}))"
            return Call("exec", script, custom=True)
        found = CWD.search(text)
        path = f"{found[1]}/{self.script.path}" if found else self.script.path
        if results == 1 and shell:
            return Call(shell, _shell_arguments(tools[shell], self.script.command))
        if "Write" in tools:
            return Call("Write", {"file_path": path, "content": self.script.content})
        if tools.get("apply_patch", {}).get("type") == "custom":
            return Call("apply_patch", self._patch(), custom=True)
        assert shell, f"no tool to write with among {list(tools)}"
        return Call(shell, _shell_arguments(tools[shell], f"printf '{self.script.content}' > '{path}'"))

    def _patch(self) -> str:
        lines = "\n".join(f"+{line}" for line in self.script.content.splitlines())
        return f"*** Begin Patch\n*** Add File: {self.script.path}\n{lines}\n*** End Patch\n"

    # --- OpenAI Responses ---------------------------------------------------------------------------------------------

    async def _responses(self, request: web.Request) -> web.StreamResponse:
        scenario, body = await self._record(request)
        if trouble := self._trouble(scenario, "openai"):
            return trouble
        tools = _openai_tools(body)
        move = self._move(scenario, tools, _openai_results(body["input"]), json.dumps(body))
        number = next(self._ids)
        if isinstance(move, str):
            content = [{"type": "output_text", "text": move, "annotations": []}]
            item: dict[str, Any] = {"type": "message", "id": f"msg_{number}", "role": "assistant", "content": content}
        elif move.custom:
            item = {"type": "custom_tool_call", "call_id": f"call_{number}", "name": move.name, "input": move.arguments}
        else:
            arguments = json.dumps(move.arguments)
            item = {"type": "function_call", "call_id": f"call_{number}", "name": move.name, "arguments": arguments}
        response = {
            "id": f"resp_{number}",
            "object": "response",
            "status": "completed",
            "model": body.get("model", "fake"),
            "output": [item],
            "usage": {
                "input_tokens": 100,
                "input_tokens_details": {"cached_tokens": 10},
                "output_tokens": 20,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": 120,
            },
        }
        if not body.get("stream"):
            return web.json_response(response)
        return await _stream(request, _openai_events(response, item, scenario))


def _anthropic_results(messages: list[dict[str, Any]]) -> int:
    """Tool results since the last message of the user that holds none."""
    results = 0
    for message in messages:
        if message["role"] != "user":
            continue
        content = message["content"]
        blocks = content if isinstance(content, list) else []
        here = sum(block.get("type") == "tool_result" for block in blocks)
        results = results + here if here else 0
    return results


def _openai_tools(body: dict[str, Any]) -> dict[str, Any]:
    """The tools by name, wherever this version of Codex puts them: in the request, its input, or a namespace."""
    given = list(body.get("tools") or ())
    for item in body["input"]:
        given += item.get("tools") or () if item.get("type") == "additional_tools" else ()
    for tool in list(given):
        given += tool.get("tools") or ()
    return {tool.get("name") or tool.get("type"): tool for tool in given if tool.get("type") != "namespace"}


def _openai_results(items: list[dict[str, Any]]) -> int:
    results = 0
    for item in items:
        if item.get("role") == "user":
            results = 0
        elif item.get("type") in {"function_call_output", "custom_tool_call_output", "local_shell_call_output"}:
            results += 1
    return results


def _shell_arguments(tool: dict[str, Any], command: str) -> dict[str, Any]:
    schema = tool.get("parameters") or tool.get("input_schema") or {}
    properties = schema.get("properties", {})
    if "cmd" in properties:
        return {"cmd": command}
    if properties.get("command", {}).get("type") == "array":
        return {"command": ["bash", "-lc", command]}
    return {"command": command, **({"description": "Run a command"} if "description" in properties else {})}


def _error(status: int, kind: str, type_: str, message: str, headers: dict[str, str] | None = None) -> web.Response:
    error = {"type": type_, "message": message}
    body = {"type": "error", "error": error} if kind == "anthropic" else {"error": {**error, "code": type_}}
    return web.json_response(body, status=status, headers=headers)


Events = AsyncIterator[dict[str, Any]]


async def _anthropic_events(message: dict[str, Any], block: dict[str, Any], scenario: str) -> Events:
    start = {**message, "content": [], "stop_reason": None, "usage": {"input_tokens": 100, "output_tokens": 1}}
    yield {"type": "message_start", "message": start}
    if block["type"] == "text":
        yield {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
        deltas = [{"type": "text_delta", "text": piece} for piece in _pieces(block["text"])]
    else:
        yield {"type": "content_block_start", "index": 0, "content_block": {**block, "input": {}}}
        pieces = _pieces(json.dumps(block["input"]))
        deltas = [{"type": "input_json_delta", "partial_json": piece} for piece in pieces]
    for delta in deltas:
        await _pace(scenario)
        yield {"type": "content_block_delta", "index": 0, "delta": delta}
    yield {"type": "content_block_stop", "index": 0}
    stop = {"stop_reason": message["stop_reason"], "stop_sequence": None}
    yield {"type": "message_delta", "delta": stop, "usage": {"output_tokens": 20}}
    yield {"type": "message_stop"}


async def _openai_events(response: dict[str, Any], item: dict[str, Any], scenario: str) -> Events:
    yield {"type": "response.created", "response": {**response, "status": "in_progress", "output": []}}
    if item["type"] == "message":
        yield {"type": "response.output_item.added", "output_index": 0, "item": {**item, "content": []}}
        for piece in _pieces(item["content"][0]["text"]):
            await _pace(scenario)
            delta = {"item_id": item["id"], "output_index": 0, "content_index": 0, "delta": piece}
            yield {"type": "response.output_text.delta", **delta}
    else:
        await _pace(scenario)
    yield {"type": "response.output_item.done", "output_index": 0, "item": item}
    yield {"type": "response.completed", "response": response}


async def _pace(scenario: str) -> None:
    if scenario == "slow":
        await asyncio.sleep(0.3)
    elif scenario == "hang":
        await asyncio.sleep(3600)


def _pieces(text: str) -> list[str]:
    return [text[at : at + 12] for at in range(0, len(text), 12)]


async def _stream(request: web.Request, events: Events) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
    await response.prepare(request)
    async for event in events:
        await response.write(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode())
    await response.write_eof()
    return response


async def _main(port: int) -> None:
    async with ModelServer(port=port) as server:
        print(f"{server.url}/<{'|'.join(SCENARIOS)}>", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_main(int(sys.argv[1]) if len(sys.argv) > 1 else 0))
