"""`parallax serve`: the server as a process of its own, until a signal stops it."""

from __future__ import annotations

import asyncio
import gc
import signal
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import socket

    from parallax.config import Settings
    from parallax.server.doors import Front

DRAIN_S = 5


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(serve)


def serve(
    host: Annotated[str | None, typer.Option(help="The address to listen on; loopback by default.")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="The port; 8080 by default, 0 takes a free one.")
    ] = None,
    expose: Annotated[
        bool, typer.Option("--expose", help="Allow an address that others reach, as in a container; there is no TLS.")
    ] = False,
    test_hooks: Annotated[bool, typer.Option("--test-hooks", hidden=True)] = False,
) -> None:
    """Run the server; unfinished executions are resumed."""
    raise typer.Exit(asyncio.run(_serve(host, port, expose=expose, test_hooks=test_hooks)))


async def _serve(host: str | None, port: int | None, *, expose: bool, test_hooks: bool) -> int:
    from parallax.config import load
    from parallax.datadir import refuse_held
    from parallax.errors import ConfigurationError
    from parallax.server.doors import listen

    gc.disable()  # a tenth of the time until it is ready went into looking for garbage among modules
    changes: dict[str, Any] = {"host": host, "port": port}
    settings = load().model_copy(update={key: value for key, value in changes.items() if value is not None})
    if settings.host not in {"127.0.0.1", "localhost", "::1"} and not expose:
        raise ConfigurationError(
            f"{settings.host} can be reached by others, and the key would cross the network in clear: listen on "
            "loopback behind an SSH tunnel or a TLS proxy, or say --expose where the network is a container's own"
        )
    refuse_held(settings.data_dir / "lock")  # before anything that takes time
    listener = listen(settings.host, settings.port)
    try:
        return await _Serving(settings, listener, test_hooks=test_hooks).run()
    finally:
        listener.close()


class _Serving:
    """One life of the server: doors open at once, the engine behind them, a signal, everything closed in order."""

    def __init__(self, settings: Settings, listener: socket.socket, *, test_hooks: bool) -> None:
        shown = f"[{settings.host}]" if ":" in settings.host else settings.host
        self._settings = settings
        self._listener = listener
        self._test_hooks = test_hooks
        self._url = f"http://{shown}:{listener.getsockname()[1]}"
        self._signal: signal.Signals | None = None
        self._signalled = asyncio.Event()
        self._unfinished = 0

    async def run(self) -> int:
        """Serve until a signal; returns the exit code."""
        from parallax.server.doors import Front, make_doors

        front = Front()
        doors = make_doors(front, drain_s=DRAIN_S)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop, number, front)
        serving = asyncio.create_task(doors.serve(sockets=[self._listener]), name="doors")
        engine = asyncio.create_task(self._engine(front), name="engine")
        signalled = asyncio.create_task(self._signalled.wait(), name="signal")
        try:
            await asyncio.wait({serving, engine, signalled}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await front.drain(DRAIN_S)
            engine.cancel()
            signalled.cancel()
            await asyncio.wait({engine})
            doors.shut()  # only now: whoever comes while agents end is told that the server stops
            await serving
        if not engine.cancelled() and (error := engine.exception()) is not None:
            raise error
        from parallax.cli.output import err

        err().print(f"Parallax has stopped.{self._left()}")
        return 130 if self._signal is signal.SIGINT else 0

    def _stop(self, number: signal.Signals, front: Front) -> None:
        self._signal = number
        front.shut()
        self._signalled.set()

    async def _engine(self, front: Front) -> None:
        """Load, resume, and let the doors answer for it; until this task is cancelled."""
        # In a thread, because it takes a second or two in which /healthz shall answer.
        Parallax, create_app = await asyncio.to_thread(_parts)  # noqa: N806 - a class
        async with Parallax(self._settings, test_hooks=self._test_hooks) as parallax:
            front.app = create_app(parallax)
            parallax.announce(self._url)
            gc.freeze()
            gc.enable()
            from parallax.cli.output import err  # rich, which the doors do not wait for

            count = len(parallax.engine.running)
            resumed = f"; {_executions(count)} resumed" if count else ""
            err().print(
                f"Parallax serves at {self._url} (data in {self._settings.data_dir}){resumed}. Ctrl-C stops it."
            )
            try:
                await asyncio.Event().wait()
            finally:
                self._unfinished = len(parallax.engine.running)

    def _left(self) -> str:
        if not self._unfinished:
            return ""
        return (
            f" {_executions(self._unfinished)} can be resumed, finished steps are kept: "
            "`parallax serve` or `parallax watch` goes on."
        )


def _executions(count: int) -> str:
    return f"{count} execution{'s' * (count != 1)}"


def _parts() -> tuple[Any, Any]:
    from parallax.app import Parallax
    from parallax.server.app import create_app

    return Parallax, create_app
