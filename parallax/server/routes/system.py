"""Health, readiness, version."""

from __future__ import annotations

from fastapi import APIRouter, Response

from parallax._version import __version__
from parallax.server.parts import Part, json_response

router = APIRouter(tags=["system"])


@router.get("/healthz")
async def healthz() -> Response:
    """The process answers."""
    return json_response({"status": "ok"})


@router.get("/readyz")
async def readyz(parallax: Part) -> Response:
    """Executions are taken in and run; with the reason where not."""
    ready, reason = parallax.readiness()
    return json_response({"ready": ready, "reason": reason}, status=200 if ready else 503)


@router.get("/api/version")
async def version(parallax: Part) -> Response:
    """Version, and where this server keeps its data."""
    return json_response({"version": __version__, "running": list(parallax.engine.running)})
