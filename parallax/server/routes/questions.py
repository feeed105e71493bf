"""Questions that wait for somebody."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, ConfigDict, Field

from parallax.server import views
from parallax.server.parts import Part, json_response

router = APIRouter(prefix="/api/questions", tags=["questions"])


class Answer(BaseModel):
    """An option's id, or text where no options are offered."""

    model_config = ConfigDict(extra="forbid")

    answer: str = Field(min_length=1, max_length=20_000)


@router.get("")
async def index(
    parallax: Part, execution: str | None = None, state: Annotated[list[str] | None, Query()] = None
) -> Response:
    """By default those that wait for a person."""
    found = await parallax.store.questions(execution=execution, states=state or ("with_person",))
    return json_response({"questions": [views.question(q) for q in found]})


@router.get("/{question_id}")
async def show(question_id: str, parallax: Part) -> Response:
    """One question."""
    return json_response(views.question(await parallax.store.question(question_id)))


@router.post("/{question_id}/answer")
async def answer(question_id: str, body: Answer, parallax: Part) -> Response:
    """Answer it; the asker goes on."""
    return json_response(views.question(await parallax.desk.answer(question_id, body.answer)))
