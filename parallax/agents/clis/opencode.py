"""OpenCode, which speaks the Agent Client Protocol itself.

Its whole configuration is given in its environment, above every file; that of the repository is not read, nor are
plugins. Quirks: it needs a model by name, in its own manner `provider/model`, and it starts slowly the first time.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from parallax.agents.clis.base import TOOL_MS, Dialect, launch_spec, model_end
from parallax.models import LaunchSpec
from parallax.ports import TOOLS_NAME, AgentSession, Quirks

LOGIN: Final = ".local/share/opencode/auth.json"
KEY_VARIABLE: Final = "PARALLAX_MODEL_TOKEN"  # the variable that its configuration names
# preset -> what it may do: edit, bash, webfetch
PRESETS: Final[Mapping[str, tuple[str, str, str]]] = {
    "readonly": ("deny", "ask", "ask"),
    "standard": ("allow", "ask", "ask"),
    "permissive": ("allow", "allow", "allow"),
    "autonomous": ("allow", "allow", "allow"),
}
# The door's provider -> the package that speaks its dialect, and the model where nobody named one.
PROVIDERS: Final[Mapping[str, tuple[str, str]]] = {
    "anthropic": ("@ai-sdk/anthropic", "claude-sonnet-4-5"),
    "openai": ("@ai-sdk/openai-compatible", "gpt-5"),
    "gemini": ("@ai-sdk/google", "gemini-2.5-pro"),
}
BELOW: Final = {"anthropic": "/v1", "openai": "", "gemini": "/v1beta"}  # what these packages want in the base URL


class OpenCode(Dialect):
    """`opencode acp`."""

    type = "opencode"
    quirks = Quirks(resume="load")

    def launch(self, session: AgentSession, program: str) -> LaunchSpec:
        """The configuration holds no token: it names the variable that does."""
        env = {
            "OPENCODE_CONFIG_CONTENT": json.dumps(_config(session)),
            "OPENCODE_DISABLE_PROJECT_CONFIG": "1",
            "OPENCODE_PURE": "1",
            "OPENCODE_DISABLE_AUTOUPDATE": "1",
            "OPENCODE_DISABLE_MODELS_FETCH": "1",
            "OPENCODE_DISABLE_LSP_DOWNLOAD": "1",
            "OPENCODE_DISABLE_DEFAULT_PLUGINS": "1",
            "OPENCODE_DISABLE_SHARE": "1",
            "OPENCODE_DISABLE_CLAUDE_CODE_SKILLS": "1",
        }
        end = model_end(session, *PROVIDERS)
        return launch_spec(session, program, "acp", env=env, secrets={KEY_VARIABLE: end.token} if end else None)

    def login_files(self) -> Mapping[str, Path]:
        """The login of the user's terminal."""
        return {LOGIN: Path.home() / LOGIN}


def _config(session: AgentSession) -> dict[str, object]:
    edit, bash, webfetch = PRESETS[session.preset]
    config: dict[str, object] = {
        "autoupdate": False,
        "share": "disabled",
        "permission": {"edit": edit, "bash": bash, "webfetch": webfetch, f"{TOOLS_NAME}*": "allow"},
        "experimental": {"mcp_timeout": TOOL_MS},
    }
    end = model_end(session, *PROVIDERS)
    if end is None:
        return config | ({"model": session.model} if session.model else {})
    package, default = PROVIDERS[end.provider]
    model = session.model or default
    options = {"baseURL": end.url + BELOW[end.provider], "apiKey": f"{{env:{KEY_VARIABLE}}}"}
    provider = {"npm": package, "name": "Parallax", "options": options, "models": {model: {"name": model}}}
    named = f"parallax/{model}"
    return config | {"provider": {"parallax": provider}, "model": named, "small_model": named}
