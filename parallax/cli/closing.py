"""The closing block of a run: how it ended and why that is believed, the branches, and what to do next."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console

from parallax.cli.output import print_line, styled

_COLOUR = {"succeeded": "green", "partial": "yellow", "failed": "red", "cancelled": "yellow", "needs_attention": "red"}


def short(execution_id: str) -> str:
    """The end of an id: enough to type."""
    return execution_id[-6:]


def print_closing(console: Console, execution: dict[str, Any], *, offered: bool = True, fresh: bool = True) -> None:
    """How it ended, or how it stands; `fresh` when it ended just now, before anybody could land it."""
    state = execution["state"]
    console.print()
    if execution["ended_at"]:
        told = f"in {execution['ended_at'] - execution['created_at']:.1f} s"
    else:
        told = f"begun {time.time() - execution['created_at']:.0f} s ago"
    console.print(
        styled((state.upper().replace("_", " "), f"bold {_COLOUR.get(state, '')}"),
               f"  {execution['pattern']}  {execution['id']}  {told}{_money(execution['usage'])}")
    )  # fmt: skip
    if execution["reason"] and state != "succeeded":
        console.print(styled(f"  {execution['reason']}"))
    if execution["confidence"] is not None:
        console.print(styled("  confidence ", (f"{execution['confidence']:.2f}", "bold"), f"  {why(execution)}"))
    print_branches(console, execution, fresh=fresh)
    if not execution["final"] and execution["questions_waiting"]:
        console.print(styled(("  it waits for your answer: parallax questions", "yellow")))
    if state == "needs_attention":
        name = short(execution["id"])
        console.print()
        print_commands(
            console,
            (f"parallax resume {name}", "go on, when the cause is gone"),
            (f"parallax cancel {name}", "end it; its finished branches stay"),
        )
    if offered and state in {"succeeded", "partial"} and execution["branches"]:
        _print_next(console, execution)


def why(execution: dict[str, Any]) -> str:
    """One line: the evidence that the confidence rests on."""
    judged = [step for step in execution["steps"] if step.get("why") and "/" not in step["step"]]
    if not judged:
        return "the agents say so; nothing was checked"
    last = judged[-1]
    return f"{last['why']}, in step {last['step']}"


def print_branches(console: Console, execution: dict[str, Any], *, fresh: bool) -> None:
    """Branches with their diff stat, the result first."""
    branches = sorted(execution["branches"], key=lambda b: not b["branch"].endswith("/result"))
    width = max((len(b["branch"]) for b in branches), default=0)
    for b in branches:
        bold = "bold" if b["branch"].endswith("/result") else ""
        files = f"{b['files']} file{'s' * (b['files'] != 1)}"
        console.print(
            styled("  ", (b["branch"].ljust(width), bold), f"  {files:>8}  ", (f"+{b['insertions']}", "green"), " ",
                   (f"-{b['deletions']}", "red"))
        )  # fmt: skip
    if execution["repo"]:
        base, commit = execution["base_branch"] or "your checkout", (execution["base"] or "")[:10]
        told = f"{base} is untouched at {commit}" if fresh and execution["final"] else f"begun from {base} at {commit}"
        console.print(styled((f"  {told}", "dim")))


def _print_next(console: Console, execution: dict[str, Any]) -> None:
    name = short(execution["id"])
    console.print()
    print_commands(
        console,
        (f"parallax show --why {name}", "why each step is believed"),
        (f"parallax diff {name}", "what the result changes"),
        (f"parallax land {name}", "merge it into the branch that is checked out"),
    )


def print_commands(console: Console, *commands: tuple[str, str]) -> None:
    """Commands to type, with what each is for."""
    width = max(len(command) for command, about in commands if about)
    for command, about in commands:
        told = f"   # {about}" if about else ""
        print_line(console, styled("  ", (command.ljust(width) if about else command, "bold"), (told, "dim")))


def _money(usage: dict[str, Any]) -> str:
    kinds = ("input_tokens", "output_tokens", "cached_tokens", "cache_write_tokens")
    tokens = sum(usage.get(kind, 0) for kind in kinds)
    if not tokens and not usage["cost"]:
        return ""
    told = {"estimated": " estimated in part", "reported": " as agents report"}.get(usage["priced"], "")
    return f", {tokens:,} tokens" + (f", ${usage['cost'] / 1e6:.2f}{told}" if usage["cost"] else "")


def exit_code(state: str) -> int:
    """0 succeeded, 1 anything else."""
    return 0 if state == "succeeded" else 1


COLUMNS = ("execution", "state", "pattern", "confidence", "started", "goal")


def line_of(execution: dict[str, Any], *, brief: bool) -> list[str]:
    """A row of `parallax executions`; `brief` shows as much of the id as one needs to type."""
    confidence = "" if execution["confidence"] is None else f"{execution['confidence']:.2f}"
    goal = execution["input"].get("goal") if isinstance(execution["input"], dict) else None
    started = time.strftime("%b %d %H:%M", time.localtime(execution["created_at"]))
    name = short(execution["id"]) if brief else execution["id"]
    return [name, execution["state"], execution["pattern"], confidence, started, str(goal or "")]
