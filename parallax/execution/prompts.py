"""The words that agents get. One function per kind of turn; `steps` and `questions` call them.

Nothing here is an instruction to a machine: task texts, inputs and feedback are quoted as they are, and what comes back
is judged by evidence, whatever the prompt had asked for.
"""

from __future__ import annotations

from collections.abc import Sequence

import orjson

from parallax.models import Json, OrgChart, Question, Role

WORKPLACE = (
    "You work in your own copy of the repository, in the current directory. Change files there as the task needs. "
    "Do not commit, push or switch branches: your changes are taken as they are, checked and committed for you."
)


def _who(role: Role, chart: OrgChart) -> str:
    about = f" {role.description}" if role.description else ""
    lead = f" You report to the {role.reports_to}; ask when something is unclear." if role.reports_to else ""
    team = ", ".join(name for name in chart.roles if name != role.name)
    others = f" The others are: {team}." if team else ""
    return f"You are the {role.name} in a team of coding agents.{about}{others}{lead}"


def _input(value: Json) -> str:
    if value is None:
        return ""
    text = value if isinstance(value, str) else orjson.dumps(value, option=orjson.OPT_INDENT_2).decode()
    return f"\n\nInput:\n{text}"


def assignment(
    role: Role, chart: OrgChart, task: str, *, input_value: Json, schema: Json, checks: Sequence[str], writes: bool
) -> str:
    """One task for one role."""
    parts = [_who(role, chart)]
    if writes:
        parts.append(WORKPLACE)
    parts.append(f"Your task:\n{task}{_input(input_value)}")
    if checks:
        parts.append(f"Your work will be checked by: {', '.join(checks)}.")
    if schema is not None:
        text = orjson.dumps(schema, option=orjson.OPT_INDENT_2).decode()
        parts.append(
            "End with your report as one fenced block marked json that satisfies this JSON Schema:\n"
            f"```json\n{text}\n```"
        )
    else:
        parts.append("End with a short report of what you did and why.")
    parts.append("As the last line, say how sure you are: CONFIDENCE: a number from 0 to 1.")
    return "\n\n".join(parts)


def rework(critique: str, round_: int, rounds: int) -> str:
    """The same work again, with what was wrong."""
    return (
        f"Your work was sent back (round {round_} of {rounds}). What was found:\n\n{critique}\n\n"
        "Put it right in the same copy of the repository, then report again as before."
    )


def takeover(role: Role, chart: OrgChart, task: str, by: str, critique: str) -> str:
    """A task that climbs to the lead."""
    return (
        f"{_who(role, chart)}\n\n{WORKPLACE}\n\nThe {by} could not finish this task and it comes to you; "
        f"the work so far is in your copy.\n\nThe task:\n{task}\n\nWhat was found:\n{critique}\n\n"
        "Finish it. End with a short report and, as the last line, CONFIDENCE: a number from 0 to 1."
    )


def review(
    role: Role, chart: OrgChart, *, subject: str, task: str | None, changes: str, evidence: str, final: bool
) -> str:
    """A review of somebody's work; the tree shows it."""
    parts = [
        _who(role, chart),
        "The repository in the current directory shows the work that you review. Change nothing.",
    ]
    if task:
        parts.append(f"The task was:\n{task}")
    parts.append(f"What was reported:\n{subject}")
    if changes:
        parts.append(f"What changed:\n{changes}")
    if evidence:
        parts.append(f"What Parallax checked:\n{evidence}")
    word = "Decide whether it is good enough to be taken." if final else "Say what must be better, if anything."
    parts.append(
        f"{word} End with two lines:\nVERDICT: approve, revise or reject\n"
        "CONFIDENCE: how good the work is, a number from 0 to 1"
    )
    return "\n\n".join(parts)


def red_merge(files: Sequence[str], own: str, critique: str) -> str:
    """Accepted work that breaks the merged tree goes back to its owner."""
    conflicts = f"\n\nFiles with conflict markers: {', '.join(files)}." if files else ""
    return (
        "Your accepted work was merged with the work of others, and with it the merged tree fails its checks. "
        f"It is left out for now. Your copy of the repository holds the others' work and yours.{conflicts}\n\n"
        f"Your task was:\n{own}\n\nWhat was found:\n{critique}\n\n"
        "Put it right so that your task is done and the checks pass. Then report what you did."
    )


def conflict(files: Sequence[str], own: str, others: str) -> str:
    """Two accepted pieces of work touch the same lines; the owner reconciles them."""
    listed = "\n".join(f"- {name}" for name in files)
    return (
        "Accepted work conflicts with work that was merged before it. The conflicting files, with conflict "
        f"markers in your copy of the repository:\n{listed}\n\nThe task of the one side was:\n{own}\n\n"
        f"Merged before:\n{others}\n\n"
        "Resolve every conflict so that both intents hold, and remove all markers. Then report what you did."
    )


def question(asked: Question, asker_task: str | None) -> str:
    """A colleague's question."""
    parts = [f"A question from {asked.asker}:\n{asked.text}"]
    if asker_task:
        parts.append(f"They are working on:\n{asker_task}")
    if asked.options:
        choices = "\n".join(f"- {option['id']}: {option.get('label', option['id'])}" for option in asked.options)
        parts.append(f"Answer with exactly one of these words:\n{choices}")
    else:
        parts.append("Answer it in a sentence or two. Do not change any file.")
    return "\n\n".join(parts)


def told(text: str) -> str:
    """A person's words, said with `parallax tell`."""
    return f"A person adds: {text}"
