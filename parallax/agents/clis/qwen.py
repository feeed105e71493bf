"""Qwen Code, a relative of Gemini CLI that speaks to any API of OpenAI's kind.

Its settings stand in a system settings file of the agent's own, above the repository's. Quirks: it
retries in silence for more than a minute, it does not leave at the end of its input, and it says that it can resume a
session, where only loading one works.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from parallax.agents.clis.base import Dialect, launch_spec, model_end
from parallax.agents.clis.gemini import tool_servers, tools_secret
from parallax.models import LaunchSpec
from parallax.ports import TOOLS_NAME, AgentSession, Quirks

CONFIG_DIR: Final = ".qwen"
SETTINGS: Final = f"{CONFIG_DIR}/parallax.json"
EDITS: Final = ("write_file", "edit")
FREE: Final = ("run_shell_command", "web_fetch", "web_search")
# preset -> (approval mode, tools that need no approval, tools that are denied)
PRESETS: Final[Mapping[str, tuple[str, tuple[str, ...], tuple[str, ...]]]] = {
    "readonly": ("default", (), EDITS),
    "standard": ("auto-edit", (), ()),
    "permissive": ("auto-edit", FREE, ()),
    "autonomous": ("yolo", (), ()),
}
LOGIN: Final = "oauth_creds.json"
DEFAULT_MODEL: Final = "qwen3-coder-plus"  # it asks for a name; what the provider offers cannot be known


class Qwen(Dialect):
    """`qwen --acp`."""

    type = "qwen"
    quirks = Quirks(resume="load", exits_on_eof=False, own_tools=True)

    def launch(self, session: AgentSession, program: str) -> LaunchSpec:
        """No extensions, and no MCP server but the team tools."""
        end = model_end(session, "openai")
        argv = [program, "--acp", "--approval-mode", PRESETS[session.preset][0], "--extensions", "none"]
        argv += ["--allowed-mcp-server-names", TOOLS_NAME, "--auth-type", "openai" if end else "qwen-oauth"]
        if session.model:
            argv += ["--model", session.model]
        env = {
            "QWEN_CODE_SYSTEM_SETTINGS_PATH": str(session.home / SETTINGS),
            "QWEN_CODE_NO_RELAUNCH": "true",
        }
        if end is not None:
            env |= {"OPENAI_BASE_URL": end.url, "OPENAI_MODEL": session.model or DEFAULT_MODEL}
        secrets = {"OPENAI_API_KEY": end.token} if end else {}
        return launch_spec(session, *argv, env=env, secrets={**secrets, **tools_secret(session)})

    def files(self, session: AgentSession) -> Mapping[str, str]:
        """The settings of the highest rank."""
        _, allowed, denied = PRESETS[session.preset]
        document = {
            "security": {"auth": {"selectedType": "openai" if model_end(session, "openai") else "qwen-oauth"}},
            "general": {"enableAutoUpdate": False, "disableAutoUpdate": True},
            "privacy": {"usageStatisticsEnabled": False},
            "telemetry": {"enabled": False},
            "disableAllHooks": True,
            "mcpServers": tool_servers(session),
            "permissions": {"allow": list(allowed), "deny": list(denied)},
            "model": {"generationConfig": {"maxRetries": 1}},
        }
        return {SETTINGS: json.dumps(document, indent=2)}

    def login_files(self) -> Mapping[str, Path]:
        """The login of the user's terminal."""
        return {f"{CONFIG_DIR}/{LOGIN}": Path.home() / CONFIG_DIR / LOGIN}
