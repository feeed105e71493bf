"""How a workspace lies on disk, and the file operations on it that need no git.

    <root>/mirrors/<hash>/              one bare repository per user repository: all objects, all branches of ours
    <root>/<execution>/<role>.<n>/git   the server's: HEAD, MERGE_HEAD, index, config, alternates to the mirror
    <root>/<execution>/<role>.<n>/tree  the agent's; `tree/.git` is a throw-away repository that the server only writes
    <root>/checkouts/<hash>/{tree,home} clean checkouts for checks, gone after use
    <root>/setups/<hash>/               what `setup` built for a state of the lock files (see setups)
    <root>/ports/<number>               who has this port (see ports)
    <root>/trash/                       what is being deleted

The agent may do anything inside its tree, also to `.git`: replace it by a link, a file, a repository with hooks. So
nothing here opens a file of the tree for writing or follows a name in it: things are built beside it and renamed in.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import stat
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from parallax.errors import NotFoundError, UsageError

_NAME: Final = re.compile(r"[^\x00-\x1f\x7f/\\]{1,100}")
_CONFIG: Final = """\
[core]
\trepositoryformatversion = 0
\tfilemode = true
\tbare = false
\tlogallrefupdates = false
[gc]
\tauto = 0
"""
_AGENT_CONFIG: Final = (
    _CONFIG
    + """\
[user]
\tname = {name}
\temail = {role}@parallax.invalid
[commit]
\tgpgsign = false
[advice]
\tdetachedHead = false
"""
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """What a workspace knows of itself: written once, when it is made."""

    repo: str
    mirror: str
    base: str
    kind: str


def check_name(value: str, what: str) -> str:
    """A role or execution as one directory name: nothing that leads elsewhere or hides."""
    if not _NAME.fullmatch(value) or value.startswith((".", "-")) or value != value.strip():
        raise UsageError(f"{value[:80]!r} cannot be used as the name of {what}")
    return value


def write_card(git_dir: Path, card: Card) -> None:
    """Beside the git data, out of the agent's reach."""
    (git_dir / "parallax.json").write_text(json.dumps(asdict(card)), encoding="utf-8")


def read_card(workspace: Path) -> Card:
    """The card of a workspace on disk."""
    try:
        return Card(**json.loads((workspace / "git" / "parallax.json").read_bytes()))
    except FileNotFoundError:
        raise NotFoundError(f"There is no workspace at {workspace}") from None


def write_server_git(git_dir: Path, head: str, objects: Path) -> None:
    """The server's side of a workspace. Written by hand: `git init` would copy templates and cost a process."""
    _skeleton(git_dir, f"{head}\n", _CONFIG, objects)


def write_agent_git(
    workspace: Path,
    *,
    tree: Path,
    index: Path | None,
    role: str,
    head: str,
    merge_heads: tuple[str, ...],
    objects: Path,
) -> None:
    """Put a fresh throw-away repository at `tree/.git`, whatever stood there."""
    new = workspace / f".agent-git-{secrets.token_hex(4)}"
    label = re.sub(r'["\\#;\[\]]', "", role)
    slug = re.sub(r"[^A-Za-z0-9_-]+", "-", role).strip("-") or "agent"
    config = _AGENT_CONFIG.format(name=label, role=slug)
    _skeleton(new, f"ref: refs/heads/{slug}\n", config, objects)
    (new / "refs" / "heads" / slug).write_text(f"{head}\n", encoding="ascii")
    if merge_heads:
        (new / "MERGE_HEAD").write_text("".join(f"{sha}\n" for sha in merge_heads), encoding="ascii")
        (new / "MERGE_MSG").write_text("Merge the team's result\n", encoding="ascii")
    exclude = workspace / "git" / "info" / "exclude"
    if exclude.is_file():
        shutil.copy2(exclude, new / "info" / "exclude")
    if index is not None:
        shutil.copy2(index, new / "index")  # with its time, see WorkspaceService._index_copy
    replace(new, tree / ".git")


def _skeleton(git_dir: Path, head: str, config: str, objects: Path) -> None:
    for part in ("objects/info", "refs/heads", "info"):
        (git_dir / part).mkdir(parents=True)
    (git_dir / "HEAD").write_text(head, encoding="ascii")
    (git_dir / "config").write_text(config, encoding="utf-8")
    (git_dir / "objects" / "info" / "alternates").write_text(f"{objects}\n", encoding="utf-8")


def replace(new: Path, place: Path) -> None:
    """Rename `new` to `place`; what stood there is deleted, without following it if it is a link."""
    with suppress(FileNotFoundError):
        if stat.S_ISDIR(place.lstat().st_mode):
            old = new.with_name(f".old-{secrets.token_hex(4)}")
            place.chmod(0o700)  # a directory that may not be written cannot be moved either
            place.rename(old)
            remove(old)
        else:
            place.unlink()
    new.rename(place)


def read_heads(git_dir: Path) -> tuple[str, tuple[str, ...]]:
    """The commit a workspace stands on, and those that its next commit merges."""
    head = (git_dir / "HEAD").read_text(encoding="ascii").strip()
    try:
        merging = tuple((git_dir / "MERGE_HEAD").read_text(encoding="ascii").split())
    except FileNotFoundError:
        merging = ()
    return head, merging


def write_heads(git_dir: Path, head: str, merging: tuple[str, ...] = ()) -> None:
    """Move a workspace. Each file is replaced by rename, MERGE_HEAD first: a kill between the two is undone by
    restoring the snapshot that every step begins with."""
    if merging:
        write_durably(git_dir / "MERGE_HEAD", "".join(f"{sha}\n" for sha in merging))
    else:
        (git_dir / "MERGE_HEAD").unlink(missing_ok=True)
    write_durably(git_dir / "HEAD", f"{head}\n")


def write_durably(path: Path, content: str) -> None:
    """A file that is whole or not there, and on disk when this returns."""
    new = path.with_name(f"{path.name}.new")
    with new.open("w", encoding="ascii") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


def settle(new: Path, path: Path) -> None:
    """Give a finished workspace its name. Where a role without a workspace has left a folder, it moves in there:
    the server's part last, for with its card the workspace is there."""
    if not path.exists():
        new.rename(path)
        return
    if (path / "tree").exists():
        remove(path / "tree")
    (new / "tree").rename(path / "tree")
    (new / "git").rename(path / "git")
    new.rmdir()


def copy_into(tree: Path, roots: list[Path | None], source: str, target: str) -> bool:
    """Copy a file that the profile lists into a tree, from the first root that has it.

    Tree and source may be an agent's work: neither a link in the way of the source nor one in the way of the target
    leads out of its root.
    """
    place = tree / target
    for root in roots:
        if root is None:
            continue
        path = root / source
        if not path.is_file() or not path.resolve().is_relative_to(root.resolve()):
            continue
        if not place.parent.resolve().is_relative_to(tree.resolve()) or place.is_symlink() or place.is_dir():
            return False
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)
        return True
    return False


def ensure_tree(tree: Path) -> None:
    """The agent's folder is a folder, even if the agent removed or replaced it."""
    if tree.is_symlink() or (tree.exists() and not tree.is_dir()):
        tree.unlink()
    tree.mkdir(exist_ok=True)
    mode = stat.S_IMODE(tree.stat().st_mode)
    if mode & stat.S_IRWXU != stat.S_IRWXU:
        tree.chmod(mode | stat.S_IRWXU)


def clear_locks(git_dir: Path) -> None:
    """Remove what a killed git left behind. Only called while nobody else can be running git there."""
    for name in ("index.lock", "HEAD.lock", "config.lock", "packed-refs.lock"):
        (git_dir / name).unlink(missing_ok=True)


def clear_mirror(mirror: Path) -> None:
    """The same for a mirror, at start: locks of refs, half-written objects."""
    clear_locks(mirror)
    for lock in (mirror / "refs").rglob("*.lock"):
        lock.unlink(missing_ok=True)
    for pattern in ("objects/tmp_*", "objects/??/tmp_obj_*", "objects/pack/tmp_*", "objects/pack/.tmp-*"):
        for leftover in mirror.glob(pattern):
            remove(leftover)


def discard(path: Path, trash: Path) -> None:
    """Make a directory vanish at once (by rename), then delete it."""
    trash.mkdir(parents=True, exist_ok=True)
    gone = trash / f"{path.name[-60:]}-{secrets.token_hex(6)}"
    with suppress(FileNotFoundError):
        path.rename(gone)
        remove(gone)


def remove(path: Path) -> None:
    """Delete a file or a directory, also where the agent took its own permissions away. Links are not followed."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    try:
        shutil.rmtree(path)
    except PermissionError:
        unlock(path)
        shutil.rmtree(path)


def size_b(path: Path) -> int:
    """Bytes on disk of everything below a directory, links not followed; what vanishes meanwhile counts nothing."""
    total, waiting = 0, [path]
    while waiting:
        with suppress(OSError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                with suppress(OSError):
                    total += entry.stat(follow_symlinks=False).st_blocks * 512
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(Path(entry.path))
    return total


def unlock(path: Path) -> bool:
    """Give the owner back all rights on a directory and those in it; says whether any was missing."""
    found = False
    waiting = [path]
    while waiting:
        folder = waiting.pop()
        mode = stat.S_IMODE(folder.lstat().st_mode)
        if mode & stat.S_IRWXU != stat.S_IRWXU:
            folder.chmod(mode | stat.S_IRWXU)
            found = True
        with os.scandir(folder) as entries:
            waiting += [Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False)]
    return found
