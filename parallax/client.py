"""The typed client of our own API. The command line speaks to every server through it, embedded ones included.

Errors come back as the errors they were: a problem with status 404 is a NotFoundError again.
"""

from __future__ import annotations

import json
import urllib.parse
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, BinaryIO, Final, Self

import httpx

from parallax import http
from parallax.errors import (
    ConfigurationError,
    ConflictError,
    NotFoundError,
    ParallaxError,
    StorageError,
    UsageError,
)
from parallax.models import Json
from parallax.redaction import Secret

_ERRORS: Final[Mapping[int, type[ParallaxError]]] = {
    401: ConfigurationError,
    403: ConfigurationError,
    404: NotFoundError,
    409: ConflictError,
    413: UsageError,
    421: ConfigurationError,
    422: UsageError,
    503: StorageError,
}


class Disconnected(ConfigurationError):
    """The connection broke in the middle: the server was stopped or died. What it had on disk is kept."""


@dataclass(frozen=True, slots=True)
class StreamEvent:
    """One event of a stream."""

    seq: int
    type: str
    at: float
    step_key: str | None
    agent_id: str | None
    data: dict[str, Any]


class Client:
    """`async with Client(url, key) as client`."""

    def __init__(self, url: str, key: Secret | None, *, transport: httpx.AsyncBaseTransport | None = None) -> None:
        headers = {} if key is None else {"Authorization": f"Bearer {key.reveal()}"}
        self._http = http.client(url, headers=headers, transport=transport, timeout_s=120.0)
        self._url = url

    async def __aenter__(self) -> Self:
        await self._http.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.__aexit__(kind, error, trace)

    async def _call(self, method: str, path: str, **more: Any) -> httpx.Response:
        try:
            answer = await self._http.request(method, path, **more)
        except httpx.ConnectError:
            raise ConfigurationError(f"no Parallax answers at {self._url}: is it running? (`parallax serve`)") from None
        except httpx.TransportError as error:
            raise Disconnected(
                f"the connection to {self._url} broke ({type(error).__name__}): is the server still running?"
            ) from None
        _raise_for(answer)
        return answer

    async def _json(self, method: str, path: str, **more: Any) -> dict[str, Any]:
        value: dict[str, Any] = (await self._call(method, path, **more)).json()
        return value

    # -- executions ----------------------------------------------------------------------------------------------------

    async def plan(self, body: Mapping[str, Json]) -> dict[str, Any]:
        """What a run would do."""
        name = urllib.parse.quote(str(body["pattern"]), safe="")
        return await self._json("POST", f"/api/patterns/{name}/plan", json=dict(body))

    async def create(self, body: Mapping[str, Json], *, key: str | None = None) -> dict[str, Any]:
        """Start an execution."""
        headers = {} if key is None else {"Idempotency-Key": key}
        return await self._json("POST", "/api/executions", json=dict(body), headers=headers)

    async def executions(self, *, limit: int = 50, states: tuple[str, ...] = ()) -> list[dict[str, Any]]:
        """Newest first."""
        params = {"limit": limit, "state": list(states)}
        found: list[dict[str, Any]] = (await self._json("GET", "/api/executions", params=params))["executions"]
        return found

    async def execution(self, execution_id: str) -> dict[str, Any]:
        """One execution with its steps and branches."""
        return await self._json("GET", f"/api/executions/{_quoted(execution_id)}")

    async def journal(self, execution_id: str) -> list[dict[str, Any]]:
        """The journal."""
        found: list[dict[str, Any]] = (await self._json("GET", f"/api/executions/{_quoted(execution_id)}/journal"))[
            "journal"
        ]
        return found

    async def replay(self, execution_id: str, *, pattern: str | None) -> dict[str, Any]:
        """Run the program, or another pattern, against the journal."""
        return await self._json("POST", f"/api/executions/{_quoted(execution_id)}/replay", json={"pattern": pattern})

    async def fork(self, execution_id: str, body: Mapping[str, Json], *, key: str) -> dict[str, Any]:
        """Start an execution that shares the beginning of another one."""
        headers = {"Idempotency-Key": key}
        path = f"/api/executions/{_quoted(execution_id)}/fork"
        return await self._json("POST", path, json=dict(body), headers=headers)

    async def usage(
        self, *, by: Sequence[str] = (), execution: str | None = None, days: int = 30
    ) -> list[dict[str, Any]]:
        """What was spent, summed up."""
        params: dict[str, Any] = {"by": list(by), "days": days} | (
            {} if execution is None else {"execution": execution}
        )
        found: list[dict[str, Any]] = (await self._json("GET", "/api/usage", params=params))["usage"]
        return found

    async def cancel(self, execution_id: str) -> dict[str, Any]:
        """Cancel an execution."""
        return await self._json("POST", f"/api/executions/{_quoted(execution_id)}/cancel")

    async def cancel_step(self, execution_id: str, step: str) -> list[str]:
        """Cancel a running step, or what runs in a join; returns what was cancelled."""
        path = f"/api/executions/{_quoted(execution_id)}/steps/{_quoted(step)}/cancel"
        cancelled: list[str] = (await self._json("POST", path))["cancelled"]
        return cancelled

    async def pause(self, execution_id: str) -> dict[str, Any]:
        """Let nothing new begin."""
        return await self._json("POST", f"/api/executions/{_quoted(execution_id)}/pause")

    async def resume(self, execution_id: str) -> dict[str, Any]:
        """Let an execution go on that is paused or needs attention."""
        return await self._json("POST", f"/api/executions/{_quoted(execution_id)}/resume")

    async def diff(self, execution_id: str, *, stat: bool = False, branch: str | None = None) -> str:
        """What an execution changed."""
        params: dict[str, Any] = {"stat": stat} | ({} if branch is None else {"branch": branch})
        return (await self._call("GET", f"/api/executions/{_quoted(execution_id)}/diff", params=params)).text

    async def land(self, execution_id: str, **body: Json) -> dict[str, Any]:
        """Bring the result into the user's branch, or push it."""
        return await self._json("POST", f"/api/executions/{_quoted(execution_id)}/land", json=body)

    async def events(
        self, execution_id: str, after: int = 0, *, follow: bool = True
    ) -> AsyncGenerator[StreamEvent, None]:
        """The event stream until the execution ends, or with `follow=False` what there is now.

        It ends without a last event when the server is stopped. Raises Disconnected when the connection breaks.
        """
        path = f"/api/executions/{_quoted(execution_id)}/events" + ("" if follow else "?follow=false")
        headers = {"Last-Event-ID": str(after)} if after else {}
        timeout = httpx.Timeout(30.0, read=60.0)  # a heartbeat comes each 15 s
        try:
            async with self._http.stream("GET", path, headers=headers, timeout=timeout) as answer:
                if answer.status_code != 200:
                    await answer.aread()
                    _raise_for(answer)
                async for line in answer.aiter_lines():
                    if line.startswith("data:"):
                        event = json.loads(line[5:])
                        event.pop("execution")
                        yield StreamEvent(**event)
        except httpx.TransportError as error:
            raise Disconnected(f"the event stream from {self._url} broke ({type(error).__name__})") from None

    # -- the rest ------------------------------------------------------------------------------------------------------

    async def workspaces(self, execution: str | None = None) -> list[dict[str, Any]]:
        """Every workspace, with its state."""
        params = {} if execution is None else {"execution": execution}
        found: list[dict[str, Any]] = (await self._json("GET", "/api/workspaces", params=params))["workspaces"]
        return found

    async def workspace_diff(self, workspace_id: str, *, stat: bool = False) -> str:
        """What lies in a workspace against its base."""
        return (await self._call("GET", f"/api/workspaces/{_quoted(workspace_id)}/diff", params={"stat": stat})).text

    async def clean_workspace(self, workspace_id: str) -> None:
        """Delete a workspace."""
        await self._call("DELETE", f"/api/workspaces/{_quoted(workspace_id)}")

    async def questions(self, execution: str | None = None) -> list[dict[str, Any]]:
        """Questions that wait for a person."""
        params = {} if execution is None else {"execution": execution}
        found: list[dict[str, Any]] = (await self._json("GET", "/api/questions", params=params))["questions"]
        return found

    async def answer(self, question_id: str, answer: str) -> dict[str, Any]:
        """Answer a question."""
        return await self._json("POST", f"/api/questions/{_quoted(question_id)}/answer", json={"answer": answer})

    async def agents(self, execution: str | None = None) -> list[dict[str, Any]]:
        """Agents that run now."""
        params = {} if execution is None else {"execution": execution}
        found: list[dict[str, Any]] = (await self._json("GET", "/api/agents", params=params))["agents"]
        return found

    async def tell(self, agent_id: str, text: str) -> dict[str, Any]:
        """Say something to an agent, at its next turn."""
        return await self._json("POST", f"/api/agents/{_quoted(agent_id)}/tell", json={"text": text})

    async def stop(self, agent_id: str) -> dict[str, Any]:
        """End an agent's process."""
        return await self._json("POST", f"/api/agents/{_quoted(agent_id)}/stop")

    async def backup(self, target: BinaryIO) -> None:
        """Everything that the server keeps, as a tar archive."""
        try:
            async with self._http.stream("GET", "/api/backup", timeout=httpx.Timeout(30.0, read=600.0)) as answer:
                if answer.status_code != 200:
                    await answer.aread()
                    _raise_for(answer)
                async for part in answer.aiter_bytes():
                    target.write(part)
        except httpx.TransportError as error:
            raise Disconnected(f"the backup from {self._url} broke ({type(error).__name__})") from None

    async def ready(self) -> bool:
        """Whether the server takes work."""
        try:
            answer = await self._http.get("/readyz")
        except httpx.TransportError:
            return False
        return answer.status_code == 200


def _quoted(part: str) -> str:
    return urllib.parse.quote(part, safe="")


def _raise_for(answer: httpx.Response) -> None:
    if answer.status_code < 400:
        return
    try:
        problem = answer.json()
        detail = str(problem["detail"])
    except (ValueError, KeyError, TypeError):
        detail = f"the server answered {answer.status_code}: {answer.text[:200]}"
    raise _ERRORS.get(answer.status_code, ParallaxError)(detail)
