"""What the CLI modules share: an environment in which nothing of the server's is inherited, and the door to a model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

from parallax.models import LaunchSpec
from parallax.ports import TOOL_S, AgentSession, Quirks
from parallax.redaction import Secret

PRESETS: Final = ("readonly", "standard", "permissive", "autonomous")
TOOLS_VARIABLE: Final = "PARALLAX_TOOLS_TOKEN"
TOOL_MS: Final = round(TOOL_S * 1000)
# Where a provider's own dialect begins below its door.
PATHS: Final[Mapping[str, str]] = {"anthropic": "", "openai": "/v1", "gemini": ""}


class ModelEnd(NamedTuple):
    """The model that a CLI is pointed at: whose dialect, which base URL, and the token that opens it."""

    provider: str
    url: str
    token: Secret


def model_end(session: AgentSession, *providers: str) -> ModelEnd | None:
    """The first of these providers that the session's door opens; None means a login of the CLI's own."""
    door = session.model_door
    provider = next((name for name in providers if door is not None and name in door.providers), None)
    if door is None or provider is None:
        return None
    return ModelEnd(provider, f"{door.url}/model/{provider}{PATHS[provider]}", door.token)


def launch_spec(
    session: AgentSession,
    *argv: str,
    env: Mapping[str, str],
    secrets: Mapping[str, Secret] | None = None,
    readable: tuple[Path, ...] = (),
) -> LaunchSpec:
    """The program with its arguments in the agent's tree and home."""
    return LaunchSpec(
        argv=argv,
        cwd=session.tree,
        env=base_env(session, **env),
        secrets=secrets or {},
        home=session.home,
        readable=readable,
        labels={"agent": session.agent_id},
    )


def base_env(session: AgentSession, **more: str) -> dict[str, str]:
    """PATH and a locale, the agent's own home in place of the user's, then `more`, then what the session names."""
    home = str(session.home)
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": home,
        "XDG_CONFIG_HOME": f"{home}/.config",
        "XDG_CACHE_HOME": f"{home}/.cache",
        "XDG_DATA_HOME": f"{home}/.local/share",
        "XDG_STATE_HOME": f"{home}/.local/state",
        "LANG": "C.UTF-8",
        "TERM": "dumb",
        "NO_COLOR": "1",
        "PARALLAX_ROLE": session.role,
        **more,
        **(session.env or {}),
    }


class Dialect:
    """What a CLI has unless its module says otherwise: no peculiarities and no configuration files."""

    quirks = Quirks()

    def files(self, session: AgentSession) -> Mapping[str, str]:
        """No configuration of its own."""
        del session
        return {}
