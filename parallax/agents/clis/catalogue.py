"""Which agent types there are, and what of them this machine has. Used by `app` to start agents, and by `doctor`."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from parallax.agents.clis.claude import Claude, ClaudeHeadless
from parallax.agents.clis.claude import login_files as claude_login
from parallax.agents.clis.codex import Codex, CodexHeadless
from parallax.agents.clis.codex import login_files as codex_login
from parallax.agents.clis.generic import AcpCommand
from parallax.agents.clis.scripted import ScriptedCLI
from parallax.errors import AgentUnavailable
from parallax.ports import AgentCLI, Quirks

Which = Callable[[str], str | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A CLI of this machine: its dialect, the program to start, and the client that speaks to it: acp or headless."""

    type: str
    cli: AgentCLI
    program: str
    client: str
    version: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Readiness:
    """What `doctor` says of an agent type. `account` is key, login or None; `how` says where it comes from."""

    type: str
    found: bool
    program: str | None
    version: str | None
    adapter: str | None
    account: str | None
    how: str
    ready: bool
    problem: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Known:
    """A type: its own program, its ACP adapter if that is another, what to install, the variables of its key."""

    name: str
    program: str
    install: str
    adapter: str | None = None
    keys: tuple[str, ...] = ()
    login: Callable[[], Mapping[str, Path]] = dict
    providers: tuple[str, ...] = ()  # whose models it can be pointed at through the gateway
    served: bool = (
        True  # whether Parallax can give it an account: the gateway speaks its dialect, or its login is known
    )


_KNOWN: Final[Mapping[str, _Known]] = {
    "claude": _Known(
        name="Claude Code",
        program="claude",
        adapter="claude-agent-acp",
        install="npm install -g @anthropic-ai/claude-code @agentclientprotocol/claude-agent-acp",
        keys=("ANTHROPIC_API_KEY",),
        login=claude_login,
        providers=("anthropic",),
    ),
    "codex": _Known(
        name="Codex",
        program="codex",
        adapter="codex-acp",
        install="npm install -g @openai/codex @agentclientprotocol/codex-acp",
        keys=("OPENAI_API_KEY",),
        login=codex_login,
        providers=("openai",),
    ),
    "gemini": _Known(name="Gemini CLI", program="gemini", install="npm install -g @google/gemini-cli", served=False),
    "opencode": _Known(name="OpenCode", program="opencode", install="npm install -g opencode-ai", served=False),
    "qwen": _Known(name="Qwen Code", program="qwen", install="npm install -g @qwen-code/qwen-code", served=False),
}
# Those that speak ACP themselves. They start, but have no account until the gateway speaks their dialects.
_COMMANDS: Final[Mapping[str, AcpCommand]] = {
    "gemini": AcpCommand(
        "gemini",
        ("--acp",),
        env={"GEMINI_CLI_TRUST_WORKSPACE": "true", "GEMINI_MODEL": "{model}"},
        door_env={"GOOGLE_GEMINI_BASE_URL": "{url}/model/gemini"},
        key="GEMINI_API_KEY",
        files={
            ".gemini/settings.json": json.dumps(
                {
                    "security": {"auth": {"selectedType": "gemini-api-key"}},
                    "general": {"disableAutoUpdate": True},
                    "privacy": {"usageStatisticsEnabled": False},
                }
            )
        },
        quirks=Quirks(exits_on_eof=False),
    ),
    "opencode": AcpCommand(
        "opencode",
        ("acp",),
        env={
            "OPENCODE_DISABLE_AUTOUPDATE": "1",
            "OPENCODE_DISABLE_MODELS_FETCH": "1",
            "OPENCODE_DISABLE_LSP_DOWNLOAD": "1",
            "OPENCODE_DISABLE_DEFAULT_PLUGINS": "1",
        },
        quirks=Quirks(resume="load"),
    ),
    "qwen": AcpCommand(
        "qwen",
        ("--acp",),
        env={"OPENAI_MODEL": "{model}"},
        door_env={"OPENAI_BASE_URL": "{url}/model/openai/v1"},
        key="OPENAI_API_KEY",
        quirks=Quirks(resume="load", exits_on_eof=False),
    ),
}


def known_types() -> tuple[str, ...]:
    """Every type that can be named in a pattern or with `--agent`."""
    return ("scripted", *_KNOWN)


def providers(type_: str) -> tuple[str, ...]:
    """The providers whose doors a type uses."""
    known = _KNOWN.get(type_)
    return known.providers if known is not None else ()


def find(
    type_: str,
    which: Which = shutil.which,
    *,
    script: Path | None = None,
    ledger: Path | None = None,
) -> Found:
    """The CLI of a type on this machine. Raises AgentUnavailable with a sentence that says what to install.

    `script` and `ledger` are the scripted agent's.
    """
    if type_ == "scripted":
        if script is None:
            raise AgentUnavailable("Agents of type 'scripted' need a script: set PARALLAX_AGENT_SCRIPT to its file")
        return Found(type="scripted", cli=ScriptedCLI(script, ledger), program=sys.executable, client="acp")
    known = _KNOWN.get(type_)
    if known is None:
        raise AgentUnavailable(f"There is no agent type '{type_}'; known types: {', '.join(known_types())}")
    own = which(known.program)
    adapter = which(known.adapter) if known.adapter else None
    version = version_of(own or adapter)
    if adapter is not None:
        acp: AgentCLI = Claude(own) if type_ == "claude" else Codex(own)
        return Found(type=type_, cli=acp, program=adapter, client="acp", version=version)
    if own is None:
        raise AgentUnavailable(f"{known.name} is not installed (no '{known.program}' on PATH): {known.install}")
    if type_ in _COMMANDS:
        return Found(type=type_, cli=_COMMANDS[type_], program=own, client="acp", version=version)
    headless: AgentCLI = ClaudeHeadless() if type_ == "claude" else CodexHeadless()
    return Found(type=type_, cli=headless, program=own, client="headless", version=version)


def probe(
    type_: str, which: Which = shutil.which, environ: Mapping[str, str] = os.environ, script: Path | None = None
) -> Readiness:
    """Whether an agent type can be used here, with which account, and if not, why.

    `environ` is where keys are looked up: whoever has read settings from a file as well passes both.
    """
    try:
        found = find(type_, which, script=script)
    except AgentUnavailable as error:
        return Readiness(
            type=type_,
            found=False,
            program=None,
            version=None,
            adapter=None,
            account=None,
            how="",
            ready=False,
            problem=error.message,
        )
    known = _KNOWN.get(type_)
    account, how = (None, "needs no account") if known is None else _account(known, environ)
    ready = known is None or account is not None
    adapter = found.program if known is not None and known.adapter and found.client == "acp" else None
    return Readiness(
        type=type_,
        found=True,
        program=found.program,
        version=found.version,
        adapter=adapter,
        account=account,
        how=how,
        ready=ready,
        problem=None if ready or known is None else _no_account(known),
    )


def _account(known: _Known, environ: Mapping[str, str]) -> tuple[str | None, str]:
    for variable in known.keys:
        if environ.get(variable):
            return "key", f"{variable} in the environment; the gateway adds it, agents never hold it"
    for source in known.login().values():
        if source.is_file():
            return "login", f"{source}, copied into the agent's private home"
    return None, ""


def _no_account(known: _Known) -> str:
    if not known.served:
        return f"{known.name} can be started, but this version of Parallax has no way to give it an account"
    ways = [*(f"set {variable}" for variable in known.keys), f"log in once with '{known.program}'"]
    return f"{known.name} has no account here: {' or '.join(ways)}"


def version_of(program: str | None) -> str | None:
    """The version by looking, not by starting: that of the npm package around it, or in the path it links to."""
    if program is None:
        return None
    path = Path(program).resolve()
    for parent in list(path.parents)[:4]:
        try:
            package = json.loads((parent / "package.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(package, dict) and isinstance(package.get("version"), str):
            return str(package["version"])
    match = re.search(r"(\d+\.\d+\.\d+)", str(path))
    return match[1] if match else None
