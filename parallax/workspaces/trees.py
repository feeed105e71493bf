"""What git does with a working tree: take it in, write it out, merge two commits. For the service and the mirrors.

Staging is done by plumbing, not by `git add`: `add` looks into populated submodules by running `git status` there,
with the configuration that an agent wrote, and stops at a nested repository without a commit. Here git only ever gets
lists of paths: changed ones, deleted ones, and untracked ones that are no repositories of their own.
"""

from __future__ import annotations

import os
import re
import stat
from asyncio import to_thread
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from parallax.errors import GitError, UsageError
from parallax.workspaces import layout
from parallax.workspaces.git import Git, Options, fields, text

# Names that git refuses inside a tree on any system: `.git` by case, by its NTFS short name, by an NTFS stream.
_REFUSED: Final = re.compile(rb"(^|/)(\.git|git~\d+)([ .]*|:[^/]*)(/|$)", re.IGNORECASE)
_DENIED: Final = "Permission denied"
_SYMLINKS: Final = ("-c", "core.symlinks=true", "-c", "core.splitIndex=false", "-c", "core.untrackedCache=false")
_TRAILER_KEY: Final = re.compile(r"[A-Za-z][A-Za-z0-9-]*")
_ADDRESS: Final = re.compile(r"([^<>\r\n]+?) *<([^<>\s]*)>")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A working tree, and what the server's git uses for it: git directory, index, where new objects go."""

    git_dir: Path
    tree: Path
    index: Path
    objects: Path
    env: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Staged:
    """A tree object of what lies in a working tree. `left_out`: nested repositories and names that git refuses."""

    tree: str
    left_out: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Merge:
    """A merged tree. With conflicts, it holds the conflict markers, and `stages` the sides, as `--index-info` wants."""

    tree: str
    conflicts: tuple[str, ...]
    stages: bytes


async def plumb(
    git: Git,
    place: Place,
    *args: str,
    input: bytes | None = None,  # noqa: A002 - as in Git.run
) -> bytes:
    """One git command on a place."""
    options = Options(
        git_dir=place.git_dir,
        work_tree=place.tree,
        index=place.index,
        objects=place.objects,
        cwd=place.tree,
        env=place.env,
        input=input,
    )
    done = failed = None
    try:
        done = await git.call(*_SYMLINKS, *args, **options)
    except GitError as error:
        failed = error
    said = failed.stderr if failed else done.err if done else ""
    # An agent may have taken away the rights on its own folders; git then passes over what is in them. What is the
    # user's (the place with an environment of its own) is left as it is.
    if _DENIED in said and place.env is None and await to_thread(layout.unlock, place.tree):
        return (await git.call(*_SYMLINKS, *args, **options)).out
    if failed is not None:
        raise failed
    assert done is not None
    return done.out


async def stage(git: Git, place: Place, also: Iterable[bytes] = ()) -> Staged:
    """Bring the index up to what lies in the tree, and write it as a tree object.

    That is what is tracked, what is untracked and not ignored, and the paths in `also`.
    """
    others = fields(await plumb(git, place, "ls-files", "-z", "--others", "--exclude-standard"))
    raw = (await plumb(git, place, "diff-files", "--raw", "-z", "--no-renames", "--ignore-submodules=all")).split(b"\0")
    gone: list[bytes] = []
    changed: list[bytes] = []
    for head, path in zip(raw[::2], raw[1::2], strict=False):
        (gone if head.endswith(b"D") else changed).append(path)
    left_out = [path for path in others if path.endswith(b"/") or _REFUSED.search(path)]
    added = sorted({*changed, *others, *also} - set(left_out))
    if gone:  # not by name: git refuses names "beyond a symbolic link", and a folder may have become one
        zero = b"0" * 40
        lines = b"".join(b"0 %s\t%s\0" % (zero, path) for path in gone)
        await plumb(git, place, "update-index", "-z", "--index-info", input=lines)
    if added:
        await _take(git, place, added)
    tree = text(await plumb(git, place, "write-tree")).strip()
    return Staged(tree=tree, left_out=tuple(text(path) for path in left_out))


async def _take(git: Git, place: Place, paths: list[bytes]) -> None:
    lines = b"".join(path + b"\0" for path in paths)
    command = ("update-index", "--add", "--remove", "--replace", "-z", "--stdin")
    try:
        await plumb(git, place, *command, input=lines)
    except GitError:
        if not await to_thread(_make_readable, place.tree, paths):
            raise
        await plumb(git, place, *command, input=lines)


def _make_readable(tree: Path, paths: Iterable[bytes]) -> bool:
    """Give the owner back the right to read files that an agent took it from."""
    found = False
    for path in paths:
        full = tree / os.fsdecode(path)
        try:
            mode = full.lstat().st_mode
            if stat.S_ISREG(mode) and not mode & stat.S_IRUSR:
                full.chmod(stat.S_IMODE(mode) | stat.S_IRUSR | stat.S_IWUSR)
                found = True
        except OSError:
            continue
    return found


async def write_out(git: Git, place: Place, tree: str) -> None:
    """Make index and tracked files exactly those of a tree object, whatever stands in the way; ignored files stay."""
    await plumb(git, place, "read-tree", "--reset", "-u", tree)


async def clean(git: Git, place: Place) -> None:
    """Delete what is untracked and not ignored, nested repositories included."""
    await plumb(git, place, "clean", "-ffdq")


async def merge(git: Git, git_dir: Path, ours: str, theirs: str, *, objects: Path | None = None) -> Merge:
    """Merge two commits without a working tree."""
    done = await git.call(
        "merge-tree",
        "--write-tree",
        "-z",
        "--end-of-options",
        ours,
        theirs,
        git_dir=git_dir,
        objects=objects,
        ok=(0, 1),
    )
    tree, *rest = done.out.split(b"\0")
    if done.code == 0:
        return Merge(tree=text(tree), conflicts=(), stages=b"")
    names: dict[bytes, None] = {}
    stages = []
    while rest and (entry := rest.pop(0)):
        stages.append(entry + b"\0")
        names[entry.partition(b"\t")[2]] = None
    names |= dict.fromkeys(_named_in_messages(rest))
    return Merge(tree=text(tree), conflicts=tuple(text(name) for name in names), stages=b"".join(stages))


def _named_in_messages(rest: list[bytes]) -> list[bytes]:
    """Paths of conflicts that leave no stages behind (renamed directories): `count, paths, kind, words` each."""
    names: list[bytes] = []
    while len(rest) > 3:
        count = int(rest.pop(0))
        paths, kind = rest[:count], rest[count]
        del rest[: count + 2]
        if kind.startswith(b"CONFLICT"):
            names += paths[:1]
    return names


def message_with(message: str, trailers: Mapping[str, str], fallback: str) -> bytes:
    """A commit message that ends in our trailers. What came before cannot pass for one: they are a paragraph alone."""
    body = message.replace("\0", "").replace("\r\n", "\n").strip() or fallback
    lines = []
    for key, value in trailers.items():
        if not _TRAILER_KEY.fullmatch(key):
            raise UsageError(f"{key!r} is no valid trailer name")
        lines.append(f"{key}: {' '.join(value.split())}")
    return "\n\n".join([body, "\n".join(lines)] if lines else [body]).encode("utf-8", "replace") + b"\n"


def identity(author: str) -> dict[str, str]:
    """The environment that names who wrote a commit: `Name <mail>`, or a role. Parallax is the committer."""
    if match := _ADDRESS.fullmatch(author.strip()):
        name, mail = match[1], match[2]
    else:
        name = re.sub(r"[<>\x00-\x1f]+", " ", author).strip() or "Parallax"
        mail = (re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-").lower() or "agent") + "@parallax.invalid"
    return {
        "GIT_AUTHOR_NAME": name,
        "GIT_AUTHOR_EMAIL": mail,
        "GIT_COMMITTER_NAME": "Parallax",
        "GIT_COMMITTER_EMAIL": "parallax@parallax.invalid",
    }


async def commit_tree(
    git: Git,
    git_dir: Path,
    tree: str,
    parents: Iterable[str],
    message: bytes,
    who: Mapping[str, str],
    *,
    objects: Path | None = None,
) -> str:
    """A commit object, on disk when this returns."""
    args = ["commit-tree", tree]
    for parent in parents:
        args += ["-p", parent]
    return await git.run(*args, "-F", "-", git_dir=git_dir, objects=objects, env=who, input=message)
