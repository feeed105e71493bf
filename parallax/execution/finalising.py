"""The end of a run that shall be pushed: a person's approval where it needs one, the push, the pull request.

Each is a result in the journal under a key of its own, so that a resumed execution does none of them again; what a
crash cut off from its record is found by looking (`workspaces.finalising`). Called by `ending` when the program has
ended, and by the route `land` with an execution that ended before.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Final

from parallax.errors import ConflictError, RemoteError
from parallax.execution.course import Course
from parallax.execution.journal import step_from_json
from parallax.execution.questions import PROGRAM
from parallax.execution.verification import first_line, reason
from parallax.models import Execution, Json, Opened, Question, StepResult
from parallax.storage.statements import JournalEntry
from parallax.workspaces.finalising import Finaliser, Looked, Pushed, Wish, Words, approval_problem
from parallax.workspaces.history import DiffStat
from parallax.workspaces.profile import Profile
from parallax.workspaces.repository import Repository

APPROVAL: Final = "finalise/approval"
PUSH: Final = "finalise/push"
PULL_REQUEST: Final = "finalise/pull_request"
_INERT: Final = (
    ("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("@", "@\u200b"), ("#", "#\u200b"), ("`", "'"), ("[", "\\["),
)  # fmt: skip
_LATER_S: Final = (2.0, 10.0, 30.0)  # further attempts when the forge is not reached; afterwards a person decides


class Finalising:
    """Grants the wish of one execution under way."""

    def __init__(self, course: Course, finaliser: Finaliser) -> None:
        self._course = course
        self._finaliser = finaliser

    async def run(self, wish: Wish) -> None:
        """Push, and open the pull request. Raises RemoteError, or ConflictError where a person said no."""
        course, journal = self._course, self._course.journal
        assert course.repo is not None
        if journal.result(PUSH) is not None and (not wish.pull_request or journal.result(PULL_REQUEST) is not None):
            return
        for wait_s in (*_LATER_S, None):
            try:
                await self._granted(wish)
            except RemoteError as error:
                if wait_s is None or not error.retryable:
                    raise
                await asyncio.sleep(wait_s)
            else:
                break
        await self._finaliser.done(course.execution.id)

    async def _granted(self, wish: Wish) -> None:
        course, journal, id_ = self._course, self._course.journal, self._course.execution.id
        assert course.repo is not None
        looked = await self._finaliser.look(course.repo, id_, wish, course.profile)
        if looked.sensitive:
            await self._approved(looked)
        if journal.result(PUSH) is None:
            pushed = await self._finaliser.push(course.repo, id_, looked)
            told = journal.event("branch.pushed", branch=pushed.branch, commit=pushed.sha, url=pushed.url)
            await journal.write("result", PUSH, asdict(pushed), events=[told])
        if wish.pull_request and journal.result(PULL_REQUEST) is None:
            words = describe(course.execution, course.steps, await self._finaliser.stat(course.repo, looked))
            opened = await self._finaliser.pull_request(course.repo, id_, looked, wish, words)
            data = asdict(opened)
            await journal.write("result", PULL_REQUEST, data, events=[journal.event("pull_request.opened", **data)])

    async def _approved(self, looked: Looked) -> None:
        course, journal = self._course, self._course.journal
        key = f"{APPROVAL}/{looked.sha[:12]}"  # of this commit: what was approved before says nothing of another
        given: Json = journal.result(key)
        if given is None:
            question = Question(
                id="",  # the desk's to give
                execution=course.execution.id,
                step_key=key,
                asker=PROGRAM,
                kind="approval",
                text=approval_problem(looked),
                options=({"id": "approve", "label": "push it"}, {"id": "reject", "label": "do not push"}),
            )
            answer = await course.desk.ask(question, journal)
            given = {"answer": answer.answer, "by": answer.by, "sha": looked.sha, "at": time.time()}
            await journal.write("result", key, given)
        if given["answer"] != "approve":
            raise ConflictError(f"not pushed: {given['by']} did not approve {'; '.join(looked.sensitive[:3])}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finalised:
    """What became of a wish. In a dry run nothing was written: `pushed.new` says whether it would be."""

    looked: Looked
    pushed: Pushed
    opened: Opened | None = None


async def finalise_ended(
    finaliser: Finaliser,
    execution: Execution,
    repo: Repository,
    profile: Profile,
    wish: Wish,
    steps: dict[str, StepResult],
    *,
    approved: bool,
    dry_run: bool,
) -> Finalised:
    """The same for an execution that has ended: a person asks for it now, and may ask again."""
    try:
        looked = await finaliser.look(repo, execution.id, wish, profile)
        if looked.sensitive and not approved and not dry_run:
            raise ConflictError(f"{approval_problem(looked)}: look at the diff, then add --allow-protected")
        pushed = await finaliser.push(repo, execution.id, looked, dry_run=dry_run)
        opened = None
        if wish.pull_request and not dry_run:
            words = describe(execution, steps, await finaliser.stat(repo, looked))
            opened = await finaliser.pull_request(repo, execution.id, looked, wish, words)
    finally:
        await finaliser.done(execution.id)
    return Finalised(looked=looked, pushed=pushed, opened=opened)


def steps_of(entries: Iterable[JournalEntry]) -> dict[str, StepResult]:
    """The steps that a journal has results of: for an execution that is not under way."""
    found = {}
    for entry in entries:
        if entry.kind == "result" and entry.body.get("step") is not None and "/" not in entry.step_key:
            found[entry.step_key] = step_from_json(entry.body["step"])
    return found


def describe(execution: Execution, steps: dict[str, StepResult], stat: DiffStat) -> Words:
    """Title and body of the pull request: what was asked, what was done, and why it is believed."""
    goal = execution.input.get("goal") if isinstance(execution.input, dict) else None
    title = first_line(str(goal or f"Result of {execution.pattern}"), 72)
    size = f"{stat.files} file{'s' * (stat.files != 1)}, +{stat.insertions} -{stat.deletions}"
    lines = [
        plain(str(goal)) if goal else "",
        "",
        f"{size}, by pattern `{code(execution.pattern)}` of Parallax, execution `{execution.id}`.",
        "",
        "### Evidence",
        "",
        "| step | role | confidence | why it is believed |",
        "|---|---|---|---|",
    ]
    for key, step in steps.items():
        why = plain(reason(step)).replace("|", "\\|")
        lines.append(f"| `{code(key)}` | {plain(step.role or '-')} | {step.confidence:.2f} | {why} |")
    ran = [(key, e) for key, step in steps.items() for e in step.evidence if e.command is not None]
    if ran:
        lines += ["", "### Checks that Parallax ran on clean checkouts", ""]
    for key, entry in ran:
        word = {True: "passed", False: "failed", None: "could not run"}[entry.passed]
        lines.append(
            f"- `{code(entry.oracle)}` {word} on `{code(key)}` in {entry.duration_s:.1f} s: {plain(entry.detail)} "
            f"(`{code(entry.command or '')}`, exit code {entry.exit_code})"
        )
    return Words(title=plain(title), body="\n".join(lines).strip())


def plain(text: str) -> str:
    """Words of agents and users as text only: no mention, link, markup or comment of theirs takes effect."""
    for old, new in _INERT:
        text = text.replace(old, new)
    return " ".join(text.split())[:1000]


def code(text: str) -> str:
    """The same inside of backticks."""
    return " ".join(text.replace("`", "'").replace("|", "/").split())[:200]
