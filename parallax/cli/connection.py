"""Which server a command speaks to: the one that is named, the one that owns the data directory, or an embedded one.

`connect(settings, run=True)` embeds a whole server with an address, so that a second terminal finds it; with
`run=False` the embedded one only looks (its engine is off) and needs no address.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from parallax.client import Client
from parallax.config import Settings
from parallax.datadir import data_directory, existing_key, held, read_lock
from parallax.errors import ConfigurationError, NotFoundError, leaf
from parallax.redaction import Secret

if TYPE_CHECKING:
    from parallax.app import Parallax

STARTING_S = 10.0
TRIES = 5


@dataclass(frozen=True, slots=True)
class Connection:
    """A client, and whether its server is this process."""

    client: Client
    embedded: bool
    url: str


@asynccontextmanager
async def connect(settings: Settings, *, run: bool = False) -> AsyncIterator[Connection]:
    """A connection for one command."""
    if run and not settings.api_url:
        data_directory(settings.data_dir)  # an unwritable one is said first, in its own words
    with one_error():
        async with AsyncExitStack() as stack:
            yield await _connected(settings, stack, run=run)


async def _connected(settings: Settings, stack: AsyncExitStack, *, run: bool) -> Connection:
    for _ in range(TRIES):
        url = settings.api_url or await running_server(settings.data_dir)
        if url is not None:
            given = settings.api_key.get_secret_value() if settings.api_key else existing_key(settings.data_dir)
            client = Client(url, None if given is None else Secret(given))
            return Connection(await stack.enter_async_context(client), False, url)
        try:
            return await stack.enter_async_context(embedded(settings) if run else _looking(settings))
        except ConfigurationError:
            if not held(settings.data_dir / "lock"):
                raise
            # Another command took the data directory a moment earlier: ask again who owns it.
    raise ConfigurationError(f"{settings.data_dir} changes hands all the time: try again")


@contextmanager
def one_error() -> Iterator[None]:
    """An embedded server ends its tasks as a group; what went wrong inside is said by itself."""
    try:
        yield
    except BaseExceptionGroup as group:
        raise leaf(group) from None


async def running_server(data: Path) -> str | None:
    """The address of the server that owns the data directory, or None. Waits for one that is just starting."""
    lock = data / "lock"
    if not lock.exists():
        return None
    for _ in range(int(STARTING_S / 0.1)):
        if not await asyncio.to_thread(held, lock):
            return None
        content = read_lock(lock)
        if "url" in content:
            return str(content["url"])
        await asyncio.sleep(0.1)
    holder = read_lock(lock).get("pid", "unknown")
    raise ConfigurationError(
        f"process {holder} holds {data} but serves no address: stop it, or choose another directory"
    )


@asynccontextmanager
async def embedded(settings: Settings) -> AsyncIterator[Connection]:
    """A whole server in this process, on a free loopback port."""
    from parallax.app import Parallax

    async with (
        Parallax(settings) as parallax,
        doors(parallax, "127.0.0.1", 0) as url,
        Client(url, parallax.key) as client,
    ):
        yield Connection(client, True, url)


@asynccontextmanager
async def doors(parallax: Parallax, host: str, port: int) -> AsyncIterator[str]:
    """Serve a running Parallax without taking the process's signals; yields its address."""
    from parallax.server.app import create_app
    from parallax.server.doors import listen, make_doors

    listener = listen(host, port)
    server = make_doors(create_app(parallax), drain_s=2)
    serving = asyncio.create_task(server.serve(sockets=[listener]), name="doors")
    try:
        while not server.started and not serving.done():  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(0.01)
        url = f"http://{host}:{listener.getsockname()[1]}"
        parallax.announce(url)
        yield url
    finally:
        server.shut()
        await serving
        listener.close()


@asynccontextmanager
async def _looking(settings: Settings) -> AsyncIterator[Connection]:
    import httpx

    from parallax.app import Parallax
    from parallax.server.app import create_app

    if settings.database_url is None and not settings.database.exists():
        raise NotFoundError(
            f"nothing was ever run with {settings.data_dir} (PARALLAX_DATA_DIR): start with `parallax run`"
        )
    async with Parallax(settings.model_copy(update={"execution_engine": False})) as parallax:
        transport = httpx.ASGITransport(app=create_app(parallax))
        async with Client("http://127.0.0.1", parallax.key, transport=transport) as client:
            yield Connection(client, True, "embedded")


async def resolve(client: Client, given: str | None) -> str:
    """The full id of an execution from its id, the end of it, or nothing (the newest). Raises NotFoundError."""
    if given is not None and len(given) == 26:
        return given
    found = await client.executions(limit=500)
    if not found:
        raise NotFoundError("there is no execution yet: start one with `parallax run`")
    if given is None:
        return str(found[0]["id"])
    fitting = [e["id"] for e in found if e["id"].endswith(given) or e["id"].startswith(given)]
    if len(fitting) == 1:
        return str(fitting[0])
    if fitting:
        raise NotFoundError(f"'{given}' fits {len(fitting)} executions: give more of the id")
    raise NotFoundError(f"there is no execution '{given}' (`parallax executions` lists them)")
