"""Any agent that speaks ACP, by configuration alone: a type, a command, and the variables that point it at a model."""

from __future__ import annotations

from collections.abc import Mapping

from parallax.agents.clis.base import AcpDialect, base_env
from parallax.models import LaunchSpec
from parallax.ports import AgentSession, Quirks


class AcpCommand(AcpDialect):
    """`argv` follows the program. In the values of `env`, `{home}` and `{model}` are filled in (`{model}` only with a
    model); those of `door_env` also have `{url}`, the gateway's; `key` names the variable for the session's token.
    """

    def __init__(
        self,
        type_: str,
        argv: tuple[str, ...] = (),
        *,
        env: Mapping[str, str] | None = None,
        door_env: Mapping[str, str] | None = None,
        key: str | None = None,
        files: Mapping[str, str] | None = None,
        quirks: Quirks | None = None,
    ) -> None:
        self.type = type_
        self.quirks = quirks or Quirks()
        self._argv = argv
        self._env = env or {}
        self._door_env = door_env or {}
        self._key = key
        self._files = files or {}

    def launch(self, session: AgentSession, program: str) -> LaunchSpec:
        """The command with the agent's own environment."""
        templates = {**self._env, **(self._door_env if session.model_door is not None else {})}
        fill = {
            "home": str(session.home),
            "model": session.model or "",
            "url": session.model_door.url if session.model_door else "",
        }
        env = {
            name: value.format_map(fill)
            for name, value in templates.items()
            if session.model is not None or "{model}" not in value
        }
        secrets = {self._key: session.model_door.token} if session.model_door is not None and self._key else {}
        return LaunchSpec(
            argv=(program, *self._argv),
            cwd=session.tree,
            env=base_env(session, **env),
            secrets=secrets,
            home=session.home,
            labels={"agent": session.agent_id},
        )

    def files(self, session: AgentSession) -> Mapping[str, str]:
        """Fixed files: that is all that configuration can say."""
        del session
        return self._files
