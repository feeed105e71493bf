"""Reading commits from a mirror: differences, log, files. Pure reads; the service shows them to the doors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from parallax.errors import GitError
from parallax.workspaces.git import Git, check_commit, text

# Neither programs nor filters that a repository's configuration names take part in what we show.
_PLAIN: Final = ("--no-ext-diff", "--no-textconv", "--no-color", "--find-renames")
MAX_FILE_B: Final = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class DiffStat:
    """The size of a difference."""

    files: int
    insertions: int
    deletions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LogEntry:
    """One commit. `at` is a unix time, `parents` has several entries for a merge."""

    sha: str
    parents: tuple[str, ...]
    author: str
    at: float
    subject: str
    body: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """A file of a commit. `mode` is git's: 100644, 100755, 120000 (link), 160000 (submodule)."""

    path: str
    mode: str
    size: int


async def diff(git: Git, mirror: Path, base: str, head: str, *, stat: bool = False) -> str:
    """The difference between two commits, as text."""
    form = ("--stat=100",) if stat else ("--patch",)
    return await git.run("diff", *_PLAIN, *form, check_commit(base), check_commit(head), "--", git_dir=mirror)


async def diffstat(git: Git, mirror: Path, base: str, head: str) -> DiffStat:
    """Counted by git, renames as one file; binary files count as files without lines."""
    out = await git.run_bytes(
        "diff", *_PLAIN, "--numstat", "-z", check_commit(base), check_commit(head), "--", git_dir=mirror
    )
    files = insertions = deletions = 0
    entries = iter(out.split(b"\0"))
    for entry in entries:
        if not entry:
            continue
        added, removed, path = entry.split(b"\t", 2)
        if not path:  # a rename: its two names follow
            next(entries)
            next(entries)
        files += 1
        insertions += int(added) if added.isdigit() else 0
        deletions += int(removed) if removed.isdigit() else 0
    return DiffStat(files=files, insertions=insertions, deletions=deletions)


async def changed_files(git: Git, mirror: Path, base: str, head: str) -> list[bytes]:
    """The paths that differ between two commits, as bytes."""
    args = ("diff-tree", "-r", "-z", "--name-only", "--no-renames", check_commit(base), check_commit(head))
    return [path for path in (await git.run_bytes(*args, git_dir=mirror)).split(b"\0") if path]


async def log(git: Git, mirror: Path, base: str | None, head: str, *, limit: int = 100) -> list[LogEntry]:
    """The commits that head has and base has not, newest first."""
    span = [check_commit(head)] + ([f"^{check_commit(base)}"] if base else [])
    form = "%H%x1f%P%x1f%aN <%aE>%x1f%at%x1f%s%x1f%b"
    args = ("log", "-z", "--no-color", "--no-show-signature", f"--max-count={limit}", f"--format={form}")
    entries = []
    for record in (await git.run_bytes(*args, *span, "--", git_dir=mirror)).split(b"\0"):
        if record.strip():
            sha, parents, author, at, subject, body = text(record).split("\x1f", 5)
            entries.append(
                LogEntry(
                    sha=sha.strip(),
                    parents=tuple(parents.split()),
                    author=author,
                    at=float(at or 0),
                    subject=subject,
                    body=body.strip(),
                )
            )
    return entries


async def files(git: Git, mirror: Path, commit: str, path: str = "") -> list[FileEntry]:
    """The files of a commit, or of one folder in it."""
    only = [path] if path else []
    args = ("--literal-pathspecs", "ls-tree", "-r", "-z", "-l", "--full-tree", check_commit(commit), "--", *only)
    found = []
    for line in (await git.run_bytes(*args, git_dir=mirror)).split(b"\0"):
        if line:
            head, _, name = line.partition(b"\t")
            mode, _, _, size = head.split()
            found.append(FileEntry(path=text(name), mode=mode.decode(), size=int(size) if size.isdigit() else 0))
    return found


async def read_file(git: Git, mirror: Path, commit: str, path: str) -> str | None:
    """One file of a commit as text; None if it is not there or no plain file of at most 1 MiB."""
    found = [entry for entry in await files(git, mirror, commit, path) if entry.path == path]
    if not found or not found[0].mode.startswith("100") or found[0].size > MAX_FILE_B:
        return None
    return text(await git.run_bytes("cat-file", "blob", f"{commit}:{path}", git_dir=mirror))


async def is_ancestor(git: Git, mirror: Path, old: str, new: str) -> bool:
    """Whether `new` has `old` in its history."""
    done = await git.call("merge-base", "--is-ancestor", old, new, git_dir=mirror, ok=(0, 1))
    return done.code == 0


async def ref(git: Git, mirror: Path, name: str) -> str | None:
    """The commit a full ref points to."""
    done = await git.call("rev-parse", "--verify", "--quiet", "--end-of-options", name, git_dir=mirror, ok=(0, 1))
    sha = text(done.out).strip()
    if done.code == 0 and not sha:
        raise GitError(f"{name} cannot be read")
    return sha or None
