"""`parallax prism run|check|fmt`: the language by itself, without agents."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Prism by itself: run, check and format programs.", no_args_is_help=True)
FileArg = Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="A .prism file.")]


def _delegate(*args: str) -> None:
    from parallax.prism.__main__ import main

    raise typer.Exit(main(list(args)))


@app.command()
def run(file: FileArg) -> None:
    """Evaluate a program that calls no agents; prints its lines and its value."""
    _delegate("run", str(file))


@app.command()
def check(file: FileArg) -> None:
    """Report every mistake, and advice."""
    _delegate("check", str(file))


@app.command()
def fmt(file: FileArg) -> None:
    """Print the program in the house style."""
    _delegate("fmt", str(file))
