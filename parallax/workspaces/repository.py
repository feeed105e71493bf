"""Opening the user's repository: where it is, what its base is, and the bare mirror that all work starts from.

Nothing is written into the user's repository here. The mirror holds their branches under `refs/remotes/origin/`, ours
under `refs/heads/parallax/`, and what must not be lost under `refs/parallax/`. Called by the service.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import re
import secrets
import shutil
from asyncio import to_thread
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from parallax.errors import GitError, RepositoryError, UsageError
from parallax.failpoints import fp
from parallax.workspaces import layout, trees
from parallax.workspaces.git import Git, Locks, check_branch, check_url, fields, is_commit, is_url, users_environment
from parallax.workspaces.remotes import Errand, Remotes

FETCH_TIMEOUT_S: Final = 1800.0  # a first fetch of a large repository over a slow line is no fault
_SSH: Final = re.compile(r"(?:ssh://)?git@(?P<host>[A-Za-z0-9.-]+)[:/](?P<path>[^\s:]+)")
_REFSPECS: Final = ("+refs/heads/*:refs/remotes/origin/*", "^refs/heads/parallax/*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Repository:
    """A repository that can be worked on.

    `local` is the top of the user's checkout (or their bare repository), None for a URL; `base_branch` is empty where
    the base is no branch; `dirty` counts the uncommitted paths of the checkout.
    """

    location: str
    mirror: Path
    base_branch: str
    base_commit: str
    local: Path | None = None
    dirty: int = 0

    @property
    def objects(self) -> Path:
        """Where the mirror keeps its objects: what a sandbox shows read-only."""
        return self.mirror / "objects"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkout:
    """The user's own repository, as `git rev-parse` describes it. `top` is None where it is bare."""

    git_dir: Path
    common_dir: Path
    top: Path | None


class Mirrors:
    """The bare mirrors under `<root>/mirrors`, one per repository, kept fresh, one fetch at a time for each."""

    def __init__(self, root: Path, git: Git, locks: Locks, remotes: Remotes) -> None:
        self._root = root
        self._git = git
        self._locks = locks
        self._remotes = remotes

    async def open(
        self,
        location: str,
        base: str | None,
        *,
        with_changes: bool = False,
        depth: int | None = None,
        errand: Errand | None = None,
    ) -> Repository:
        """Find the repository, resolve its base, bring the mirror up to date; raises RepositoryError, RemoteError.

        `depth` takes only so many commits of a URL's history; `errand` says whose token may be shown there.
        """
        if is_url(location):
            if with_changes:
                raise RepositoryError("Uncommitted changes can be taken from a local repository only, not from a URL")
            url = check_url(location)
            return await self._open_url(replace(errand or Errand(url=url), url=url), base, depth)
        return await self._open_local(location, base, with_changes=with_changes)

    async def remote_of(self, repo: Repository) -> str:
        """The https URL that the repository is pushed to: its own, or that of its `origin`.

        An ssh address is turned into the https one of the same host, since tokens work there. Raises RepositoryError.
        """
        if repo.local is None:
            return repo.location
        checkout = await self.find_checkout(repo.local)
        done = await self._git.call("config", "--get", "remote.origin.url", git_dir=checkout.git_dir, ok=(0, 1))
        origin = done.out.decode("utf-8", "replace").strip()
        if not origin:
            raise RepositoryError(f"{repo.location} has no remote 'origin': add one (git remote add origin URL)")
        if match := _SSH.fullmatch(origin):
            origin = f"https://{match['host']}/{match['path']}"
        try:
            return check_url(origin)
        except RepositoryError as error:
            raise RepositoryError(f"The remote 'origin' of {repo.location} cannot be pushed to: {error}") from None

    async def find_checkout(self, path: Path) -> Checkout:
        """The repository that a path lies in."""
        if not await to_thread(path.is_dir):
            raise RepositoryError(f"{path} is not a directory: give the path of a git repository, or an https URL")
        ask = ("rev-parse", "--path-format=absolute")
        try:
            answer = await self._git.run(
                *ask, "--absolute-git-dir", "--git-common-dir", "--is-bare-repository", "--show-object-format", cwd=path
            )
            git_dir, common_dir, bare, object_format = answer.split("\n")
            top = None if bare == "true" else Path(await self._git.run(*ask, "--show-toplevel", cwd=path))
        except (GitError, ValueError) as error:
            cause = "" if "not a git repository" in str(error) else f" ({error})"
            raise RepositoryError(
                f"{path} is not a git repository{cause}: run `git init` and commit there, or give another path"
            ) from None
        if object_format != "sha1":
            raise RepositoryError(f"{path} uses {object_format} object names, Parallax reads sha1 repositories only")
        return Checkout(git_dir=Path(git_dir), common_dir=Path(common_dir), top=top)

    async def bring_in(self, repo: Repository, commit: str) -> None:
        """Bring a commit of the user's local repository into its mirror."""
        assert repo.local is not None
        async with self._locks.hold(str(repo.mirror)):
            await self._fetch(repo.mirror, str(repo.local), commit)

    async def trusting(self) -> dict[str, str]:
        """The environment of a fetch from a local path. The git on its reading side is a process of its own, which
        learns by a file only that it may read a repository of another user."""
        config = self._root / "mirrors" / "local.config"
        await to_thread(config.write_text, "[safe]\n\tdirectory = *\n")
        return {"GIT_CONFIG_GLOBAL": str(config)}

    async def _open_local(self, location: str, base: str | None, *, with_changes: bool) -> Repository:
        path = await to_thread(lambda: Path(location).expanduser().resolve())
        checkout = await self.find_checkout(path)
        top = checkout.top or checkout.git_dir
        mirror = self._mirror_of(str(await to_thread(checkout.common_dir.resolve)))
        if base and not with_changes and await self._was_base(mirror, base):
            return Repository(location=str(top), mirror=mirror, base_branch="", base_commit=base, local=top)
        head = await self._resolve(checkout.git_dir, "HEAD")
        if head is None and base is None:
            raise RepositoryError(f"{top} has no commit yet: commit something first")
        branch, commit = await self._local_base(checkout, base, head)
        dirty = await self._count_dirty(checkout)
        if with_changes and commit != head:
            raise RepositoryError(
                f"Uncommitted changes belong to what is checked out, but the base is '{base}': leave one of them out"
            )
        async with self._locks.hold(str(mirror)):
            await self._refresh(mirror, checkout.common_dir, str(top), commit)
            if with_changes and dirty:
                commit = await self._commit_changes(mirror, checkout, commit)
            await self._git.run("update-ref", f"refs/parallax/bases/{commit}", commit, git_dir=mirror)
        return Repository(
            location=str(top), mirror=mirror, base_branch=branch, base_commit=commit, local=top, dirty=dirty
        )

    async def _local_base(self, checkout: Checkout, base: str | None, head: str | None) -> tuple[str, str]:
        if base is None:
            with suppress(GitError):
                return await self._git.run(
                    "symbolic-ref", "--short", "-q", "HEAD", git_dir=checkout.git_dir
                ), head or ""
            return "", head or ""
        return await self._named_base(checkout.git_dir, base, "refs/heads/", str(checkout.top or checkout.git_dir))

    async def _named_base(self, git_dir: Path, base: str, branches: str, where: str) -> tuple[str, str]:
        """A branch, else a remote branch, a tag or a full commit id."""
        try:
            check_branch(base)
        except UsageError as error:
            raise RepositoryError(str(error)) from None
        if commit := await self._resolve(git_dir, f"{branches}{base}"):
            return base, commit
        for other in (f"refs/remotes/{base}", f"refs/remotes/origin/{base}", f"refs/tags/{base}", base):
            if (other != base or is_commit(base)) and (commit := await self._resolve(git_dir, other)):
                return "", commit
        listed = await self._git.run(
            "for-each-ref", "--count=500", "--sort=-committerdate", "--format=%(refname)", branches, git_dir=git_dir
        )
        known = [name for ref in listed.split() if not (name := ref.removeprefix(branches)).startswith("parallax/")]
        near = difflib.get_close_matches(base, known, 1)
        hint = f"did you mean '{near[0]}'?" if near else f"it has {', '.join(known[:5]) or 'none'}"
        raise RepositoryError(f"{where} has no branch '{base}': {hint}")

    async def _was_base(self, mirror: Path, commit: str) -> bool:
        """Whether work was begun from this commit before. A resumed execution has its base in the mirror: it needs
        neither the network nor the branch, and a base of uncommitted changes is nowhere else."""
        if not is_commit(commit) or not await to_thread((mirror / "HEAD").exists):
            return False
        return await self._resolve(mirror, f"refs/parallax/bases/{commit}") is not None

    async def _resolve(self, git_dir: Path, name: str) -> str | None:
        done = await self._git.call(
            *("rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}"),
            git_dir=git_dir,
            ok=(0, 1, 128),
        )
        return done.out.decode().strip() or None if done.code == 0 else None

    async def _count_dirty(self, checkout: Checkout) -> int:
        """How many paths are uncommitted. The user's own excludes count; the index is not refreshed on disk."""
        if checkout.top is None:
            return 0
        raw = await self._git.run_bytes(
            *("-c", "core.symlinks=true", "status", "--porcelain", "-z", "--no-renames"),
            *("--untracked-files=all", "--ignore-submodules=dirty"),
            git_dir=checkout.git_dir,
            work_tree=checkout.top,
            env=users_environment(),
        )
        return len(fields(raw))

    async def _commit_changes(self, mirror: Path, checkout: Checkout, head: str) -> str:
        """A commit of the working tree on top of HEAD, made with a copy of the index; its objects go to the mirror.

        What is staged is taken in anew: git would not write an object that the user's repository has already, but
        the mirror has only what their commits reach.
        """
        assert checkout.top is not None
        index = mirror / f"changes-{secrets.token_hex(6)}.index"
        place = trees.Place(
            git_dir=checkout.git_dir,
            tree=checkout.top,
            index=index,
            objects=mirror / "objects",
            env=users_environment(),
        )
        try:
            await to_thread(_copy_if_there, checkout.git_dir / "index", index)
            added = await trees.plumb(self._git, place, "diff-index", "--cached", "--name-only", "-z", head, "--")
            await trees.plumb(self._git, place, "read-tree", "--reset", head)
            staged = await trees.stage(self._git, place, also=fields(added))
        finally:
            await to_thread(index.unlink, missing_ok=True)
        message = trees.message_with("Uncommitted changes of the working tree", {}, "")
        who = trees.identity("Parallax <parallax@parallax.invalid>")
        return await trees.commit_tree(self._git, mirror, staged.tree, [head], message, who)

    async def _open_url(self, errand: Errand, base: str | None, depth: int | None) -> Repository:
        url = errand.url
        mirror = self._mirror_of(url.removesuffix("/").removesuffix(".git"))
        if base and await self._was_base(mirror, base):
            return Repository(location=url, mirror=mirror, base_branch="", base_commit=base)
        branches, default = await self._remotes.branches(errand)
        async with self._locks.hold(str(mirror)):
            await self._refresh(mirror, None, url, None, errand=errand, depth=depth)
        if base is None:
            if default is None or default not in branches:
                raise RepositoryError(f"{url} has no commit on its default branch: name a base branch")
            base = default
        branch, commit = await self._named_base(mirror, base, "refs/remotes/origin/", url)
        await self._git.run("update-ref", f"refs/parallax/bases/{commit}", commit, git_dir=mirror)
        return Repository(location=url, mirror=mirror, base_branch=branch, base_commit=commit)

    def _mirror_of(self, identity: str) -> Path:
        return self._root / "mirrors" / hashlib.sha256(os.fsencode(identity)).hexdigest()[:16]

    async def _refresh(
        self,
        mirror: Path,
        local: Path | None,
        source: str,
        commit: str | None,
        *,
        errand: Errand | None = None,
        depth: int | None = None,
    ) -> None:
        """Fetch into the mirror. A first fetch goes under another name, so that no half-made mirror is ever there."""
        if await to_thread((mirror / "HEAD").exists):
            # Others may work from it: it is never made more shallow than it is, only deeper when all is asked for.
            deepen = () if depth or not await to_thread((mirror / "shallow").exists) else ("--unshallow",)
            await self._fetch(mirror, source, commit, *deepen, errand=errand)
            return
        new = mirror.with_name(f".tmp-{secrets.token_hex(6)}")
        try:
            await to_thread(new.mkdir, parents=True)
            await self._git.run("init", "-q", "--bare", "--template=", "--initial-branch=none", "--", str(new), cwd=new)
            if local is not None:
                await to_thread(_link_packs, local / "objects" / "pack", new / "objects" / "pack")
            fp("clone.mid")
            await self._fetch(new, source, commit, *((f"--depth={depth}",) if depth else ()), errand=errand)
            await to_thread(new.rename, mirror)
        except BaseException:
            await to_thread(layout.discard, new, self._root / "trash")
            raise

    async def _fetch(
        self, mirror: Path, source: str, commit: str | None, *more: str, errand: Errand | None = None
    ) -> None:
        """From a remote, or without an errand from a local path. What is cut off is left as it was."""
        command = (
            *("fetch", "-q", "--no-tags", "--prune", "--no-write-fetch-head", "--update-shallow"),
            *("--no-recurse-submodules", "--no-auto-maintenance", *more, "--", source, *_REFSPECS),
            *([commit] if commit else []),
        )
        if errand is not None:
            await self._remotes.run(errand, "read", *command, git_dir=mirror, timeout_s=FETCH_TIMEOUT_S)
            return
        try:
            await self._git.run(
                *command, git_dir=mirror, env=await self.trusting(), timeout_s=FETCH_TIMEOUT_S, allow_file=True
            )
        except GitError as error:
            raise RepositoryError(f"Cannot read {source}: {error}") from None


def _copy_if_there(source: Path, target: Path) -> None:
    with suppress(FileNotFoundError):
        shutil.copy2(source, target)  # an index is copied with its time, see WorkspaceService._index_copy


def _link_packs(source: Path, target: Path) -> None:
    """Share the user's packs by hard links, as `git clone --local` does: packs are never changed in place.

    The fetch that follows checks that everything is there and brings what is not.
    """
    packs = [p for p in source.glob("pack-*") if p.suffix in {".pack", ".idx", ".rev"} and p.is_file()]
    if any(source.glob("*.promisor")):  # a partial clone: its packs have holes that only its remote can fill
        return
    for path in sorted(packs, key=lambda p: p.suffix == ".idx"):  # an index without its pack would be an error
        try:
            (target / path.name).hardlink_to(path)
        except OSError:
            return
