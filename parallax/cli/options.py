"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]
ExecutionArg = Annotated[
    str | None, typer.Argument(metavar="[EXECUTION]", help="Its id, or the end of it; without one, the newest.")
]
