"""Tokens for git remotes: give one of yours for an execution, see who was given what, end one. None is ever shown."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Response
from pydantic import BaseModel, ConfigDict, Field, SecretStr

from parallax.redaction import Secret
from parallax.server.parts import Part, json_response
from parallax.workspaces.credentials import Wanted

router = APIRouter(prefix="/api/credentials", tags=["credentials"])


class Given(BaseModel):
    """A token of yours for one repository, kept sealed until the execution ends."""

    model_config = ConfigDict(extra="forbid")

    repo: str = Field(min_length=1, max_length=2048)
    execution: str = Field(min_length=1, max_length=100)
    token: SecretStr = Field(min_length=1, max_length=4096)
    access: Literal["read", "write"] = "write"


@router.post("/git", status_code=201)
async def give(body: Given, parallax: Part) -> Response:
    """Give it; the server uses it for this execution and repository alone."""
    await parallax.store.execution(body.execution)
    wanted = Wanted(url=body.repo, access=body.access, execution=body.execution)
    token = Secret(body.token.get_secret_value())
    return json_response(await parallax.credentials.give(wanted, token, by="person"), status=201)


@router.get("")
async def index(parallax: Part, execution: str | None = None) -> Response:
    """Every grant, newest first: who, what, when it was issued, used and revoked."""
    return json_response({"credentials": await parallax.credentials.grants(execution)})


@router.delete("/{grant}")
async def revoke(grant: str, parallax: Part) -> Response:
    """End a grant now, at the provider too where the token is ours."""
    return json_response(await parallax.credentials.revoke(grant))
