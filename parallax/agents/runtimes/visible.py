"""What must be mounted so that a program of this host runs in a sandbox: links, packages, toolchains.

Reading is by allow-list, and the user's home is never on it: it holds keys. But toolchains live there, too (nvm, pyenv,
a virtual environment, `~/.local/bin`). So what PATH names is shown, of each `X/bin` also `X/lib` and its like, and the
directories of version managers, which hold programs and nothing private. Pure but for looking; `bubblewrap` calls it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

BESIDE_BIN: Final = ("lib", "lib64", "libexec", "include")
# Below the user's home: version managers and what package managers keep programs in.
MANAGERS: Final = (
    ".pyenv", ".nvm", ".rbenv", ".asdf", ".volta", ".rustup", ".sdkman", ".goenv", ".nodenv", ".local/share/mise",
    ".local/share/uv/python", ".local/share/uv/tools", ".local/share/pipx", ".local/share/fnm", ".local/share/claude",
    ".local/pipx", ".juliaup", ".ghcup/bin", ".elan",
)  # fmt: skip
_LINKS: Final = 40  # as many as the kernel follows


@dataclass(frozen=True, slots=True, order=True)
class Shown:
    """A path that the sandbox shows at its own place: a link to be made anew, or a file or directory, read-only."""

    path: Path
    link: str | None = None


def shown(path: Path) -> list[Shown]:
    """The path itself, and every link on the way to what it really is."""
    found: list[Shown] = []
    here, rest = Path("/"), list(path.parts[1:])
    while rest:
        part = rest.pop(0)
        if part == "..":
            here = here.parent
            continue
        here /= part
        if here.is_symlink() and len(found) < _LINKS:
            target = os.readlink(here)  # noqa: PTH115 - as it is written, not resolved
            found.append(Shown(here, target))
            absolute = target.startswith("/")
            rest = [*Path(target).parts[1 if absolute else 0 :], *rest]
            here = Path("/") if absolute else here.parent
    return [*found, Shown(here)] if here.exists() else found


def program(path: Path) -> list[Shown]:
    """A program with what belongs to it: its npm packages, its virtual environment, the libraries beside its `bin`."""
    found = shown(path)
    for place in {path, found[-1].path} if found else set():
        if "node_modules" in place.parts:
            found.append(Shown(Path(*place.parts[: place.parts.index("node_modules") + 1])))
        elif place.parent.name == "bin":
            found += _beside(place.parent)
    return found


def on_path(directory: Path, home: Path) -> list[Shown]:
    """A directory of PATH with what its programs need. One in `node_modules/.bin` shows the packages."""
    found = shown(directory)
    if not found or not directory.is_absolute():
        return []
    real = found[-1].path
    if real.name == ".bin" and real.parent.name == "node_modules":
        found.append(Shown(real.parent))
    elif real.name in {"bin", "sbin"}:
        found += _beside(real)
        if not real.is_relative_to(home) and len(real.parts) > 3:  # /opt/jdk/bin: /opt/jdk holds one program
            found.append(Shown(real.parent))
    return found


def managers(home: Path) -> list[Shown]:
    """The version managers of a home."""
    return [Shown(home / name) for name in MANAGERS if (home / name).is_dir()]


def _beside(directory: Path) -> Iterator[Shown]:
    root = directory.parent
    venv = root / "pyvenv.cfg"
    if venv.is_file():
        yield Shown(root)
        yield from _base_python(venv)
        return
    if root == Path("/"):
        return
    for name in BESIDE_BIN:
        if (root / name).is_dir():
            yield from shown(root / name)


def _base_python(config: Path) -> Iterator[Shown]:
    """The Python that a virtual environment was made from."""
    try:
        lines = config.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        key, _, value = line.partition("=")
        base = Path(value.strip())
        if key.strip() == "home" and base.is_absolute() and base.is_dir():
            yield from shown(base)
            yield from _beside(base)


def plan(wanted: Iterable[Shown], system: Iterable[Path], hidden: Iterable[Path]) -> list[Shown]:
    """What of it has to be mounted, parents first: nothing twice, nothing that would show what must stay hidden."""
    covered = list(system)
    secret = list(hidden)
    kept: list[Shown] = []
    # A directory before what lies in it, at one path a directory before a link.
    for item in sorted(set(wanted), key=lambda item: (len(item.path.parts), item.path, item.link or "")):
        if any(item.path.is_relative_to(path) for path in covered):
            continue
        if item.link is None:
            if any(path.is_relative_to(item.path) for path in secret):
                continue
            covered.append(item.path)
        elif any(item.path == other.path for other in kept):
            continue
        kept.append(item)
    return kept
