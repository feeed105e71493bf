"""Set-ups: what a repository's `setup` built, once for each state of its lock files, for every agent and every check.

    <root>/setups/<key>/{git,tree,home}  the checkout it ran in and the home it had, where they stay
    <root>/setups/<key>/setup.json       written last: what it built; a set-up without it is begun again

What it built are the entries of tree and home that git does not know. In a sandbox they are mounted read-only at the
places where they were made; without one they are copied. `checks` owns it and runs the commands.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from asyncio import to_thread
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from parallax.models import Evidence
from parallax.workspaces import layout
from parallax.workspaces.git import Locks, text
from parallax.workspaces.profile import Profile, matching
from parallax.workspaces.repository import Repository
from parallax.workspaces.service import WorkspaceService

LOCKS: Final = (
    "*.lock", "*.lockb", "package.json", "package-lock.json", "npm-shrinkwrap.json", "pnpm-lock.yaml",
    "pyproject.toml", "setup.py", "setup.cfg", "requirements*.txt", "go.mod", "go.sum", "Cargo.toml", "Gemfile",
    "composer.json", "pom.xml", "build.gradle*",
)  # fmt: skip
FAILURE_S: Final = 60.0  # a failed set-up is not tried again for so long: it may have been the network
_SHALLOW: Final = frozenset({".cache", ".config", ".local", ".local/share"})  # an agent has these, too: go into them

Run: TypeAlias = Callable[[Repository, Path, Profile], Awaitable[list[Evidence]]]
Shared: TypeAlias = tuple[tuple[str, Path], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """One that has run. `built` are names such as `tree/.venv` or `home/go`; empty if it failed."""

    path: Path
    built: tuple[str, ...]
    evidence: tuple[Evidence, ...]

    @property
    def failed(self) -> Evidence | None:
        """The command that did not end well."""
        return next((entry for entry in self.evidence if not entry.passed), None)

    def lay(self, tree: Path, home: Path, *, mounted: bool) -> Shared:
        """Bring it to a tree and a home; returns the directories that are to be mounted, and where.

        What the tree's owner has put in the way, be it a link or a file, is left as it is. Single files are copied.
        """
        shared = []
        for name in self.built:
            root, _, rest = name.partition("/")
            base = tree if root == "tree" else home
            source, place = self.path / name, base / rest
            if place.is_symlink() or not place.parent.resolve().is_relative_to(base.resolve()):
                continue
            if source.is_dir() and not source.is_symlink():
                if mounted and (place.is_dir() or not place.exists()):
                    shared.append((name, source))
                elif not place.exists():
                    shutil.copytree(source, place, symlinks=True)
            elif not place.exists():
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, place, follow_symlinks=False)
        return tuple(shared)


class Setups:
    """All set-ups below one root. `run` copies the listed files and runs the commands in a tree."""

    def __init__(self, service: WorkspaceService, run: Run) -> None:
        self._service = service
        self._run = run
        self._locks = Locks()
        self._failed: dict[str, tuple[float, Setup]] = {}

    async def of(self, repo: Repository, commit: str, profile: Profile) -> Setup:
        """The set-up for a commit's lock files; who comes while it runs waits for it."""
        key = await self._key(repo, commit, profile)
        path = self._service.root / "setups" / key
        async with self._locks.hold(key):
            if found := await to_thread(_read, path):
                return found
            since, failed = self._failed.get(key, (0.0, None))
            if failed is not None and time.monotonic() - since < FAILURE_S:
                return failed
            await self._service.discard(path)
            await self._service.fill(path, repo, commit)
            evidence = tuple(await self._run(repo, path / "tree", profile))
            made = Setup(path=path, built=(), evidence=evidence)
            if made.failed:
                self._failed[key] = (time.monotonic(), made)
                await self._service.discard(path)
                return made
            built = [f"tree/{name}" for name in await self._service.unknown_to_git(path, repo)]
            built += await to_thread(lambda: [f"home/{name}" for name in _entries(path / "home", "")])
            made = Setup(path=path, built=tuple(built), evidence=evidence)
            await to_thread(_write, made)
            return made

    async def _key(self, repo: Repository, commit: str, profile: Profile) -> str:
        listed = await self._service.git.run_bytes("ls-tree", "-r", "-z", commit, git_dir=repo.mirror)
        blobs = {
            text(path): about.decode() for about, _, path in (e.partition(b"\t") for e in listed.split(b"\0") if e)
        }
        locked = [(path, blobs[path]) for path in matching(blobs, profile.locks or LOCKS)]
        wanted = [repo.mirror.name, locked, profile.setup, profile.copy_files, profile.env, profile.network]
        return hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()[:24]


def _entries(home: Path, below: str) -> list[str]:
    found = []
    for entry in sorted((home / below).iterdir()):
        name = str(entry.relative_to(home))
        found += _entries(home, name) if name in _SHALLOW and (home / name).is_dir() else [name]
    return found


def _read(path: Path) -> Setup | None:
    record = path / "setup.json"
    try:
        kept = json.loads(record.read_bytes())
    except FileNotFoundError:
        return None
    os.utime(record)  # `sweep` deletes what nobody has used for long
    evidence = tuple(Evidence(**entry) for entry in kept["evidence"])
    return Setup(path=path, built=tuple(kept["built"]), evidence=evidence)


def _write(made: Setup) -> None:
    evidence = [{"oracle": e.oracle, "passed": e.passed, "score": e.score, "detail": e.detail} for e in made.evidence]
    layout.write_durably(made.path / "setup.json", json.dumps({"built": made.built, "evidence": evidence}))
