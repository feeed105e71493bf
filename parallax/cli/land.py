"""`parallax land`: the result into your branch, or out to the remote as a branch and a pull request."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from parallax.cli.look import with_client
from parallax.cli.options import ExecutionArg, JsonFlag


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(land)


def land(
    execution: ExecutionArg = None,
    branch: Annotated[
        str | None, typer.Option(help="Make this branch of the result instead of merging into the one checked out.")
    ] = None,
    push: Annotated[bool, typer.Option("--push", help="Push it to the remote instead (as --branch).")] = False,
    pr: Annotated[bool, typer.Option("--pr", help="Push it and open a pull request with the evidence.")] = False,
    onto: Annotated[str | None, typer.Option(help="The pull request's base instead of the run's.")] = None,
    draft: Annotated[bool, typer.Option("--draft", help="As a draft.")] = False,
    label: Annotated[list[str] | None, typer.Option(help="A label of the pull request; may be repeated.")] = None,
    reviewer: Annotated[list[str] | None, typer.Option(help="Who shall review it; may be repeated.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be pushed.")] = False,
    allow_protected: Annotated[
        bool, typer.Option("--allow-protected", help="Push changes of CI definitions and protected paths, too.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Bring the result into your branch, or a new one; or push it.

    Shows what it changes and why it is believed, and asks. Never writes over changes that are not committed. A push is
    made by the server, with a token that no agent has; done twice it is found, not repeated.
    """
    from parallax.cli.run import must_be_there

    body: dict[str, Any] = {
        "branch": branch, "push": push or pr, "pull_request": pr, "onto": onto, "draft": draft,
        "labels": label or [], "reviewers": reviewer or [], "dry_run": dry_run, "allow_protected": allow_protected,
    }  # fmt: skip
    must_be_there(yes or dry_run)
    with_client(lambda client: _land(client, execution, body, yes=yes or dry_run, as_json=as_json))


async def _land(client: Any, execution: str | None, body: dict[str, Any], *, yes: bool, as_json: bool) -> None:
    from parallax.cli.closing import why
    from parallax.cli.connection import resolve
    from parallax.cli.output import err, out, print_json, styled
    from parallax.cli.run import agreed

    execution_id = await resolve(client, execution)
    shown = await client.execution(execution_id)
    if not as_json:
        console = err()
        console.print((await client.diff(execution_id, stat=True)).rstrip())
        confidence = "unknown" if shown["confidence"] is None else f"{shown['confidence']:.2f}"
        console.print(styled("confidence ", (confidence, "bold"), f"  {why(shown)}"))
        for check in checks(shown):
            console.print(styled("check  ", check))
    if not yes and not await agreed("Push it?" if body["push"] else "Land it?"):
        err().print("nothing was landed")
        raise typer.Exit(1)
    landed = await client.land(execution_id, **body)
    if as_json:
        print_json(landed)
        return
    told = _pushed(landed, dry_run=body["dry_run"]) if body["push"] else [_landed(landed)]
    for line in told:
        out().print(styled(line))


def checks(shown: dict[str, Any]) -> list[str]:
    """What Parallax ran on the result, a line each."""
    words = {True: "passed", False: "failed", None: "could not run"}
    return [
        f"{entry['oracle']} {words[entry['passed']]} in step {step['step']}: {entry['detail']}"
        for step in shown["steps"]
        for entry in step.get("evidence", [])
        if entry.get("command")
    ]


def _pushed(done: dict[str, Any], *, dry_run: bool) -> list[str]:
    looked, pushed, opened = done["looked"], done["pushed"], done["opened"]
    commit = pushed["sha"][:10]
    verb = "would be pushed" if dry_run and pushed["new"] else "pushed" if pushed["new"] else "is there already"
    files = f"{looked['files']} file{'s' * (looked['files'] != 1)}"
    lines = [f"{pushed['branch']} {verb}: {pushed['url']} at {commit}, {files} changed"]
    lines += [f"needs --allow-protected: {what}" for what in looked["sensitive"] if dry_run]
    if opened is not None:
        lines.append(f"pull request {'opened' if opened['new'] else 'is there already'}: {opened['url']}")
        lines += [f"not granted: {problem}" for problem in opened["problems"]]
    return lines


def _landed(landed: dict[str, Any]) -> str:
    commit = landed["sha"][:10]
    match landed["how"]:
        case "nothing":
            return f"nothing to land: {landed['branch']} has it already (at {commit})"
        case "created":
            return f"landed: the new branch {landed['branch']} is at {commit}; `git switch {landed['branch']}` shows it"
        case how:
            files = f"{landed['files']} file{'s' * (landed['files'] != 1)}"
            merged = " by a merge" if how == "merge" else ""
            return f"landed: {landed['branch']} is at {commit} now{merged}, {files} changed"
