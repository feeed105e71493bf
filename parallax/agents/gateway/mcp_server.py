"""The team tools in the Model Context Protocol. Imported at the first call alone: the package is slow to load.

Every request is served by itself (stateless): which agent asks is known by its token, so there is nothing that a
protocol session would add. Answers stream, since a call of `ask` may wait for hours and a silent connection would be
given up by the caller's HTTP client.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from mcp.server.lowlevel import Server
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp_types import CallToolRequestParams, CallToolResult, ListToolsResult, TextContent, Tool, ToolAnnotations

from parallax._version import __version__
from parallax.agents.gateway.tools import AsgiApp
from parallax.ports import TOOLS_NAME, TeamTools

MAX_BODY: Final = 1024 * 1024
SHOWN: Final = {"anthropic/alwaysLoad": True}  # Claude Code else hides tools until the model searches for them
INSTRUCTIONS: Final = (
    "You work in a team that Parallax coordinates. Ask when something is unclear instead of guessing: the answer comes "
    "from your lead or from a person. When you are done, call report_result once: it counts more than your last words."
)


def application(tools: TeamTools) -> Callable[[str], AsgiApp]:
    """For an agent's id, the ASGI application that serves one request of that agent."""
    listed = [
        Tool(
            name=spec.name, description=spec.description, input_schema=dict(spec.schema),
            annotations=ToolAnnotations(read_only_hint=spec.reads, destructive_hint=False, open_world_hint=False),
            _meta=SHOWN,
        )
        for spec in tools.specs
    ]  # fmt: skip

    def serving(agent_id: str) -> AsgiApp:
        async def on_list(_context: Any, _params: Any) -> ListToolsResult:
            return ListToolsResult(tools=listed)

        async def on_call(_context: Any, params: CallToolRequestParams) -> CallToolResult:
            answer = await tools.call(agent_id, params.name, params.arguments or {})
            return CallToolResult(
                content=[TextContent(type="text", text=answer.text)],
                structured_content=answer.value,
                is_error=answer.failed,
            )

        server: Server[Any] = Server(
            TOOLS_NAME, version=__version__, instructions=INSTRUCTIONS, on_list_tools=on_list, on_call_tool=on_call
        )

        async def serve(scope: Any, receive: Any, send: Any) -> None:
            manager = StreamableHTTPSessionManager(server, stateless=True, max_request_body_size=MAX_BODY)
            async with manager.run():  # its tasks end with the request
                await manager.handle_request(scope, receive, send)

        return serve

    return serving
