"""GitHub Copilot CLI, which speaks the Agent Client Protocol itself.

With a door it uses the server's model and never speaks to GitHub; without, the login of the user's terminal. Quirks: a
rate limit comes as chat text inside a normal end of turn, it does not leave at the end of its input, and it strikes its
API key out wherever the letters occur (our tokens are long enough).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from parallax.agents.clis.base import Dialect, launch_spec, model_end
from parallax.models import LaunchSpec
from parallax.ports import TOOLS_NAME, AgentSession, Quirks

CONFIG_DIR: Final = ".copilot"
LOGIN: Final = "config.json"
# preset -> arguments. What they leave open is asked.
PRESETS: Final[Mapping[str, tuple[str, ...]]] = {
    "readonly": ("--deny-tool=write",),
    "standard": ("--allow-tool=write",),
    "permissive": ("--allow-tool=write", "--allow-tool=shell", "--allow-all-urls"),
    "autonomous": ("--allow-all",),
}
# The door's provider -> the model where nobody named one.
PROVIDERS: Final[Mapping[str, str]] = {"anthropic": "claude-sonnet-4-5", "openai": "gpt-5"}


class Copilot(Dialect):
    """`copilot --acp`."""

    type = "copilot"
    quirks = Quirks(resume="load", end_turn_hides_limit=True, exits_on_eof=False)

    def launch(self, session: AgentSession, program: str) -> LaunchSpec:
        """No updates, no MCP servers of its own, nothing sent to GitHub about the session."""
        argv = [program, "--acp", *PRESETS[session.preset], f"--allow-tool={TOOLS_NAME}"]
        argv += ["--no-auto-update", "--disable-builtin-mcps", "--no-remote-export", "--disable-client-telemetry"]
        env = {"COPILOT_HOME": str(session.home / CONFIG_DIR), "COPILOT_AUTO_UPDATE": "false"}
        end = model_end(session, *PROVIDERS)
        if end is not None:
            model = session.model or PROVIDERS[end.provider]
            env |= {
                "COPILOT_OFFLINE": "true",
                "COPILOT_PROVIDER_BASE_URL": end.url,
                "COPILOT_PROVIDER_TYPE": end.provider,
                "COPILOT_PROVIDER_WIRE_API": "responses" if "gpt-5" in model else "completions",
                "COPILOT_MODEL": model,
            }
        elif session.model:
            env["COPILOT_MODEL"] = session.model
        secrets = {"COPILOT_PROVIDER_API_KEY": end.token} if end else None
        return launch_spec(session, *argv, env=env, secrets=secrets)

    def login_files(self) -> Mapping[str, Path]:
        """The login of the user's terminal, where it is kept in a file."""
        return {f"{CONFIG_DIR}/{LOGIN}": Path.home() / CONFIG_DIR / LOGIN}
