"""C1 and C2: canary secrets through a whole run with failures; what leaves, lies about or can be read holds none.

The agent is hostile: it reads every environment and command line that it can see, its own files and sockets, and writes
what it found into its work. Meanwhile the test looks at every process of the machine.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import threading
import time
from pathlib import Path
from urllib.parse import quote

import pytest

from parallax.execution import finalising
from parallax.models import ExecutionState
from parallax.redaction import Secret
from parallax.workspaces import remotes
from parallax.workspaces.finalising import Wish
from tests.conftest import git
from tests.execution.test_finalising import PATTERN
from tests.forge.forge import APP_ID

LOOT = (
    "for f in /proc/*/environ /proc/*/cmdline; do tr '\\0' '\\n' < $f; done 2>/dev/null; env; "
    "cat .git/config ~/.gitconfig ~/.netrc ~/.git-credentials 2>/dev/null; ls -aR ~ .git"
)
SCRIPT = {"rules": [{"do": [
    {"run": ["sh", "-c", f"({LOOT}) > loot.txt 2>&1; cat loot.txt; true"]},
    {"edit": {"path": "answer.txt", "content": "42\n"}}, {"answer": {"value": "done"}},
]}]}  # fmt: skip


class Watch(threading.Thread):
    """Command lines and environments of all processes, looked at each 10 ms, in which a canary stands."""

    def __init__(self, canaries: list[str]) -> None:
        super().__init__(daemon=True)
        self.canaries, self.argv, self.environ = canaries, set(), set()
        self.ended = threading.Event()

    def run(self) -> None:
        looks = dict.fromkeys(os.listdir("/proc"), 3)  # what was there before is not ours
        while not self.ended.is_set():
            for name in os.listdir("/proc"):
                looks[name] = looks.get(name, 0) + 1  # the first looks: a process is another one after its exec
                if name.isdigit() and looks[name] <= 3:
                    self._look(name)
            time.sleep(0.01)

    def _look(self, pid: str) -> None:
        try:
            argv = Path(f"/proc/{pid}/cmdline").read_bytes()
            environ = Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            return
        for canary in self.canaries:
            for form in (canary.encode(), base64.b64encode(f"x-access-token:{canary}".encode())):
                if form in argv:
                    self.argv.add(argv[:200])
                if form in environ:
                    self.environ.add(argv.split(b"\0")[0].rpartition(b"/")[2])


def forms(canary: str) -> list[bytes]:
    raw = canary.encode()
    inside = base64.b64encode(b"x-access-token:" + raw)
    return [raw, base64.b64encode(raw).rstrip(b"="), inside, quote(canary, safe="").encode(),
            json.dumps(canary)[1:-1].encode(), raw.hex().encode()]  # fmt: skip


async def test_no_canary_is_found_anywhere(team, forge, repository, place, monkeypatch):
    monkeypatch.setattr(remotes, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(finalising, "_LATER_S", (0.05,))
    url = forge.repository("shop", repository)
    git(repository, "remote", "add", "origin", url)
    mine = forge.person("shop")
    encryption = base64.b64encode(b"canary-encryption-key-32-bytes!!").decode()
    environment = {name: f"canary-{name.lower()}-0123456789abcdef" for name in (
        "ANTHROPIC_API_KEY", "OPENAI_API_KEY", "SECRET_OF_THE_SHELL", "DATABASE_PASSWORD",
    )}  # fmt: skip
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    fixed = "canary-fixed-0123456789abcdef"
    canaries = [mine, encryption, fixed, *environment.values(), *forge.key.splitlines()[1:-1]]
    watch = Watch(canaries)
    watch.start()
    shown: list[str] = []
    settings = {
        "github_api_url": forge.api_url, "github_app_id": APP_ID, "github_private_key": forge.key,
        "encryption_key": encryption, "git_tokens": {"elsewhere.example": fixed},
        "anthropic_api_key": environment["ANTHROPIC_API_KEY"], "openai_api_key": environment["OPENAI_API_KEY"],
    }  # fmt: skip
    try:
        async with team(SCRIPT, **settings) as t:
            wish = Wish(push=True, pull_request=True)
            forge.expire_in_mid_push = True
            one = await t.run(PATTERN, {"goal": "x"}, wish=wish)
            assert one.state in {ExecutionState.SUCCEEDED, ExecutionState.PARTIAL}, one.reason
            two = await t.start(PATTERN, {"goal": "y"}, wish=wish, token=Secret(mine))
            forge.down = True
            two = await t.finish(two)
            assert two.state is ExecutionState.PARTIAL
            canaries += [*forge.tokens, t.parallax.key.reveal()]
            for execution in (one, two):
                shown += [json.dumps(event.data) for event in await t.events(execution)]
                shown += [json.dumps(e.body, default=str) for e in await t.parallax.store.journal(execution.id)]
                shown += [str(execution), json.dumps(await t.parallax.credentials.grants(execution.id))]
            loot = t.branch_file(one, "loot.txt") or ""
            assert "PARALLAX_ROLE" in loot, "the agent did look"
            shown.append(loot)
    finally:
        watch.ended.set()
        watch.join()
    assert watch.argv == set()
    assert watch.environ <= {b"git", b"git-remote-http", b"git-remote-https", b"sh"}, watch.environ
    allowed = {place / "data" / "key"}
    hits = []
    kept = [p for root in (place, forge.root) for p in root.rglob("*") if p.is_file() and p not in allowed]
    texts = [(str(p), p.read_bytes()) for p in kept] + [("shown", "\n".join(shown).encode())]
    texts += [("pulls", json.dumps([p.body for p in forge.pulls.get("shop", [])]).encode())]
    for bundle in (repository, *(place / "data" / "workspaces" / "mirrors").glob("*/")):
        done = subprocess.run(
            "git rev-list --objects --all | cut -c1-40 | git cat-file --batch", shell=True, cwd=bundle,
            capture_output=True, check=True,
        )  # fmt: skip
        texts.append((f"objects of {bundle.name}", done.stdout))
    for name, text in texts:
        hits += [(name, canary[:12]) for canary in canaries for form in forms(canary) if form in text]
    assert hits == []


@pytest.fixture(autouse=True)
def _sandboxed() -> None:
    """What an agent can see of other processes is the sandbox's to decide."""
    if shutil.which("bwrap") is None:
        if os.environ.get("PARALLAX_REQUIRE_SANDBOX"):
            pytest.fail("PARALLAX_REQUIRE_SANDBOX is set, but bubblewrap is not installed")
        pytest.skip("bubblewrap is not installed: without a sandbox an agent sees what its user sees")
