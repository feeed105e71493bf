"""The CLI modules are pure: what they launch, write and find."""

from __future__ import annotations

import dataclasses
import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from parallax.agents.clients.common import prepare_home
from parallax.agents.clis import claude, codex
from parallax.agents.clis.aider import Aider
from parallax.agents.clis.base import PRESETS
from parallax.agents.clis.catalogue import Catalogue, Found, Registered, older, version_of
from parallax.agents.clis.claude import Claude, ClaudeHeadless
from parallax.agents.clis.codex import Codex, CodexHeadless
from parallax.agents.clis.copilot import Copilot
from parallax.agents.clis.gemini import Gemini
from parallax.agents.clis.opencode import OpenCode
from parallax.agents.clis.qwen import Qwen
from parallax.config import LocalAgent, load
from parallax.errors import AgentUnavailable, ConfigurationError, LoginNeeded
from parallax.models import Progress, TaskResult
from parallax.ports import AgentSession, ModelDoor
from parallax.redaction import Secret

DOOR = ModelDoor(
    url="http://127.0.0.1:9", token=Secret("plx_token"), providers=frozenset({"anthropic", "openai", "gemini"})
)
ALL = [
    Claude("/bin/claude"), ClaudeHeadless(), Codex("/bin/codex"), CodexHeadless(), Gemini(), OpenCode(), Qwen(),
    Copilot(), Aider(),
]  # fmt: skip


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
    assert "plx_token" not in "".join(cli.files(session).values())
    assert "http://127.0.0.1:9/model/" in repr(spec) + "".join(cli.files(session).values())


@pytest.mark.parametrize("cli", [ClaudeHeadless(), CodexHeadless()])
def test_headless_clis_get_the_team_tools_in_a_file_that_holds_no_token(at_door: AgentSession, cli: Any) -> None:
    session = dataclasses.replace(at_door, door=dataclasses.replace(DOOR, has_tools=True))
    spec, files = cli.launch(session, "/bin/program"), "".join(cli.files(session).values())
    assert spec.secrets["PARALLAX_TOOLS_TOKEN"] == DOOR.token
    assert "http://127.0.0.1:9/mcp" in files
    assert "PARALLAX_TOOLS_TOKEN" in files
    assert "plx_token" not in files + repr(spec)


def test_presets_of_the_others(at_door: AgentSession) -> None:
    def launch(cli: Any, preset: str) -> Any:
        return cli.launch(dataclasses.replace(at_door, preset=preset), "x")

    def settings(cli: Any, preset: str) -> Any:
        (text,) = cli.files(dataclasses.replace(at_door, preset=preset)).values()
        return json.loads(text)

    modes = {preset: launch(Gemini(), preset).argv[3] for preset in PRESETS}
    assert modes == {"readonly": "default", "standard": "auto_edit", "permissive": "auto_edit", "autonomous": "yolo"}
    assert settings(Gemini(), "readonly")["tools"]["exclude"] == ["write_file", "replace"]
    assert "run_shell_command" in settings(Gemini(), "permissive")["tools"]["allowed"]
    assert settings(Qwen(), "readonly")["permissions"]["deny"] == ["write_file", "edit"]
    config = json.loads(launch(OpenCode(), "readonly").env["OPENCODE_CONFIG_CONTENT"])
    assert (config["permission"]["edit"], config["permission"]["bash"]) == ("deny", "ask")
    assert config["model"] == 'parallax/m"1'
    assert "--deny-tool=write" in launch(Copilot(), "readonly").argv
    assert "--allow-all" in launch(Copilot(), "autonomous").argv
    assert launch(Aider(), "readonly").argv[-4:-2] == ("--chat-mode", "ask")


@pytest.mark.parametrize(
    ("provider", "cli", "words"),
    [
        ("anthropic", OpenCode(), "/model/anthropic/v1"),
        ("gemini", OpenCode(), "/model/gemini/v1beta"),
        ("anthropic", Copilot(), "'COPILOT_PROVIDER_TYPE': 'anthropic'"),
        ("openai", Copilot(), "/model/openai/v1"),
        ("openai", Aider(), "'openai/m\"1'"),
    ],
)
def test_a_cli_takes_the_provider_whose_key_is_there(
    at_door: AgentSession, provider: str, cli: Any, words: str
) -> None:
    door = dataclasses.replace(DOOR, providers=frozenset({provider}))
    assert words in repr(cli.launch(dataclasses.replace(at_door, door=door), "x"))


@pytest.mark.parametrize("cli", [Gemini(), OpenCode(), Qwen(), Copilot(), Aider()])
def test_without_a_door_nothing_is_pointed_at_one(session: AgentSession, cli: Any) -> None:
    spec = cli.launch(session, "x")
    assert spec.secrets == {}
    assert "127.0.0.1" not in repr(spec) + "".join(cli.files(session).values())


ODD: list[Any] = [5, "command", ["x"], {"content": 5}, {"content": ["x", {"type": "tool_use", "id": ["x"]}]}, None]


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("cli", [ClaudeHeadless(), CodexHeadless()])
def test_a_line_with_anything_in_any_place_is_no_exception(cli: Any, odd: Any) -> None:
    for kind in ("assistant", "user", "result", "turn.completed", "turn.failed", "error", "item.completed"):
        fields = ("message", "usage", "errors", "permission_denials", "error", "item", "result")
        cli.read(json.dumps({"type": kind, **dict.fromkeys(fields, odd)}).encode())
    for kind in ("agent_message", "command_execution", "file_change", "todo_list", "mcp_tool_call"):
        item = {"type": kind, **dict.fromkeys(("id", "text", "changes", "items", "aggregated_output", "tool"), odd)}
        cli.read(json.dumps({"type": "item.completed", "item": item}).encode())
    denied = {"type": "result", "permission_denials": [{"tool_name": odd, "tool_input": odd}]}
    cli.read(json.dumps(denied).encode())


def test_aider_reads_prose() -> None:
    def read(line: str) -> Any:
        return Aider().read(line.encode())

    assert read("Aider v0.86.2") == Progress(kind="session", text="history")
    assert read("Git repo: .git with 3 files") is None
    assert read("I changed it.").text == "I changed it.\n"
    edit = read("Applied edit to src/a.py")
    assert (edit.kind, edit.data["files"], edit.data["status"]) == ("tool", ["src/a.py"], "completed")
    used = read("Tokens: 1.2k sent, 3,400 cache write, 20 received. Cost: $0.01 message, $0.02 session.")
    assert used.data == {"input": 1200, "output": 20, "cost": 10_000}
    assert read("Tokens: 120 sent, 20 received.").data == {"input": 120, "output": 20}
    for sent in ("1.2.3", ".", "9" * 400):
        assert read(f"Tokens: {sent} sent, 4 received.").kind == "output"
    assert read("Tokens: 1 sent, 2 received. Cost: $1.2.3 message").data == {"input": 1, "output": 2}
    assert read("Tokens: 1 sent, 2 received. Cost: $999999999999 message").data == {"input": 1, "output": 2}
    assert read("I now catch litellm.RateLimitError and wait.").kind == "output"
    assert read("litellm.APIConnectionError: broken").kind == "thought"
    limited = read("litellm.RateLimitError: RateLimitError: too many")
    assert isinstance(limited, TaskResult)
    assert limited.stop == "error"
    assert read("\0\xff").kind == "output"


def test_claude_by_preset(at_door: AgentSession) -> None:
    def settings(preset: str) -> Any:
        files = ClaudeHeadless().files(dataclasses.replace(at_door, preset=preset))
        return json.loads(files[".claude/settings.json"])["permissions"]

    assert settings("readonly") == {
        "defaultMode": "default", "allow": ["mcp__parallax"], "deny": list(claude.EDITS),
    }  # fmt: skip
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
        with pytest.raises(LoginNeeded, match="is not logged in: there is no key for it"):
            prepare_home(cli, session)
        prepare_home(cli, dataclasses.replace(session, env={"SOME_API_KEY": "x"}))


GOOSE = """
[{"id": "goose", "command": ["goose", "acp"], "provider": "openai", "key": "OPENAI_API_KEY",
  "env": {"OPENAI_HOST": "{url}", "GOOSE_MODEL": "{model}", "GOOSE_CONFIG": "{home}/{x}"}, "resume": "load"}]
"""


def test_any_acp_command_by_configuration_alone(at_door: AgentSession, session: AgentSession, monkeypatch: Any) -> None:
    monkeypatch.setenv("PARALLAX_LOCAL_AGENTS", GOOSE)
    known = Catalogue(which=which("goose"), local=load().local_agents)
    assert "goose" in known.types()
    assert known.providers("goose") == ("openai",)
    found = known.find("goose")
    assert isinstance(found, Found)
    assert (found.program, found.client, found.cli.quirks.resume) == ("/opt/goose", "acp", "load")
    spec = found.cli.launch(at_door, found.program)
    assert spec.argv == ("/opt/goose", "acp")
    assert spec.env["OPENAI_HOST"] == "http://127.0.0.1:9/model/openai/v1"
    assert (spec.env["GOOSE_MODEL"], spec.env["GOOSE_CONFIG"]) == ('m"1', f"{at_door.home}/{{x}}")
    assert spec.secrets == {"OPENAI_API_KEY": DOOR.token}
    spec = found.cli.launch(session, "/opt/goose")
    assert not {"OPENAI_HOST", "GOOSE_MODEL"} & spec.env.keys()
    assert spec.secrets == {}
    assert known.probe("goose").ready
    assert "there is no 'goose'" in (Catalogue(which=which(), local=load().local_agents).probe("goose").problem or "")


def test_registered_agents_are_found_by_id_and_by_capability() -> None:
    local = [
        LocalAgent(id="writer", endpoint="http://10.0.0.1:9000", capabilities=("docs",)),
        LocalAgent(id="critic", endpoint="http://10.0.0.2:9000/a", capabilities=("review", "docs")),
    ]
    known = Catalogue(which=which(), local=local)
    assert known.find("critic") == Registered(type="critic", endpoint="http://10.0.0.2:9000/a")
    assert known.find("http") == Registered(type="http", endpoint="http://10.0.0.1:9000")
    assert known.find("http", ("review",)) == Registered(type="http", endpoint="http://10.0.0.2:9000/a")
    assert known.probe("critic").ready
    assert known.providers("critic") == ()
    with pytest.raises(AgentUnavailable, match="No agent with the capabilities paint is registered"):
        known.find("http", ("paint",))
    with pytest.raises(AgentUnavailable, match="PARALLAX_LOCAL_AGENTS"):
        Catalogue(which=which()).find("http")
    with pytest.raises(ConfigurationError, match="'claude' is a type of Parallax's own"):
        Catalogue(local=[LocalAgent(id="claude", endpoint="http://x")])


@pytest.mark.parametrize(
    "text",
    [
        '[{"id": "a"}]',
        '[{"id": "a", "endpoint": "http://x", "command": ["y"]}]',
        '[{"id": "a", "endpoint": "http://user:secret@x"}]',
        '[{"id": "a", "endpoint": "file:///etc/passwd"}]',
        '[{"id": "a b", "endpoint": "http://x"}]',
        '[{"id": "a", "endpoint": "http://x", "token": "t"}]',
    ],
)
def test_a_bad_entry_is_named(text: str, monkeypatch: Any) -> None:
    monkeypatch.setenv("PARALLAX_LOCAL_AGENTS", text)
    with pytest.raises(ConfigurationError, match="PARALLAX_LOCAL_AGENTS"):
        load()


def which(*names: str) -> Any:
    return {name: f"/opt/{name}" for name in names}.get


def found_as(type_: str, *names: str) -> Any:
    return Catalogue(which=which(*names)).find(type_)


def test_what_is_found(tmp_path: Path) -> None:
    found = found_as("claude", "claude", "claude-agent-acp")
    assert (found.program, found.client, type(found.cli)) == ("/opt/claude-agent-acp", "acp", Claude)
    found = found_as("claude", "claude")
    assert (found.program, found.client, type(found.cli)) == ("/opt/claude", "headless", ClaudeHeadless)
    found = found_as("codex", "codex-acp")
    assert (found.program, found.client, type(found.cli)) == ("/opt/codex-acp", "acp", Codex)
    assert found_as("codex", "codex").client == "headless"
    assert found_as("aider", "aider").client == "headless"
    for type_ in ("gemini", "opencode", "qwen", "copilot"):
        assert found_as(type_, type_).client == "acp"
    scripted = Catalogue(script=tmp_path / "s").find("scripted")
    assert isinstance(scripted, Found)
    assert scripted.client == "acp"


@pytest.mark.parametrize(
    ("type_", "words"),
    [
        ("claude", "Claude Code is not installed (no 'claude' on PATH): npm install -g @anthropic-ai/claude-code"),
        ("codex", "npm install -g @openai/codex"),
        ("aider", "pipx install aider-chat"),
        (
            "cloud",
            "There is no agent type 'cloud'; known types: scripted, claude, codex, gemini, opencode, qwen, copilot",
        ),
        ("scripted", "PARALLAX_AGENT_SCRIPT"),
    ],
)
def test_what_is_not_found_says_what_to_install(type_: str, words: str) -> None:
    with pytest.raises(AgentUnavailable) as caught:
        found_as(type_)
    assert words in str(caught.value)


def test_a_cli_that_is_too_old_says_what_is_needed(tmp_path: Path) -> None:
    package = tmp_path / "lib/node_modules/claude"
    package.mkdir(parents=True)
    (package / "package.json").write_text('{"version": "1.0.128"}')
    (package / "claude").write_text("")
    known = Catalogue(which={"claude": str(package / "claude")}.get)
    problem = known.probe("claude").problem or ""
    assert "Claude Code 1.0.128" in problem
    assert "is too old, 2.0 or newer is needed: npm install -g" in problem
    assert older("1.9.9", "2.0")
    assert not older("2.0.0", "2.0")
    assert not older(None, "2.0")
    assert not older("unknown", "2.0")


def test_readiness(tmp_path: Path, monkeypatch: Any) -> None:
    def probe(type_: str, *names: str, **environ: str) -> Any:
        return Catalogue(which=which(*names), environ=environ).probe(type_)

    monkeypatch.setenv("HOME", str(tmp_path))
    missing = probe("codex")
    assert (missing.found, missing.ready) == (False, False)
    assert "npm install" in missing.problem
    bare = probe("claude", "claude")
    assert (bare.found, bare.ready, bare.account, bare.adapter) == (True, False, None, None)
    assert bare.problem == "Claude Code has no account here: set ANTHROPIC_API_KEY or log in once with 'claude'"
    key = probe("claude", "claude", "claude-agent-acp", ANTHROPIC_API_KEY="x")
    assert (key.ready, key.account, key.adapter) == (True, "key", "/opt/claude-agent-acp")
    (tmp_path / ".codex").mkdir()
    (tmp_path / ".codex/auth.json").write_text("{}")
    login = probe("codex", "codex")
    assert (login.ready, login.account) == (True, "login")
    assert "auth.json, copied into the agent's private home" in login.how
    assert probe("gemini", "gemini", GEMINI_API_KEY="x").account == "key"
    assert probe("opencode", "opencode", OPENAI_API_KEY="x").account == "key"
    assert probe("aider", "aider").problem == "Aider has no account here: set ANTHROPIC_API_KEY or set OPENAI_API_KEY"
    scripted = Catalogue(script=tmp_path / "s").probe("scripted")
    assert (scripted.ready, scripted.account) == (True, None)


def test_a_version_is_seen_without_starting_anything(tmp_path: Path) -> None:
    package = tmp_path / "lib/node_modules/@x/cli"
    (package / "dist").mkdir(parents=True)
    (package / "package.json").write_text('{"version": "1.2.3"}')
    (package / "dist/index.js").write_text("")
    (tmp_path / "cli").symlink_to(package / "dist/index.js")
    assert version_of(str(tmp_path / "cli")) == "1.2.3"
    (tmp_path / "package.json").write_text('{"version": "0.0.1"}')  # of whoever's project it lies in
    (tmp_path / "versions").mkdir()
    (tmp_path / "versions/2.1.330").write_text("")
    assert version_of(str(tmp_path / "versions/2.1.330")) == "2.1.330"
    venv = tmp_path / ".venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin/aider").write_text("")
    (venv / "lib/python3.11/site-packages/aider_chat-0.86.2.dist-info").mkdir(parents=True)
    assert version_of(str(venv / "bin/aider")) == "0.86.2"
    assert version_of(None) is None
