"""`parallax serve` as a process: soon ready, healthy before that, stopped in order."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
import time

import httpx
import pytest

from parallax.cli.connection import doors
from parallax.client import Client, Disconnected
from parallax.errors import ConfigurationError
from parallax.redaction import Secret
from tests.conftest import TeamFactory
from tests.e2e.conftest import new_world
from tests.e2e.processes import finish

# What is first needed by an agent, a remote, a migration or a line of the log.
LATER = (
    "httpx", "jwt", "cryptography", "jsonschema", "alembic", "mcp", "genai_prices", "kubernetes", "aiodocker", "structlog",
    "pygments", "sqlalchemy.orm", "sqlalchemy.ext.asyncio",
)  # fmt: skip
# `serve` in a process that tells, as soon as it is ready, what it has imported, and then stops.
LOOK = """
import json, os, signal, sys, threading, time, urllib.request
from parallax.cli import main

def look():
    while True:
        try:
            urllib.request.urlopen("http://127.0.0.1:{port}/readyz").close()
            break
        except OSError:
            time.sleep(0.02)
    print(json.dumps(list(sys.modules)), flush=True)
    os.kill(os.getpid(), signal.SIGTERM)

threading.Thread(target=look, daemon=True).start()
sys.argv = ["parallax", "serve", "--port", "{port}"]
main()
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


def importing_s() -> float:
    """What loading the program alone takes now: the machine may be busy with other tests."""
    begun = time.monotonic()
    subprocess.run([sys.executable, "-c", "import parallax.app, parallax.server.app"], check=True)
    return time.monotonic() - begun


def test_health_answers_before_readiness_and_both_soon() -> None:
    with new_world() as world:
        port = free_port()
        loading_s = importing_s()
        begun = time.monotonic()
        process = world.start("serve", "--port", str(port))
        first: dict[str, float] = {}
        unready = 0
        while len(first) < 2 and time.monotonic() < begun + 60:
            for path in ("/healthz", "/readyz"):
                try:
                    status = httpx.get(f"http://127.0.0.1:{port}{path}", timeout=5).status_code
                except httpx.TransportError:
                    continue
                unready += status == 503
                if status == 200:
                    first.setdefault(path, time.monotonic() - begun)
            time.sleep(0.01)
        done = finish(process, by=signal.SIGTERM)
    assert done.code == 0
    assert first["/healthz"] < first["/readyz"]
    assert first["/readyz"] < max(7.5, 4 * loading_s)  # below 2.5 s on an idle machine; this one may be shared
    assert unready > 0, "while it starts, readiness says so"


def test_a_quiet_start_loads_nothing_that_only_work_needs() -> None:
    with new_world() as world:
        for _ in range(2):  # the first makes the database, the second finds it
            done = subprocess.run(
                [sys.executable, "-c", LOOK.format(port=free_port())],
                env=world.env(), cwd=world.repo, capture_output=True, text=True, check=True, timeout=60,
            )  # fmt: skip
            loaded = set(json.loads(done.stdout))
            assert "parallax.app" in loaded
            assert loaded.isdisjoint(LATER), loaded & {*LATER}


def test_ctrl_c_ends_with_130() -> None:
    with new_world() as world, world.serving() as process:
        done = finish(process, by=signal.SIGINT)
        assert done.code == 130
        assert done.err.splitlines()[-1] == "Parallax has stopped."


def test_a_signal_while_it_starts_stops_it_as_well() -> None:
    with new_world() as world:
        port = free_port()
        process = world.start("serve", "--port", str(port))
        while True:
            try:
                httpx.get(f"http://127.0.0.1:{port}/healthz")
                break
            except httpx.TransportError:
                time.sleep(0.01)
        done = finish(process, by=signal.SIGTERM)
        assert done.code == 0, done.err
        assert "Traceback" not in done.err


async def test_a_server_that_stops_ends_its_streams_without_a_last_event(team: TeamFactory) -> None:
    async with team({"roles": {"engineer": [{"do": [{"hang": True}]}]}}) as t:
        async with doors(t.parallax, "127.0.0.1", 0) as url, Client(url, t.parallax.key) as client:
            execution = await t.start('org({engineer: {}})\nassign("engineer", "x")')
            seen = []

            async def watch() -> None:
                try:
                    async for event in client.events(execution.id):
                        seen.append(event.type)
                except Disconnected:
                    pass

            watching = asyncio.create_task(watch())
            async with asyncio.timeout(20):
                while "agent.busy" not in seen:
                    await asyncio.sleep(0.05)
        async with asyncio.timeout(10):
            await watching
        assert not seen[-1].startswith("execution.")


async def test_a_wrong_key_of_our_own_client_is_one_sentence(team: TeamFactory) -> None:
    async with (
        team({"rules": []}) as t,
        doors(t.parallax, "127.0.0.1", 0) as url,
        Client(url, Secret("plx_wrong")) as client,
    ):
        with pytest.raises(ConfigurationError, match="the key is in the file 'key' of the data directory"):
            await client.executions()
