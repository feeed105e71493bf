"""Patterns at the desk: list, check, compile, plan. These read files and need no server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from parallax.cli.options import JsonFlag

PatternArg = Annotated[str, typer.Argument(help="A pattern's name or a path to one.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("patterns")(list_patterns)
    app.command()(check)
    app.command("compile")(compile_)
    app.command()(plan)


def _engine() -> Any:
    from parallax.config import load
    from parallax.patterns.engine import PatternEngine
    from parallax.patterns.shipped import shipped_patterns

    return PatternEngine([("yours", load().patterns_dir), ("shipped", shipped_patterns())])


def list_patterns(as_json: JsonFlag = False) -> None:
    """List the patterns: yours and the shipped ones."""
    from parallax.cli.output import err, out, print_json, print_table

    good, bad = _engine().all()
    if as_json:
        rows = [
            {"name": p.name, "version": p.version, "format": p.format, "origin": p.origin, "description": p.description,
             "path": p.path, "input": dict(p.input_schema)}
            for p in good
        ]  # fmt: skip
        print_json({"patterns": rows, "errors": [str(error) for error in bad]})
        return
    table = [
        (p.name, p.version, p.format, p.origin, p.description.splitlines()[0] if p.description else "") for p in good
    ]
    print_table(out(), ("pattern", "version", "format", "from", "when to use it"), table)
    for error in bad:
        err().print(str(error))


def check(
    path: Annotated[str | None, typer.Argument(metavar="[PATTERN]", help="A name, a file or a directory.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Check patterns: every mistake with its place.

    Exit code 2 if there is one.
    """
    from parallax.cli.output import out, print_json
    from parallax.errors import PatternError, UsageError
    from parallax.patterns.engine import FORMATS, load

    engine = _engine()
    given = Path(path) if path else None
    errors: list[PatternError] = []
    good: list[Any] = []
    if path is None:
        good, errors = engine.all()
    elif given is not None and given.is_dir():
        files = sorted(entry for entry in given.iterdir() if entry.suffix in FORMATS)
        if not files:
            raise UsageError(f"there is no pattern in {given.absolute()} (files named {', '.join(FORMATS)})")
        for file in files:
            try:
                good.append(load(file.absolute()))
            except PatternError as error:
                errors.append(error)
    else:
        try:
            good.append(engine.get(path))
        except PatternError as error:
            errors.append(error)
    warnings = [str(warning) for p in good for warning in p.warnings]
    if as_json:
        print_json({"checked": len(good) + len(errors), "errors": [str(e) for e in errors], "warnings": warnings})
    else:
        console = out()
        for text in [*map(str, errors), *(f"warning: {warning}" for warning in warnings)]:
            console.print(text)
        console.print(f"{len(good)} good, {len(errors)} with mistakes")
    if errors:
        raise typer.Exit(2)


def compile_(pattern: PatternArg, as_json: JsonFlag = False) -> None:
    """Print the Prism that a pattern compiles to."""
    import sys

    from parallax.cli.output import print_json

    found = _engine().get(pattern)
    if as_json:
        print_json({"name": found.name, "hash": found.hash, "prism": found.prism})
    else:
        sys.stdout.write(found.prism)


def plan(
    pattern: PatternArg,
    goal: Annotated[str | None, typer.Argument(help="The goal, for patterns that take one.")] = None,
    inputs: Annotated[list[str] | None, typer.Option("--input", metavar="KEY=VALUE", help="An input.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Show what a pattern would do; nothing runs."""
    from parallax.cli.inputs import read_inputs
    from parallax.cli.output import out, print_json
    from parallax.cli.plan_view import print_plan
    from parallax.patterns.engine import check_input
    from parallax.patterns.plan import plan_json, plan_of

    found, given = _engine().get(pattern), read_inputs(goal, inputs or [])
    if given:  # without any input the plan is shown in general
        given = check_input(found, given)
    shown = plan_json(plan_of(found, given)) | {"input": given}
    if as_json:
        print_json(shown)
    else:
        print_plan(out(), shown)
