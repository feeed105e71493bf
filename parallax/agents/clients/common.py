"""What every client does: prepare the agent's private home, and say what it sees of its agent."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final, Protocol, runtime_checkable

from parallax.agents.clients.wire import Tail
from parallax.errors import AgentUnavailable, LoginNeeded
from parallax.models import LaunchSpec, Task
from parallax.ports import AgentCLI, AgentProcess, AgentRuntime, AgentSession, Vitals
from parallax.redaction import Secret

START_S: Final = 60.0
GRACE_S: Final = 10.0
SAME_READ_S: Final = 0.05  # what came so close together came at once
WORKSPACE_PATH: Final = "{{workspace.path}}"  # in a task: the tree, by the name that the agent has for it
MESSAGE_LIMIT: Final = 1_048_576  # characters of a message that are kept: its end, where the report is


@runtime_checkable
class HasLogin(Protocol):
    """A CLI that can use the login of the user's terminal."""

    def login_files(self) -> Mapping[str, Path]:
        """Path in the agent's home -> the user's own file."""
        ...


@runtime_checkable
class HasMeta(Protocol):
    """An ACP agent that takes settings with the new session."""

    def meta(self, session: AgentSession) -> Mapping[str, object]:
        """What goes into `_meta` of session/new."""
        ...


class Pulse:
    """Remembers the last output."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def heard(self) -> None:
        """Something came, or a turn begins: what was before does not count."""
        self._last = time.monotonic()

    def vitals(self, words: Tail, *, claimed: bool = False, final: bool = False, exit_code: int | None) -> Vitals:
        """What the port wants to know. Words count while they are the last thing that came."""
        fresh = words.added_at >= self._last - SAME_READ_S
        return Vitals(
            output_s=time.monotonic() - self._last,
            words=words.lines(3) if fresh else "",
            claimed=claimed,
            final=final,
            exit_code=exit_code,
        )


def cpu_s(process: AgentProcess | None) -> float:
    """Processor time of an agent's process tree; 0 while it has none."""
    return 0.0 if process is None else process.cpu_s()


def inside(runtime: AgentRuntime, cli: AgentCLI, session: AgentSession) -> AgentSession:
    """The session as the agent knows it. A CLI with a login of its own needs the open network, and keeps its names."""
    known = runtime.inside(session)
    return replace(known, door=session.door) if _network(cli, session) == "open" else known


def launch(runtime: AgentRuntime, cli: AgentCLI, session: AgentSession, program: str) -> LaunchSpec:
    """How to start the CLI. It speaks of its places by the names inside; the runtime mounts what they are here.

    Raises AgentUnavailable for an agent that may do everything where nothing holds it.
    """
    known = inside(runtime, cli, session)
    if session.preset == "autonomous" and not known.shut_in:
        raise AgentUnavailable(
            f"The role '{session.role}' has the preset 'autonomous', which is for agents in a sandbox only, "
            "and there is none here (`parallax doctor` says why): take 'permissive'"
        )
    spec = cli.launch(known, program)
    network = _network(cli, session) or spec.network
    env, secrets = _way_out(known) if network == "gateway" else ({}, {})
    return replace(
        spec,
        env={**spec.env, **env},
        secrets={**spec.secrets, **secrets},
        cwd=session.tree,
        home=session.home,
        objects=session.objects,
        shared=session.shared,
        network=network,
        gateway=session.door.socket if session.door is not None else None,
    )


def _way_out(known: AgentSession) -> tuple[dict[str, str], dict[str, Secret]]:
    """The variables by which programs in a sandbox find the gateway's CONNECT, where a person allows hosts by it."""
    if not known.shut_in or known.door is None or not known.door.has_way_out:
        return {}, {}
    local = "127.0.0.1,localhost"
    return {"NO_PROXY": local, "no_proxy": local}, dict.fromkeys(("HTTPS_PROXY", "https_proxy"), known.door.proxy)


def _network(cli: AgentCLI, session: AgentSession) -> str | None:
    """`open` for a login of the CLI's own: its traffic does not pass through the gateway."""
    return "open" if session.model_door is None and isinstance(cli, HasLogin) else None


def addressed(task: Task, session: AgentSession) -> Task:
    """The task with the agent's own name of its workspace; `session` is the one inside."""
    return replace(task, text=task.text.replace(WORKSPACE_PATH, str(session.tree)))


def prepare_home(cli: AgentCLI, session: AgentSession, known: AgentSession | None = None) -> None:
    """Write the CLI's configuration, and without a door the user's login, into the agent's home: nobody else reads it.

    `known` is the session as the agent knows it, where that differs. Whatever is in the way is replaced, a link never
    followed: the home was the agent's between two turns.
    """
    session.home.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name, text in cli.files(known or session).items():
        _write(session.home, name, text.encode())
    if session.model_door is None and isinstance(cli, HasLogin):
        _copy_login(cli.type, cli.login_files(), session)


def _copy_login(type_: str, files: Mapping[str, Path], session: AgentSession) -> None:
    """The user's login, unless the agent's own copy is newer: it may have been renewed there.

    Without any, the CLI would find out by itself, some of them after minutes of trying. (macOS keeps logins elsewhere.)
    """
    for name, source in files.items():
        own = session.home / name
        if source.is_file() and not (own.is_file() and own.stat().st_mtime >= source.stat().st_mtime):
            _write(session.home, name, source.read_bytes())
    has_login = any((session.home / name).is_file() for name in files)
    has_key = any(name.endswith(("_API_KEY", "_AUTH_TOKEN")) for name in session.env or ())
    if not has_login and not has_key and sys.platform != "darwin":
        sources = " or ".join(map(str, files.values()))
        lacking = f" and no {sources}" if files else ""
        raise LoginNeeded(f"The agent '{type_}' is not logged in: there is no key for it{lacking}")


def _write(home: Path, name: str, data: bytes) -> None:
    path = home
    for part in Path(name).parts[:-1]:
        path /= part
        if path.is_symlink() or not path.is_dir():
            path.unlink(missing_ok=True)
        path.mkdir(mode=0o700, exist_ok=True)
    path = home / name
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
