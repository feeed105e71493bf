"""`parallax workspace`: where the agents work, what lies there, and how it is cleaned up."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from parallax.cli.look import with_client
from parallax.cli.options import JsonFlag

app = typer.Typer(help="Look at the agents' copies of the repository, and delete them.", no_args_is_help=True)
WorkspaceArg = Annotated[str, typer.Argument(metavar="WORKSPACE", help="Its id, or the end of it: `engineer.1`.")]


@app.command("list")
def list_(
    execution: Annotated[str | None, typer.Argument(help="Only those of this execution.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Every workspace with its state and its size on disk."""

    async def work(client: Any) -> None:
        from parallax.cli.connection import resolve
        from parallax.cli.output import out, print_json, styled

        wanted = None if execution is None else await resolve(client, execution)
        found = await client.workspaces(wanted)
        if as_json:
            print_json({"workspaces": found})
            return
        for entry in found:
            size = f"{entry['size_b'] / 1e6:.1f} MB" if entry["path"] else ""
            line = f"{entry['id']:<48} {entry['kind']:<9} {entry['state']:<12} {size:>10}"
            out().print(styled(line if entry["cause"] is None else f"{line}  {entry['cause']}"))

    with_client(work)


@app.command()
def diff(
    workspace: WorkspaceArg,
    stat: Annotated[bool, typer.Option("--stat", help="Only which files, and how much.")] = False,
) -> None:
    """What lies in it now, committed or not, against the commit that it was made from."""

    async def work(client: Any) -> None:
        text = await client.workspace_diff(await _named(client, workspace), stat=stat)
        sys.stdout.write(text if not text or text.endswith("\n") else f"{text}\n")

    with_client(work)


@app.command()
def clean(workspace: WorkspaceArg) -> None:
    """Delete it. What was committed stays on its branch."""

    async def work(client: Any) -> None:
        from parallax.cli.output import out

        name = await _named(client, workspace)
        await client.clean_workspace(name)
        out().print(f"{name} is gone; its branches stay")

    with_client(work)


async def _named(client: Any, given: str) -> str:
    """The id of the workspace that is meant. Raises NotFoundError."""
    from parallax.errors import NotFoundError

    known = [entry["id"] for entry in await client.workspaces() if entry["path"] is not None]
    fitting = [id_ for id_ in known if id_ == given or id_.endswith(given)]
    if len(fitting) == 1:
        return str(fitting[0])
    told = f"several: {', '.join(fitting)}" if fitting else "none: `parallax workspace list` shows them"
    raise NotFoundError(f"'{given}' names {told}")
