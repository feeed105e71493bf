"""Set-up and checks in a real sandbox: set-up reaches what is allowed through the gateway, a check reaches nothing."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "agents"))
from agent_helpers import sandbox

from parallax.agents.gateway.egress import Allowed
from parallax.agents.gateway.service import Gateway, GatewaySettings
from parallax.agents.runtimes.local import LocalRuntime
from parallax.datadir import socket_directory
from parallax.workspaces.checks import CheckRunner
from parallax.workspaces.profile import load

from .conftest import write

# Fetches through HTTPS_PROXY as a package manager would, but without TLS inside the tunnel.
FETCH = """
import base64, os, socket, sys, urllib.parse
proxy = urllib.parse.urlsplit(os.environ["HTTPS_PROXY"])
there = socket.create_connection((proxy.hostname, proxy.port))
user = base64.b64encode(f"{proxy.username}:{proxy.password}".encode()).decode()
there.sendall(f"CONNECT {sys.argv[1]} HTTP/1.1\\r\\nHost: x\\r\\nProxy-Authorization: Basic {user}\\r\\n\\r\\n".encode())
answer = there.makefile("rb")
print(status := answer.readline())
if b" 200 " not in status:
    sys.exit(1)
open("fetched.txt", "wb").write(answer.read())
"""


@asynccontextmanager
async def registry() -> AsyncIterator[int]:
    """A server that gives a package to whoever connects."""

    async def give(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"a package")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(give, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


async def test_setup_reaches_the_registry_and_nothing_else_and_a_check_nothing(
    service: Any, user: Path, tmp_path: Path
) -> None:
    write(user, {"fetch.py": FETCH})
    os.system(f"cd {user} && git add -A && git -c user.name=x -c user.email=x@x commit -qm fetch")
    repo = await service.open_repository(str(user))
    async with registry() as port:
        with socket_directory(tmp_path) as sockets:
            settings = GatewaySettings(accounts={}, egress=[Allowed.read(f"+localhost:{port}")], sockets=sockets)
            gateway = Gateway(settings, providers_of=lambda _: ())
            await gateway.start()
            runtime = LocalRuntime("test-shut-in", shut=sandbox(tmp_path / "etc"), wish="require")
            checks = CheckRunner(service, runtime, doors=gateway)
            try:
                allowed, forbidden, direct = [
                    await checks.run(repo, repo.base_commit, "look", profile=load(text))
                    for text in (
                        f"setup: ['python3 fetch.py localhost:{port}']\nchecks: {{look: grep -q package fetched.txt}}",
                        "setup: ['python3 fetch.py example.org:443']\nchecks: {look: 'true'}",
                        f'checks: {{look: \'pwd; env; python3 -c "import socket; socket.create_connection((chr(49)+chr(50)+chr(55)+\\".0.0.1\\", {port}))"\'}}',
                    )
                ]
            finally:
                await gateway.close()
    assert (allowed.passed, allowed.detail) == (True, "passed")
    assert forbidden.passed is None
    assert "setup: python3 fetch.py example.org:443 failed" in forbidden.detail
    assert direct.passed is False
    assert "Connection refused" in (direct.log or "")
    assert "/workspace\n" in (direct.log or "")
    assert "HTTPS_PROXY" not in (direct.log or "")
    assert not list(tmp_path.glob("run/*"))
