"""The closing block of a run: how it ended and why that is believed, the branches, and what to do next."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from parallax.cli.output import cut, styled

_COLOUR = {"succeeded": "green", "partial": "yellow", "failed": "red", "cancelled": "yellow", "needs_attention": "red"}


def short(execution_id: str) -> str:
    """The end of an id: enough to type."""
    return execution_id[-6:]


def print_closing(console: Console, execution: dict[str, Any], *, offered: bool = True) -> None:
    """How it ended."""
    state = execution["state"]
    console.print()
    took = (execution["ended_at"] or 0) - execution["created_at"]
    console.print(
        styled((state.upper().replace("_", " "), f"bold {_COLOUR.get(state, '')}"),
               f"  {execution['pattern']}  {execution['id']}  in {took:.1f} s{_money(execution['usage'])}")
    )  # fmt: skip
    if execution["reason"] and state != "succeeded":
        console.print(styled(f"  {execution['reason']}"))
    if execution["confidence"] is not None:
        console.print(styled("  confidence ", (f"{execution['confidence']:.2f}", "bold"), f"  {why(execution)}"))
    print_branches(console, execution)
    if offered and state in {"succeeded", "partial"} and execution["branches"]:
        _print_next(console, execution)


def why(execution: dict[str, Any]) -> str:
    """One line: the evidence that the confidence rests on."""
    judged = [step for step in execution["steps"] if step.get("why") and "/" not in step["step"]]
    if not judged:
        return "because the agents say so; nothing was checked"
    last = judged[-1]
    return f"because {last['why']} (step {last['step']})"


def print_branches(console: Console, execution: dict[str, Any]) -> None:
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
        base = execution["base_branch"] or "your checkout"
        console.print(styled((f"  {base} is untouched at {(execution['base'] or '')[:10]}", "dim")))


def _print_next(console: Console, execution: dict[str, Any]) -> None:
    name = short(execution["id"])
    console.print()
    console.print(styled("  parallax show --why ", (name, "bold"), ("    why each step is believed", "dim")))
    console.print(styled("  parallax diff ", (name, "bold"), ("          what the result changes", "dim")))
    console.print(
        styled("  parallax land ", (name, "bold"), ("          merge it into the branch you have checked out", "dim"))
    )


def _money(usage: dict[str, Any]) -> str:
    tokens = usage["input_tokens"] + usage["output_tokens"]
    if not tokens and not usage["cost"]:
        return ""
    return f", {tokens:,} tokens" + (f", ${usage['cost'] / 1e6:.2f}" if usage["cost"] else "")


def exit_code(state: str) -> int:
    """0 succeeded, 1 anything else."""
    return 0 if state == "succeeded" else 1


def line_of(execution: dict[str, Any]) -> list[str]:
    """A row of `parallax executions`."""
    confidence = "" if execution["confidence"] is None else f"{execution['confidence']:.2f}"
    goal = execution["input"].get("goal") if isinstance(execution["input"], dict) else None
    return [execution["id"], execution["state"], execution["pattern"], confidence, cut(str(goal or ""), 60)]
