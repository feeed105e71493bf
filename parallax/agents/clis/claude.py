"""Claude Code: over the Agent Client Protocol by `claude-agent-acp`, or headless by `claude -p` with stream-json.

Both read the same configuration from the agent's own CLAUDE_CONFIG_DIR. Settings of the repository (.claude/settings)
are not loaded: they can hold hooks and a base URL, and the repository is not trusted; CLAUDE.md is, by asking for it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import orjson

from parallax.agents.clients.acp_shapes import OUTPUT_SHOWN, bounded, dollars, listed, mapping
from parallax.agents.clis.base import TOOL_MS, TOOLS_VARIABLE, Dialect, launch_spec, model_end
from parallax.models import Json, LaunchSpec, Progress, Task, TaskResult, Usage
from parallax.ports import TOOLS_NAME, AgentSession, Quirks
from parallax.redaction import Secret

CONFIG_DIR: Final = ".claude"
CREDENTIALS: Final = ".credentials.json"
MCP_CONFIG: Final = f"{CONFIG_DIR}/parallax-mcp.json"
GUIDE: Final = "If the working directory has a CLAUDE.md or AGENTS.md, read it before you start and follow it."
EDITS: Final = ("Edit", "MultiEdit", "Write", "NotebookEdit")
# preset -> (mode, allowed, denied). What is neither is asked over ACP and denied in headless runs.
PRESETS: Final[Mapping[str, tuple[str, tuple[str, ...], tuple[str, ...]]]] = {
    "readonly": ("default", (), EDITS),
    "standard": ("acceptEdits", (), ()),
    "permissive": ("acceptEdits", ("Bash", "WebFetch", "WebSearch"), ()),
    "autonomous": ("bypassPermissions", (), ()),
}


def login_files() -> Mapping[str, Path]:
    """The login of the user's terminal."""
    return {f"{CONFIG_DIR}/{CREDENTIALS}": Path.home() / CONFIG_DIR / CREDENTIALS}


def settings(session: AgentSession) -> Mapping[str, str]:
    """The settings file of the agent's own configuration directory."""
    mode, allow, deny = PRESETS[session.preset]
    document = {
        "permissions": {"defaultMode": mode, "allow": [*allow, f"mcp__{TOOLS_NAME}"], "deny": list(deny)},
        "disableAllHooks": True,
        "includeCoAuthoredBy": False,
        "cleanupPeriodDays": 30,
    }
    return {f"{CONFIG_DIR}/settings.json": json.dumps(document, indent=2)}


def environment(session: AgentSession) -> tuple[dict[str, str], dict[str, Secret]]:
    """Environment and secrets: own configuration, nothing phoned home, no updates, the gateway as the only model."""
    env = {
        "CLAUDE_CONFIG_DIR": str(session.home / CONFIG_DIR),
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "DISABLE_AUTOUPDATER": "1",
        "DISABLE_TELEMETRY": "1",
        "DISABLE_ERROR_REPORTING": "1",
        "CLAUDE_CODE_MAX_RETRIES": "3",  # of 10: minutes of silent retries; parking and retrying is Parallax's
        "MCP_TOOL_TIMEOUT": str(TOOL_MS),
        "ENABLE_TOOL_SEARCH": "false",  # the team tools are in sight: a model that must search for them does not ask
    }
    if session.model:
        env["ANTHROPIC_MODEL"] = session.model
    if session.preset == "autonomous":
        env["IS_SANDBOX"] = "1"  # root may bypass permissions only so; placement gives this preset only in a sandbox
    secrets = {}
    if end := model_end(session, "anthropic"):
        env["ANTHROPIC_BASE_URL"] = end.url
        secrets["ANTHROPIC_API_KEY"] = end.token
    return env, secrets


class Claude(Dialect):
    """Through the adapter. `executable` is the user's own `claude`; without it the adapter uses the one it brings."""

    type = "claude"
    quirks = Quirks(resume="resume")

    def __init__(self, executable: str | None = None) -> None:
        self.executable = executable

    def launch(self, session: AgentSession, program: str) -> LaunchSpec:
        """`program` is the adapter."""
        env, secrets = environment(session)
        if self.executable is None:
            return launch_spec(session, program, env=env, secrets=secrets)
        env["CLAUDE_CODE_EXECUTABLE"] = self.executable
        return launch_spec(session, program, env=env, secrets=secrets, readable=(Path(self.executable),))

    def files(self, session: AgentSession) -> Mapping[str, str]:
        """Permissions by preset."""
        return settings(session)

    def login_files(self) -> Mapping[str, Path]:
        """The login of the user's terminal."""
        return login_files()

    def meta(self, session: AgentSession) -> Mapping[str, object]:
        """Only the agent's own settings count, and no MCP server but those that Parallax names."""
        del session
        options = {"settingSources": ["user"], "strictMcpConfig": True}
        return {"claudeCode": {"options": options}, "systemPrompt": {"append": GUIDE}}


class ClaudeHeadless(Dialect):
    """One process a turn: `claude -p` with the prompt on standard input."""

    type = "claude"
    quirks = Quirks(protocol="stream_json", resume="resume")

    def launch(self, session: AgentSession, program: str) -> LaunchSpec:
        """`program` is claude."""
        env, secrets = environment(session)
        argv = [program, "-p", "--output-format", "stream-json", "--verbose"]
        argv += ["--permission-mode", PRESETS[session.preset][0], "--setting-sources", "user", "--strict-mcp-config"]
        argv += ["--append-system-prompt", GUIDE]
        if session.model:
            argv += ["--model", session.model]
        if session.tools is not None:
            argv += ["--mcp-config", str(session.home / MCP_CONFIG)]
            secrets[TOOLS_VARIABLE] = session.tools.token
        if session.cli_session:
            argv += ["--resume", session.cli_session]
        return launch_spec(session, *argv, env=env, secrets=secrets)

    def files(self, session: AgentSession) -> Mapping[str, str]:
        """Permissions by preset, and the team tools."""
        if session.tools is None:
            return settings(session)
        headers = {"Authorization": f"Bearer ${{{TOOLS_VARIABLE}}}"}
        servers = {TOOLS_NAME: {"type": "http", "url": session.tools.url, "headers": headers}}
        return {**settings(session), MCP_CONFIG: json.dumps({"mcpServers": servers})}

    def login_files(self) -> Mapping[str, Path]:
        """The login of the user's terminal."""
        return login_files()

    def prompt(self, task: Task) -> tuple[tuple[str, ...], bytes]:
        """The text goes to standard input: it may be longer than an argument can be."""
        return (), task.text.encode()

    def read(self, line: bytes) -> Progress | TaskResult | None:
        """One line of stream-json."""
        event = _loads(line)
        match event.get("type"):
            case "system" if event.get("subtype") == "init":
                return Progress(kind="session", text=str(event.get("session_id", "")), data=event.get("model"))
            case "system" if event.get("subtype") == "api_retry":
                text = f"retries after {event.get('error_status')} {event.get('error')}"
                return Progress(kind="thought", text=text, data={"retry": event.get("attempt")})
            case "assistant":
                return _assistant(mapping(event.get("message")).get("content"))
            case "user":
                return _tool_result(mapping(event.get("message")).get("content"))
            case "result":
                return _result(event)
        return None


def _loads(line: bytes) -> dict[str, Any]:
    try:
        event = orjson.loads(line)
    except orjson.JSONDecodeError:
        return {}
    return event if isinstance(event, dict) else {}


def _blocks(content: Any, kind: str) -> list[dict[str, Any]]:
    return [block for block in listed(content) if isinstance(block, dict) and block.get("type") == kind]


def _assistant(content: Any) -> Progress | None:
    if text := "\n".join(str(block.get("text", "")) for block in _blocks(content, "text")):
        return Progress(kind="output", text=text)
    if tools := _blocks(content, "tool_use"):
        data = {"id": tools[0].get("id"), "status": "in_progress", "input": bounded(tools[0].get("input"))}
        return Progress(kind="tool", text=str(tools[0].get("name", "")), data=data)
    if thoughts := _blocks(content, "thinking"):
        return Progress(kind="thought", text=str(thoughts[0].get("thinking", "")))
    return None


def _tool_result(content: Any) -> Progress | None:
    if not (results := _blocks(content, "tool_result")):
        return None
    result = results[0]
    output = result.get("content")
    if isinstance(output, list):
        output = "\n".join(str(block.get("text", "")) for block in _blocks(output, "text"))
    status = "failed" if result.get("is_error") else "completed"
    data = {"id": result.get("tool_use_id"), "status": status, "output": str(output or "")[-OUTPUT_SHOWN:]}
    return Progress(kind="tool", data=data)


def _result(event: dict[str, Any]) -> TaskResult:
    """The last line. `success` may be an error, and a run whose tools were refused calls itself one, too."""
    subtype, errors = str(event.get("subtype", "")), listed(event.get("errors"))
    message = str(event.get("result") or "")
    if subtype == "error_max_turns":
        stop = "max_turn_requests"
    elif subtype == "error_max_budget_usd":
        stop = "budget_exhausted"
    elif event.get("is_error") or subtype != "success":
        stop = "error"
        status = event.get("api_error_status")
        message = message or "; ".join(map(str, errors)) or subtype
        message = f"{status}: {message}" if status else message
    else:
        stop = "end_turn"
    usage = mapping(event.get("usage"))
    cost = dollars(event.get("total_cost_usd"))
    return TaskResult(
        task_id="",
        attempt=0,
        agent_id="",
        value=None,
        message=message,
        stop=stop,
        session_ref=str(event["session_id"]) if event.get("session_id") else None,
        usage=Usage(
            input_tokens=_count(usage.get("input_tokens")),
            output_tokens=_count(usage.get("output_tokens")),
            cached_tokens=_count(usage.get("cache_read_input_tokens")),
            cost=cost or 0,
            priced="estimated" if cost is None else "reported",
        ),
        denied=tuple(_denial(denial) for denial in listed(event.get("permission_denials")) if isinstance(denial, dict)),
    )


def _denial(denial: Mapping[str, Json]) -> str:
    inputs = mapping(denial.get("tool_input"))
    detail = next((str(inputs[key]) for key in ("command", "file_path", "url") if key in inputs), "")
    return f"{denial.get('tool_name')}: {detail}" if detail else str(denial.get("tool_name"))


def _count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else 0
