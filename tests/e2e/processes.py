"""A world of one test: a data directory, a repository, scripted agents, and Parallax as real processes.

`World.run` starts `python -m parallax ...` and waits for it; `World.inside` calls the same entry point in this process,
which saves the two seconds of imports where a process is not the point.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from parallax.cli import main
from parallax.datadir import read_lock

WAIT_S = 60.0


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Its one JSON document: nothing else may stand on standard output."""
        return json.loads(self.out)

    @property
    def sentence(self) -> str:
        """The one line that tells the mistake; fails on a traceback or on more than one line."""
        assert "Traceback" not in self.err, self.err
        lines = [line for line in self.err.splitlines() if line.startswith("parallax: ")]
        assert len(lines) == 1, self.err
        return lines[0]


class World:
    """One data directory and everything that belongs to it."""

    def __init__(self, place: Path, repo: Path, script: Any) -> None:
        self.place = place
        self.repo = repo
        self.data = place / "data"
        self.ledger_file = place / "ledger.jsonl"
        self._script = place / "agents.json"
        self._script.write_text(json.dumps(script))
        self._started: list[subprocess.Popen[str]] = []

    def close(self) -> None:
        """End what a failed test left running."""
        for process in self._started:
            if process.poll() is None:
                process.kill()
            process.communicate()

    def env(self, **more: str) -> dict[str, str]:
        """The environment of a command: nothing of the machine's own Parallax, no real agent on PATH."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("PARALLAX_", "ANTHROPIC_"))}
        own = {
            "PARALLAX_DATA_DIR": str(self.data),
            "PARALLAX_AGENT_SCRIPT": str(self._script),
            "PARALLAX_SCRIPTED_LEDGER": str(self.ledger_file),
            "XDG_CACHE_HOME": str(self.place / "cache"),
            "NO_COLOR": "1",
        }
        return kept | own | more

    # -- commands ------------------------------------------------------------------------------------------------------

    def start(self, *args: str, cwd: Path | None = None, **env: str) -> subprocess.Popen[str]:
        """A command as a process that goes on."""
        process = subprocess.Popen(
            [sys.executable, "-m", "parallax", *args], cwd=cwd or self.repo, env=self.env(**env), text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        self._started.append(process)
        return process

    def run(self, *args: str, cwd: Path | None = None, **env: str) -> Done:
        """A command as a process, to its end."""
        return finish(self.start(*args, cwd=cwd, **env))

    def inside(self, *args: str, cwd: Path | None = None, **env: str) -> Done:
        """A command through its entry point in this process."""
        out, err = io.StringIO(), io.StringIO()
        before_env, before_argv, before_cwd = dict(os.environ), sys.argv, Path.cwd()
        code = 0
        try:
            os.environ.clear()
            os.environ.update(self.env(**env))
            os.chdir(cwd or self.repo)
            sys.argv = ["parallax", *args]
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        finally:
            os.chdir(before_cwd)
            sys.argv = before_argv
            os.environ.clear()
            os.environ.update(before_env)
        return Done(code, out.getvalue(), err.getvalue())

    # -- the server ----------------------------------------------------------------------------------------------------

    @contextmanager
    def serving(self, *args: str, **env: str) -> Iterator[subprocess.Popen[str]]:
        """`parallax serve` on a free port, ready; ended (if it still runs) at the end of the block."""
        process = self.start("serve", "--port", "0", *args, **env)
        try:
            self.wait_ready(process)
            yield process
        finally:
            if process.poll() is None:
                process.terminate()
            finish(process)

    def wait_ready(self, process: subprocess.Popen[str]) -> str:
        """Wait for /readyz; returns the address."""
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            content = read_lock(self.data / "lock")
            if content.get("pid") == process.pid and "url" in content:
                with (
                    contextlib.suppress(urllib.error.URLError),
                    urllib.request.urlopen(content["url"] + "/readyz", timeout=5) as answer,
                ):
                    if answer.status == 200:
                        return str(content["url"])
            if process.poll() is not None:
                raise AssertionError(f"the server ended: {process.communicate()}")
            time.sleep(0.02)
        raise AssertionError("the server did not become ready")

    def wait_started(self, count: int = 1) -> None:
        """Wait until the agents noted that many begun turns."""
        deadline = time.monotonic() + WAIT_S
        while sum(entry["event"] == "start" for entry in self.ledger()) < count:
            assert time.monotonic() < deadline, "no turn began"
            time.sleep(0.02)

    # -- what is left --------------------------------------------------------------------------------------------------

    def ledger(self) -> list[dict[str, Any]]:
        """What the agents noted of their turns, outside of Parallax's data."""
        if not self.ledger_file.exists():
            return []
        return [json.loads(line) for line in self.ledger_file.read_text().splitlines()]

    def agents_alive(self, wait_s: float = 5.0) -> list[int]:
        """Processes that carry this data directory's mark, after a grace for those that are just ending."""
        deadline = time.monotonic() + wait_s
        while (found := self._marked()) and time.monotonic() < deadline:
            time.sleep(0.05)
        return found

    def _marked(self) -> list[int]:
        owner = self.data / "owner"
        if not owner.exists():
            return []
        mark, found = owner.read_text().strip(), []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                value = process.environ().get("PARALLAX_OWNER", "")
                if value.startswith(mark) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process.pid)
        return found


def finish(process: subprocess.Popen[str], by: signal.Signals | None = None) -> Done:
    """Wait for a command's end, after a signal if one is given."""
    if by is not None:
        process.send_signal(by)
    try:
        out, err = process.communicate(timeout=WAIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"the command did not end:\n{out}\n{err}") from None
    return Done(process.returncode, out, err)


def listing(*roots: Path) -> dict[str, str]:
    """Every directory and file below the roots; of files their text, but for those that a database writes at will."""
    found = {}
    for root in roots:
        for path in sorted(root.rglob("*")):
            volatile = path.name.startswith("parallax.db") or path.name in {"lock", "local.config"}
            found[str(path)] = "" if path.is_dir() or volatile else path.read_bytes().hex()
    return found
