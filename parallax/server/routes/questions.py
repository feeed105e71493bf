"""Questions that wait for somebody: to be listed, looked at, and answered, by key or by a link."""

from __future__ import annotations

import urllib.parse
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from parallax.errors import ConflictError, NotFoundError, UsageError
from parallax.server import views
from parallax.server.answer_page import answered_page, notice_page, question_page
from parallax.server.auth import FORM
from parallax.server.parts import Part, json_response

router = APIRouter(prefix="/api/questions", tags=["questions"])

Token = Annotated[str | None, Query(description="The token of a signed link, in place of the key.")]


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


@router.get("/{question_id}/answer", response_class=Response)
async def page(question_id: str, parallax: Part, token: Token = None) -> Response:
    """A page with the question, for a signed link. It changes nothing."""
    if not _opens(parallax, question_id, token):
        return _wrong_link()
    try:
        return question_page(await parallax.store.question(question_id))
    except NotFoundError:
        return _wrong_link()


@router.post(
    "/{question_id}/answer",
    openapi_extra={"requestBody": {"content": {"application/json": {"schema": Answer.model_json_schema()}}}},
)
async def answer(question_id: str, request: Request, parallax: Part, token: Token = None) -> Response:
    """Answer it, with the key or the token of its link; the asker goes on."""
    by_form = request.headers.get("content-type", "").startswith(FORM)
    if (by_form or token is not None) and not _opens(parallax, question_id, token):
        return _wrong_link()
    if not by_form:
        given = _read(await request.body())
        return json_response(views.question(await parallax.desk.answer(question_id, given.answer)))
    fields = urllib.parse.parse_qs((await request.body()).decode("utf-8", "replace"))
    try:
        return answered_page(await parallax.desk.answer(question_id, fields.get("answer", [""])[-1][:20_000]))
    except (UsageError, ConflictError):  # no answer was given, or it is too late for one: the page says which
        return question_page(await parallax.store.question(question_id))


def _opens(parallax: Part, question_id: str, token: str | None) -> bool:
    return token is not None and parallax.links.opens(question_id, token)


def _wrong_link() -> Response:
    return notice_page("This link does not work", "It is damaged, or of another installation of Parallax.", 403)


def _read(body: bytes) -> Answer:
    try:
        return Answer.model_validate_json(body)
    except ValidationError as error:
        found = [dict(mistake) | {"loc": ("body", *mistake["loc"])} for mistake in error.errors()]
        raise RequestValidationError(found) from None
