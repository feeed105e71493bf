"""Which agent types there are, and what of them this machine has. Used by `app` to start agents, and by `doctor`."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from parallax.agents.clients.common import HasLogin
from parallax.agents.clis.aider import Aider
from parallax.agents.clis.claude import Claude, ClaudeHeadless
from parallax.agents.clis.codex import Codex, CodexHeadless
from parallax.agents.clis.copilot import Copilot
from parallax.agents.clis.gemini import Gemini
from parallax.agents.clis.generic import AcpCommand
from parallax.agents.clis.opencode import OpenCode
from parallax.agents.clis.qwen import Qwen
from parallax.agents.clis.scripted import ScriptedCLI
from parallax.config import LocalAgent, Settings
from parallax.errors import AgentUnavailable, ConfigurationError
from parallax.ports import AgentCLI, HeadlessCLI, Quirks

Which = Callable[[str], str | None]

HTTP: Final = "http"  # the type that means any registered agent with the role's capabilities
KEYS: Final = {"anthropic": "ANTHROPIC_API_KEY", "openai": "OPENAI_API_KEY", "gemini": "GEMINI_API_KEY"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A CLI of this machine: its dialect and the program to start."""

    type: str
    cli: AgentCLI
    program: str
    version: str | None = None

    @property
    def client(self) -> str:
        """How it is spoken to: acp or headless."""
        return "headless" if isinstance(self.cli, HeadlessCLI) else "acp"


@dataclass(frozen=True, slots=True, kw_only=True)
class Registered:
    """An agent that an operator registered: it runs by itself and is asked over HTTP."""

    type: str
    endpoint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Readiness:
    """What `doctor` says of an agent type. `account` is key, login or None; `how` says where it comes from."""

    type: str
    found: bool
    program: str | None = None
    version: str | None = None
    adapter: str | None = None
    account: str | None = None
    how: str = ""
    ready: bool = False
    problem: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Known:
    """A type: its own program and what speaks to it alone; its ACP adapter, if that is another, and what speaks then.

    `providers` are those whose models it can be pointed at through the gateway; below `least` it is too old.
    """

    name: str
    program: str
    install: str
    least: str
    alone: AgentCLI
    providers: tuple[str, ...]
    adapter: str | None = None
    adapted: Callable[[str | None], AgentCLI] | None = None

    @property
    def keys(self) -> tuple[str, ...]:
        """The variables in which its key is looked for."""
        return tuple(KEYS[provider] for provider in self.providers)


_KNOWN: Final[Mapping[str, _Known]] = {
    "claude": _Known(
        name="Claude Code",
        program="claude",
        install="npm install -g @anthropic-ai/claude-code @agentclientprotocol/claude-agent-acp",
        least="2.0",
        alone=ClaudeHeadless(),
        providers=("anthropic",),
        adapter="claude-agent-acp",
        adapted=Claude,
    ),
    "codex": _Known(
        name="Codex",
        program="codex",
        install="npm install -g @openai/codex @agentclientprotocol/codex-acp",
        least="0.100",
        alone=CodexHeadless(),
        providers=("openai",),
        adapter="codex-acp",
        adapted=Codex,
    ),
    "gemini": _Known(
        name="Gemini CLI",
        program="gemini",
        install="npm install -g @google/gemini-cli",
        least="0.30",
        alone=Gemini(),
        providers=("gemini",),
    ),
    "opencode": _Known(
        name="OpenCode",
        program="opencode",
        install="npm install -g opencode-ai",
        least="1.0",
        alone=OpenCode(),
        providers=("anthropic", "openai", "gemini"),
    ),
    "qwen": _Known(
        name="Qwen Code",
        program="qwen",
        install="npm install -g @qwen-code/qwen-code",
        least="0.10",
        alone=Qwen(),
        providers=("openai",),
    ),
    "copilot": _Known(
        name="Copilot CLI",
        program="copilot",
        install="npm install -g @github/copilot",
        least="1.0",
        alone=Copilot(),
        providers=("anthropic", "openai"),
    ),
    "aider": _Known(
        name="Aider",
        program="aider",
        install="pipx install aider-chat",
        least="0.80",
        alone=Aider(),
        providers=("anthropic", "openai"),
    ),
}


class Catalogue:
    """The agent types of one installation.

    `environ` is where keys are looked up: whoever has read settings from a file as well passes both. `script` and
    `ledger` are the scripted agent's, `local` what PARALLAX_LOCAL_AGENTS names.
    """

    def __init__(
        self,
        *,
        which: Which = shutil.which,
        environ: Mapping[str, str] = os.environ,
        script: Path | None = None,
        ledger: Path | None = None,
        local: Sequence[LocalAgent] = (),
    ) -> None:
        self._which = which
        self._environ = environ
        self._script = script
        self._ledger = ledger
        self._local = {agent.id: agent for agent in local}
        if taken := {"scripted", HTTP, *_KNOWN} & self._local.keys():
            raise ConfigurationError(
                f"PARALLAX_LOCAL_AGENTS: '{min(taken)}' is a type of Parallax's own; give the agent another id"
            )

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """What an installation's settings say."""
        return cls(
            environ=settings.provider_environment(),
            script=settings.agent_script,
            ledger=settings.scripted_ledger,
            local=settings.local_agents,
        )

    def types(self) -> tuple[str, ...]:
        """Every type that can be named in a pattern or with `--agent`."""
        registered = any(agent.endpoint for agent in self._local.values())
        return ("scripted", *_KNOWN, *self._local, *((HTTP,) if registered else ()))

    def providers(self, type_: str) -> tuple[str, ...]:
        """The providers whose doors a type uses, the preferred one first."""
        if (agent := self._local.get(type_)) is not None:
            return (agent.provider,) if agent.command else ()
        return _KNOWN[type_].providers if type_ in _KNOWN else ()

    # -- finding -------------------------------------------------------------------------------------------------------

    def find(self, type_: str, capabilities: Sequence[str] = ()) -> Found | Registered:
        """What stands for a type here. Raises AgentUnavailable with a sentence that says what to do.

        `capabilities` choose among registered agents where the type is `http`.
        """
        if type_ == HTTP or (type_ in self._local and self._local[type_].endpoint):
            return self._registered(type_, frozenset(capabilities))
        return self._program(type_)

    def _registered(self, type_: str, capabilities: frozenset[str]) -> Registered:
        among = self._local.values() if type_ == HTTP else (self._local[type_],)
        for agent in among:
            if agent.endpoint and (type_ != HTTP or capabilities <= set(agent.capabilities)):
                return Registered(type=type_, endpoint=agent.endpoint)
        what = f"with the capabilities {', '.join(sorted(capabilities))} " if capabilities else ""
        raise AgentUnavailable(f"No agent {what}is registered: name one with its endpoint in PARALLAX_LOCAL_AGENTS")

    def _program(self, type_: str) -> Found:
        if type_ == "scripted":
            if self._script is None:
                raise AgentUnavailable("Agents of type 'scripted' need a script: set PARALLAX_AGENT_SCRIPT to its file")
            return Found(type="scripted", cli=ScriptedCLI(self._script, self._ledger), program=sys.executable)
        if (agent := self._local.get(type_)) is not None:
            return self._command(agent)
        if (known := _KNOWN.get(type_)) is None:
            raise AgentUnavailable(f"There is no agent type '{type_}'; known types: {', '.join(self.types())}")
        own = self._which(known.program)
        adapter = self._which(known.adapter) if known.adapter else None
        version = version_of(own or adapter)
        if own is not None and older(version, known.least):
            raise AgentUnavailable(
                f"{known.name} {version} ({own}) is too old, {known.least} or newer is needed: {known.install}"
            )
        if adapter is not None and known.adapted is not None:
            return Found(type=type_, cli=known.adapted(own), program=adapter, version=version)
        if own is None:
            raise AgentUnavailable(f"{known.name} is not installed (no '{known.program}' on PATH): {known.install}")
        return Found(type=type_, cli=known.alone, program=own, version=version)

    def _command(self, agent: LocalAgent) -> Found:
        own = self._which(agent.command[0])
        if own is None:
            raise AgentUnavailable(
                f"The agent '{agent.id}' of PARALLAX_LOCAL_AGENTS cannot be started: there is no '{agent.command[0]}'"
            )
        cli = AcpCommand(
            type=agent.id,
            argv=agent.command[1:],
            env=agent.env,
            provider=agent.provider,
            key=agent.key,
            quirks=Quirks(resume=agent.resume, auth=agent.auth),
        )
        return Found(type=agent.id, cli=cli, program=own, version=version_of(own))

    # -- what a person is told -----------------------------------------------------------------------------------------

    def probe(self, type_: str) -> Readiness:
        """Whether an agent type can be used here, with which account, and if not, why."""
        try:
            found = self.find(type_)
        except AgentUnavailable as error:
            return Readiness(type=type_, found=False, problem=error.message)
        if isinstance(found, Registered):
            return Readiness(type=type_, found=True, ready=True, how=f"registered at {found.endpoint}")
        known = _KNOWN.get(type_)
        account, how = self._account(known) if known is not None else (None, "needs no account of ours")
        ready = known is None or account is not None
        return Readiness(
            type=type_,
            found=True,
            program=found.program,
            version=found.version,
            adapter=found.program if known is not None and known.adapter and found.client == "acp" else None,
            account=account,
            how=how,
            ready=ready,
            problem=None if ready or known is None else _no_account(known),
        )

    def _account(self, known: _Known) -> tuple[str | None, str]:
        for variable in known.keys:
            if self._environ.get(variable):
                return "key", f"{variable} in the environment; the gateway adds it, agents never hold it"
        for source in _logins(known):
            if source.is_file():
                return "login", f"{source}, copied into the agent's private home"
        return None, ""


def _logins(known: _Known) -> tuple[Path, ...]:
    return tuple(known.alone.login_files().values()) if isinstance(known.alone, HasLogin) else ()


def _no_account(known: _Known) -> str:
    ways = [f"set {variable}" for variable in known.keys]
    if _logins(known):
        ways.append(f"log in once with '{known.program}'")
    return f"{known.name} has no account here: {' or '.join(ways)}"


def older(version: str | None, least: str) -> bool:
    """Whether a version is below another; one that cannot be read is given the benefit of the doubt."""
    numbers = [[int(number) for number in re.findall(r"\d+", text)[:3]] for text in (version or "", least)]
    return bool(numbers[0]) and numbers[0] < numbers[1]


def version_of(program: str | None) -> str | None:
    """The version by looking, not by starting: of its own npm or Python package, or in the path it links to."""
    if program is None:
        return None
    path = Path(program).resolve()
    above = [parent.name for parent in path.parents]
    own = above.index("node_modules") if "node_modules" in above else 0  # a package.json elsewhere is another's
    for parent in path.parents[:own]:
        try:
            package = json.loads((parent / "package.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(package, dict) and isinstance(package.get("version"), str):
            return str(package["version"])
    packages = f"lib/python3*/site-packages/{path.name}*-[0-9]*.dist-info"
    for info in path.parents[1].glob(packages) if len(path.parents) > 1 else ():
        return info.name.removesuffix(".dist-info").rpartition("-")[2]
    match = re.search(r"(\d+\.\d+\.\d+)", str(path))
    return match[1] if match else None
