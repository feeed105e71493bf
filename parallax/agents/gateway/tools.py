"""The team tools' door: MCP over streamable HTTP, for whoever holds the token of a session.

`Gateway` hands every authenticated request on `/mcp` to `ToolsEndpoint.handle`, with the agent that the token stands
for. The package `mcp` speaks the protocol in all its versions; it brings an ASGI application, which is called here
from aiohttp. No session is kept between requests, so nothing of a door outlives its token.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeAlias

from aiohttp import web

from parallax.ports import TeamTools

GONE_S: Final = 0.25  # how often a waiting call looks whether its caller is still there
UNSET: Final = frozenset({"connection", "transfer-encoding"})  # aiohttp's own

Message: TypeAlias = dict[str, Any]
AsgiApp: TypeAlias = Callable[[Message, Any, Any], Coroutine[Any, Any, None]]


class ToolsEndpoint:
    """Answers MCP requests with the tools it is given."""

    def __init__(self, tools: TeamTools) -> None:
        self._tools = tools
        self._loading = asyncio.Lock()
        self._loaded: Callable[[str], AsgiApp] | None = None

    async def handle(self, agent_id: str, request: web.BaseRequest) -> web.StreamResponse:
        """One request of one agent. There is no stream of the server's own, and no session to delete."""
        if request.method != "POST":
            return web.Response(status=405, headers={"Allow": "POST"})
        application = await self._application()
        bridge = _Bridge(request)
        await application(agent_id)(bridge.scope, bridge.receive, bridge.send)
        return await bridge.ended()

    async def _application(self) -> Callable[[str], AsgiApp]:
        async with self._loading:  # the protocol package takes half a second to load: once, and off the loop
            if self._loaded is None:
                self._loaded = await asyncio.to_thread(_load, self._tools)
            return self._loaded


def _load(tools: TeamTools) -> Callable[[str], AsgiApp]:
    from parallax.agents.gateway.mcp_server import application

    return application(tools)


class _Bridge:
    """One aiohttp request as an ASGI application sees it."""

    def __init__(self, request: web.BaseRequest) -> None:
        self._request = request
        self._response: web.StreamResponse | None = None
        self.scope: Message = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": request.method,
            "scheme": "http",
            "path": request.path,
            "raw_path": request.raw_path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(name.lower(), value) for name, value in request.raw_headers],
            "client": None,
            "server": None,
        }

    async def receive(self) -> Message:
        """The body piece by piece; after its end, that the caller has gone, as soon as it has."""
        body = self._request.content
        if not body.at_eof():
            chunk = await body.readany()
            return {"type": "http.request", "body": chunk, "more_body": not body.at_eof()}
        while not self._gone:  # noqa: ASYNC110 - aiohttp has no event for it
            await asyncio.sleep(GONE_S)
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """Pass the answer on; nobody may be there to take it any more."""
        if self._gone:
            return
        try:
            if message["type"] == "http.response.start":
                self._response = web.StreamResponse(status=message["status"])
                for name, value in message["headers"]:
                    if name.decode().lower() not in UNSET:
                        self._response.headers[name.decode()] = value.decode("latin-1")
                await self._response.prepare(self._request)
            elif self._response is not None and (body := message.get("body", b"")):
                await self._response.write(body)
        except ConnectionResetError:
            return

    @property
    def _gone(self) -> bool:
        transport = self._request.transport
        return transport is None or transport.is_closing()

    async def ended(self) -> web.StreamResponse:
        """The whole answer."""
        if self._response is None:
            return web.Response(status=499)  # it went before there was one
        if not self._gone:
            await self._response.write_eof()
        return self._response
