"""Any agent that speaks ACP, by configuration alone: a type, a command, and the variables that point it at a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from parallax.agents.clis.base import Dialect, launch_spec, model_end
from parallax.models import LaunchSpec
from parallax.ports import AgentSession, Quirks


@dataclass(frozen=True, slots=True, kw_only=True)
class AcpCommand(Dialect):
    """One entry of PARALLAX_LOCAL_AGENTS that has a command.

    `argv` follows the program. In the values of `env`, `{home}`, `{model}` and `{url}` are filled in: the agent's home,
    the model that was asked for, the base URL of `provider` at the gateway. A variable with a `{model}` or a `{url}`
    that is not there is left out. `key` names the variable for the session's token. `resume` is none, load or resume.
    """

    type: str
    argv: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    provider: str = "openai"
    key: str | None = None
    quirks: Quirks = field(default_factory=Quirks)

    def launch(self, session: AgentSession, program: str) -> LaunchSpec:
        """The command with the agent's own environment."""
        end = model_end(session, self.provider)
        known = {"home": str(session.home), "model": session.model, "url": end.url if end else None}
        fill = {name: value for name, value in known.items() if value is not None}
        lacking = ["{" + name + "}" for name in known.keys() - fill.keys()]
        env = {
            name: _filled(value, fill)
            for name, value in self.env.items()
            if not any(place in value for place in lacking)
        }
        secrets = {self.key: end.token} if end is not None and self.key else None
        return launch_spec(session, program, *self.argv, env=env, secrets=secrets)


def _filled(text: str, fill: Mapping[str, str]) -> str:
    """Only the three places: any other brace stays as it is."""
    for name, value in fill.items():
        text = text.replace("{" + name + "}", value)
    return text
