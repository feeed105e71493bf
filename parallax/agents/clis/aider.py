"""Aider: no protocol and no JSON, one process a turn with text for people.

Quirks: its exit code is 0 even when nothing was edited, so only the work is evidence; it runs no command of the
model's without a person; it counts tokens in a line at the end; its map of the repository is a database inside the work
tree, so it goes without. Its settings are arguments, above any .aider.conf.yml of the repository.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from parallax.agents.clients.acp_shapes import dollars
from parallax.agents.clis.base import Dialect, launch_spec, model_end
from parallax.models import LaunchSpec, Progress, Task, TaskResult
from parallax.ports import AgentSession, Quirks

HISTORY: Final = "aider.chat.md"
# The door's provider -> how Aider's library calls it, the variables for base URL and key, the model by default.
PROVIDERS: Final[Mapping[str, tuple[str, str, str, str]]] = {
    "anthropic": ("anthropic", "ANTHROPIC_API_BASE", "ANTHROPIC_API_KEY", "claude-sonnet-4-5"),
    "openai": ("openai", "OPENAI_API_BASE", "OPENAI_API_KEY", "gpt-5"),
}
FIXED: Final = (
    "--yes-always", "--no-pretty", "--no-stream", "--no-fancy-input", "--no-check-update", "--no-show-release-notes",
    "--analytics-disable", "--no-show-model-warnings", "--no-gitignore", "--no-auto-commits", "--no-dirty-commits",
    "--no-suggest-shell-commands", "--no-auto-test", "--no-auto-lint", "--no-detect-urls", "--no-watch-files",
    "--no-notifications", "--disable-playwright", "--no-add-gitignore-files", "--map-tokens=0",
)  # fmt: skip
_NUMBER: Final = r"([0-9]{1,12}(?:\.[0-9]{1,9})?)"
_TOKENS: Final = re.compile(rf"Tokens: {_NUMBER}(k?) sent,(?:.*,)? {_NUMBER}(k?) received")
_COST: Final = re.compile(rf"Cost: \${_NUMBER} message")
_EDITED: Final = re.compile(r"Applied edit to (.+)")
_TROUBLE: Final = re.compile(r"litellm\.(\w+)Error\b|Retrying in [\d.]+ seconds|The API provider ")
_FINAL: Final = frozenset({"RateLimit", "Authentication", "PermissionDenied"})  # waiting for these is Parallax's matter
_BANNER: Final = re.compile(
    r"(Update git|Detected dumb|HTTPSConnectionPool|Main model|Weak model|Editor model|Model|Git repo|Repo-map|Added"
    r"|Restored|Creating empty file|Note|Warning)\b"
    r"|https://aider\.chat|Aider respects your privacy|Analytics have been"
)


class Aider(Dialect):
    """`aider` with the prompt on standard input."""

    type = "aider"
    quirks = Quirks(protocol="text", resume="resume")

    def launch(self, session: AgentSession, program: str) -> LaunchSpec:
        """`cli_session` is anything that says that there was a turn before: the history is a file in its home."""
        history = session.home / HISTORY
        argv = [program, *FIXED, "--chat-history-file", str(history), "--input-history-file", f"{history}.in"]
        argv += ["--env-file", str(session.home / ".env"), "--message-file", "/dev/stdin"]
        if session.preset == "readonly":
            argv += ["--chat-mode", "ask"]
        if session.cli_session:
            argv.append("--restore-chat-history")
        env = {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}  # else it fetches a price list, and waits for it
        secrets = {}
        end = model_end(session, *PROVIDERS)
        if end is not None:
            prefix, base, key, default = PROVIDERS[end.provider]
            env[base] = end.url
            secrets[key] = end.token
            argv += ["--model", f"{prefix}/{session.model or default}"]
        elif session.model:
            argv += ["--model", session.model]
        return launch_spec(session, *argv, env=env, secrets=secrets)

    def login_files(self) -> Mapping[str, Path]:
        """It has no login: only a key."""
        return {}

    def prompt(self, task: Task) -> tuple[tuple[str, ...], bytes]:
        """The text goes to standard input: it may be longer than an argument can be."""
        return (), task.text.encode()

    def read(self, line: bytes) -> Progress | TaskResult | None:
        """Prose with a few lines that mean something."""
        text = line.decode("utf-8", "replace").replace("\0", "")
        if text.startswith("Aider v"):
            return Progress(kind="session", text="history")
        if match := _EDITED.match(text):
            data = {"id": f"edit {match[1]}", "status": "completed", "kind": "edit", "files": [match[1]]}
            return Progress(kind="tool", text=f"Edit {match[1]}", data=data)
        if match := _TOKENS.match(text):
            return Progress(kind="usage", data=_used(match, _COST.search(text)))
        if (trouble := _TROUBLE.match(text)) and trouble[1] in _FINAL:
            return TaskResult(task_id="", attempt=0, agent_id="", value=None, message=text, stop="error")
        if trouble:
            return Progress(kind="thought", text=text, data={"error": True})
        if _BANNER.match(text):
            return None
        return Progress(kind="output", text=text + "\n")


def _used(tokens: re.Match[str], cost: re.Match[str] | None) -> dict[str, int]:
    """What the line `Tokens: 1.2k sent, 20 received. Cost: $0.01 message, ...` says; money in micro-dollars."""
    sent, received = _count(tokens[1], tokens[2]), _count(tokens[3], tokens[4])
    money = dollars(float(cost[1])) if cost else None
    return {"input": sent, "output": received, **({} if money is None else {"cost": money})}


def _count(number: str, thousands: str) -> int:
    return round(float(number) * (1000 if thousands else 1))
