"""A plan for people: the team, the steps as a tree, the bounds. Printed by `plan`, and by `run` before it asks."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from parallax.cli.output import cut, styled


def print_plan(console: Console, plan: dict[str, Any]) -> None:
    """Everything that a person decides on."""
    repo = plan.get("repository")
    where = ""
    if repo is not None:
        branch = f" ({repo['base_branch']} at {repo['base_commit'][:10]})" if repo["base_branch"] else ""
        where = f" on {repo['location']}{branch}"
    console.print(styled((plan["pattern"], "bold"), f" {plan['version']}{where}"))
    if plan["roles"]:
        console.print(styled(("  team   ", "dim"), _team(plan)))
    for index, step in enumerate(plan["steps"], 1):
        _print_step(console, step, f"{index:>2} ", 0, first=index == 1)
    budget = plan.get("budget")
    money = f"${budget / 1e6:.2f} in all" if budget else "no limit on money (--budget sets one)"
    console.print(
        styled(("  bounds ", "dim"), f"at most {plan['agents_at_most']} agents, each turn at most 2 h, {money}")
    )
    if repo is not None and repo["dirty"]:
        paths = f"{repo['dirty']} uncommitted path{'s' * (repo['dirty'] != 1)}"
        told = "are taken along" if repo["with_changes"] else "are left out (--with-changes takes them along)"
        console.print(styled(("  notice ", "yellow"), f"{paths} {told}"))
    for warning in plan["warnings"]:
        console.print(styled(("  notice ", "yellow"), warning))


def _team(plan: dict[str, Any]) -> str:
    parts = []
    for name, role in plan["roles"].items():
        type_ = plan.get("agents", {}).get(name) or " or ".join(role["types"])
        many = f" x{role['max']}" if role["max"] > 1 else ""
        parts.append(f"{name}{many}" + (f" ({type_})" if type_ else ""))
    return ", ".join(parts)


def _print_step(console: Console, step: dict[str, Any], number: str, depth: int, *, first: bool = False) -> None:
    label = "  steps  " if first else "         "
    indent = "   " * depth
    word = {"parallel": "side by side", "race": "the first wins", "integrate": "merge all", "askHuman": "ask you"}.get(
        step["word"], step["word"]
    )
    name = f" {step['id']}" if step["id"] else ""
    each = ", one for each" if step["each"] else ""
    who = f" by {step['role']}" if step["role"] and step["word"] in {"review", "approve"} else ""
    role = f"{step['role']}: " if step["role"] and step["word"] == "assign" else ""
    when = (f"  ({step['when']})", "dim") if step["when"] else ""
    text = cut(step["text"], 70) if step["word"] not in {"review", "approve"} else ""
    console.print(
        styled(
            (label, "dim"),
            f"{indent}{number}",
            (f"{word}{who}{each}", "bold"),
            f"{name} ",
            (f"{role}{text}", "dim"),
            when,
        )
    )
    for child in step["children"]:
        _print_step(console, child, "- ", depth + 1)
