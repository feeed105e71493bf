"""`parallax replay` and `parallax fork`, and the journal for people: what was asked where, and what came of it."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from parallax.cli.options import ExecutionArg, JsonFlag

_PATTERN = "Another pattern, by name or path, such as the one that you have edited."


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(replay)
    app.command()(fork)


def replay(
    execution: ExecutionArg = None,
    pattern: Annotated[str | None, typer.Option(help=_PATTERN)] = None,
    as_json: JsonFlag = False,
) -> None:
    """Run the program anew against its journal, and compare.

    Ends with 0 when it takes the recorded course, with 1 and the first difference when it does not.
    """

    async def work(client: Any) -> bool:
        from parallax.cli.connection import resolve
        from parallax.cli.output import out, print_json
        from parallax.cli.run import pattern_name

        execution_id = await resolve(client, execution)
        found = await client.replay(execution_id, pattern=None if pattern is None else pattern_name(pattern))
        if as_json:
            print_json(found)
        else:
            _print_replayed(out(), found)
        return bool(found["same"])

    async def main() -> bool:
        from parallax.cli.connection import connect
        from parallax.config import load

        async with connect(load()) as connection:
            return await work(connection.client)

    raise typer.Exit(0 if asyncio.run(main()) else 1)


def fork(
    execution: ExecutionArg = None,
    at: Annotated[
        str | None,
        typer.Option(metavar="STEP", help="The step to do anew; by default the first that differs."),
    ] = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", metavar="KEY=VALUE", help="Another input; JSON values are read as such."),
    ] = None,
    pattern: Annotated[str | None, typer.Option(help=_PATTERN)] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Leave it to the running server and return.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Start an execution that shares another's beginning.

    What was finished before the step is shared and not paid again; the step and what comes after it are done anew.
    """
    from parallax.cli.inputs import read_inputs
    from parallax.cli.run import interruptible, pattern_name

    body: dict[str, Any] = {"at": at, "pattern": None if pattern is None else pattern_name(pattern)}
    if inputs:
        body["input"] = read_inputs(None, inputs)
    raise typer.Exit(interruptible(_fork(execution, body, detach=detach, as_json=as_json)))


async def _fork(given: str | None, body: dict[str, Any], *, detach: bool, as_json: bool) -> int:
    from parallax.cli.connection import connect, resolve
    from parallax.cli.output import err, print_json
    from parallax.cli.run import Following
    from parallax.config import load
    from parallax.errors import UsageError

    following = Following()
    async with following.told(), connect(load(), run=True) as connection:
        if detach and connection.embedded:
            raise UsageError("--detach needs a running server: start one with `parallax serve`, or leave --detach out")
        execution_id = await resolve(connection.client, given)
        new = await connection.client.fork(execution_id, body, key=secrets.token_hex(16))
        at = new["forked_from"]["step"]
        err().print(f"forked {execution_id[-6:]} at '{at}' as {new['id']}")
        if detach:
            if as_json:
                print_json(new)
            return 0
        return await following.follow(connection, new["id"], as_json=as_json)


def _print_replayed(console: Any, found: dict[str, Any]) -> None:
    from parallax.cli.output import styled

    count = f"{len(found['effects'])} effect{'s' * (len(found['effects']) != 1)}"
    if found["same"]:
        end = "to its end" if found["end"] == "ended" else "and waits where the journal stops"
        console.print(styled(("SAME", "bold green"), f"  {found['execution']}  {count} {end}; nothing was run"))
        return
    difference = found["divergence"]
    where = "at its end" if difference["step"] is None else f"at step '{difference['step']}'"
    console.print(styled(("DIFFERS", "bold red"), f"  {found['execution']}  {where}, after {count}; nothing was run"))
    console.print(styled(f"  {difference['how']}"))


# -- the journal for people --------------------------------------------------------------------------------------------

_MARKS = {"intent": ("▸", "cyan"), "timer": ("◷", "cyan"), "signal": ("!", "yellow")}


def print_journal(console: Any, entries: list[dict[str, Any]]) -> None:
    """A line for every entry, indented by the branches that it lies in."""
    from parallax.cli.output import cut, print_line, styled

    if not entries:
        console.print("the journal is empty: nothing was asked yet")
        return
    begun: dict[str, float] = {}
    width = max(len(_place(entry)) for entry in entries)
    for entry in entries:
        if entry["kind"] == "intent":
            begun[entry["step_key"]] = entry["at"]
        error = (entry["body"].get("outcome") or {}).get("error")
        mark = _MARKS.get(entry["kind"], ("✗", "red") if error else ("✓", "green"))
        took = entry["at"] - begun[entry["step_key"]] if entry["step_key"] in begun else 0.0
        lasted = f"  {took:.1f} s" if entry["kind"] == "result" and took >= 0.05 else ""
        line = styled(
            (f"{entry['seq']:>4}  ", "dim"), mark, " ", (_place(entry).ljust(width), "bold"),
            (f"  {_word(entry):<10}", "dim"), f"  {cut(' · '.join(_said(entry)), 110)}", (lasted, "dim"),
        )  # fmt: skip
        print_line(console, line)


def _place(entry: dict[str, Any]) -> str:
    depth = len(entry["body"].get("branch") or ())
    return "  " * depth + str(entry["step_key"])


def _word(entry: dict[str, Any]) -> str:
    return str(entry["body"].get("word") or entry["body"].get("effect") or entry["kind"])


def _said(entry: dict[str, Any]) -> Iterator[str]:
    """What the entry says: the task of an intent, the value of a result and why it is believed."""
    body = entry["body"]
    if entry["kind"] == "intent":
        yield f"{'.'.join(body['agent'].split('.')[-2:])} begins"
        yield body["request"]["task"]
        return
    if entry["kind"] == "timer":
        yield f"wakes after {body['remaining_s']:.1f} s"
        return
    outcome = body.get("outcome") or {}
    if outcome.get("error"):
        yield outcome["error"]
        return
    if outcome.get("confidence") is not None:
        yield f"{outcome['confidence']:.2f}"
    if (step := body.get("step")) is not None and step.get("commit"):
        yield step["commit"][:10]
    value = outcome.get("value")
    yield value if isinstance(value, str) else _json(value)


def _json(value: Any) -> str:
    import json

    return json.dumps(value, ensure_ascii=False)
