"""What was spent: `parallax spent`, the bill of this data directory or of one execution."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Annotated, Any

import typer

from parallax.cli.look import with_client
from parallax.cli.options import ExecutionArg, JsonFlag

_DURATION = re.compile(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")


COLUMNS = ("cost", "estimated", "reported", "calls", "turns", "input", "cached", "written", "output")


class By(StrEnum):
    """What sums are made of."""

    DAY = "day"
    ACCOUNT = "account"
    PROVIDER = "provider"
    MODEL = "model"
    EXECUTION = "execution"
    ROLE = "role"
    STEP = "step"
    AGENT = "agent"
    TURN = "turn"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(spent)


def spent(
    execution: ExecutionArg = None,
    by: Annotated[list[By] | None, typer.Option("--by", help="Sum up by this; may stand several times.")] = None,
    days: Annotated[int, typer.Option(min=1, help="Without an execution: the last so many days.")] = 30,
    as_json: JsonFlag = False,
) -> None:
    """What was spent, by day, or by step and agent.

    Sums are at list prices for what the providers counted; `estimated` and `reported` say how much of them is not.
    """

    async def work(client: Any) -> None:
        from parallax.cli.connection import resolve
        from parallax.cli.output import out, print_json, print_table

        execution_id = None if execution is None else await resolve(client, execution)
        usual = [By.DAY, By.PROVIDER, By.ACCOUNT] if execution_id is None else [By.STEP, By.AGENT, By.MODEL]
        groups = [str(group) for group in by or usual]
        rows = await client.usage(by=groups, execution=execution_id, days=days)
        if as_json:
            print_json({"usage": rows})
        elif not rows:
            out().print("nothing was spent yet")
        else:
            print_table(out(), (*groups, *COLUMNS), [_line(row, groups) for row in rows])

    with_client(work)


def _line(row: dict[str, Any], groups: list[str]) -> list[str]:
    def dollars(amount: int) -> str:
        return f"${amount / 1e6:.4f}" if amount else ""

    counts = ("calls", "turns", "input_tokens", "cached_tokens", "cache_write_tokens", "output_tokens")
    named = [str(row[group] or "") for group in groups]
    money = [f"${row['cost'] / 1e6:.4f}", dollars(row["cost_estimated"]), dollars(row["cost_reported"])]
    return [*named, *money, *(f"{row[count]:,}" for count in counts)]


def duration_ms(text: str) -> int:
    """`90m`, `8h`, `1h30m`, `45s` in milliseconds. Raises typer.BadParameter."""
    found = _DURATION.fullmatch(text.strip().lower())
    hours, minutes, seconds = (int(part or 0) for part in found.groups()) if found else (0, 0, 0)
    if not (total := (hours * 60 + minutes) * 60 + seconds):
        raise typer.BadParameter(f"'{text}' is no length of time; expected such as 90m, 8h or 1h30m")
    return total * 1000
