"""Listening: a uvicorn server that leaves the process's signals alone, and the answer to everybody before it is ready.

`cli.serve` and `cli.connection` put it in front of a Parallax. Nothing heavy is imported here, so that `/healthz`
answers while the rest of the program is still being loaded and executions are being resumed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
from collections.abc import Iterator
from typing import Any, Final

import uvicorn

from parallax.errors import ConfigurationError

_STARTING: Final = ("Starting", "Parallax is starting: it loads and resumes what was running; try again in a moment")
_STOPPING: Final = ("Stopping", "Parallax is stopping: what runs is kept and resumed at its next start; try again then")


class Front:
    """ASGI application that answers for itself until `app` is set, and again from `shut` on."""

    def __init__(self) -> None:
        self.app: Any = None
        self._inside: set[asyncio.Task[Any]] = set()  # requests that the app is answering
        self._shut = False

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if self.app is not None and not self._shut:
            task = asyncio.current_task()
            assert task is not None
            self._inside.add(task)
            try:
                await self.app(scope, receive, send)
            finally:
                self._inside.discard(task)
        elif scope["type"] == "http" and scope["path"] == "/healthz":
            await _answer(send, 200, "application/json", {"status": "ok"})
        elif scope["type"] == "http" and scope["path"] == "/readyz":
            reason = f"the engine is {'stopping' if self._shut else 'starting'}"
            await _answer(send, 503, "application/json", {"ready": False, "reason": reason})
        elif scope["type"] == "http":
            title, detail = _STOPPING if self._shut else _STARTING
            problem = {"type": "about:blank", "title": title, "status": 503, "detail": detail, "retryable": True}
            await _answer(send, 503, "application/problem+json", problem)

    def shut(self) -> None:
        """From now on every new request is refused with 503, and the event streams end."""
        from sse_starlette.sse import AppStatus  # it is loaded if there is a stream

        self._shut = True
        AppStatus.should_exit = True  # of this process: one that was told to stop serves nothing any more

    async def drain(self, limit_s: float) -> None:
        """Wait for the requests that were under way, and cut off what is not done by then."""
        if self._inside:
            _, late = await asyncio.wait(set(self._inside), timeout=limit_s)
            for task in late:
                task.cancel()


async def _answer(send: Any, status: int, media: str, body: dict[str, Any]) -> None:
    headers = [(b"content-type", media.encode()), (b"retry-after", b"1")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(body).encode()})


class Doors(uvicorn.Server):
    """A uvicorn server whose owner handles the signals."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take none."""
        yield

    def shut(self, by: signal.Signals | None = None) -> None:
        """Stop taking requests; with a signal, event streams end as well instead of being waited for."""
        if by is None:
            self.should_exit = True
        else:
            self.handle_exit(by, None)


def make_doors(app: Any, *, drain_s: int) -> Doors:
    """A server for an ASGI application; `serve(sockets=[...])` runs it."""
    config = uvicorn.Config(
        app, loop="asyncio", lifespan="off", log_level="warning", timeout_graceful_shutdown=drain_s, server_header=False
    )
    return Doors(config)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; raises ConfigurationError with the remedy when the port is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(512)
    except OSError as error:
        listener.close()
        raise ConfigurationError(
            f"cannot listen on {host}:{port} ({error.strerror}): choose another port with --port or PARALLAX_PORT "
            "(0 takes a free one)"
        ) from None
    listener.setblocking(False)
    return listener
