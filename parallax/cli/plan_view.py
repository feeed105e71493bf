"""A plan for people: the team, the steps as a tree, the bounds. Printed by `plan`, and by `run` before it asks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

from rich.console import Console
from rich.text import Text

from parallax.cli.output import cut, print_line, safe, styled

_INPUT: Final = re.compile(r"\$\{input\.(\w+)\}|^input\.(\w+)(?= \[|$)")
_BELIEVED: Final = re.compile(r"\$\{<~ \w+\}")
_NAME: Final = re.compile(r"^[A-Za-z_][\w.]*(?= \[|$)")  # a task that is no text but a value of the program
_WHEN: Final = {"confidence high": "high", "confidence medium": "middling", "confidence low": "low",
                "confidence default": "low"}  # fmt: skip


def print_plan(console: Console, plan: dict[str, Any]) -> None:
    """Everything that a person decides on."""
    repo = plan.get("repository")
    where = ""
    if repo is not None:
        branch = f" ({repo['base_branch'] or 'at'} {repo['base_commit'][:10]})"
        where = f" on {repo['location']}{branch}"
    print_line(console, styled((plan["pattern"], "bold"), f" {plan['version']}{where}"), whole=True)
    if plan["roles"]:
        print_line(console, styled(("  team    ", "dim"), _team(plan)), whole=True)
    given = plan.get("input") or {}
    lines = [line for number, step in enumerate(plan["steps"], 1) for line in _step(step, f"{number}", 0, given)]
    width = max((len(name) for name, _ in lines), default=0)
    for number, (name, rest) in enumerate(lines):
        label = "  steps   " if number == 0 else " " * 10
        print_line(console, styled((label, "dim"), (name.ljust(width), "bold"), "  ").append_text(rest))
    money = _limits(plan)
    agents = f"at most {plan['agents_at_most']} agent{'s' * (plan['agents_at_most'] != 1)}"
    print_line(console, styled(("  bounds  ", "dim"), f"{agents}, each turn at most 2 h, {money}"), whole=True)
    if repo is not None and repo["dirty"]:
        paths = f"{repo['dirty']} uncommitted path{'s' * (repo['dirty'] != 1)}"
        told = "taken along" if repo["with_changes"] else "left out (--with-changes takes them along)"
        be = "are" if repo["dirty"] != 1 else "is"
        print_line(console, styled(("  notice  ", "yellow"), f"{paths} {be} {told}"), whole=True)
    for warning in plan["warnings"]:
        print_line(console, styled(("  notice  ", "yellow"), warning), whole=True)


def _limits(plan: dict[str, Any]) -> str:
    """What the run may use, as it was asked for."""
    money, time_s = plan.get("budget"), plan.get("budget_time_s")
    limits = [f"at most ${money / 1e6:.2f}" if money else "no limit on money (--budget sets one)"]
    limits += [f"{plan[f'budget_{kind}']:,} {kind}" for kind in ("tokens", "turns") if plan.get(f"budget_{kind}")]
    return ", ".join([*limits, f"{time_s / 60:.0f} min"] if time_s else limits)


def _team(plan: dict[str, Any]) -> str:
    parts = []
    for name, role in plan["roles"].items():
        type_ = plan.get("agents", {}).get(name) or " or ".join(role["types"])
        many = f" x{role['max']}" if role["max"] > 1 else ""
        parts.append(f"{name}{many}" + (f" ({type_})" if type_ else ""))
    return ", ".join(parts)


def _step(step: dict[str, Any], number: str, depth: int, given: dict[str, Any]) -> Iterator[tuple[str, Text]]:
    """A step and those inside it, each as a name and what is done."""
    name = step["id"] or ("" if depth else step["word"])
    mark = f"{number:>2} " if depth == 0 else "   " * depth + ("- " if step["id"] else "  ")
    what = styled(*_what(step, _text(step["text"], given)))
    if step["when"]:
        band = _WHEN.get(step["when"])
        what.append(safe(f"  (if the confidence is {band})" if band else f"  (if {step['when']})"), style="dim")
    yield f"{mark}{name}".replace("${index}", "N"), what
    for child in step["children"]:
        yield from _step(child, "", depth + 1, given)


def _what(step: dict[str, Any], text: str) -> list[tuple[str, str] | str]:
    role = step["role"]
    match step["word"]:
        case "assign":
            return [f"{role}: ", (text, "dim")]
        case "fanout":
            return [f"{role or 'the team'}, several at the same task: ", (text, "dim")]
        case "review":
            return [f"reviewed by {role}"]
        case "approve":
            return [f"approved by {role or text}"]
        case "integrate":
            return ["everything is merged ", (text, "dim")]
        case "askHuman":
            return ["you are asked: ", (text, "dim")]
        case "parallel" | "race":
            how = "side by side" if step["word"] == "parallel" else "side by side, the first wins"
            return [f"{how}, one for each:" if step["each"] else f"{how}:"]
        case word:
            return [f"{word} ", (f"{role}: {text}" if role else text, "dim")]


def _text(text: str, given: dict[str, Any]) -> str:
    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        return str(given[name]) if name in given else f"<{name}>"

    text = _BELIEVED.sub("<confidence>", text)
    filled = _INPUT.sub(value, text)
    if filled == text:
        filled = _NAME.sub(lambda match: f"<{match[0]}>", text)
    return cut(filled, 120)
