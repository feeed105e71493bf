"""Codex: over the Agent Client Protocol by `codex-acp`, or headless by `codex exec --json`.

Both read config.toml from the agent's own CODEX_HOME. It must not lie under /tmp: Codex then does not install its
sandbox helper, every command fails, and the turn still ends as if all were well.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import orjson

from parallax.agents.clients.acp_shapes import OUTPUT_SHOWN, listed, mapping
from parallax.agents.clis.base import TOOLS_VARIABLE, Dialect, launch_spec, model_end
from parallax.models import LaunchSpec, Progress, Task, TaskResult, Usage
from parallax.ports import TOOL_S, TOOLS_NAME, AgentSession, Quirks, ToolsDoor
from parallax.redaction import Secret

CONFIG_DIR: Final = ".codex"
# preset -> (mode of the adapter, sandbox of exec, may commands use the network)
PRESETS: Final[Mapping[str, tuple[str, str, bool]]] = {
    "readonly": ("read-only", "read-only", False),
    "standard": ("agent", "workspace-write", False),
    "permissive": ("agent", "workspace-write", True),
    "autonomous": ("agent-full-access", "danger-full-access", True),
}


def login_files() -> Mapping[str, Path]:
    """The login of the user's terminal."""
    return {f"{CONFIG_DIR}/auth.json": Path.home() / CONFIG_DIR / "auth.json"}


def config(session: AgentSession, tools: ToolsDoor | None = None) -> Mapping[str, str]:
    """config.toml. A JSON string is a TOML string, so `json.dumps` quotes."""
    _, sandbox, network = PRESETS[session.preset]
    end = model_end(session, "openai")
    lines = ["check_for_update_on_startup = false"]
    if session.model:
        lines.append(f"model = {json.dumps(session.model)}")
    if end is not None:
        lines.append('model_provider = "parallax"')
    lines += [f"sandbox_mode = {json.dumps(sandbox)}", "", "[analytics]", "enabled = false"]
    lines += ["", "[sandbox_workspace_write]", f"network_access = {json.dumps(network)}"]
    if end is not None:
        lines += [
            "",
            "[model_providers.parallax]",
            'name = "Parallax"',
            f"base_url = {json.dumps(end.url)}",
            'env_key = "OPENAI_API_KEY"',
            'wire_api = "responses"',
            "request_max_retries = 2",  # they multiply: 30 requests by default; retrying is Parallax's
            "stream_max_retries = 2",
        ]
    if tools is not None:
        lines += ["", f"[mcp_servers.{TOOLS_NAME}]", f"url = {json.dumps(tools.url)}"]
        lines += [f"bearer_token_env_var = {json.dumps(TOOLS_VARIABLE)}", f"tool_timeout_sec = {TOOL_S:.0f}"]
    return {f"{CONFIG_DIR}/config.toml": "\n".join(lines) + "\n"}


def environment(session: AgentSession) -> tuple[dict[str, str], dict[str, Secret]]:
    """Environment and secrets."""
    end = model_end(session, "openai")
    env = {"CODEX_HOME": str(session.home / CONFIG_DIR), "NO_BROWSER": "1"}
    return env, {} if end is None else {"OPENAI_API_KEY": end.token}


class Codex(Dialect):
    """Through the adapter. `executable` is the user's own `codex`; without it the adapter uses the one it brings."""

    type = "codex"
    quirks = Quirks(resume="resume", end_turn_hides_limit=True)

    def __init__(self, executable: str | None = None) -> None:
        self.executable = executable

    def launch(self, session: AgentSession, program: str) -> LaunchSpec:
        """`program` is the adapter."""
        env, secrets = environment(session)
        env["INITIAL_AGENT_MODE"] = PRESETS[session.preset][0]
        if model_end(session, "openai") is not None:
            env["MODEL_PROVIDER"] = "parallax"
        if self.executable is None:
            return launch_spec(session, program, env=env, secrets=secrets)
        env["CODEX_PATH"] = self.executable
        return launch_spec(session, program, env=env, secrets=secrets, readable=(Path(self.executable),))

    def files(self, session: AgentSession) -> Mapping[str, str]:
        """The model's provider and the sandbox by preset."""
        return config(session)

    def login_files(self) -> Mapping[str, Path]:
        """The login of the user's terminal."""
        return login_files()


class CodexHeadless(Dialect):
    """One process a turn: `codex exec --json` with the prompt on standard input."""

    type = "codex"
    quirks = Quirks(protocol="stream_json", resume="resume")

    def launch(self, session: AgentSession, program: str) -> LaunchSpec:
        """`program` is codex."""
        env, secrets = environment(session)
        argv = [program, "exec", "--json", "--skip-git-repo-check"]
        if session.preset == "autonomous":
            argv.append("--dangerously-bypass-approvals-and-sandbox")
        else:
            argv += ["--sandbox", PRESETS[session.preset][1]]
        if session.cli_session:
            argv += ["resume", session.cli_session]
        if session.tools is not None:
            secrets[TOOLS_VARIABLE] = session.tools.token
        return launch_spec(session, *argv, env=env, secrets=secrets)

    def files(self, session: AgentSession) -> Mapping[str, str]:
        """The model's provider, the sandbox by preset, and the team tools."""
        return config(session, session.tools)

    def login_files(self) -> Mapping[str, Path]:
        """The login of the user's terminal."""
        return login_files()

    def prompt(self, task: Task) -> tuple[tuple[str, ...], bytes]:
        """`-` takes the text from standard input: it may be longer than an argument can be."""
        return ("-",), task.text.encode()

    def read(self, line: bytes) -> Progress | TaskResult | None:
        """One line of `exec --json`."""
        try:
            event = orjson.loads(line)
        except orjson.JSONDecodeError:
            return None
        if not isinstance(event, dict):
            return None
        match event.get("type"):
            case "thread.started":
                return Progress(kind="session", text=str(event.get("thread_id", "")))
            case "item.started" | "item.updated" | "item.completed":
                item = event.get("item")
                return _item(item, event["type"] == "item.completed") if isinstance(item, dict) else None
            case "turn.completed":
                return _ended("end_turn", "", event.get("usage"))
            case "turn.failed":
                error = event.get("error")
                return _ended("error", str(error.get("message") if isinstance(error, dict) else error), None)
            case "error":  # a retry, or what `turn.failed` says in a moment
                return Progress(kind="thought", text=str(event.get("message", "")), data={"error": True})
        return None


def _item(item: dict[str, Any], done: bool) -> Progress | None:
    text = str(item.get("text") or "")
    match item.get("type"):
        case "agent_message":
            return Progress(kind="output", text=text, data={"message": item.get("id")}) if done else None
        case "reasoning":
            return Progress(kind="thought", text=text) if done else None
        case "command_execution":
            data = {"id": item.get("id"), "status": item.get("status"), "kind": "execute"}
            if isinstance(item.get("exit_code"), int):
                data["exit_code"] = item["exit_code"]
            if output := str(item.get("aggregated_output") or ""):
                data["output"] = output[-OUTPUT_SHOWN:]
            return Progress(kind="tool", text=str(item.get("command", "")), data=data)
        case "file_change":
            changes = [change for change in listed(item.get("changes")) if isinstance(change, dict)]
            files = [str(change.get("path")) for change in changes]
            data = {"id": item.get("id"), "status": item.get("status"), "kind": "edit", "files": files}
            return Progress(kind="tool", text=f"Edit {', '.join(files)}", data=data)
        case "todo_list":
            return Progress(kind="plan", data=item.get("items"))
        case "mcp_tool_call" | "web_search" | "collab_tool_call":
            data = {"id": item.get("id"), "status": item.get("status")}
            return Progress(kind="tool", text=str(item.get("tool") or item.get("query") or item["type"]), data=data)
        case "error":
            return Progress(kind="thought", text=str(item.get("message", "")), data={"error": True})
    return None


def _ended(stop: str, message: str, usage: Any) -> TaskResult:
    """No message of its own at a normal end: the client knows the last one."""
    counts = {key: value for key, value in mapping(usage).items() if isinstance(value, int) and value >= 0}
    cached = counts.get("cached_input_tokens", 0)
    return TaskResult(
        task_id="",
        attempt=0,
        agent_id="",
        value=None,
        message=message,
        stop=stop,
        usage=Usage(
            input_tokens=max(0, counts.get("input_tokens", 0) - cached),
            output_tokens=counts.get("output_tokens", 0),
            cached_tokens=cached,
        ),
    )
