"""A provider that answers as its request says, an agent with a door, and a meter that remembers: for gateway tests."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from parallax.agents.clis.catalogue import Catalogue
from parallax.agents.gateway.providers import Account
from parallax.agents.gateway.service import Gateway, GatewaySettings
from parallax.errors import BudgetExhausted
from parallax.models import Usage
from parallax.ports import AgentSession, ModelCall, ModelDoor, Traffic
from parallax.redaction import Redactor, Secret
from tests.conftest import on_loopback

KEY = "sk-provider-key-0123456789"
USED = {"input_tokens": 7, "output_tokens": 1, "cache_read_input_tokens": 3}
EVENTS = (
    b'event: message_start\ndata: {"type":"message_start","message":{"usage":' + json.dumps(USED).encode() + b"}}\n\n",
    b'data: {"type":"message_delta","usage":{"output_tokens":9}}\n\ndata: {"usage": broken\n\n',
)
ANSWERS: dict[str, dict[str, Any]] = {
    "messages": {"type": "message", "usage": {"input_tokens": 5, "output_tokens": 2, "cache_read_input_tokens": 4}},
    "responses": {"usage": {"input_tokens": 9, "output_tokens": 2, "input_tokens_details": {"cached_tokens": 4}}},
    "completions": {
        "usage": {"prompt_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 4}}
    },
    "generateContent": {
        "candidates": [{"finishReason": "STOP"}],
        "usageMetadata": {
            "promptTokenCount": 9, "candidatesTokenCount": 1, "thoughtsTokenCount": 1, "cachedContentTokenCount": 4,
        },
    },
}  # fmt: skip
# Dialect -> where an agent's CLI asks, below the gateway's URL.
PATHS = {
    "messages": "/model/anthropic/v1/messages",
    "responses": "/model/openai/v1/responses",
    "completions": "/model/openai/v1/chat/completions",
    "generateContent": "/model/gemini/v1beta/models/gemini-2.5-pro:generateContent",
}


class Upstream:
    """Answers by the `mode` of the request's body, and remembers what came."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, dict[str, str], bytes]] = []
        self.go = asyncio.Event()
        self.gone = asyncio.Event()
        self.limited: dict[str, int] = {}  # key -> how many requests are still refused
        self.url = ""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.seen.append((request.method, request.raw_path, dict(request.headers), body))
        kind = request.path.replace(":", "/").rpartition("/")[2]
        asked = json.loads(body) if body else {}
        match asked.get("mode", ""):
            case "stream" | "hang":
                return await self._stream(request, hang=asked["mode"] == "hang")
            case "limited":
                return web.json_response({"error": 1}, status=429, headers={"retry-after": "30"})
            case "cut":
                response = web.StreamResponse(headers={"Content-Length": "1000", "Content-Type": "application/json"})
                await response.prepare(request)
                await response.write(b'{"half')
                assert request.transport
                request.transport.close()
                return response
            case "cut stream":
                response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
                await response.prepare(request)
                await response.write(EVENTS[0] + b"data: " + b"x" * 400 + b"\n\n")
                assert request.transport
                request.transport.abort()
                return response
            case "500 in pieces":
                response = web.StreamResponse(status=500)
                response.content_type, response.content_length = "application/json", asked["size"]
                await response.prepare(request)
                for at in range(0, asked["size"], 100_000):
                    await response.write(b"x" * min(100_000, asked["size"] - at))
                    await asyncio.sleep(0.01)
                return response
            case "redirect":
                return web.Response(status=302, headers={"Location": "http://127.0.0.1:1/"})
            case "500":
                return web.json_response({"error": {"message": "broken"}}, status=500)
            case "html":
                status = asked.get("status", 200)
                return web.Response(status=status, text="<html>sign in</html>", content_type="text/html")
            case "usage":
                return web.json_response({"type": "message", "text": "y" * 400, "usage": asked["usage"]})
            case "by key":
                key = request.headers["x-api-key"]
                if self.limited.get(key, 0) > 0:
                    self.limited[key] -= 1
                    return web.json_response({"error": 1}, status=429, headers={"retry-after": "30"})
        answer = ANSWERS.get(kind, {"echo": asked})
        return web.json_response(answer, headers={"X-Other": "kept", "Set-Cookie": "a=b"})

    async def _stream(self, request: web.Request, *, hang: bool) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(EVENTS[0])
        try:
            while hang:
                await asyncio.sleep(0.02)
                await response.write(b": ping\n\n")
        except ConnectionResetError:
            self.gone.set()
            return response
        await self.go.wait()
        await response.write(EVENTS[1])
        return response


@asynccontextmanager
async def upstream_on_loopback() -> AsyncIterator[Upstream]:
    upstream = Upstream()
    app = web.Application(client_max_size=1 << 30)
    app.router.add_route("*", "/{tail:.*}", upstream.handle)
    async with on_loopback(app) as upstream.url:
        yield upstream


class Remembering:
    """A meter that remembers, and refuses when told."""

    def __init__(self) -> None:
        self.reserved: list[ModelCall] = []
        self.settled: list[tuple[str, Usage, str, int | None]] = []
        self.empty = False

    async def reserve(self, call: ModelCall) -> str:
        if self.empty:
            raise BudgetExhausted("the budget of $1.00 is used up")
        self.reserved.append(call)
        return f"e1/step/{len(self.reserved)}"

    async def settle(self, call_id: str, used: Usage, *, account: str, status: int | None) -> None:
        self.settled.append((call_id, used, account, status))

    @property
    def last(self) -> Usage:
        """What the newest call used."""
        return self.settled[-1][1]


def all_providers(type_: str) -> tuple[str, ...]:
    """As the catalogue has it; type `all` speaks to all."""
    return ("anthropic", "openai", "gemini") if type_ == "all" else Catalogue().providers(type_)


def accounts_of(url: str) -> dict[str, list[Account]]:
    """One account at each provider."""
    return {
        "anthropic": [Account(base_url=f"{url}/base/", key=Secret(KEY))],
        "openai": [Account(base_url=f"{url}/v1", key=Secret(KEY))],
        "gemini": [Account(base_url=url, key=Secret(KEY))],
    }


@asynccontextmanager
async def started(accounts: dict[str, list[Account]], place: Path | None = None, **more: Any) -> AsyncIterator[Gateway]:
    """A gateway with these accounts. `settings` are further ones of its settings."""
    settings = GatewaySettings(
        accounts=accounts, sockets=None if place is None else place / "run", **more.pop("settings", {})
    )
    gateway = Gateway(settings, providers_of=all_providers, redactor=Redactor(), **more)
    await gateway.start()
    yield gateway
    await gateway.close()


def session_of(type_: str, agent_id: str = "a") -> AgentSession:
    """A session of a type."""
    return AgentSession(
        agent_id=agent_id, execution="e1", role="engineer", type=type_, home=Path("/nowhere"), tree=Path("/nowhere")
    )


class Agent:
    """An HTTP client with a session's door."""

    def __init__(self, gateway: Gateway, http: aiohttp.ClientSession) -> None:
        self.gateway = gateway
        self.http = http
        self.url = self.token = ""
        self.door: ModelDoor

    async def open(self, type_: str = "claude", agent_id: str = "a") -> Agent:
        self.door = door = await self.gateway.open_session(session_of(type_, agent_id))
        self.url, self.token, self.agent_id = door.url, door.token.reveal(), agent_id
        return self

    def ask(self, path: str = PATHS["messages"], **kwargs: Any) -> Any:
        """A request; `mode` and others make up its body unless `data` is given."""
        headers = {"x-api-key": self.token, **kwargs.pop("headers", {})}
        body = {"model": "claude-sonnet-4-5", "max_tokens": 100} | kwargs.pop("body", {})
        if "mode" in kwargs:
            body["mode"] = kwargs.pop("mode")
        data = kwargs.pop("data", json.dumps(body).encode())
        method = kwargs.pop("method", "POST")
        return self.http.request(method, f"{self.url}{path}", headers=headers, data=data, **kwargs)

    @property
    def traffic(self) -> Traffic:
        traffic = self.gateway.traffic(self.agent_id)
        assert traffic is not None
        return traffic


def dialect_of(body: Any) -> str:
    """Whose shape an error has."""
    if body.get("type") == "error":
        return "anthropic"
    return "gemini" if "status" in body["error"] else "openai"
