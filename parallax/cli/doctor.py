"""`parallax doctor`: what this machine has and what is missing, each with the remedy."""

from __future__ import annotations

import asyncio
import os
import platform
import re
import shutil
import sqlite3
import subprocess
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from parallax._version import __version__

if TYPE_CHECKING:
    from parallax.agents.clis.catalogue import Readiness
    from parallax.agents.runtimes.probe import Probed
    from parallax.config import Settings

# The write-ahead log of SQLite 3.7.0 to 3.51.2 can lose a write when two connections checkpoint (fixed in 3.51.3, and
# in 3.50.7 and 3.44.6). Parallax has one connection that writes and checkpoints, so it is not met; still, say it.
_FIXED: Final = ((3, 51, 3), (3, 50, 7), (3, 44, 6))


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line: a part of the machine, how it stands (ok, warn, bad), what was found, and what to do."""

    part: str
    state: str
    found: str
    remedy: str = ""


def report(*, as_json: bool) -> int:
    """Print the findings; 1 when something that Parallax cannot do without is missing."""
    from parallax.agents.clis.catalogue import Catalogue
    from parallax.agents.runtimes.local import LocalRuntime
    from parallax.cli.output import out, print_json, styled
    from parallax.config import load

    settings = load()
    probed = _probed(settings)
    refused = LocalRuntime("doctor", shut=probed.shut, wish=settings.sandbox, problem=probed.problem).refusal(None)
    data = settings.data_dir
    findings = [_python(), _git(), _sqlite(), _data(data, settings.min_free_mb), *_private(data)]
    findings.append(_sandbox(settings.sandbox, probed))
    known = Catalogue.of(settings)
    agents = [_shut_in(known.probe(type_), refused) for type_ in known.types() if type_ not in {"scripted", "http"}]
    bad = any(finding.state == "bad" for finding in findings)
    if as_json:
        print_json({
            "version": __version__,
            "machine": [asdict(finding) for finding in findings],
            "agents": [asdict(agent) for agent in agents],
        })  # fmt: skip
        return int(bad)
    console = out()
    marks = {"ok": ("✓ ", "green"), "warn": ("! ", "yellow"), "bad": ("✗ ", "red")}
    console.print(f"Parallax {__version__}")
    for finding in findings:
        remedy = f"  ({finding.remedy})" if finding.remedy else ""
        console.print(styled(marks[finding.state], (f"{finding.part:<10}", "bold"), finding.found, (remedy, "dim")))
    console.print()
    for agent in agents:
        console.print(styled(*_agent_line(agent)))
    if not any(agent.ready for agent in agents):
        console.print("\nno agent is ready yet; `parallax demo` shows everything with scripted agents")
    return int(bad)


def _agent_line(agent: Any) -> list[Any]:
    mark = ("✓ ", "green") if agent.ready else ("· ", "dim")
    if not agent.found:
        return [mark, (f"{agent.type:<10}", "bold"), (str(agent.problem), "dim")]
    adapter = f" through {Path(agent.adapter).name}" if agent.adapter else ""
    version = f" {agent.version}" if agent.version else ""
    account = agent.problem or (f"account: {agent.how}" if agent.account else agent.how)
    return [mark, (f"{agent.type:<10}", "bold"), f"found{version}{adapter}; {account}"]


def _shut_in(agent: Readiness, refused: str | None) -> Readiness:
    """An agent that may not run without a sandbox is not ready without one."""
    return (
        replace(agent, ready=False, problem="needs a sandbox, see above")
        if refused and agent.ready and agent.program
        else agent
    )


def _python() -> Finding:
    return Finding(part="python", state="ok", found=f"{platform.python_version()} on {platform.system()}")


def _git() -> Finding:
    git = shutil.which("git")
    if git is None:
        return Finding(part="git", state="bad", found="not found", remedy="install git 2.38 or newer")
    text = subprocess.run([git, "--version"], capture_output=True, text=True, check=False, timeout=10).stdout.strip()
    number = re.search(r"(\d+)\.(\d+)", text)
    if number is None or (int(number[1]), int(number[2])) < (2, 38):
        return Finding(part="git", state="bad", found=text or "unknown version", remedy="git 2.38 or newer is needed")
    return Finding(part="git", state="ok", found=text.removeprefix("git version "))


def _sqlite() -> Finding:
    version = sqlite3.sqlite_version_info
    fixed = version >= _FIXED[0] or any(version[:2] == f[:2] and version >= f for f in _FIXED[1:])
    if fixed:
        return Finding(part="sqlite", state="ok", found=sqlite3.sqlite_version)
    return Finding(
        part="sqlite", state="warn", found=f"{sqlite3.sqlite_version} has the WAL-reset fault",
        remedy="Parallax is built not to meet it; never open parallax.db with another program while it runs",
    )  # fmt: skip


def _data(directory: Path, min_free_mb: int) -> Finding:
    from parallax.datadir import file_system, foreign

    existing = next(path for path in (directory, *directory.parents) if path.exists())
    if not os.access(existing, os.W_OK):
        return Finding(part="data", state="bad", found=f"{directory} cannot be written", remedy="set PARALLAX_DATA_DIR")
    kind = file_system(existing)
    if foreign(kind):
        return Finding(
            part="data", state="bad", found=f"{directory} lies on {kind}, where a database can be damaged",
            remedy="set PARALLAX_DATA_DIR to a directory on a local disk",
        )  # fmt: skip
    free_mb = shutil.disk_usage(existing).free // 1024**2
    found = f"{directory} ({kind or 'unknown file system'}), {free_mb / 1024:.0f} GB free"
    if free_mb < min_free_mb:
        return Finding(part="data", state="bad", found=found, remedy=f"new work needs {min_free_mb} MB: make room")
    remedy = f"new work is refused below {min_free_mb} MB (PARALLAX_MIN_FREE_MB)"
    low = free_mb < max(4 * min_free_mb, 2048)
    return Finding(part="data", state="warn" if low else "ok", found=found, remedy=remedy if low else "")


def _private(directory: Path) -> list[Finding]:
    """What others could read of what is the owner's alone."""
    open_to_others = [
        path
        for path in (directory, directory / "key", directory / "parallax.db")
        if path.exists() and path.stat().st_mode & 0o077
    ]
    return [
        Finding(
            part="data", state="warn", found=f"{path} can be read by others",
            remedy=f"chmod {'700' if path.is_dir() else '600'} {path}",
        )
        for path in open_to_others
    ]  # fmt: skip


def _probed(settings: Settings) -> Probed:
    """Start a real sandbox and look what a process in it can do."""
    from parallax.agents.runtimes.probe import probe

    with tempfile.TemporaryDirectory(prefix="parallax-doctor-") as scratch:
        return asyncio.run(probe(settings.sandbox, settings.data_dir, Path(scratch)))


def _sandbox(wish: str | None, probed: Probed) -> Finding:
    if probed.shut is not None:
        words = "bubblewrap; seen to hold: no file of yours, no environment of the server, no network but the gateway"
        return Finding(part="sandbox", state="ok", found=words)
    if wish in {"off", "auto"}:
        return Finding(
            part="sandbox", state="warn", found=f"none ({probed.problem}); agents run with all rights of your own",
            remedy="run agents only on repositories and goals that you trust",
        )  # fmt: skip
    return Finding(
        part="sandbox", state="bad" if wish == "require" else "warn", found=f"none: {probed.problem}",
        remedy="until then only scripted agents run; PARALLAX_SANDBOX=off runs all without, with all rights of yours",
    )  # fmt: skip
