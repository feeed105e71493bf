"""The CLI modules are pure: what they launch, write and find."""

from __future__ import annotations

import dataclasses
import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from parallax.agents.clients.common import prepare_home
from parallax.agents.clis import catalogue, claude, codex
from parallax.agents.clis.base import PRESETS
from parallax.agents.clis.claude import Claude, ClaudeHeadless
from parallax.agents.clis.codex import Codex, CodexHeadless
from parallax.agents.clis.generic import AcpCommand
from parallax.errors import AgentUnavailable, LoginNeeded
from parallax.ports import AgentSession, ModelDoor
from parallax.redaction import Secret

DOOR = ModelDoor(
    url="http://127.0.0.1:9", token=Secret("plx_token"), providers=frozenset({"anthropic", "openai", "gemini"})
)
ALL = [Claude("/bin/claude"), ClaudeHeadless(), Codex("/bin/codex"), CodexHeadless()]


@pytest.fixture
def at_door(session: AgentSession) -> AgentSession:
    return dataclasses.replace(session, door=DOOR, model='m"1')


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("cli", ALL)
def test_every_launch_is_shut_in(at_door: AgentSession, cli: Any, preset: str, monkeypatch: Any) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-the-users-own")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-the-users-own")
    session = dataclasses.replace(at_door, preset=preset)
    spec = cli.launch(session, "/bin/program")
    assert spec.argv[0] == "/bin/program"
    assert (spec.cwd, spec.home) == (session.tree, session.home)
    assert spec.env["HOME"] == str(session.home)
    assert "sk-the-users-own" not in repr(spec)
    assert "plx_token" not in repr(spec)
    assert list(spec.secrets.values()) == [DOOR.token]
    assert cli.files(session)


def test_claude_by_preset(at_door: AgentSession) -> None:
    def settings(preset: str) -> Any:
        files = ClaudeHeadless().files(dataclasses.replace(at_door, preset=preset))
        return json.loads(files[".claude/settings.json"])["permissions"]

    assert settings("readonly") == {"defaultMode": "default", "allow": [], "deny": list(claude.EDITS)}
    assert settings("standard")["defaultMode"] == "acceptEdits"
    assert "Bash" in settings("permissive")["allow"]
    assert settings("autonomous")["defaultMode"] == "bypassPermissions"


def test_claude_launches(at_door: AgentSession) -> None:
    spec = Claude("/bin/claude").launch(at_door, "/bin/claude-agent-acp")
    assert spec.argv == ("/bin/claude-agent-acp",)
    assert spec.env["CLAUDE_CODE_EXECUTABLE"] == "/bin/claude"
    assert spec.env["CLAUDE_CONFIG_DIR"] == str(at_door.home / ".claude")
    assert spec.env["ANTHROPIC_BASE_URL"] == "http://127.0.0.1:9/model/anthropic"
    assert spec.env["DISABLE_AUTOUPDATER"] == "1"
    assert "IS_SANDBOX" not in spec.env
    assert spec.secrets == {"ANTHROPIC_API_KEY": DOOR.token}
    spec = ClaudeHeadless().launch(dataclasses.replace(at_door, cli_session="abc", preset="autonomous"), "claude")
    assert spec.argv[-2:] == ("--resume", "abc")
    assert spec.argv[spec.argv.index("--setting-sources") + 1] == "user"
    assert spec.env["IS_SANDBOX"] == "1"


def test_codex_launches(at_door: AgentSession) -> None:
    config = tomllib.loads(Codex().files(at_door)[".codex/config.toml"])
    assert config["model"] == 'm"1'
    provider = config["model_providers"][config["model_provider"]]
    assert provider["base_url"] == "http://127.0.0.1:9/model/openai/v1"
    spec = Codex("/bin/codex").launch(at_door, "codex-acp")
    assert (spec.env["INITIAL_AGENT_MODE"], spec.env["CODEX_PATH"]) == ("agent", "/bin/codex")
    assert spec.env["CODEX_HOME"] == str(at_door.home / ".codex")
    readonly = dataclasses.replace(at_door, preset="readonly", cli_session="abc")
    assert CodexHeadless().launch(readonly, "codex").argv[-4:] == ("--sandbox", "read-only", "resume", "abc")
    autonomous = dataclasses.replace(at_door, preset="autonomous")
    assert "--dangerously-bypass-approvals-and-sandbox" in CodexHeadless().launch(autonomous, "codex").argv


def test_without_a_door_the_users_login_is_copied(session: AgentSession, tmp_path: Path, monkeypatch: Any) -> None:
    for name in ("claude/.credentials.json", "codex/auth.json"):
        (tmp_path / "user" / f".{name}").parent.mkdir(parents=True)
        (tmp_path / "user" / f".{name}").write_text("login")
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    for cli, name in ((ClaudeHeadless(), ".claude/.credentials.json"), (Codex(), ".codex/auth.json")):
        assert cli.launch(session, "x").secrets == {}
        prepare_home(cli, dataclasses.replace(session, door=DOOR))
        assert not (session.home / name).exists()
        prepare_home(cli, session)
        (session.home / name).write_text("renewed by the agent")
        prepare_home(cli, session)
        assert (session.home / name).read_text() == "renewed by the agent"
        (session.home / name).unlink()
        prepare_home(cli, session)
        assert (session.home / name).read_text() == "login"
        assert (session.home / name).stat().st_mode & 0o777 == 0o600
    config = tomllib.loads(codex.config(session)[".codex/config.toml"])
    assert "model_provider" not in config


def test_without_door_and_login_it_is_said_at_once(session: AgentSession, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for cli in ALL:
        with pytest.raises(LoginNeeded, match="is not logged in: there is no key for it and no"):
            prepare_home(cli, session)
        prepare_home(cli, dataclasses.replace(session, env={"SOME_API_KEY": "x"}))


def test_any_acp_command_by_configuration(at_door: AgentSession, session: AgentSession) -> None:
    cli = AcpCommand(
        "mine", ("acp", "-x"), env={"CONF": "{home}/c", "MODEL": "{model}"}, door_env={"BASE": "{url}/v1"}, key="KEY"
    )
    spec = cli.launch(at_door, "/bin/mine")
    assert spec.argv == ("/bin/mine", "acp", "-x")
    assert (spec.env["CONF"], spec.env["MODEL"], spec.env["BASE"]) == (
        f"{at_door.home}/c",
        'm"1',
        "http://127.0.0.1:9/v1",
    )
    assert spec.secrets == {"KEY": DOOR.token}
    spec = cli.launch(session, "/bin/mine")
    assert "MODEL" not in spec.env
    assert "BASE" not in spec.env
    assert spec.secrets == {}


def which(*names: str) -> Any:
    return {name: f"/opt/{name}" for name in names}.get


def test_what_is_found(tmp_path: Path) -> None:
    found = catalogue.find("claude", which("claude", "claude-agent-acp"))
    assert (found.program, found.client, type(found.cli)) == ("/opt/claude-agent-acp", "acp", Claude)
    found = catalogue.find("claude", which("claude"))
    assert (found.program, found.client, type(found.cli)) == ("/opt/claude", "headless", ClaudeHeadless)
    found = catalogue.find("codex", which("codex-acp"))
    assert (found.program, found.client, type(found.cli)) == ("/opt/codex-acp", "acp", Codex)
    assert catalogue.find("codex", which("codex")).client == "headless"
    assert catalogue.find("gemini", which("gemini")).client == "acp"
    assert catalogue.find("scripted", script=tmp_path / "s").client == "acp"


@pytest.mark.parametrize(
    ("type_", "words"),
    [
        ("claude", "Claude Code is not installed (no 'claude' on PATH): npm install -g @anthropic-ai/claude-code"),
        ("codex", "npm install -g @openai/codex"),
        ("cloud", "There is no agent type 'cloud'; known types: scripted, claude, codex, gemini, opencode, qwen"),
        ("scripted", "PARALLAX_AGENT_SCRIPT"),
    ],
)
def test_what_is_not_found_says_what_to_install(type_: str, words: str) -> None:
    with pytest.raises(AgentUnavailable) as caught:
        catalogue.find(type_, which())
    assert words in str(caught.value)


def test_readiness(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    missing = catalogue.probe("codex", which(), {})
    assert (missing.found, missing.ready) == (False, False)
    assert "npm install" in (missing.problem or "")
    bare = catalogue.probe("claude", which("claude"), {})
    assert (bare.found, bare.ready, bare.account, bare.adapter) == (True, False, None, None)
    assert bare.problem == "Claude Code has no account here: set ANTHROPIC_API_KEY or log in once with 'claude'"
    key = catalogue.probe("claude", which("claude", "claude-agent-acp"), {"ANTHROPIC_API_KEY": "x"})
    assert (key.ready, key.account, key.adapter) == (True, "key", "/opt/claude-agent-acp")
    (tmp_path / ".codex").mkdir()
    (tmp_path / ".codex/auth.json").write_text("{}")
    login = catalogue.probe("codex", which("codex"), {})
    assert (login.ready, login.account) == (True, "login")
    gemini = catalogue.probe("gemini", which("gemini"), {"GEMINI_API_KEY": "x"})
    assert (gemini.found, gemini.ready) == (True, False)
    assert "no way to give it an account" in (gemini.problem or "")
    scripted = catalogue.probe("scripted", script=tmp_path / "s")
    assert (scripted.ready, scripted.how) == (True, "needs no account")


def test_a_version_is_seen_without_starting_anything(tmp_path: Path) -> None:
    package = tmp_path / "lib/node_modules/@x/cli"
    (package / "dist").mkdir(parents=True)
    (package / "package.json").write_text('{"version": "1.2.3"}')
    (package / "dist/index.js").write_text("")
    (tmp_path / "cli").symlink_to(package / "dist/index.js")
    assert catalogue.version_of(str(tmp_path / "cli")) == "1.2.3"
    (tmp_path / "versions").mkdir()
    (tmp_path / "versions/2.1.330").write_text("")
    assert catalogue.version_of(str(tmp_path / "versions/2.1.330")) == "2.1.330"
    assert catalogue.version_of(None) is None
