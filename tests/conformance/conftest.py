"""Fixtures for real CLIs: installed once, a home outside /tmp, the scripted model behind the gateway."""

from __future__ import annotations

import os
import secrets
import shutil
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "agents"))
sys.path.insert(0, str(Path(__file__).parent))

from agent_helpers import marked, sandbox
from conformance_bench import KEYS, Bench
from install import PACKAGES, cache, install

from parallax.agents.clis.catalogue import providers
from parallax.agents.gateway.providers import Account
from parallax.agents.gateway.service import Gateway, GatewaySettings
from parallax.agents.runtimes.local import LocalRuntime
from parallax.redaction import Secret
from tests.modelserver.model_server import ModelServer


@pytest.fixture(scope="session")
def clis() -> dict[str, Path]:
    """Name -> program, all installed."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("the real CLIs need Node: neither node nor npm is on PATH")
    return {name: install(name, cache()) for name in PACKAGES}


@pytest.fixture
def place() -> Iterator[Path]:
    """A private directory that is not under /tmp: Codex refuses to set up its sandbox there."""
    base = Path(os.environ.get("PARALLAX_TEST_HOMES") or Path.home() / ".cache" / "parallax" / "test-homes")
    path = base / secrets.token_hex(4)
    (path / "tree").mkdir(parents=True)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
async def bench(request: pytest.FixtureRequest, clis: dict[str, Path], place: Path) -> AsyncIterator[Bench]:
    """Parametrised indirectly with a scenario of the model; `write` without."""
    scenario = getattr(request, "param", "write")
    owner = f"conformance-{secrets.token_hex(4)}"
    async with ModelServer() as model:
        accounts = {
            "anthropic": [Account(base_url=f"{model.url}/{scenario}", key=Secret(KEYS["anthropic"]))],
            "openai": [Account(base_url=f"{model.url}/{scenario}/v1", key=Secret(KEYS["openai"]))],
        }
        gateway = Gateway(GatewaySettings(accounts=accounts, sockets=place / "gateway"), providers_of=providers)
        await gateway.start()
        runtime = LocalRuntime(owner, shut=sandbox(place / "etc"), wish="require")
        bench = Bench(model, gateway, runtime, place, clis, [])
        try:
            yield bench
        finally:
            for client in bench.clients:
                await client.close()
            await gateway.close()
        assert marked(owner) == [], "an agent left a process behind"
