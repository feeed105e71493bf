"""Fixtures for real CLIs: installed once, a home outside /tmp, the scripted model behind the gateway; and the table."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "agents"))

from agent_helpers import marked, sandbox

from parallax.agents.clis.catalogue import Catalogue
from parallax.agents.gateway.providers import Account
from parallax.agents.gateway.service import Gateway, GatewaySettings
from parallax.agents.gateway.tools import ToolsEndpoint
from parallax.agents.runtimes.local import LocalRuntime
from parallax.redaction import Secret
from tests.conformance import table
from tests.conformance.conformance_bench import KEYS, Bench
from tests.conformance.install import Missing, cache, install
from tests.modelserver.model_server import ModelServer


@pytest.fixture(scope="session")
def clis() -> Callable[[str], Path]:
    """Installs what is asked for."""
    into = cache()  # now: a test may change HOME

    def program(name: str) -> Path:
        try:
            return install(name, into)
        except Missing as missing:
            if os.environ.get("PARALLAX_REQUIRE_REAL_CLIS"):
                pytest.fail(str(missing))
            pytest.skip(str(missing))

    return program


@pytest.fixture
def place() -> Iterator[Path]:
    """A private directory that is not under /tmp: Codex refuses to set up its sandbox there."""
    base = Path(os.environ.get("PARALLAX_TEST_HOMES") or Path.home() / ".cache" / "parallax" / "test-homes")
    path = base / secrets.token_hex(4)
    (path / "tree").mkdir(parents=True)
    subprocess.run(["git", "init", "-q", "-b", "main"], cwd=path / "tree", check=True)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
async def bench(request: pytest.FixtureRequest, clis: Callable[[str], Path], place: Path) -> AsyncIterator[Bench]:
    """Parametrised indirectly with a scenario of the model; `write` without."""
    scenario = getattr(request, "param", "write")
    owner = f"conformance-{secrets.token_hex(4)}"
    async with ModelServer() as model:
        accounts = {
            "anthropic": [Account(base_url=f"{model.url}/{scenario}", key=Secret(KEYS["anthropic"]))],
            "openai": [Account(base_url=f"{model.url}/{scenario}/v1", key=Secret(KEYS["openai"]))],
            "gemini": [Account(base_url=f"{model.url}/{scenario}", key=Secret(KEYS["gemini"]))],
        }
        gateway = Gateway(
            GatewaySettings(accounts=accounts, sockets=place / "gateway"), providers_of=Catalogue().providers
        )
        runtime = LocalRuntime(owner, shut=sandbox(place / "etc"), wish="require")
        bench = Bench(model, gateway, runtime, place, clis)
        gateway.tools = ToolsEndpoint(bench.notes).handle
        await gateway.start()
        try:
            yield bench
        finally:
            for client in bench.clients:
                await client.close()
            await gateway.close()
        assert marked(owner) == [], "an agent left a process behind"


# --- the table --------------------------------------------------------------------------------------------------------


@pytest.fixture
def found(request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> Callable[..., None]:
    """`found(resumes="yes")`: what a test saw of a CLI, for the table."""

    def note(**cells: str) -> None:
        way = request.node.callspec.params["way"]
        for column, cell in cells.items():
            record_property("conformance", [way, column, cell])

    return note


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table of this run; with PARALLAX_CONFORMANCE_DOC write it into that document."""
    cells: table.Cells = {}
    for outcome in ("passed", "failed"):
        for report in terminalreporter.stats.get(outcome, ()):
            for name, value in getattr(report, "user_properties", ()):
                if name == "conformance":
                    way, column, cell = value
                    cells.setdefault(way, {})[column] = cell if outcome == "passed" else "FAILED"
    if not cells:
        return
    terminalreporter.section("conformance of the real CLIs")
    terminalreporter.write_line(table.render(cells))
    if document := os.environ.get("PARALLAX_CONFORMANCE_DOC"):
        table.write(Path(document), cells)
