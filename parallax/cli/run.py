"""`parallax run` and `parallax watch`: start work and follow it, with a server or with one of their own."""

from __future__ import annotations

import asyncio
import secrets
import sys
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


def run(
    pattern: Annotated[str, typer.Argument(help="A pattern's name (`parallax patterns` lists them) or a path to one.")],
    goal: Annotated[
        str | None, typer.Argument(help="The goal, for patterns that take one: their input `goal`.")
    ] = None,
    repo: Annotated[Path | None, typer.Option(help="The repository; the current directory by default.")] = None,
    inputs: Annotated[
        list[str] | None, typer.Option("--input", metavar="KEY=VALUE", help="An input; JSON values are read as such.")
    ] = None,
    agent: Annotated[str | None, typer.Option(metavar="TYPE", help="Use this agent for every role.")] = None,
    model: Annotated[str | None, typer.Option(help="The model that the agents shall use.")] = None,
    base: Annotated[str | None, typer.Option(help="Start from this branch or commit instead of HEAD.")] = None,
    with_changes: Annotated[bool, typer.Option("--with-changes", help="Take uncommitted changes along.")] = False,
    budget: Annotated[float | None, typer.Option(help="At most so many dollars.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    detach: Annotated[bool, typer.Option("--detach", help="Leave it to the running server and return.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Run a pattern: shows the plan and its bounds, asks once, follows it to the end."""
    from parallax.cli.inputs import read_inputs

    body: dict[str, Any] = {
        "pattern": pattern_name(pattern),
        "input": read_inputs(goal, inputs or []),
        "repo": str((repo or Path.cwd()).absolute()),
        "base": base,
        "with_changes": with_changes,
        "agent": agent,
        "model": model,
        "budget": budget,
    }
    raise typer.Exit(interruptible(_run(body, yes=yes, detach=detach, as_json=as_json)))


def watch(execution: ExecutionArg = None, as_json: JsonFlag = False) -> None:
    """Follow an execution; without a server, one is embedded and every unfinished execution goes on."""
    raise typer.Exit(interruptible(_watch(execution, as_json=as_json)))


def pattern_name(pattern: str) -> str:
    """A path is made absolute, so that a server elsewhere in the file system finds it."""
    from parallax.patterns.engine import FORMATS

    given = Path(pattern).expanduser()
    return str(given.absolute()) if "/" in pattern or given.suffix in FORMATS else pattern


def interruptible(work: Any) -> int:
    """Run it; Ctrl-C ends the command with 130, after everything was left in order."""
    try:
        code: int = asyncio.run(work)
    except KeyboardInterrupt:
        return 130
    return code


async def _run(body: dict[str, Any], *, yes: bool, detach: bool, as_json: bool) -> int:
    from parallax.cli.connection import connect
    from parallax.cli.output import err, print_json
    from parallax.cli.plan_view import print_plan
    from parallax.config import load
    from parallax.errors import UsageError

    settings = load()
    async with connect(settings, run=True) as connection:
        if detach and connection.embedded:
            raise UsageError("--detach needs a running server: start one with `parallax serve`, or leave --detach out")
        plan = await connection.client.plan(body)
        if not as_json:
            print_plan(err(), plan)
            _tell_profile(body)
        if not yes and not _agreed():
            return 2
        execution = await connection.client.create(body, key=secrets.token_hex(16))
        if detach:
            if as_json:
                print_json(execution)
            else:
                err().print(f"started {execution['id']}: follow it with `parallax watch {execution['id'][-6:]}`")
            return 0
        return await follow(connection, execution["id"], as_json=as_json)


def _tell_profile(body: dict[str, Any]) -> None:
    from parallax.cli.output import err
    from parallax.workspaces.profile import FILE

    if not (Path(body["repo"]) / FILE).exists():
        err().print(f"  notice no {FILE} here: set-up and checks are guessed (`parallax init` writes it)")


def _agreed() -> bool:
    from parallax.errors import UsageError

    if not sys.stdin.isatty():
        raise UsageError("nobody is there to agree to this plan: add --yes")
    typer.echo("Start? [Y/n] ", err=True, nl=False)
    return sys.stdin.readline().strip().lower() in {"", "y", "yes"}


async def _watch(given: str | None, *, as_json: bool) -> int:
    from parallax.cli.connection import connect, resolve
    from parallax.config import load

    async with connect(load(), run=True) as connection:
        execution_id = await resolve(connection.client, given)
        return await follow(connection, execution_id, as_json=as_json)


async def follow(connection: Connection, execution_id: str, *, as_json: bool) -> int:
    """Show an execution to its end; returns the exit code."""
    from parallax.cli.closing import exit_code, print_closing
    from parallax.cli.live import Story
    from parallax.cli.output import out, print_json

    story = Story()
    try:
        with story:
            await follow_events(connection, execution_id, story)
    except asyncio.CancelledError:
        _tell_interrupted(connection, execution_id)
        raise
    execution = await connection.client.execution(execution_id)
    if as_json:
        print_json(execution)
    else:
        print_closing(out(), execution)
    return exit_code(execution["state"])


async def follow_events(connection: Connection, execution_id: str, story: Story) -> None:
    """Feed a story until the execution has ended or waits for a person's decision about it."""
    async for event in connection.client.events(execution_id, story.last_seq):
        story.take(event)
        if story.ended is not None:
            return


def _tell_interrupted(connection: Connection, execution_id: str) -> None:
    from parallax.cli.output import err

    name = execution_id[-6:]
    if connection.embedded:
        err().print(
            f"\ninterrupted: the agents are stopped, finished steps are kept. Go on with `parallax watch {name}`, "
            f"or end it with `parallax cancel {name}`."
        )
    else:
        err().print(f"\nno longer watching; it goes on in the server. `parallax watch {name}` follows it again.")
