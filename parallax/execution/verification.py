"""What Parallax believes of a result, and why: oracles, their combination, the policy's decision.

Claim, evidence and confidence are three things, and only this module makes the third. Sources are believed in this
order: evidence, agreement, the agent's own report, its record, else 0.5 with source `prior`. An oracle that could not
run is no pass: fail closed. Called by `steps` after every turn and by `host` for `verify` and `integrate`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from parallax.errors import UsageError
from parallax.models import Action, Evidence, Json, Policy, Source, StepResult, TaskResult

PRIOR: Final = 0.5
RED_BEFORE: Final = 0.7
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


def reason(step: StepResult) -> str:
    """Why a step is believed as much as it is, in one line for people."""
    match step.source:
        case Source.EVIDENCE | Source.AGREEMENT:
            return summary(step.evidence)
        case Source.REPORTED:
            return "by its own word; nothing was checked"
        case Source.RECORD:
            return "by the agent's record"
        case _:
            return "nothing speaks for it or against it"


def evidence_json(entry: Evidence) -> dict[str, Any]:
    """Evidence as programs and events see it."""
    return {
        "check": entry.oracle,
        "passed": entry.passed,
        "score": score_of(entry),
        "detail": entry.detail,
    }


def first_line(text: str, limit: int = 100) -> str:
    """The first line of a text, cut."""
    line = next((part.strip() for part in text.splitlines() if part.strip()), "")
    return line if len(line) <= limit else f"{line[: limit - 1]}…"


_COUNTS: Final = re.compile(r"(\d+) passed, (\d+) failed")


def red_before(now: Evidence, then: Evidence) -> Evidence:
    """A red check that was red before the work, too: the work is not to blame if it fails no more and passes more.

    Without more passing tests nothing speaks for the work, so it stays red: a repair that repairs nothing looks so.
    Such evidence is worth RED_BEFORE: enough to go on to the merge, not enough to be believed; the merged tree decides.
    """
    if now.passed is not False or then.passed is not False:
        return now
    counts, base = _COUNTS.search(now.detail), _COUNTS.search(then.detail)
    if counts is None or base is None:
        return now
    more = int(counts[1]) - int(base[1])
    if int(counts[2]) > int(base[2]) or more <= 0:
        return now
    detail = f"{now.detail}; {base[2]} failed before the work as well, {more} more pass now"
    return replace(now, passed=True, score=RED_BEFORE, detail=detail, verdict="red-before")


def could_not_run(oracle: str, why: str) -> Evidence:
    """An oracle that could not run: no pass."""
    return Evidence(oracle=oracle, passed=None, score=None, detail=why)


def claims_evidence(result: TaskResult | None, unresolved: Sequence[str]) -> list[Evidence]:
    """What speaks against a turn before any check runs: it did not end as it should, or left conflict markers."""
    found = []
    if result is not None and result.stop != "end_turn":
        detail = f"the turn ended with {result.stop}: {first_line(result.message)}"
        found.append(Evidence(oracle="turn", passed=False, score=0.0, detail=detail))
    if unresolved:
        detail = f"conflict markers are left in {', '.join(unresolved[:5])}"
        found.append(Evidence(oracle="merge", passed=False, score=0.0, detail=detail))
    return found


def protected_evidence(touched: Sequence[str]) -> list[Evidence]:
    """Work that changes what the repository's owner protects goes back, whatever its checks say."""
    if not touched:
        return []
    detail = f"it changes protected paths: {', '.join(touched[:5])}; leave them as they were"
    return [Evidence(oracle="protected", passed=False, score=0.0, detail=detail)]


def check_schema(schema: Json) -> None:
    """Raises UsageError for what is no JSON Schema, before any agent works for it."""
    import jsonschema  # here, because it takes a tenth of a second and only steps with a schema need it

    try:
        jsonschema.Draft202012Validator.check_schema(schema)
    except jsonschema.exceptions.SchemaError as error:
        raise UsageError(f"the schema of the report is no JSON Schema: {error.message}") from error


def schema_evidence(value: Json, schema: Json) -> Evidence:
    """Whether a report satisfies its JSON Schema."""
    import jsonschema
    from referencing.exceptions import Unresolvable

    check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    try:
        wrong = sorted(validator.iter_errors(value), key=lambda e: list(map(str, e.absolute_path)))
    except Unresolvable as error:
        raise UsageError(f"the schema of the report refers to what is not in it: {error}") from error
    if not wrong:
        return Evidence(oracle=SCHEMA, passed=True, score=1.0, detail="the report fits its schema")
    place = "/".join(str(part) for part in wrong[0].absolute_path) or "the report"
    return Evidence(oracle=SCHEMA, passed=False, score=0.0, detail=f"{place}: {wrong[0].message}"[:300])
