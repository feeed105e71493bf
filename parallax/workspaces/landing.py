"""The way back into the user's own repository: their branches under `refs/heads/parallax/`, and `land`.

These are the only calls that write there. Publishing touches no other ref, and neither HEAD, index nor files. Landing
moves the user's branch only forward, only when none of their own changes would be touched, and never leaves a merge
half-done: it is computed in the mirror first. Hooks are off in both.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from parallax.errors import ConflictError, GitError, NotFoundError, RepositoryError
from parallax.workspaces import history, trees
from parallax.workspaces.git import Git, Locks, check_branch, fields, text, users_environment
from parallax.workspaces.repository import Checkout, Mirrors, Repository

_SHOWN: Final = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class LandResult:
    """Where the result is now. `how`: fast_forward, merge, created, or nothing (it was there already)."""

    branch: str
    sha: str
    how: str
    files: int


class Landing:
    """Publishes and lands; one at a time for each repository."""

    def __init__(self, git: Git, mirrors: Mirrors, locks: Locks) -> None:
        self._git = git
        self._mirrors = mirrors
        self._locks = locks

    async def publish(self, repo: Repository, execution_id: str) -> list[tuple[str, str]]:
        """Fetch an execution's branches into the user's repository; one that they have checked out is left alone."""
        if repo.local is None:
            return []
        async with self._locks.hold(f"user {repo.mirror}"):
            checkout = await self._mirrors.find_checkout(repo.local)
            listed = await self._git.run(
                "for-each-ref",
                "--format=%(refname) %(objectname)",
                f"refs/heads/parallax/{execution_id}/",
                git_dir=repo.mirror,
            )
            held = await self._checked_out(checkout)
            found = [(ref, sha) for ref, sha in map(str.split, listed.splitlines()) if ref not in held]
            if found:
                await self._bring(repo, checkout, [f"+{ref}:{ref}" for ref, _ in found])
        return [(ref.removeprefix("refs/heads/"), sha) for ref, sha in found]

    async def land(self, repo: Repository, execution_id: str, result: str, branch: str | None) -> LandResult:
        """Bring the branch `result` of the mirror into the user's checked-out branch, or into one of that name."""
        if repo.local is None:
            raise ConflictError(f"{repo.location} is a URL: there is no local repository to land in")
        sha = await history.ref(self._git, repo.mirror, f"refs/heads/{result}")
        if sha is None:
            raise NotFoundError(f"Execution {execution_id} has no result in {repo.location}: nothing was integrated")
        async with self._locks.hold(f"user {repo.mirror}"):
            checkout = await self._mirrors.find_checkout(repo.local)
            if branch is not None:
                return await self._into_branch(repo, checkout, sha, check_branch(branch))
            return await self._into_checkout(repo, checkout, sha, execution_id)

    async def _into_branch(self, repo: Repository, checkout: Checkout, sha: str, branch: str) -> LandResult:
        ref = f"refs/heads/{branch}"
        old = await history.ref(self._git, checkout.git_dir, ref)
        if old == sha:
            return LandResult(branch=branch, sha=sha, how="nothing", files=0)
        if ref in await self._checked_out(checkout):
            raise ConflictError(f"Branch '{branch}' is checked out: land without --branch, or name another branch")
        await self._bring(repo, checkout, [sha])
        if old is not None and not await history.is_ancestor(self._git, checkout.git_dir, old, sha):
            raise ConflictError(f"Branch '{branch}' has commits that the result has not: name another branch")
        try:
            await self._git.run("update-ref", ref, sha, old or "0" * 40, git_dir=checkout.git_dir)
        except GitError as error:
            raise ConflictError(f"Branch '{branch}' cannot be written: {error}") from None
        stat = await history.diffstat(self._git, repo.mirror, repo.base_commit, sha)
        return LandResult(branch=branch, sha=sha, how="fast_forward" if old else "created", files=stat.files)

    async def _into_checkout(self, repo: Repository, checkout: Checkout, sha: str, execution_id: str) -> LandResult:
        offer = "or use --branch NAME to put the result on a branch of its own"
        branch = await self._current_branch(checkout, offer)
        head = await history.ref(self._git, checkout.git_dir, "HEAD")
        if checkout.top is None or head is None:
            raise ConflictError(f"{repo.location} has nothing checked out: use --branch NAME")
        await self._mirrors.bring_in(repo, head)
        if await history.is_ancestor(self._git, repo.mirror, sha, head):
            return LandResult(branch=branch, sha=head, how="nothing", files=0)
        how = "fast_forward"
        if not await history.is_ancestor(self._git, repo.mirror, head, sha):
            sha = await self._merge(repo, checkout, head, sha, branch, execution_id, offer)
            how = "merge"
        changed = await history.changed_files(self._git, repo.mirror, head, sha)
        await self._refuse_overlap(checkout.top, checkout.git_dir, changed, offer)
        await self._bring(repo, checkout, [sha])
        try:
            await self._git.run(
                *("-c", "core.symlinks=true", "merge", "--ff-only", "--no-overwrite-ignore", "--no-autostash"),
                *("--no-verify-signatures", "--quiet", sha),
                git_dir=checkout.git_dir,
                work_tree=checkout.top,
                env=users_environment() | {"GIT_REFLOG_ACTION": f"parallax land {execution_id}"},
            )
        except GitError as error:
            details = " ".join(error.stderr.split())
            raise ConflictError(
                f"git would not move '{branch}' to the result: {details}; put that right, {offer}"
            ) from None
        return LandResult(branch=branch, sha=sha, how=how, files=len(changed))

    async def _current_branch(self, checkout: Checkout, offer: str) -> str:
        try:
            return await self._git.run("symbolic-ref", "--short", "-q", "HEAD", git_dir=checkout.git_dir)
        except GitError:
            raise ConflictError(f"No branch is checked out (HEAD is detached): check one out, {offer}") from None

    async def _merge(
        self, repo: Repository, checkout: Checkout, head: str, sha: str, branch: str, execution_id: str, offer: str
    ) -> str:
        merged = await trees.merge(self._git, repo.mirror, head, sha)
        if merged.conflicts:
            raise ConflictError(
                f"The result and '{branch}' both changed {_listed(merged.conflicts)}: "
                f"merge by hand (git merge parallax/{execution_id}/result), {offer}"
            )
        who = await self._users_identity(checkout, offer)
        words = trees.message_with(
            f"Merge the result of Parallax execution {execution_id}", {"Parallax-Execution": execution_id}, ""
        )
        return await trees.commit_tree(self._git, repo.mirror, merged.tree, (head, sha), words, who)

    async def _users_identity(self, checkout: Checkout, offer: str) -> dict[str, str]:
        who: dict[str, str] = {}
        for role in ("AUTHOR", "COMMITTER"):
            try:
                ident = await self._git.run(
                    *("-c", "user.useConfigOnly=true", "var", f"GIT_{role}_IDENT"),
                    git_dir=checkout.git_dir,
                    env=users_environment(),
                )
            except GitError:
                raise ConflictError(
                    f"git does not know who you are here: set user.name and user.email, {offer}"
                ) from None
            name, _, rest = ident.partition(" <")
            who |= {f"GIT_{role}_NAME": name, f"GIT_{role}_EMAIL": rest.partition(">")[0]}
        return who

    async def _refuse_overlap(self, top: Path, git_dir: Path, changed: list[bytes], offer: str) -> None:
        raw = await self._git.run_bytes(
            *("-c", "core.symlinks=true", "status", "--porcelain", "-z", "--no-renames"),
            *("--untracked-files=all", "--ignore-submodules=dirty"),
            git_dir=git_dir,
            work_tree=top,
            env=users_environment(),
        )
        touched = {part for path in changed for part in (path, *_folders(path))}
        wanted = set(changed)
        own = [
            text(path)
            for entry in fields(raw)
            if (path := entry[3:].rstrip(b"/")) in touched or any(folder in wanted for folder in _folders(path))
        ]
        if own:
            raise ConflictError(
                f"Your working tree has uncommitted changes in {_listed(own)}, which the result changes too: "
                f"commit or put them aside, {offer}"
            )

    async def _checked_out(self, checkout: Checkout) -> set[str]:
        """Refs that some worktree of the user has checked out: moving one would make their files look changed."""
        out = await self._git.run_bytes("worktree", "list", "--porcelain", "-z", git_dir=checkout.git_dir)
        return {text(line[7:]) for line in out.split(b"\0") if line.startswith(b"branch ")}

    async def _bring(self, repo: Repository, checkout: Checkout, refspecs: list[str]) -> None:
        """Fetch from the mirror into the user's repository. Without a target, a refspec brings objects only."""
        try:
            await self._git.run(
                *("-c", "fetch.writeCommitGraph=false", "fetch", "-q", "--no-tags", "--no-prune", "--refmap="),
                *("--no-write-fetch-head", "--no-recurse-submodules", "--no-auto-maintenance", "--"),
                *(str(repo.mirror), *refspecs),
                git_dir=checkout.git_dir,
                env=await self._mirrors.trusting(),
                timeout_s=600.0,
                allow_file=True,
            )
        except GitError as error:
            raise RepositoryError(f"The branches could not be brought into {repo.location}: {error}") from None


def _folders(path: bytes) -> list[bytes]:
    parts = path.split(b"/")
    return [b"/".join(parts[:n]) for n in range(1, len(parts))]


def _listed(names: list[str] | tuple[str, ...]) -> str:
    shown = ", ".join(names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"
