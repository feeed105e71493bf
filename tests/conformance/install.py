"""Install the pinned real CLIs for the conformance tests, each in its own prefix; what is there is left alone.

Used by the tests' fixture and by CI: python tests/conformance/install.py [NAME ...]
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Package:
    """A pinned package. Without a version npm takes the newest whose engines fit this Node, not the newest."""

    name: str
    version: str
    source: str = "npm"


PACKAGES = {
    "claude": Package("@anthropic-ai/claude-code", "2.1.330"),
    "codex": Package("@openai/codex", "0.169.0"),
    "claude-agent-acp": Package("@agentclientprotocol/claude-agent-acp", "0.49.0"),
    "codex-acp": Package("@agentclientprotocol/codex-acp", "2.6.0"),
    "gemini": Package("@google/gemini-cli", "0.61.0"),
    "opencode": Package("opencode-ai", "1.18.33"),
    "qwen": Package("@qwen-code/qwen-code", "0.15.10"),
    "copilot": Package("@github/copilot", "1.0.102"),
    "aider": Package("aider-chat", "0.86.2", "pypi"),
}
QUICK = ("claude", "codex")  # what the test suite runs: those that start in a second; each brings its adapter
ADAPTERS = {"claude": "claude-agent-acp", "codex": "codex-acp"}


class Missing(Exception):
    """What is needed to install a package is not here."""


def cache() -> Path:
    """Where the CLIs are installed."""
    return Path(os.environ.get("PARALLAX_CLI_CACHE") or Path.home() / ".cache" / "parallax" / "clis")


def install(name: str, into: Path) -> Path:
    """The program `name`, installed below `into` if it is missing. A half-made installation is made again.

    An npm prefix can be moved into place when it is whole; a virtual environment cannot (its scripts name their
    Python), so a file says when that one is.
    """
    package = PACKAGES[name]
    prefix = into / f"{name}-{package.version}"
    program = prefix / "bin" / name
    if package.source == "pypi":
        _install_pypi(package, prefix)
    elif not program.exists():
        _install_npm(package, prefix)
    return program


def _install_npm(package: Package, prefix: Path) -> None:
    if shutil.which("node") is None or shutil.which("npm") is None:
        raise Missing("the real CLIs need Node: neither node nor npm is on PATH")
    making = prefix.with_name(f".{prefix.name}.{os.getpid()}")
    making.mkdir(parents=True)
    wanted = f"{package.name}@{package.version}"
    try:
        _run("npm", "install", "-g", "--no-fund", "--no-audit", "--prefix", str(making), wanted)
        shutil.rmtree(prefix, ignore_errors=True)
        making.rename(prefix)
    finally:
        shutil.rmtree(making, ignore_errors=True)


def _install_pypi(package: Package, prefix: Path) -> None:
    whole = prefix / "whole"
    if whole.exists():
        return
    shutil.rmtree(prefix, ignore_errors=True)
    wanted = f"{package.name}=={package.version}"
    if uv := shutil.which("uv"):
        _run(uv, "venv", "-q", "--python", sys.executable, str(prefix))
        _run(uv, "pip", "install", "-q", "--python", str(prefix / "bin" / "python"), wanted)
    else:
        _run(sys.executable, "-m", "venv", str(prefix))
        _run(str(prefix / "bin" / "python"), "-m", "pip", "install", "-q", wanted)
    whole.touch()


def _run(*command: str) -> None:
    try:
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=900)
    except subprocess.CalledProcessError as error:
        raise SystemExit(f"{' '.join(command)} failed: {error.stderr[-2000:]}") from None


def main(names: list[str]) -> None:
    """Install the named ones with their adapters, or all."""
    for name in names or PACKAGES:
        for package in filter(None, (name, ADAPTERS.get(name) if names else None)):
            print(install(package, cache()), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
