"""Executions: start, look, follow, cancel, see what changed, land."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Response
from pydantic import BaseModel, ConfigDict, Field, SecretStr

from parallax.app import Parallax
from parallax.errors import ConflictError, UsageError
from parallax.execution.history import Fork
from parallax.execution.intake import Submission
from parallax.models import Execution, ExecutionState, Json
from parallax.redaction import Secret
from parallax.server import sse, views
from parallax.server.parts import Part, json_response
from parallax.workspaces.finalising import Wish
from parallax.workspaces.repository import Repository
from parallax.workspaces.service import result_branch

router = APIRouter(prefix="/api/executions", tags=["executions"])


class Wished(BaseModel):
    """What shall be pushed, and how the pull request shall be."""

    model_config = ConfigDict(extra="forbid")

    push: bool = False
    pull_request: bool = False
    branch: str | None = Field(default=None, max_length=200)
    onto: str | None = Field(default=None, max_length=200)
    draft: bool = False
    labels: list[str] = Field(default=[], max_length=50)
    reviewers: list[str] = Field(default=[], max_length=15)


class NewExecution(BaseModel):
    """What to run. Money in dollars, as on the command line; time in milliseconds."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "example": {"pattern": "startup-team", "input": {"goal": "Fix the failing test"}, "repo": "/srv/shop"}
        },
    )

    pattern: str = Field(min_length=1, max_length=4096)
    input: dict[str, Json] = {}
    repo: str | None = None
    base: str | None = None
    with_changes: bool = False
    agent: str | None = None
    model: str | None = None
    budget: float | None = Field(default=None, gt=0)
    depth: int | None = Field(default=None, ge=1)
    finalise: Wished = Wished()
    token: SecretStr | None = Field(default=None, max_length=4096)

    budget_tokens: int | None = Field(default=None, gt=0)
    budget_turns: int | None = Field(default=None, gt=0)
    budget_time: int | None = Field(default=None, gt=0)
    auto_resume: bool = True

    def submission(self) -> Submission:
        """For the engine."""
        values = self.model_dump(exclude={"finalise", "token"})
        values["wish"] = Wish.read(self.finalise.model_dump())
        values["token"] = None if self.token is None else Secret(self.token.get_secret_value())
        budget, time_ms = values.pop("budget"), values.pop("budget_time")
        return Submission(
            **values,
            budget=None if budget is None else round(budget * 1_000_000),
            budget_time_s=None if time_ms is None else time_ms / 1000,
        )


class NewReplay(BaseModel):
    """What to run against the journal: the recorded program, or this pattern."""

    model_config = ConfigDict(extra="forbid")

    pattern: str | None = Field(default=None, min_length=1, max_length=4096)


class NewFork(BaseModel):
    """Where to fork, and what shall be another: without `at`, the first effect that differs."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"example": {"at": "review"}})

    at: str | None = Field(default=None, min_length=1, max_length=500)
    input: dict[str, Json] | None = None
    pattern: str | None = Field(default=None, min_length=1, max_length=4096)


class Land(Wished):
    """Where the result goes: without a branch into what the user has checked out; pushed where that is wished."""

    dry_run: bool = False
    allow_protected: bool = False

    def wish(self) -> Wish:
        """For the finaliser."""
        return Wish.read(self.model_dump(exclude={"dry_run", "allow_protected"}))


@router.post("", status_code=202)
async def create(
    body: NewExecution, parallax: Part, idempotency_key: Annotated[str | None, Header(max_length=200)] = None
) -> Response:
    """Start an execution; 202 once it is on disk. The same Idempotency-Key returns the same execution."""
    return _taken_in(*await parallax.intake.submit(body.submission(), key=idempotency_key))


def _taken_in(execution: Execution, new: bool) -> Response:
    answer = json_response(views.execution(execution), status=202)
    answer.headers["Location"] = f"/api/executions/{execution.id}"
    answer.headers["Idempotency-Replayed"] = "false" if new else "true"
    return answer


@router.get("")
async def index(
    parallax: Part,
    state: Annotated[list[ExecutionState] | None, Query()] = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
    before: str | None = None,
) -> Response:
    """Newest first; `next` is what `before` takes for the following page."""
    found = await parallax.store.executions(states=state or (), limit=limit, before=before)
    following = found[-1].id if len(found) == limit else None
    return json_response({"executions": [views.execution(e) for e in found], "next": following})


@router.get("/{execution_id}")
async def show(execution_id: str, parallax: Part) -> Response:
    """One execution with its steps."""
    execution = await parallax.store.execution(execution_id)
    waiting = await parallax.store.questions(execution=execution_id, states=("with_person",))
    entries = await parallax.store.journal(execution_id)
    shown = views.execution(execution, waiting=len(waiting)) | {"steps": views.steps(entries)}
    return json_response(shown | {"branches": await _branches(parallax, execution)})


@router.get("/{execution_id}/steps")
async def steps(execution_id: str, parallax: Part) -> Response:
    """What each step came to, and why it is believed."""
    await parallax.store.execution(execution_id)
    return json_response({"steps": views.steps(await parallax.store.journal(execution_id))})


@router.get("/{execution_id}/journal")
async def journal(execution_id: str, parallax: Part) -> Response:
    """The journal as it is."""
    await parallax.store.execution(execution_id)
    return json_response({"journal": [views.journal(entry) for entry in await parallax.store.journal(execution_id)]})


@router.get("/{execution_id}/events")
async def events(
    execution_id: str,
    parallax: Part,
    last_event_id: Annotated[str | None, Header()] = None,
    after: str | None = None,
    follow: bool = True,
) -> Response:
    """Server-sent events: all after `Last-Event-ID`, then live to the end; with `follow=false` what there is now."""
    await parallax.store.execution(execution_id)
    start = sse.last_event_id(last_event_id, after)
    if follow:
        return sse.response(parallax.bus.stream(execution_id, start))
    return sse.response(sse.so_far(parallax.store, execution_id, start))


@router.post("/{execution_id}/cancel", status_code=202)
async def cancel(execution_id: str, parallax: Part) -> Response:
    """Cancel; it ends `cancelled` when nothing of it runs any more."""
    return json_response(views.execution(await parallax.engine.cancel(execution_id, "a person")), status=202)


@router.post("/{execution_id}/steps/{step}/cancel", status_code=202)
async def cancel_step(execution_id: str, step: str, parallax: Part) -> Response:
    """Cancel one running step, or what runs in a join, by id or key; for the program it has failed."""
    cancelled = await parallax.engine.cancel_step(execution_id, step, "a person")
    return json_response({"cancelled": list(cancelled)}, status=202)


@router.post("/{execution_id}/pause", status_code=202)
async def pause(execution_id: str, parallax: Part) -> Response:
    """What has begun comes to its end, nothing else begins, until it is resumed."""
    return json_response(views.execution(await parallax.engine.pause(execution_id, "a person")), status=202)


@router.post("/{execution_id}/resume", status_code=202)
async def resume(execution_id: str, parallax: Part) -> Response:
    """Let an execution go on that is paused or needs attention; its recoveries are counted anew."""
    return json_response(views.execution(await parallax.engine.release(execution_id)), status=202)


@router.post("/{execution_id}/replay")
async def replay(execution_id: str, body: NewReplay, parallax: Part) -> Response:
    """Run the program against the journal with no live call; `divergence` names the first difference."""
    return json_response(views.replayed(await parallax.history.replay(execution_id, pattern=body.pattern)))


@router.post("/{execution_id}/fork", status_code=202)
async def fork(
    execution_id: str,
    body: NewFork,
    parallax: Part,
    idempotency_key: Annotated[str | None, Header(max_length=200)] = None,
) -> Response:
    """Start an execution that shares this one's journal up to a step; 202 once it is on disk."""
    asked = Fork(execution=execution_id, at=body.at, input=body.input, pattern=body.pattern)
    return _taken_in(*await parallax.history.fork(asked, key=idempotency_key))


@router.get("/{execution_id}/diff")
async def diff(execution_id: str, parallax: Part, stat: bool = False, branch: str | None = None) -> Response:
    """What the result changes against the base; or another branch of the execution."""
    execution, repo = await _repository(parallax, execution_id)
    names = dict(await parallax.workspaces.branches(repo, execution_id))
    wanted = branch or result_branch(execution_id)
    if wanted not in names:
        known = ", ".join(names) or "none yet"
        raise ConflictError(f"execution '{execution_id}' has no branch '{wanted}' (branches: {known})")
    assert execution.base is not None
    text = await parallax.workspaces.diff(repo.mirror, execution.base, names[wanted], stat=stat)
    ended = text if not text or text.endswith("\n") else f"{text}\n"  # a patch without it cannot be applied
    return Response(ended, media_type="text/x-diff; charset=utf-8")


@router.post("/{execution_id}/land")
async def land(execution_id: str, body: Land, parallax: Part) -> Response:
    """Bring the result into the user's branch, or to a new one; or push it. Never over changes that are not committed.

    A second call finds what the first one did.
    """
    execution, repo = await _repository(parallax, execution_id)
    if not execution.state.final:
        raise ConflictError(f"execution '{execution_id}' is {execution.state}: land it when it has ended")
    if wish := body.wish():
        return json_response(
            await parallax.push(execution, repo, wish, approved=body.allow_protected, dry_run=body.dry_run)
        )
    if body.dry_run:
        raise UsageError("a dry run is of a push: add --push or --pr (`parallax diff` shows what would be landed)")
    landed = await parallax.workspaces.land(repo, execution_id, branch=body.branch)
    return json_response(landed)


async def _repository(parallax: Parallax, execution_id: str) -> tuple[Execution, Repository]:
    execution = await parallax.store.execution(execution_id)
    if execution.repo is None:
        raise UsageError(f"execution '{execution_id}' has no repository")
    return execution, await parallax.workspaces.open_repository(execution.repo, execution.base)


async def _branches(parallax: Parallax, execution: Execution) -> list[dict[str, Any]]:
    if execution.repo is None or execution.base is None:
        return []
    repo = await parallax.workspaces.open_repository(execution.repo, execution.base)
    shown = []
    for branch, commit in await parallax.workspaces.branches(repo, execution.id):
        stat = await parallax.workspaces.diffstat(repo.mirror, execution.base, commit)
        shown.append(
            {"branch": branch, "commit": commit, "files": stat.files, "insertions": stat.insertions,
             "deletions": stat.deletions}
        )  # fmt: skip
    return shown
