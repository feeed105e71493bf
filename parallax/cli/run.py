"""`parallax run` and `parallax watch`: start work and follow it, with a server or with one of their own."""

from __future__ import annotations

import asyncio
import secrets
import signal
import sys
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from parallax.cli.options import ExecutionArg, JsonFlag

if TYPE_CHECKING:
    from parallax.cli.connection import Connection
    from parallax.cli.live import Story


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(run)
    app.command()(watch)
    app.command()(resume)


def run(
    pattern: Annotated[str, typer.Argument(help="A pattern's name (`parallax patterns` lists them) or a path to one.")],
    goal: Annotated[
        str | None, typer.Argument(help="The goal, for patterns that take one: their input `goal`.")
    ] = None,
    repo: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="The repository, or its https URL; the current directory by default."),
    ] = None,
    inputs: Annotated[
        list[str] | None, typer.Option("--input", metavar="KEY=VALUE", help="An input; JSON values are read as such.")
    ] = None,
    agent: Annotated[str | None, typer.Option(metavar="TYPE", help="Use this agent for every role.")] = None,
    model: Annotated[str | None, typer.Option(help="The model that the agents shall use.")] = None,
    base: Annotated[str | None, typer.Option(help="Start from this branch or commit instead of HEAD.")] = None,
    with_changes: Annotated[bool, typer.Option("--with-changes", help="Take uncommitted changes along.")] = False,
    budget: Annotated[float | None, typer.Option(help="At most so many dollars.")] = None,
    budget_tokens: Annotated[int | None, typer.Option(min=1, help="At most so many tokens, of all kinds.")] = None,
    budget_turns: Annotated[int | None, typer.Option(min=1, help="At most so many turns of agents.")] = None,
    budget_time: Annotated[str | None, typer.Option(metavar="TIME", help="At most so long, such as 90m or 8h.")] = None,
    no_auto_resume: Annotated[
        bool, typer.Option("--no-auto-resume", help="At a used-up usage window wait for you, not for its end.")
    ] = False,
    push: Annotated[bool, typer.Option("--push", help="Push the result to the remote at the end.")] = False,
    pr: Annotated[bool, typer.Option("--pr", help="Push it and open a pull request with the evidence.")] = False,
    onto: Annotated[str | None, typer.Option(help="The pull request's base instead of the branch begun from.")] = None,
    draft: Annotated[bool, typer.Option("--draft", help="As a draft.")] = False,
    label: Annotated[list[str] | None, typer.Option(help="A label of the pull request; may be repeated.")] = None,
    reviewer: Annotated[list[str] | None, typer.Option(help="Who shall review it; may be repeated.")] = None,
    token_env: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The variable that holds your token for the repository's remote."),
    ] = None,
    depth: Annotated[int | None, typer.Option(min=1, help="Take only so many commits of a URL's history.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    detach: Annotated[bool, typer.Option("--detach", help="Leave it to the running server and return.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Run a pattern: shows the plan, asks once, follows it.

    Without a running server it embeds one; Ctrl-C then stops the agents and keeps what is finished.
    """
    from parallax.cli.inputs import read_inputs, read_token
    from parallax.cli.spent import duration_ms

    body: dict[str, Any] = {
        "pattern": pattern_name(pattern),
        "input": read_inputs(goal, inputs or []),
        "repo": repo if repo and "://" in repo else str(Path(repo or ".").expanduser().absolute()),
        "base": base,
        "with_changes": with_changes,
        "agent": agent,
        "model": model,
        "budget": budget,
        "budget_tokens": budget_tokens,
        "budget_turns": budget_turns,
        "budget_time": None if budget_time is None else duration_ms(budget_time),
        "auto_resume": not no_auto_resume,
        "depth": depth,
        "finalise": {
            "push": push or pr, "pull_request": pr, "onto": onto, "draft": draft, "labels": label or [],
            "reviewers": reviewer or [],
        },
        "token": read_token(token_env),
    }  # fmt: skip
    raise typer.Exit(interruptible(_run(body, yes=yes, detach=detach, as_json=as_json)))


def watch(execution: ExecutionArg = None, as_json: JsonFlag = False) -> None:
    """Follow an execution; without a server, go on with it.

    Without a server one is embedded, and every unfinished execution of this data directory goes on.
    """
    raise typer.Exit(interruptible(_watch(execution, as_json=as_json)))


def resume(execution: ExecutionArg = None, as_json: JsonFlag = False) -> None:
    """Let an execution that needs attention go on, and follow it."""
    raise typer.Exit(interruptible(_watch(execution, as_json=as_json, release=True)))


def pattern_name(pattern: str) -> str:
    """A path is made absolute, so that a server elsewhere in the file system finds it."""
    from parallax.patterns.engine import FORMATS

    given = Path(pattern).expanduser()
    return str(given.absolute()) if "/" in pattern or given.suffix in FORMATS else pattern


def interruptible(work: Coroutine[Any, Any, int]) -> int:
    """Run it; Ctrl-C, a hang-up or SIGTERM ends the command with 130, after everything was left in order."""

    async def main() -> int:
        task = asyncio.current_task()
        assert task is not None
        for number in (signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
        return await work

    try:
        return asyncio.run(main())
    except (KeyboardInterrupt, asyncio.CancelledError):
        return 130


async def _run(body: dict[str, Any], *, yes: bool, detach: bool, as_json: bool) -> int:
    from parallax.cli.connection import connect
    from parallax.cli.output import err, print_json
    from parallax.cli.plan_view import print_plan
    from parallax.config import load
    from parallax.errors import UsageError

    must_be_there(yes)
    following = Following()
    async with following.told(), connect(load(), run=True) as connection:
        if detach and connection.embedded:
            raise UsageError("--detach needs a running server: start one with `parallax serve`, or leave --detach out")
        plan = await connection.client.plan(body)
        if not as_json:
            print_plan(err(), plan)
            _tell_profile(body)
        if not yes and not await agreed("Start?"):
            err().print("nothing was started")
            return 1
        execution = await connection.client.create(body, key=secrets.token_hex(16))
        if detach:
            if as_json:
                print_json(execution)
            else:
                err().print(f"started {execution['id']}: follow it with `parallax watch {execution['id'][-6:]}`")
            return 0
        return await following.follow(connection, execution["id"], as_json=as_json)


async def _watch(given: str | None, *, as_json: bool, release: bool = False) -> int:
    from parallax.cli.connection import connect, resolve
    from parallax.config import load

    following = Following()
    async with following.told(), connect(load(), run=True) as connection:
        execution_id = await resolve(connection.client, given)
        if release:
            await connection.client.resume(execution_id)
        return await following.follow(connection, execution_id, as_json=as_json)


def _tell_profile(body: dict[str, Any]) -> None:
    from parallax.cli.output import err
    from parallax.workspaces.profile import FILE

    if Path(body["repo"]).is_dir() and not (Path(body["repo"]) / FILE).exists():
        err().print(f"  notice  no {FILE} here: set-up and checks are guessed (`parallax init` writes it)")


def must_be_there(yes: bool) -> None:
    """A question needs somebody to answer it: said before anything is begun. Raises UsageError."""
    from parallax.errors import UsageError

    if not yes and not sys.stdin.isatty():
        raise UsageError("nobody is there to agree (standard input is no terminal): add --yes")


async def agreed(question: str) -> bool:
    """Ask a person. The server that may be embedded here goes on meanwhile, and Ctrl-C is heard."""
    typer.echo(f"{question} [Y/n] ", err=True, nl=False)
    loop, readable = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(sys.stdin.fileno(), readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(sys.stdin.fileno())
    line = sys.stdin.readline()
    return line.endswith("\n") and line.strip().lower() in {"", "y", "yes"}  # an end of input is no answer


class Following:
    """Shows an execution to its end. `told()` around the connection says how to go on, once all is closed."""

    def __init__(self) -> None:
        self._interrupted = ""

    @asynccontextmanager
    async def told(self) -> AsyncIterator[None]:
        """Outside of the connection: whatever is said here about stopped agents is true by then."""
        from parallax.cli.output import err

        try:
            yield
        finally:
            if self._interrupted:
                err().print(self._interrupted)

    async def follow(self, connection: Connection, execution_id: str, *, as_json: bool) -> int:
        """Follow; returns the exit code."""
        from parallax.cli.closing import exit_code, print_closing
        from parallax.cli.live import Story
        from parallax.cli.output import out, print_json

        begun = time.time()
        story = Story()
        name = execution_id[-6:]
        try:
            with story:
                await follow_events(connection, execution_id, story)
            if story.ended is None:
                self._interrupted = f"the server stopped; finished steps are kept: go on with `parallax watch {name}`"
                return 130
            execution = await connection.client.execution(execution_id)
            if as_json:
                print_json(execution)
            else:
                print_closing(out(), execution)
            if connection.embedded:
                await _wait_for_guests(connection, execution_id, begun)
        except asyncio.CancelledError:
            self._interrupted = _how_to_go_on(connection, name, ended=story.ended is not None)
            raise
        return exit_code(execution["state"])


def _how_to_go_on(connection: Connection, name: str, *, ended: bool) -> str:
    if ended:
        return ""
    if connection.embedded:
        return (
            f"interrupted: the agents are stopped, finished steps are kept. Go on with `parallax watch {name}`, "
            f"or end it with `parallax cancel {name}`."
        )
    return f"no longer watching; it goes on in the server. `parallax watch {name}` follows it again."


async def follow_events(connection: Connection, execution_id: str, story: Story) -> None:
    """Feed a story until the execution has ended, waits for a person's decision about it, or the server is gone."""
    from parallax.client import Disconnected

    client = connection.client
    try:
        async with aclosing(client.events(execution_id, story.last_seq)) as events:
            async for event in events:  # after the last event of an execution the stream ends by itself
                story.take(event)
                if story.ended != "needs_attention":
                    continue
                if (await client.execution(execution_id))["state"] == "needs_attention":
                    return
                story.ended = None  # it was let go on since
    except Disconnected:
        return


async def _wait_for_guests(connection: Connection, own: str, since: float) -> None:
    """What other commands handed to the server in this process runs to its end before the process goes."""
    from parallax.cli.output import err

    said = False
    while True:
        live = await connection.client.executions(states=("queued", "running", "cancelling"))
        guests = [e for e in live if e["id"] != own and e["created_at"] >= since]
        if not guests:
            return
        if not said:
            names = ", ".join(e["id"][-6:] for e in guests)
            err().print(f"waiting for what other commands started here: {names} (Ctrl-C leaves it resumable)")
            said = True
        await asyncio.sleep(0.5)
