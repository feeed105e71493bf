"""What every route needs: the one `Parallax` behind the doors, and a ready JSON response."""

from __future__ import annotations

from typing import Annotated, Any

import orjson
from fastapi import Depends, Request
from starlette.responses import Response

from parallax.app import Parallax


def parallax_of(request: Request) -> Parallax:
    """The running Parallax."""
    running: Parallax = request.app.state.parallax
    return running


Part = Annotated[Parallax, Depends(parallax_of)]


def json_response(value: Any, *, status: int = 200) -> Response:
    """Encoded once, by orjson; dataclasses go out as they are."""
    return Response(orjson.dumps(value, default=str), status_code=status, media_type="application/json")
