"""Gemini CLI, which speaks the Agent Client Protocol itself.

Its settings stand in the agent's own home, and what matters most is an argument, above the repository's settings,
which are not trusted. (A system settings file would outrank them, but is read only where root owns it.) Quirks: it
retries in silence for minutes (shortened here; what is left of it the gateway's traffic shows), it does not leave at
the end of its input, and it knows no earlier session after a restart.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from parallax.agents.clis.base import TOOL_MS, TOOLS_VARIABLE, Dialect, launch_spec, model_end
from parallax.models import LaunchSpec
from parallax.ports import TOOLS_NAME, AgentSession, Quirks
from parallax.redaction import Secret

CONFIG_DIR: Final = ".gemini"
SETTINGS: Final = f"{CONFIG_DIR}/settings.json"
EDITS: Final = ("write_file", "replace")
FREE: Final = ("run_shell_command", "web_fetch", "google_web_search")
# preset -> (approval mode, tools that need no approval, tools that are not there)
PRESETS: Final[Mapping[str, tuple[str, tuple[str, ...], tuple[str, ...]]]] = {
    "readonly": ("default", (), EDITS),
    "standard": ("auto_edit", (), ()),
    "permissive": ("auto_edit", FREE, ()),
    "autonomous": ("yolo", (), ()),
}
LOGIN: Final = ("oauth_creds.json", "google_accounts.json")


def tool_servers(session: AgentSession) -> dict[str, object]:
    """The team tools as settings name them: never asked about, and with patience, which the protocol cannot say."""
    if session.tools is None:
        return {}
    headers = {"Authorization": f"Bearer ${TOOLS_VARIABLE}"}
    return {TOOLS_NAME: {"httpUrl": session.tools.url, "headers": headers, "timeout": TOOL_MS, "trust": True}}


def tools_secret(session: AgentSession) -> dict[str, Secret]:
    """The token that the settings name."""
    return {} if session.tools is None else {TOOLS_VARIABLE: session.tools.token}


class Gemini(Dialect):
    """`gemini --acp`."""

    type = "gemini"
    quirks = Quirks(exits_on_eof=False, own_tools=True)

    def launch(self, session: AgentSession, program: str) -> LaunchSpec:
        """No extensions, and no MCP server but the team tools."""
        argv = [program, "--acp", "--approval-mode", PRESETS[session.preset][0], "--extensions", "none"]
        argv += ["--allowed-mcp-server-names", TOOLS_NAME]
        if session.model:
            argv += ["--model", session.model]
        env = {
            "GEMINI_CLI_TRUST_WORKSPACE": "true",  # else it refuses every mode but asking for all
            "GEMINI_CLI_NO_RELAUNCH": "true",  # one process instead of two
        }
        end = model_end(session, "gemini")
        if end is not None:
            env["GOOGLE_GEMINI_BASE_URL"] = end.url
        secrets = {"GEMINI_API_KEY": end.token} if end else {}
        return launch_spec(session, *argv, env=env, secrets={**secrets, **tools_secret(session)})

    def files(self, session: AgentSession) -> Mapping[str, str]:
        """Account, what needs no approval, the team tools; nothing phoned home, no updates, no hooks."""
        _, allowed, absent = PRESETS[session.preset]
        auth = "oauth-personal" if model_end(session, "gemini") is None else "gemini-api-key"
        document = {
            "security": {"auth": {"selectedType": auth}},
            "general": {"enableAutoUpdate": False, "enableAutoUpdateNotification": False, "maxAttempts": 3},
            "privacy": {"usageStatisticsEnabled": False},
            "telemetry": {"enabled": False},
            "hooksConfig": {"enabled": False},
            "tools": {"allowed": list(allowed), "exclude": list(absent)},
            "mcpServers": tool_servers(session),
        }
        return {SETTINGS: json.dumps(document, indent=2)}

    def login_files(self) -> Mapping[str, Path]:
        """The login of the user's terminal."""
        return {f"{CONFIG_DIR}/{name}": Path.home() / CONFIG_DIR / name for name in LOGIN}
