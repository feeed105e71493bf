"""`parallax demo`: the main job on a small sample repository, with scripted agents or with real ones.

It shows what others fail at, each as a visible line: a false claim that is caught and sent back, a question that the
lead answers, and Parallax killed with SIGKILL in the middle and going on. The agents are real processes over the real
protocol; they really edit the files, and the evidence is the check that Parallax ran.
"""

from __future__ import annotations

from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(demo)


def demo(
    agent: Annotated[
        str, typer.Option(metavar="TYPE", help="scripted needs no account; claude, codex ... use the real one.")
    ] = "scripted",
) -> None:
    """Watch a team fix a sample repository, through a SIGKILL.

    Scripted agents really edit it and a check really runs; nothing of yours is touched.
    """
    from parallax.cli.demo.show import run_demo
    from parallax.cli.run import interruptible

    raise typer.Exit(interruptible(run_demo(agent)))
