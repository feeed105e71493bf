"""Patterns: list, read with the compiled Prism, plan before spending. A path works wherever a name does."""

from __future__ import annotations

from fastapi import APIRouter, Response

from parallax.server import views
from parallax.server.parts import Part, json_response
from parallax.server.routes.executions import NewExecution

router = APIRouter(prefix="/api/patterns", tags=["patterns"])


@router.get("")
async def index(parallax: Part) -> Response:
    """Every pattern, and the errors of those that do not load."""
    good, bad = parallax.patterns.all()
    listed = [{key: value for key, value in views.pattern(p).items() if key not in {"prism", "metadata"}} for p in good]
    return json_response({"patterns": listed, "errors": [str(error) for error in bad]})


@router.post("/{name:path}/plan")
async def plan(name: str, body: NewExecution, parallax: Part) -> Response:
    """What a run with this body would do: team, steps, bounds. Nothing is written."""
    submission = body.model_copy(update={"pattern": name}).submission()
    return json_response(views.prepared(await parallax.intake.prepare(submission)))


@router.get("/{name:path}/prism")
async def prism(name: str, parallax: Part) -> Response:
    """The Prism that the pattern compiles to."""
    return Response(parallax.patterns.get(name).prism, media_type="text/plain; charset=utf-8")


@router.get("/{name:path}")
async def show(name: str, parallax: Part) -> Response:
    """One pattern."""
    return json_response(views.pattern(parallax.patterns.get(name)))
