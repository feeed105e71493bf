"""The FastAPI application around a running Parallax. Whoever serves it has entered `Parallax` before."""

from __future__ import annotations

import urllib.parse

from fastapi import FastAPI

from parallax._version import __version__
from parallax.app import Parallax
from parallax.server import problems
from parallax.server.auth import LOOPBACK_HOSTS, Gate
from parallax.server.routes import (
    agents,
    backup,
    credentials,
    executions,
    patterns,
    questions,
    system,
    usage,
    workspaces,
)


def create_app(parallax: Parallax) -> FastAPI:
    """All routes, behind the gate."""
    app = FastAPI(
        title="Parallax",
        version=__version__,
        summary="Teams of AI coding agents: a repository and a goal in, tested branches out.",
        docs_url=None,
        redoc_url=None,
        openapi_url="/api/openapi.json",
    )
    app.state.parallax = parallax
    problems.install(app)
    for module in (system, backup, executions, usage, patterns, questions, agents, workspaces, credentials):
        app.include_router(module.router)
    host = parallax.settings.host
    named = urllib.parse.urlsplit(parallax.settings.api_url or "").hostname  # how people reach it from elsewhere
    hosts = LOOPBACK_HOSTS | {f"[{name}]" if ":" in name else name for name in (host, named) if name}
    app.add_middleware(Gate, key=parallax.key, hosts=frozenset(hosts))
    return app
