"""A scripted model on loopback: Anthropic Messages, OpenAI Responses, Chat Completions, Gemini generateContent.

Real CLIs run against it without an account. The base URL names the scenario: `http://127.0.0.1:PORT/write` (Anthropic,
Gemini), `http://127.0.0.1:PORT/write/v1` (OpenAI). In `write` the model edits a file with the CLI's own tool, runs a
command and then says so; it decides by the request alone, so restarts and resumed sessions do not confuse it.

Run by hand: python tests/modelserver/model_server.py [PORT]
"""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import sys
import time
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from tests.modelserver.dialects import Anthropic, Call, Chat, Dialect, Gemini, Responses, Tool, filled

# permission: like `write`, with a command that no CLI takes for harmless.
# tool: it calls the team tool `post_note` and says so; report: it reports its result by the team tool.
SCENARIOS = ("write", "text", "permission", "tool", "report", "rate", "ratealways", "err500", "slow", "hang")
CWD = re.compile(r'(?:[Ww]orking directory: ?|<cwd>|in the directory: ?)(/[^\s<\\"`]+)')
SHELLS = ("exec_command", "shell_command", "shell", "local_shell", "Bash", "bash", "run_shell_command")
WRITERS = ("Write", "write_file", "write", "create")
ASKED = "python3 -c 'print(1)'"


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


class ModelServer:
    """`async with ModelServer() as server: server.url`."""

    def __init__(self, script: Script | None = None, port: int = 0) -> None:
        self.script = script or Script()
        self.requests: list[Recorded] = []
        self.scenario: str | None = None  # in place of the one in the URL: a test goes on with another
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
        app.router.add_post("/{scenario}/v1/chat/completions", self._chat)
        app.router.add_post(r"/{scenario}/v1beta/models/{model}:{verb}", self._gemini)
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

    # --- the doors ----------------------------------------------------------------------------------------------------

    async def _messages(self, request: web.Request) -> web.StreamResponse:
        body = await self._record(request)
        return await self._answer(request, body, Anthropic(), bool(body.get("stream")), str(body.get("model")))

    async def _responses(self, request: web.Request) -> web.StreamResponse:
        body = await self._record(request)
        return await self._answer(request, body, Responses(), bool(body.get("stream")), str(body.get("model")))

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await self._record(request)
        return await self._answer(request, body, Chat(), bool(body.get("stream")), str(body.get("model")))

    async def _gemini(self, request: web.Request) -> web.StreamResponse:
        body = await self._record(request)
        verb, model = request.match_info["verb"], request.match_info["model"]
        if verb == "countTokens":
            return web.json_response({"totalTokens": 100})
        return await self._answer(request, body, Gemini(), verb == "streamGenerateContent", model)

    async def _count(self, request: web.Request) -> web.Response:
        await self._record(request)
        return web.json_response({"input_tokens": 100})

    async def _other(self, request: web.Request) -> web.Response:
        await self._record(request)
        return web.json_response({"error": {"message": "not found"}}, status=404)

    async def _record(self, request: web.Request) -> Any:
        raw = await request.read()
        body = json.loads(raw) if raw else None
        headers = request.headers
        key = headers.get("x-api-key") or headers.get("x-goog-api-key") or headers.get("Authorization", "")
        scenario = request.match_info["scenario"]
        self.requests.append(Recorded(scenario, request.path_qs, key.removeprefix("Bearer "), body))
        return body

    # --- the model ----------------------------------------------------------------------------------------------------

    async def _answer(
        self, request: web.Request, body: Any, dialect: Dialect, stream: bool, model: str
    ) -> web.StreamResponse:
        scenario = self.scenario or request.match_info["scenario"]
        if trouble := self._trouble(scenario, dialect):
            return trouble
        call = self._move(scenario, dialect.tools(body), dialect.results(body), json.dumps(body), body)
        whole = dialect.whole(call, next(self._ids), model)
        if not stream:
            return web.json_response(whole)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
        await response.prepare(request)
        for count, (name, data) in enumerate(dialect.stream(whole)):
            if count:
                await _pace(scenario)
            event = f"event: {name}\n" if name else ""
            text = data if isinstance(data, str) else json.dumps(data)
            await response.write(f"{event}data: {text}\n\n".encode())
        await response.write_eof()
        return response

    def _trouble(self, scenario: str, dialect: Dialect) -> web.Response | None:
        """The error of a scenario, if it is due."""
        if scenario == "err500":
            return web.json_response(dialect.error(500, "api_error", "Internal server error"), status=500)
        self._limited += scenario == "rate"
        if scenario == "ratealways" or (scenario == "rate" and self._limited == 1):
            body = dialect.error(429, "rate_limit_error", "Rate limit reached, try again later")
            return web.json_response(body, status=429, headers={"retry-after": "1"})
        return None

    def _move(self, scenario: str, tools: dict[str, Tool], results: int, text: str, body: Any) -> Call:
        """What the model does next, by how many tool results it has seen since it was asked."""
        if not tools:
            return Call(self._without_tools(scenario, text, body))
        if scenario == "report":
            return Call(self.script.answer) if "It is taken down" in text or results > 60 else self._report(tools)
        if scenario == "text" or results >= 2:
            return Call(self.script.answer)
        if scenario == "tool":
            return self._note(tools, results)
        shell = next((name for name in SHELLS if name in tools), None)
        command = ASKED if scenario == "permission" else self.script.command
        if "exec" in tools:  # Codex's code mode: one tool that runs JavaScript, the others are functions in it
            script = f"text(await tools.exec_command({json.dumps({'cmd': command})}))"
            if results == 0:
                script = f"text(await tools.apply_patch({json.dumps(self._patch())}))"
            return Call(script, "exec", custom=True)
        if results == 1 and shell:
            return _shell_call(shell, tools[shell], command)
        found = CWD.search(text)
        path = f"{found[1]}/{self.script.path}" if found else self.script.path
        if writer := next((name for name in WRITERS if name in tools), None):
            given = {"file_path": path, "filePath": path, "path": path}
            given |= {"content": self.script.content, "file_text": self.script.content}
            return Call(filled(tools[writer].schema, given), writer)
        if "apply_patch" in tools and tools["apply_patch"].custom:
            return Call(self._patch(), "apply_patch", custom=True)
        assert shell, f"no tool to write with among {list(tools)}"
        return _shell_call(shell, tools[shell], f"printf '{self.script.content}' > '{path}'")

    def _note(self, tools: dict[str, Tool], results: int) -> Call:
        """Call the team tool, wherever this CLI keeps it: in sight, behind a search, or inside its JavaScript."""
        noted = next((name for name in tools if name.endswith("post_note")), None)
        search = next((name for name in ("ToolSearch", "tool_search") if name in tools), None)
        if results >= 2 or (results and not search):
            return Call(self.script.answer)
        if noted:
            return Call({}, noted)
        if search and not results:
            return Call(filled(tools[search].schema, {"query": "select:mcp__parallax__post_note"}), search)
        if "exec" in tools:
            return Call("text(JSON.stringify(await tools.mcp__parallax__post_note({})))", "exec", custom=True)
        return Call("There is no such tool.")

    def _report(self, tools: dict[str, Tool]) -> Call:
        """The result by the team tool, whatever the CLI calls it and as soon as it has it."""
        given = {"result": "reported by tool", "confidence": 0.8}
        if named := next((name for name in tools if name.endswith("report_result")), None):
            return Call(given, named)
        assert "exec" in tools, f"no tool to report with among {list(tools)}"
        named = "tools.mcp__parallax__report_result"
        wait = "new Promise(done => setTimeout(() => done('not yet'), 300))"
        return Call(f"text(await ({named} ? {named}({json.dumps(given)}) : {wait}))", "exec", custom=True)

    def _without_tools(self, scenario: str, text: str, body: Any) -> str:
        """Whoever has no tools asks for a title, for a document by a schema, or (Aider) for whole files as text."""
        if schema := ((body.get("generationConfig") or {}).get("responseJsonSchema")):
            return json.dumps(filled(schema, {"next_speaker": "user"}))
        if "file listing" in text and scenario != "text":
            return f"{self.script.path}\n```\n{self.script.content}```\n\n{self.script.answer}"
        if "SEARCH/REPLACE" in text and scenario != "text":
            block = f"<<<<<<< SEARCH\n=======\n{self.script.content}>>>>>>> REPLACE"
            return f"{self.script.path}\n```\n{block}\n```\n\n{self.script.answer}"
        return self.script.answer if "file listing" in text or "SEARCH/REPLACE" in text else "Write a file"

    def _patch(self) -> str:
        lines = "\n".join(f"+{line}" for line in self.script.content.splitlines())
        return f"*** Begin Patch\n*** Add File: {self.script.path}\n{lines}\n*** End Patch\n"


def _shell_call(name: str, tool: Tool, command: str) -> Call:
    kind = (tool.schema.get("properties") or {}).get("command", {}).get("type")
    line = ["bash", "-lc", command] if kind == "array" else command
    given = {"cmd": command, "command": line, "description": "Run a command"}
    return Call(filled(tool.schema, given) or {"command": line}, name)


async def _pace(scenario: str) -> None:
    if scenario == "slow":
        await asyncio.sleep(0.3)
    elif scenario == "hang":
        await asyncio.sleep(3600)


async def _main(port: int) -> None:
    async with ModelServer(port=port) as server:
        print(f"{server.url}/<{'|'.join(SCENARIOS)}>", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_main(int(sys.argv[1]) if len(sys.argv) > 1 else 0))
