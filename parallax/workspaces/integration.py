"""Integration: accepted work goes into `parallax/<execution>/result`, one commit after another, or not at all.

It needs no working tree: git merges the two commits as objects, and the branch moves by compare-and-swap. So a kill
at any instant leaves the branch before or after a merge, never in one. Called by the host when a result is accepted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from parallax.errors import MergeConflict
from parallax.workspaces import history, trees
from parallax.workspaces.git import check_commit
from parallax.workspaces.repository import Repository
from parallax.workspaces.service import WorkspaceService, result_branch


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """The head of the result after a merge, and how many files it changed; none when it was merged before."""

    sha: str
    files: int


class Integration:
    """Merges into the result of an execution, one merge at a time for each."""

    def __init__(self, service: WorkspaceService) -> None:
        self._git = service.git
        self._locks = service.locks

    async def head(self, repo: Repository, execution_id: str) -> str:
        """The commit the result stands on: the base until something was merged."""
        return await self._ref(repo, execution_id) or repo.base_commit

    async def merge(
        self,
        repo: Repository,
        execution_id: str,
        commit: str,
        *,
        message: str,
        trailers: Mapping[str, str] | None = None,
    ) -> Merged:
        """Merge a commit into the result; raises MergeConflict and changes nothing where both sides changed the same.

        What only adds to the result's head moves it forward without a merge commit: the step's own commit carries
        the trailers.
        """
        check_commit(commit)
        async with self._locks.hold(f"result {repo.mirror} {execution_id}"):
            old = await self._ref(repo, execution_id)
            head = old or repo.base_commit
            new = head
            if not await history.is_ancestor(self._git, repo.mirror, commit, head):
                new = await self._merged(repo, head, commit, message, trailers or {})
            if new != old:
                ref = f"refs/heads/{result_branch(execution_id)}"
                await self._git.run("update-ref", ref, new, old or "0" * 40, git_dir=repo.mirror)
            files = len(await history.changed_files(self._git, repo.mirror, head, new)) if new != head else 0
        return Merged(sha=new, files=files)

    async def begin(self, repo: Repository, execution_id: str, commit: str) -> None:
        """Let the result of a new execution begin at a commit of the mirror; raises GitError when it is not there."""
        check_commit(commit)
        ref = f"refs/heads/{result_branch(execution_id)}"
        await self._git.run("update-ref", ref, commit, "0" * 40, git_dir=repo.mirror)

    async def heads(self, repo: Repository, execution_id: str, commits: Sequence[str]) -> list[str]:
        """For each merged commit, the head with which the result first had it."""
        head = await self.head(repo, execution_id)
        line = await self._git.run(
            *("rev-list", "--first-parent", "--reverse", head, f"^{repo.base_commit}"), git_dir=repo.mirror
        )
        heads, found = line.split(), []
        for commit in commits:
            low, high = 0, len(heads) - 1
            while low < high:
                middle = (low + high) // 2
                low, high = (low, middle) if await self.holds(repo, heads[middle], commit) else (middle + 1, high)
            found.append(heads[low])
        return found

    async def holds(self, repo: Repository, head: str, commit: str) -> bool:
        """Whether a commit is in the history of another."""
        return await history.is_ancestor(self._git, repo.mirror, check_commit(commit), check_commit(head))

    async def before(self, repo: Repository, head: str) -> str:
        """What the result stood on before this head."""
        return await self._git.run("rev-parse", "--verify", f"{check_commit(head)}^1", git_dir=repo.mirror)

    async def reset(self, repo: Repository, execution_id: str, commit: str) -> None:
        """Put the result back to where it stood before a step that is done again; its merge was never recorded."""
        check_commit(commit)
        async with self._locks.hold(f"result {repo.mirror} {execution_id}"):
            old = await self._ref(repo, execution_id)
            if old is not None and old != commit:
                ref = f"refs/heads/{result_branch(execution_id)}"
                await self._git.run("update-ref", ref, commit, old, git_dir=repo.mirror)

    async def _merged(self, repo: Repository, head: str, commit: str, message: str, trailers: Mapping[str, str]) -> str:
        if await history.is_ancestor(self._git, repo.mirror, head, commit):
            return commit
        merged = await trees.merge(self._git, repo.mirror, head, commit)
        if merged.conflicts:
            names = ", ".join(merged.conflicts[:10])
            raise MergeConflict(f"The result and {commit[:12]} both changed {names}", merged.conflicts, merged.tree)
        words = trees.message_with(message, trailers, "Merge into the result")
        who = trees.identity("Parallax <parallax@parallax.invalid>")
        return await trees.commit_tree(self._git, repo.mirror, merged.tree, (head, commit), words, who)

    async def _ref(self, repo: Repository, execution_id: str) -> str | None:
        return await history.ref(self._git, repo.mirror, f"refs/heads/{result_branch(execution_id)}")
