"""How long a workspace of a 5,000-file repository takes to open, beside `git worktree add` in the same run.

Rounds are interleaved and nothing is deleted in between: the write-back of mass deletes would be measured instead.
Run: python bench/workspaces.py [ROUNDS]
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from parallax.workspaces.git import Git
from parallax.workspaces.service import WorkspaceService

FILES = 5000
LIMIT = 1.2
IDENTITY = ("-c", "user.name=Bench", "-c", "user.email=bench@example.invalid")


def repository(path: Path) -> Path:
    """24 MB in 5,000 files, 50 to a folder."""
    for number in range(FILES):
        folder = path / f"pkg{number // 50:03}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"file{number}.txt").write_text(f"line of {number}\n" * 250)
    for args in (["init", "-q", "-b", "main"], ["add", "-A"], [*IDENTITY, "commit", "-q", "-m", "first"]):
        subprocess.run(["git", *args], cwd=path, check=True)
    return path


async def worktree(repo: Path, path: Path) -> None:
    """The limit: what git itself does."""
    process = await asyncio.create_subprocess_exec(
        "git", "worktree", "add", "-q", "--detach", str(path), cwd=repo, stderr=subprocess.DEVNULL
    )
    if await process.wait():
        raise SystemExit("git worktree add failed")


async def main(rounds: int) -> int:
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as place:
        root = Path(place)
        user = repository(root / "repo")
        service = WorkspaceService(root / "spaces", Git())
        repo = await service.open_repository(str(user))
        theirs: list[float] = []
        ours: list[float] = []
        for number in range(rounds):
            begun = time.perf_counter()
            await worktree(user, root / f"wt{number}")
            theirs.append(time.perf_counter() - begun)
            begun = time.perf_counter()
            await service.create("bench", "engineer", number + 1, repo)
            ours.append(time.perf_counter() - begun)
        ratio = min(ours) / min(theirs)
        print(f"one at a time, best of {rounds}: workspace {min(ours) * 1000:.0f} ms, git worktree add "
              f"{min(theirs) * 1000:.0f} ms, ratio {ratio:.2f} (limit {LIMIT})")  # fmt: skip
        begun = time.perf_counter()
        for number in range(10):  # git takes a lock: side by side they fail now and then
            await worktree(user, root / f"ten{number}")
        serial = time.perf_counter() - begun
        begun = time.perf_counter()
        await asyncio.gather(*(service.create("ten", "engineer", number + 1, repo) for number in range(10)))
        ten = time.perf_counter() - begun
        print(f"ten at once: workspaces {ten * 100:.0f} ms each, git worktree add {serial * 100:.0f} ms each, "
              f"ratio {ten / serial:.2f}")  # fmt: skip
        return 0 if ratio <= LIMIT else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)))
