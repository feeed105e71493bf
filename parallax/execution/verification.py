"""What Parallax believes of a result, and why: oracles, their combination, the policy's decision.

Claim, evidence and confidence are three things, and only this module makes the third. Sources are believed in this
order: evidence, agreement, the agent's own report, its record, else 0.5 with source `prior`. An oracle that could not
run is no pass: fail closed. Called by `steps` after every turn and by `host` for `verify` and `integrate`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from parallax.errors import UsageError
from parallax.models import Action, Evidence, Json, Policy, Source

PRIOR: Final = 0.5
SCHEMA: Final = "schema"  # the oracle that looks at the form of a report


@dataclass(frozen=True, slots=True, kw_only=True)
class Oracles:
    """What judges a result: named checks or argument lists, each a `check` oracle. Combined by the least score."""

    checks: tuple[str | tuple[str, ...], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.checks)

    @property
    def names(self) -> list[str]:
        """For people."""
        return [check if isinstance(check, str) else " ".join(check) for check in self.checks]


def oracles_of(value: Json) -> Oracles:
    """Read what `verify()` takes first: a check's name, an argument list, `{check: ...}` or `{oracles: [...]}`."""
    match value:
        case None:
            return Oracles()
        case str():
            return Oracles(checks=(value,))
        case list() if value and all(isinstance(part, str) for part in value):
            return Oracles(checks=(tuple(value),))
        case {"check": check}:
            return oracles_of(check)
        case {"oracles": list() as entries}:
            return Oracles(checks=tuple(check for entry in entries for check in oracles_of(entry).checks))
        case _:
            raise UsageError(
                f"unknown oracle {value!r}: expected the name of a check, an argument list, "
                "{check: ...} or {oracles: [...]}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The confidence of a result and where it comes from."""

    confidence: float
    source: Source


def judge(evidence: Sequence[Evidence], reported: float | None) -> Verdict:
    """Evidence before claims: the least score of all evidence; else the agent's report; else the prior.

    A report that fits its schema has the right form, which says nothing of its content: it only ever counts against.
    """
    scores = [score_of(entry) for entry in evidence if not (entry.oracle == SCHEMA and entry.passed)]
    if scores:
        return Verdict(confidence=min(scores), source=Source.EVIDENCE)
    if reported is not None:
        return Verdict(confidence=reported, source=Source.REPORTED)
    return Verdict(confidence=PRIOR, source=Source.PRIOR)


def score_of(entry: Evidence) -> float:
    """The score of one piece of evidence. None passed means that it could not run: 0, whatever it says."""
    if entry.passed is None:
        return 0.0
    if entry.score is not None:
        return entry.score
    return 1.0 if entry.passed else 0.0


def decide(verdict: Verdict, policy: Policy | None, *, rounds_left: int) -> Action:
    """What the policy makes of a verdict.

    Without a policy, and where nothing speaks for or against a result (source `prior`), it is accepted, the latter
    with a warning: work cannot be sent back without saying what is wrong with it.
    """
    c = verdict.confidence
    if policy is None:
        return Action.ACCEPT
    if c >= policy.accept:
        return Action.ACCEPT
    if verdict.source is Source.PRIOR or c >= policy.retry_below:
        return Action.ACCEPT_WITH_WARNING
    if rounds_left > 0:
        return Action.RETRY
    return Action.ESCALATE if c < policy.escalate_below else Action.ACCEPT_WITH_WARNING


def critique(evidence: Sequence[Evidence], claimed: str) -> str:
    """What is sent back: what was claimed, what was found, and the end of the log."""
    parts = []
    for entry in evidence:
        if entry.passed:
            continue
        word = "could not run" if entry.passed is None else "failed"
        parts.append(f"{entry.oracle} {word}: {entry.detail}")
        if entry.log:
            parts.append(f"The end of its output:\n{entry.log[-3000:]}")
    if claimed:
        parts.append(f"You had reported: {claimed[:500]}")
    return "\n\n".join(parts)


def summary(evidence: Sequence[Evidence]) -> str:
    """One line for people: `quick passed (14 passed)`."""
    words = {True: "passed", False: "failed", None: "could not run"}
    return "; ".join(f"{e.oracle} {words[e.passed]}" + (f" ({e.detail})" if e.detail else "") for e in evidence)


def evidence_json(entry: Evidence) -> dict[str, Any]:
    """Evidence as programs and events see it."""
    return {
        "check": entry.oracle,
        "passed": entry.passed,
        "score": score_of(entry),
        "detail": entry.detail,
    }
