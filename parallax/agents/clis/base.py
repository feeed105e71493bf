"""What the CLI modules share: the environment that every agent gets. Nothing of the server's own is inherited."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

from parallax.models import Progress, Task, TaskResult
from parallax.ports import AgentSession, Quirks

PRESETS: Final = ("readonly", "standard", "permissive", "autonomous")


def base_env(session: AgentSession, **more: str) -> dict[str, str]:
    """PATH and a locale, the agent's own home in place of the user's, then `more`, then what the session names."""
    home = str(session.home)
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": home,
        "XDG_CONFIG_HOME": f"{home}/.config",
        "XDG_CACHE_HOME": f"{home}/.cache",
        "XDG_DATA_HOME": f"{home}/.local/share",
        "LANG": "C.UTF-8",
        "TERM": "dumb",
        "NO_COLOR": "1",
        "PARALLAX_ROLE": session.role,
        **more,
        **(session.env or {}),
    }


class AcpDialect:
    """The half of the AgentCLI port that a CLI with the Agent Client Protocol never needs: it has no lines to read."""

    quirks = Quirks()

    def files(self, session: AgentSession) -> Mapping[str, str]:
        """No configuration of its own."""
        del session
        return {}

    def prompt(self, task: Task) -> tuple[tuple[str, ...], bytes]:
        """A prompt goes over the protocol."""
        raise NotImplementedError("this CLI is spoken to over the Agent Client Protocol")

    def read(self, line: bytes) -> Progress | TaskResult | None:
        """Output comes over the protocol."""
        raise NotImplementedError("this CLI is spoken to over the Agent Client Protocol")
