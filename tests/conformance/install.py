"""Install the pinned real CLIs for the conformance tests, each in its own prefix; what is there is left alone.

Used by the tests' fixture and by CI: python tests/conformance/install.py [DIRECTORY]
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

# name -> npm package, version. Without a version npm takes the newest whose engines fit this Node, not the newest.
PACKAGES = {
    "claude": ("@anthropic-ai/claude-code", "2.1.330"),
    "codex": ("@openai/codex", "0.169.0"),
    "claude-agent-acp": ("@agentclientprotocol/claude-agent-acp", "0.49.0"),
    "codex-acp": ("@agentclientprotocol/codex-acp", "2.6.0"),
}


def cache() -> Path:
    """Where the CLIs are installed."""
    return Path(os.environ.get("PARALLAX_CLI_CACHE") or Path.home() / ".cache" / "parallax" / "clis")


def install(name: str, into: Path) -> Path:
    """The program `name`, installed below `into` if it is missing. A half-made installation is made again."""
    package, version = PACKAGES[name]
    prefix = into / f"{name}-{version}"
    program = prefix / "bin" / name
    if not program.exists():
        making = into / f".{name}-{version}.{os.getpid()}"
        making.mkdir(parents=True)
        command = ["npm", "install", "-g", "--no-fund", "--no-audit", "--prefix", str(making), f"{package}@{version}"]
        try:
            subprocess.run(command, check=True, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600)
            shutil.rmtree(prefix, ignore_errors=True)
            making.rename(prefix)
        except subprocess.CalledProcessError as error:
            raise SystemExit(f"npm could not install {package}@{version}: {error.stderr[-2000:]}") from None
        finally:
            shutil.rmtree(making, ignore_errors=True)
    return program


def main() -> None:
    """Install all of them."""
    into = Path(sys.argv[1]) if len(sys.argv) > 1 else cache()
    for name in PACKAGES:
        print(install(name, into), flush=True)


if __name__ == "__main__":
    main()
