"""What tests of several rooms share: a place outside /tmp, a small repository, a running Parallax with a script."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from parallax.app import Parallax
from parallax.config import Settings
from parallax.execution.intake import Submission
from parallax.models import Execution
from tests.forge.forge import Forge
from tests.postgres import Cluster, cluster

IDENTITY = ["-c", "user.name=Tester", "-c", "user.email=tester@example.invalid", "-c", "commit.gpgsign=false"]


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory of this test that is not under /tmp, where some agents refuse to live."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "parallax-tests"
    path = cache / secrets.token_hex(4)
    path.mkdir(parents=True)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def make_repository(path: Path, files: dict[str, str]) -> Path:
    """A git repository with one commit on main."""
    for name, text in files.items():
        target = path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    for command in (["init", "-q", "-b", "main"], ["add", "-A"], [*IDENTITY, "commit", "-q", "-m", "first"]):
        subprocess.run(["git", *command], cwd=path, check=True, capture_output=True)
    return path


def git(path: Path, *args: str) -> str:
    """git's answer, in a repository of the test's own."""
    return subprocess.run(["git", *args], cwd=path, check=True, capture_output=True, text=True).stdout.strip()


@asynccontextmanager
async def on_loopback(app: web.Application, **options: Any) -> AsyncIterator[str]:
    """A server of the test's own: its URL. A test that fails leaves no socket open, which the next one would pay for."""
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, **options)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@pytest.fixture
def repository(place: Path) -> Path:
    """A repository whose check `quick` passes when `answer.txt` says 42."""
    profile = "version: 1\nchecks:\n  quick: grep -q 42 answer.txt\n  full: grep -q 42 answer.txt\n"
    return make_repository(
        place / "repo", {"answer.txt": "41\n", "notes.txt": "one\ntwo\nthree\n", ".parallax.yaml": profile}
    )


@pytest.fixture
def forge(tmp_path: Path) -> Iterator[Forge]:
    """A git remote with tokens, and a GitHub beside it."""
    made = Forge(tmp_path / "forge")
    made.start()
    try:
        yield made
    finally:
        made.stop()


class Team:
    """A running Parallax whose agents follow a script."""

    def __init__(self, parallax: Parallax, place: Path, repository: Path | None) -> None:
        self.parallax = parallax
        self.place = place
        self.repository = repository

    def pattern(self, text: str, suffix: str = ".prism") -> str:
        """Write a pattern file; returns its path."""
        path = self.place / f"pattern-{secrets.token_hex(3)}{suffix}"
        path.write_text(text)
        return str(path)

    async def start(self, pattern: str, given: dict[str, Any] | None = None, **more: Any) -> Execution:
        """Submit a pattern of this text."""
        suffix = ".prism" if "\n- " not in pattern and "steps:" not in pattern else ".yaml"
        execution, _ = await self.parallax.intake.submit(
            Submission(
                pattern=self.pattern(pattern, suffix),
                input=given or {},
                repo=more.pop("repo", None if self.repository is None else str(self.repository)),
                agent="scripted",
                **more,
            )
        )
        return execution

    async def finish(self, execution: Execution) -> Execution:
        """Wait for its end."""
        async for _ in self.parallax.bus.stream(execution.id):
            pass
        return await self.parallax.store.execution(execution.id)

    async def run(self, pattern: str, given: dict[str, Any] | None = None, **more: Any) -> Execution:
        """Run a pattern of this text to its end."""
        return await self.finish(await self.start(pattern, given, **more))

    async def events(self, execution: Execution) -> list[Any]:
        """Every event of an execution."""
        return await self.parallax.store.events(execution.id, 0, limit=10_000)

    async def told(self, execution: Execution, type_: str) -> list[dict[str, Any]]:
        """The data of its events of one type."""
        return [event.data for event in await self.events(execution) if event.type == type_]

    def ledger(self) -> list[dict[str, Any]]:
        """What the agents noted of their turns."""
        path = self.place / "ledger.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def branch_file(self, execution: Execution, name: str, branch: str = "result") -> str | None:
        """A file on a branch of the execution, as it was published."""
        assert self.repository is not None
        done = subprocess.run(
            ["git", "show", f"parallax/{execution.id}/{branch}:{name}"],
            cwd=self.repository, capture_output=True, text=True, check=False,
        )  # fmt: skip
        return done.stdout if done.returncode == 0 else None


@asynccontextmanager
async def running_team(place: Path, script: Any, repository: Path | None, **settings: Any) -> AsyncIterator[Team]:
    """Parallax on a data directory below `place`, with this script."""
    script_file = place / "script.json"
    script_file.write_text(json.dumps(script))
    values: dict[str, Any] = {
        "data_dir": place / "data", "agent_script": script_file, "scripted_ledger": place / "ledger.jsonl",
        "patterns_dir": place / "no-patterns",
    }  # fmt: skip
    made = Settings(_env_file=None, **(values | settings))  # type: ignore[call-arg]
    async with Parallax(made, test_hooks=True) as parallax:
        yield Team(parallax, place, repository)


TeamFactory = Callable[..., Any]


@pytest.fixture
def team(place: Path, repository: Path) -> TeamFactory:
    """`async with team({...script...}) as t:`"""

    def make(script: Any, **settings: Any) -> Any:
        where = settings.pop("repository", repository)
        return running_team(place, script, where, **settings)

    return make


@pytest.fixture(scope="session")
def postgres() -> Iterator[Cluster]:
    """A PostgreSQL for the session; every test takes a database of its own from it."""
    with cluster() as running:
        yield running
