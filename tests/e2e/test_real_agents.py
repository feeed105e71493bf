"""`parallax run` with the real Claude Code and Codex: a file is edited, a command proves it, Parallax commits it.

The packages are the vendors' own, the model is scripted and on loopback, and the key that arrives there was never in
the agent's hands.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from tests.conformance.install import ADAPTERS, cache, install
from tests.conftest import git, make_repository
from tests.modelserver.model_server import ModelServer

CHART = """
roles:
  engineer: {verify: [grep, -q, hello, hello.txt]}
input: {goal: string}
steps:
  - {id: work, type: assign, role: engineer, task: "${input.goal}"}
output: work
"""

pytestmark = pytest.mark.real_cli


@pytest.fixture(scope="session")
def programs() -> dict[str, Path]:
    """Every pinned package, installed once."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        if os.environ.get("PARALLAX_REQUIRE_REAL_CLIS"):
            pytest.fail("PARALLAX_REQUIRE_REAL_CLIS is set, but there is no Node")
        pytest.skip("the real CLIs need Node: neither node nor npm is on PATH")
    return {name: install(name, cache()) for pair in ADAPTERS.items() for name in pair}


def sandboxed() -> bool:
    """Whether the agents run in a sandbox: always in CI, elsewhere where there is one."""
    return bool(shutil.which("bwrap") or os.environ.get("PARALLAX_REQUIRE_SANDBOX"))


async def run_parallax(place: Path, env: dict[str, str], *args: str) -> tuple[int, str, str]:
    """Run the command; returns exit code, standard output, standard error."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "parallax", *args, cwd=place, env=env,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def run_agent(
    agent: str, through: str, programs: dict[str, Path], place: Path, repository: Path, scenario: str
) -> tuple[dict[str, str], tuple[int, str, str], set[str]]:
    """Run `one.yaml` with a real agent; returns the environment, how it ended, and the keys that reached the model."""
    names = [agent, ADAPTERS[agent]] if through == "acp" else [agent]
    tools = place / "bin"
    tools.mkdir()
    for name in names:
        (tools / name).symlink_to(programs[name])
    node = Path(shutil.which("node") or "").parent
    async with ModelServer() as model:
        env = {
            "PATH": f"{tools}:{node}:/usr/bin:/bin", "HOME": str(place / "user"), "LANG": "C.UTF-8",
            "PARALLAX_DATA_DIR": str(place / "data"),
            "PARALLAX_SANDBOX": "require" if sandboxed() else "off",
            "ANTHROPIC_API_KEY": "sk-ant-the-servers-own-key-1", "ANTHROPIC_BASE_URL": f"{model.url}/{scenario}",
            "OPENAI_API_KEY": "sk-the-servers-own-key-22222", "OPENAI_BASE_URL": f"{model.url}/{scenario}/v1",
        }  # fmt: skip
        asked = (
            "run",
            "./one.yaml",
            "Create hello.txt",
            "--repo",
            str(repository),
            "--agent",
            agent,
            "--yes",
            "--json",
        )
        return env, await run_parallax(place, env, *asked), model.keys()


@pytest.mark.parametrize("through", ["acp", "headless"])
@pytest.mark.parametrize("agent", ["claude", "codex"])
async def test_a_real_agent_edits_is_verified_and_committed(
    agent: str, through: str, programs: dict[str, Path], place: Path
) -> None:
    repository = make_repository(place / "repo", {"readme.txt": "a sample\n"})
    (place / "one.yaml").write_text(CHART)
    env, (code, out, err), keys = await run_agent(agent, through, programs, place, repository, "write")
    assert code == 0, err + out
    done = json.loads(out)
    assert (done["state"], done["confidence"]) == ("succeeded", 1.0)
    (step,) = [s for s in done["steps"] if s["step"] == "work"]
    assert step["evidence"][0]["passed"] is True
    assert step["usage"]["input_tokens"] > 0
    branch = f"parallax/{done['id']}/result"
    assert git(repository, "show", f"{branch}:hello.txt") == "hello from the model"
    assert "Parallax-Step: work" in git(repository, "log", "-1", "--format=%B", branch)
    assert git(repository, "status", "--porcelain") == ""
    own = env["ANTHROPIC_API_KEY"] if agent == "claude" else env["OPENAI_API_KEY"]
    assert keys == {own}
    assert own not in err + out


@pytest.mark.parametrize("agent", ["claude", "codex"])
async def test_a_real_agent_reports_its_result_by_the_team_tool(
    agent: str, programs: dict[str, Path], place: Path
) -> None:
    repository = make_repository(place / "repo", {"readme.txt": "a sample\n"})
    (place / "one.yaml").write_text(CHART.replace("{verify: [grep, -q, hello, hello.txt]}", "{}"))
    _, (code, out, err), _ = await run_agent(agent, "acp", programs, place, repository, "report")
    assert code == 0, err + out
    done = json.loads(out)
    # Its last words are `I wrote hello.txt.` with a confidence of 0.9: what it gave to the tool counts.
    assert (done["result"], done["confidence"]) == ("reported by tool", 0.8)
    (step,) = [s for s in done["steps"] if s["step"] == "work"]
    assert (step["source"], step["reported"]) == ("reported", 0.8)
