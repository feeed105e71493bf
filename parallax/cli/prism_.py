"""`parallax prism run|check|fmt`: the language by itself, without agents."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Prism by itself: run, check and format programs.", no_args_is_help=True)
FileArg = Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="A .prism file.")]


def _delegate(command: str, file: Path, *, mistakes: int) -> None:
    from parallax.errors import UsageError
    from parallax.prism.__main__ import main

    try:
        failed = main([command, str(file)])
    except UnicodeDecodeError as error:
        raise UsageError(f"{file} is no UTF-8 text (byte {error.start}): save it as UTF-8") from None
    raise typer.Exit(mistakes if failed else 0)


@app.command()
def run(file: FileArg) -> None:
    """Evaluate a program that calls no agents.

    Prints its lines and its value; exit code 1 when it fails.
    """
    _delegate("run", file, mistakes=1)


@app.command()
def check(file: FileArg) -> None:
    """Report every mistake, and advice.

    Exit code 2 if there is a mistake.
    """
    _delegate("check", file, mistakes=2)


@app.command()
def fmt(file: FileArg) -> None:
    """Rewrite a program in the house style.

    Exit code 2, and nothing is written, if it has a mistake.
    """
    _delegate("fmt", file, mistakes=2)
