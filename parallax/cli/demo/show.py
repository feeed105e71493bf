"""Runs the demo: a server process with its own data directory, a client that tells its story, one SIGKILL.

The server kills itself at a failpoint, right after a step's result is on disk and before anything goes on; this
process starts it again and follows the same stream from the last event it saw.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shlex
import shutil
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any, Final

from parallax.cli.closing import exit_code, print_closing, print_commands
from parallax.cli.connection import running_server
from parallax.cli.demo.sample import GOAL, make_sample, make_script, run_tests
from parallax.cli.live import Story
from parallax.cli.output import err, out, styled
from parallax.cli.plan_view import print_plan
from parallax.client import Client, StreamEvent
from parallax.config import load
from parallax.datadir import existing_key
from parallax.errors import AgentUnavailable, ConfigurationError
from parallax.redaction import Secret

KILL_AFTER: Final = 2  # results on disk: the plan, and the first engineer's piece
START_S: Final = 30.0
MARKER: Final = ".parallax-demo"


async def run_demo(agent: str) -> int:
    """The whole demo; returns the exit code."""
    place = _fresh_place()
    repository = make_sample(place)
    server = DemoServer(place, agent)
    server.check_agent()
    console = err()
    _, before = run_tests(repository)
    console.print(styled(("Parallax demo", "bold"), f"  a sample repository in {repository}"))
    console.print(styled(f"  its tests before: {before}"))
    console.print()
    async with server.running(kill=agent == "scripted"):
        execution = await _follow(server, repository, agent)
        _print_end(server, repository, execution)
    return exit_code(execution["state"])


def _fresh_place() -> Path:
    """A directory for the demo alone, made anew each time; nothing else is ever deleted."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    place = cache / "parallax" / "demo"
    if place.exists():
        if not (place / MARKER).exists():
            raise ConfigurationError(f"{place} is there and is not the demo's: move it away")
        shutil.rmtree(place)
    try:
        place.mkdir(parents=True, mode=0o700)
    except OSError as error:
        raise ConfigurationError(f"cannot make {place}: {error.strerror}; set XDG_CACHE_HOME elsewhere") from None
    (place / MARKER).touch()
    return place


class DemoServer:
    """The server process of the demo; `start` also starts it again after its death."""

    def __init__(self, place: Path, agent: str) -> None:
        self.place = place
        self.agent = agent
        self.data = place / "data"
        self.ledger = place / "ledger.jsonl"
        self.url = ""
        self.killed_at: float | None = None
        self.started_at = 0.0
        self._told = False
        self._script = make_script(place)
        self._process: asyncio.subprocess.Process | None = None

    def check_agent(self) -> None:
        """A real agent must be ready before anything starts. Raises AgentUnavailable."""
        if self.agent == "scripted":
            return
        from parallax.agents.clis.catalogue import Catalogue

        found = Catalogue.of(load()).probe(self.agent)
        if not found.ready:
            raise AgentUnavailable(f"{found.problem} (`parallax doctor` shows all; plain `make demo` needs no account)")

    @asynccontextmanager
    async def running(self, *, kill: bool) -> AsyncIterator[None]:
        """The server runs, at first with the failpoint that kills it."""
        await self.start(kill=kill)
        try:
            yield
        finally:
            await self._stop()

    async def start(self, *, kill: bool) -> None:
        """Start the process and wait for its address."""
        self.started_at = time.time()
        environment = os.environ | {
            "PARALLAX_DATA_DIR": str(self.data),
            "PARALLAX_AGENT_SCRIPT": str(self._script),
            "PARALLAX_SCRIPTED_LEDGER": str(self.ledger),
            "PARALLAX_FAILPOINTS": f"result.committed_before_continue=kill@{KILL_AFTER}" if kill else "",
        }
        environment.pop("PARALLAX_API_URL", None)
        with (self.place / "server.log").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "parallax", "serve", "--port", "0", "--test-hooks",
                env=environment, stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            if self._process.returncode is not None:
                break
            if (self.data / "lock").exists() and (url := await running_server(self.data)) is not None:
                self.url = url
                return
            await asyncio.sleep(0.05)
        tail = (self.place / "server.log").read_text(errors="replace")[-500:]
        raise ConfigurationError(f"the demo's server did not start; the end of {self.place}/server.log:\n{tail}")

    def client(self) -> Client:
        """A client of the server as it runs now."""
        key = existing_key(self.data)
        return Client(self.url, None if key is None else Secret(key))

    async def died(self) -> bool:
        """Whether the stream broke because the server killed itself."""
        assert self._process is not None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(5.0):
                await self._process.wait()
        return self._process.returncode == -signal.SIGKILL

    def tell_restart(self, story: Story, first: StreamEvent) -> None:
        """Say that it runs again when its first event is there, and whether that was on disk before the kill."""
        if self.killed_at is None or self._told:
            return
        self._told = True
        kept = "; what it had on disk at the kill:" if first.at < self.killed_at else ""
        story.say(("⟳ ", "bold green"), f"it is started again on the same data{kept}", at=self.started_at)

    async def _stop(self) -> None:
        process = self._process
        if process is None or process.returncode is not None:
            return
        process.terminate()
        try:
            async with asyncio.timeout(15.0):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


async def _follow(server: DemoServer, repository: Path, agent: str) -> dict[str, Any]:
    body = {"pattern": "startup-team", "input": {"goal": GOAL}, "repo": str(repository), "agent": agent}
    async with server.client() as client:
        print_plan(err(), await client.plan(body))
        err().print()
        execution_id = (await client.create(body))["id"]
    story = Story()
    with story:
        while story.ended is None:
            try:
                async with server.client() as client, aclosing(client.events(execution_id, story.last_seq)) as events:
                    async for event in events:
                        server.tell_restart(story, event)
                        story.take(event)
            except ConfigurationError:
                if not await server.died():
                    raise
                server.killed_at = time.time()
                story.say(
                    ("☠ ", "bold red"), ("Parallax is killed with SIGKILL", "bold red"), " in the middle of the work"
                )
                await server.start(kill=False)
    async with server.client() as client:
        return await client.execution(execution_id)


def _print_end(server: DemoServer, repository: Path, execution: dict[str, Any]) -> None:
    console = out()
    print_closing(console, execution, offered=False)
    if server.killed_at is not None:
        again = _run_again(server.ledger, server.killed_at, execution)
        console.print(styled(f"  finished steps that ran again after the SIGKILL: {again} (the agents' own ledger)"))
    passed, line = run_tests(repository)
    console.print(styled(f"  your branch still fails as before: {line}" if not passed else f"  your branch: {line}"))
    name = execution["id"][-6:]
    console.print("\nLook at it:")
    print_commands(
        console,
        *_path_first(),
        (f"export PARALLAX_DATA_DIR={shlex.quote(str(server.data))}", ""),
        (f"parallax show --why {name}", "why each step is believed"),
        (f"parallax diff {name}", "what the result changes"),
        (f"parallax land {name} --branch tested", "make a branch of it there"),
    )
    console.print("\nOn your own repository (with PARALLAX_DATA_DIR unset):")
    own = _own_agent()
    print_commands(
        console,
        ("parallax init", "finds set-up and checks, writes .parallax.yaml"),
        (f'parallax run fix "what shall be true"{own}', "" if own else "needs a coding CLI: see `parallax doctor`"),
    )


def _path_first() -> list[tuple[str, str]]:
    """Where `make demo` has put the command, when the shell does not find it."""
    if shutil.which("parallax") is not None:
        return []
    return [(f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH", "")]


def _own_agent() -> str:
    """The agent of this machine that is ready, as an option; nothing where none is."""
    from parallax.agents.clis.catalogue import Catalogue

    known = Catalogue.of(load())
    ready = (type_ for type_ in known.types() if type_ not in {"scripted", "http"} and known.probe(type_).ready)
    return f" --agent {type_}" if (type_ := next(ready, None)) else ""


def _run_again(ledger: Path, killed_at: float, execution: dict[str, Any]) -> int:
    """How many turns of steps that had finished before the kill began after it, by what the agents wrote down."""
    finished = {
        f"{execution['id']}/{step['step']}"
        for step in execution["steps"]
        if step["at"] < killed_at and step["state"] != "running"
    }
    again = 0
    for line in ledger.read_text().splitlines():
        entry = json.loads(line)
        step = str(entry["task"]).rpartition("/")[0]
        again += entry["event"] == "start" and entry["at"] > killed_at and step in finished
    return again
