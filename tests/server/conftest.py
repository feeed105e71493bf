"""One server for all tests of the API, over real HTTP on loopback."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from parallax import http
from parallax.datadir import read_lock
from tests.e2e.conftest import new_world, rule, script
from tests.e2e.processes import World


@dataclass(frozen=True)
class Server:
    """Where the server is, and what a request needs."""

    world: World
    url: str
    key: str

    def body(self, **more: Any) -> dict[str, Any]:
        """A request for an execution of the duo."""
        given = {"pattern": str(self.world.place / "duo.yaml"), "input": {"goal": "go"}, "repo": str(self.world.repo),
                 "agent": "scripted"}  # fmt: skip
        return given | more

    def client(self, key: str | None = None, **headers: str) -> httpx.AsyncClient:
        """A client with the key, or another one; an empty one sends none."""
        given = self.key if key is None else key
        sent = {"Authorization": f"Bearer {given}"} if given else {}
        return http.client(self.url, headers=sent | headers, timeout_s=30.0)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """`parallax serve` of this module."""
    agents = script(0.1)
    agents["roles"]["engineer"].append(rule("forever", {"hang": True}))
    with new_world(agents=agents) as world, world.serving():
        url = read_lock(world.data / "lock")["url"]
        yield Server(world, url, (world.data / "key").read_text())


@pytest.fixture
async def api(server: Server) -> AsyncIterator[httpx.AsyncClient]:
    """A client with the key."""
    async with server.client() as client:
        yield client
