"""Errors as problem+json (RFC 9457): what was wrong, in the words of the error itself."""

from __future__ import annotations

from typing import Any, Final

import orjson
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from parallax.errors import (
    AgentError,
    ConfigurationError,
    ConflictError,
    NotFoundError,
    ParallaxError,
    PatternError,
    RemoteError,
    StorageError,
    StorageFull,
    UsageError,
)

_STATUS: Final[tuple[tuple[type[ParallaxError], int, str], ...]] = (
    (NotFoundError, 404, "Not found"),
    (ConflictError, 409, "Not possible now"),
    (UsageError, 422, "Cannot be used"),
    (AgentError, 422, "No such agent"),
    (RemoteError, 502, "The remote said no"),
    (ConfigurationError, 500, "This installation is not fit"),
    (StorageFull, 507, "The disk is full"),
    (StorageError, 503, "The store cannot answer"),
)


def problem(status: int, title: str, detail: str, **more: Any) -> Response:
    """One problem document."""
    body = {"type": "about:blank", "title": title, "status": status, "detail": detail} | more
    return Response(orjson.dumps(body), status_code=status, media_type="application/problem+json")


def of_error(error: ParallaxError) -> Response:
    """The problem that an error of ours becomes."""
    status, title = next(((s, t) for kind, s, t in _STATUS if isinstance(error, kind)), (500, "Failed"))
    more: dict[str, Any] = {"retryable": error.retryable}
    if isinstance(error, PatternError):
        more["mistakes"] = [
            {"path": m.path, "line": m.line, "column": m.column, "message": m.message, "hint": m.hint}
            for m in error.mistakes
        ]
    return problem(status, title, str(error), **more)


def install(app: FastAPI) -> None:
    """Every error of the API leaves as problem+json."""

    @app.exception_handler(ParallaxError)
    async def _ours(_request: Request, error: ParallaxError) -> Response:
        return of_error(error)

    @app.exception_handler(RequestValidationError)
    async def _invalid(_request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        return problem(422, "Cannot be used", f"{place}: {first['msg']}")

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> Response:
        known = {
            400: ("Not readable", "the body cannot be read: send JSON, as UTF-8"),
            404: ("Not found", "there is nothing at this address"),
            405: ("Method not allowed", f"there is no {request.method} at this address"),
        }
        title, detail = known.get(error.status_code, ("Refused", str(error.detail)))
        answer = problem(error.status_code, title, detail)
        answer.headers.update(error.headers or {})
        return answer
