"""Talking to a server that may die at any moment."""

from __future__ import annotations

import http.client
import io
import json
import urllib.error
import urllib.request
from typing import Any

from parallax.datadir import read_lock
from tests.e2e.processes import World

GONE = (ConnectionError, http.client.HTTPException, TimeoutError, urllib.error.URLError)


def call(
    world: World, method: str, path: str, body: Any = None, timeout: float = 20, raw: bool = False, **headers: str
) -> Any:
    """One request to the server that runs now; raises one of GONE, or HTTPError with the answer."""
    url = read_lock(world.data / "lock").get("url")
    if url is None:
        raise ConnectionError("no server has announced itself")
    sent = {"Authorization": f"Bearer {(world.data / 'key').read_text()}", "Content-Type": "application/json"} | headers
    request = urllib.request.Request(
        url + path, method=method, headers=sent, data=None if body is None else json.dumps(body).encode()
    )
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            content = answer.read()
            return content if raw else json.loads(content)
    except urllib.error.HTTPError as refused:
        with refused:  # it is the answer, and would hold the connection for as long as somebody holds it
            content = refused.read()
        raise urllib.error.HTTPError(
            refused.url, refused.code, refused.reason, refused.headers, io.BytesIO(content)
        ) from None


def submit(world: World, pattern: str, key: str, **given: Any) -> str:
    """Start an execution; the answer may be lost with the server, the key makes a second try harmless."""
    body = {"pattern": pattern, "input": given, "agent": "scripted"}
    return str(call(world, "POST", "/api/executions", body, **{"Idempotency-Key": key})["id"])
