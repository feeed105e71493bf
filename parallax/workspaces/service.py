"""WorkspaceService: every agent's own copy of the repository, its snapshots, its commits, and the way back to the user.

The execution's host asks for a workspace, snapshots it before a step, commits what the agent left, and in the end
publishes the branches. Objects and branches live in the repository's mirror, so losing a workspace loses no work.
All git work on one workspace is done one call at a time; nothing here enters the `.git` that the agent can write.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import shutil
import time
from asyncio import to_thread
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

from parallax.errors import GitError, NotFoundError, ParallaxError, UsageError
from parallax.failpoints import fp
from parallax.models import Json, Workspace, hash12
from parallax.ports import AgentRuntime
from parallax.storage.statements import Change, insert_row
from parallax.storage.store import Store
from parallax.workspaces import history, layout, trees
from parallax.workspaces.credentials import CredentialService
from parallax.workspaces.git import Git, Locks, check_branch, check_commit, text
from parallax.workspaces.landing import Landing, LandResult
from parallax.workspaces.ports import Ports
from parallax.workspaces.remotes import Errand, Remotes
from parallax.workspaces.repository import Mirrors, Repository

Emit: TypeAlias = Callable[[str, str, Json], Awaitable[None]]
SETUP_KEPT_S: Final = 30 * 86_400.0
_IGNORED, _ESCAPED = re.compile(r"([\\*?\[ ])"), r"\\\1"  # what an ignore file would read as a pattern
KINDS: Final = frozenset({"agent", "role", "step", "readonly", "check"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """What `commit` made. `left_out` names nested repositories; `unresolved` files that still hold conflict markers."""

    sha: str
    branch: str
    files: int
    insertions: int
    deletions: int
    left_out: tuple[str, ...] = ()
    unresolved: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeResult:
    """The head after a merge into a workspace. With `conflicts` it is still the old one: the next commit merges."""

    sha: str
    conflicts: tuple[str, ...] = ()


@dataclass(slots=True)
class _Checkout:
    path: Path
    users: int = 0


def branch_name(execution: str, role: str, step_key: str, *, has_id: bool) -> str:
    """`parallax/<execution>/<role>/<slug>`: the slug is the step's id, or a hash where it has only a call path."""
    return f"parallax/{execution}/{slug(role)}/{slug(step_key) if has_id else hash12(step_key)}"


def slug(name: str) -> str:
    """A step id or role as part of a branch name. What had to be changed gets a hash, so that no two become one."""
    changed = re.sub(r"[^A-Za-z0-9_-]", "-", name)
    return changed if changed == name else f"{changed}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"


def result_branch(execution: str) -> str:
    """The integration branch."""
    return f"parallax/{execution}/result"


class WorkspaceService:
    """Workspaces under one root directory. `emit(execution, type, data)` is told what happens to them."""

    def __init__(
        self,
        root: Path,
        git: Git,
        runtime: AgentRuntime | None = None,
        emit: Emit | None = None,
        credentials: CredentialService | None = None,
        store: Store | None = None,
    ) -> None:
        self.root = root
        self.git = git
        self.runtime = runtime
        self.locks = Locks()
        self.ports = Ports(root)
        self.max_b: float = 5e9  # that one workspace may hold
        self._emit = emit
        self._store = store
        self.remotes = Remotes(git, credentials)
        self._mirrors = Mirrors(root, git, self.locks, self.remotes)
        self._landing = Landing(git, self._mirrors, self.locks)
        self._checkouts: dict[str, _Checkout] = {}

    # Repositories

    async def open_repository(
        self,
        location: str,
        base: str | None = None,
        *,
        with_changes: bool = False,
        depth: int | None = None,
        errand: Errand | None = None,
    ) -> Repository:
        """A local path or https URL, its base resolved and its mirror fresh; raises RepositoryError, RemoteError."""
        return await self._mirrors.open(location, base, with_changes=with_changes, depth=depth, errand=errand)

    async def remote_of(self, repo: Repository) -> str:
        """The https URL that the repository is pushed to; raises RepositoryError where there is none."""
        return await self._mirrors.remote_of(repo)

    # The life of a workspace

    async def create(
        self,
        execution_id: str,
        role: str,
        number: int,
        repo: Repository,
        *,
        kind: str = "agent",
        base_commit: str | None = None,
    ) -> Workspace:
        """Make a workspace at a commit. One that is there already is returned as it stands."""
        layout.check_name(execution_id, "an execution")
        layout.check_name(role, "a role")
        if kind not in KINDS:
            raise UsageError(f"'{kind}' is no kind of workspace: {', '.join(sorted(KINDS))}")
        base = check_commit(base_commit or repo.base_commit)
        path = self._path(execution_id, role, number)
        async with self.locks.hold(str(path)):
            if found := await self._load(execution_id, role, number):
                return found
            await self._tell(execution_id, "workspace.provisioning", {"role": role, "number": number})
            row = _row(execution_id, role, number, kind, repo, base)
            await self._record(row, "provisioning")
            new = path.with_name(f".tmp-{secrets.token_hex(6)}")
            card = layout.Card(repo=repo.location, mirror=repo.mirror.name, base=base, kind=kind)
            try:
                async with self._gone_if_failed(new):
                    await self._fill(new, card, role, repo)
                    await to_thread(layout.settle, new, path)
            except ParallaxError as error:
                await self._record(row, "error", str(error))
                await self._tell(execution_id, "workspace.error", {"workspace": row["id"], "cause": str(error)})
                raise
            fp("clone.done_before_record")
            await self._record(row, "ready")
            found = await self._load(execution_id, role, number)
        assert found is not None
        await self._tell(execution_id, "workspace.ready", {"workspace": found.id, "commit": base})
        return found

    async def find(self, execution_id: str, role: str, number: int) -> Workspace | None:
        """A workspace that is on disk, with its present head."""
        return await self._load(layout.check_name(execution_id, "an execution"), role, number)

    async def head(self, workspace: Workspace) -> str:
        """The commit it stands on now (`workspace.head` is the one when it was asked for)."""
        return (await to_thread(layout.read_heads, workspace.path / "git"))[0]

    async def mirror(self, workspace: Workspace) -> Path:
        """The mirror it works from."""
        card = await to_thread(layout.read_card, workspace.path)
        return self.root / "mirrors" / card.mirror

    async def refresh_agent_git(self, workspace: Workspace, *, objects: Path | None = None) -> None:
        """Give the agent a fresh `tree/.git`. `objects` is where the agent will see the mirror's objects."""
        async with self._alone(workspace) as (_, place):
            await self._refresh(workspace, place, objects)

    async def commit(
        self,
        workspace: Workspace,
        *,
        message: str,
        author: str,
        branch: str,
        trailers: Mapping[str, str] | None = None,
    ) -> Commit | None:
        """Commit what is in the tree and point `branch` at it; None if nothing changed. Ends a pending merge."""
        check_branch(branch)
        async with self._alone(workspace) as (mirror, place):
            head, merging = await to_thread(layout.read_heads, place.git_dir)
            staged = await trees.stage(self.git, place)
            if not merging and staged.tree == await self._tree_of(mirror, head):
                return None
            unresolved = await self._unresolved(mirror, place, head, merging)
            words = trees.message_with(message, trailers or {}, f"Work of {author}")
            sha = await trees.commit_tree(
                self.git, mirror, staged.tree, (head, *merging), words, trees.identity(author)
            )
            await self.git.run("update-ref", f"refs/heads/{branch}", sha, git_dir=mirror)
            await to_thread(layout.write_heads, place.git_dir, sha)
            await self._refresh(workspace, place)
            stat = await history.diffstat(self.git, mirror, head, sha)
        made = Commit(
            sha=sha,
            branch=branch,
            files=stat.files,
            insertions=stat.insertions,
            deletions=stat.deletions,
            left_out=staged.left_out,
            unresolved=unresolved,
        )
        data = {"branch": branch, "commit": sha, "files": made.files, "left_out": list(made.left_out)}
        await self._tell(workspace.execution, "workspace.finalising", {"workspace": workspace.id} | data)
        return made

    async def snapshot(self, workspace: Workspace, name: str) -> str:
        """Keep the state of a workspace under a server-owned ref, on disk when this returns.

        The snapshot is a commit: its tree is what lies in the workspace, its first parent the head, further parents
        the merges that are pending.
        """
        ref = f"refs/parallax/snapshots/{workspace.execution}/{name}"
        check_branch(ref.removeprefix("refs/"))
        async with self._alone(workspace) as (mirror, place):
            sha, left_out = await self._keep(mirror, place, f"Snapshot {name}")
            fp("snapshot.before_step")
            await self.git.run("update-ref", ref, sha, git_dir=mirror)
        data = {"workspace": workspace.id, "commit": sha, "left_out": list(left_out)}
        await self._tell(workspace.execution, "workspace.snapshot", data)
        return sha

    async def restore(self, workspace: Workspace, sha: str) -> str | None:
        """Bring tree and head back to a snapshot; what was there instead is kept, and its commit returned.

        Ignored files are neither kept nor touched. Works on whatever a killed server left.
        """
        check_commit(sha)
        async with self._alone(workspace) as (mirror, place):
            parents = (await self.git.run("rev-parse", f"{sha}^@", git_dir=mirror)).split()
            if not parents:
                raise GitError(f"{sha} is no snapshot: it has no parent")
            debris = await self._keep_debris(workspace, mirror, place, sha)
            await self._reset(workspace, place, f"{sha}^{{tree}}", parents[0], tuple(parents[1:]))
        return debris

    async def move_to(self, workspace: Workspace, commit: str) -> None:
        """Bring tree and head to a commit and keep nothing: for read-only workspaces, whose subject changes."""
        check_commit(commit)
        async with self._alone(workspace) as (_, place):
            await self._reset(workspace, place, commit, commit, ())

    async def merge_into(self, workspace: Workspace, commit: str) -> MergeResult:
        """Merge a commit into the workspace, uncommitted work included.

        With conflicts, the files hold the markers, the agent's `git status` names them, and the next `commit` is the
        merge. Uncommitted work stays uncommitted.
        """
        check_commit(commit)
        async with self._alone(workspace) as (mirror, place):
            head, merging = await to_thread(layout.read_heads, place.git_dir)
            if commit in merging or await history.is_ancestor(self.git, mirror, commit, head):
                return MergeResult(sha=head, conflicts=await self._conflicts(mirror, head, merging))
            result, stages = await self._merge(mirror, place, head, merging, commit)
            await self._refresh(workspace, place, stages=stages)
        kind = "workspace.conflict" if result.conflicts else "workspace.merged"
        data = {"workspace": workspace.id, "commit": commit, "files": list(result.conflicts)}
        await self._tell(workspace.execution, kind, data)
        return result

    async def take(self, workspace: Workspace, commit: str, *, since: str) -> MergeResult:
        """Bring what `commit` changed since another commit into the tree, as work that is not committed.

        Where it conflicts with what lies there, nothing is changed and the files are named.
        """
        check_commit(commit)
        async with self._alone(workspace) as (mirror, place):
            head, merging = await to_thread(layout.read_heads, place.git_dir)
            staged = await trees.stage(self.git, place)
            who = trees.identity("Parallax <parallax@parallax.invalid>")
            words = trees.message_with("Work in progress", {}, "")
            ours = await trees.commit_tree(self.git, mirror, staged.tree, (check_commit(since),), words, who)
            merged = await trees.merge(self.git, mirror, ours, commit)
            if not merged.conflicts:
                await trees.write_out(self.git, place, merged.tree)
                if not merging:
                    await trees.plumb(self.git, place, "read-tree", "--reset", head)
                await self._refresh(workspace, place)
        return MergeResult(sha=head, conflicts=merged.conflicts)

    async def cleanup(self, execution_id: str) -> None:
        """Delete an execution's workspaces and snapshots. Its branches stay: they are the work."""
        layout.check_name(execution_id, "an execution")
        for path in await to_thread(lambda: [*(self.root / execution_id).glob("*")]):
            await self.ports.give_back(path)
        await to_thread(layout.discard, self.root / execution_id, self.root / "trash")
        fp("cleanup.mid")
        for mirror in await self._all_mirrors():
            kept = [f"refs/parallax/{kind}/{execution_id}/" for kind in ("snapshots", "debris")]
            refs = await self.git.run_bytes("for-each-ref", "--format=%(refname)", *kept, git_dir=mirror)
            if refs.strip():
                lines = b"".join(b"delete %s\n" % ref for ref in refs.splitlines())
                await self.git.run("update-ref", "--stdin", git_dir=mirror, input=lines)
        for row in await self.known(execution=execution_id):
            await self._record(row, "cleaned_up")
        await self._tell(execution_id, "workspace.cleaned_up", {})

    async def known(self, **equal: str) -> list[dict[str, Any]]:
        """Every workspace that was made, with its state, also after it is gone; those with these values."""
        if self._store is None:
            return []
        return sorted(await self._store.rows("workspaces", **equal), key=lambda row: row["created_at"])

    async def clean(self, workspace: Workspace) -> None:
        """Delete one workspace. What was committed stays on its branch; what was not is gone."""
        async with self.locks.hold(str(workspace.path)):
            await self.ports.give_back(workspace.path)
            await to_thread(layout.discard, workspace.path, self.root / "trash")
        for row in await self.known(id=workspace.id):
            await self._record(row, "cleaned_up")

    async def size_b(self, workspace: Workspace) -> int:
        """Bytes on disk of its tree and git directory; what it shares with the mirror is not counted."""
        return await to_thread(layout.size_b, workspace.path)

    async def _record(self, row: dict[str, Any], state: str, cause: str | None = None) -> None:
        if self._store is not None:
            kept = row | {"state": state, "cause": cause, "changed_at": time.time()}
            await self._store.commit(Change([insert_row("workspaces", kept, replace_row=True)]))

    async def sweep(self) -> int:
        """At start: delete what a former life of this server left half-made. Nobody else uses the root by then."""
        swept = await to_thread(_sweep, self.root)
        await to_thread(self.ports.sweep)
        return swept

    # Reading history: what the doors show

    async def diff(self, mirror: Path, base: str, head: str, *, stat: bool = False) -> str:
        """The difference between two commits, as text."""
        return await history.diff(self.git, mirror, base, head, stat=stat)

    async def changed(self, mirror: Path, base: str, head: str) -> list[str]:
        """The paths that differ between two commits."""
        return [text(path) for path in await history.changed_files(self.git, mirror, base, head)]

    async def changed_by(self, mirror: Path, commit: str) -> list[str]:
        """The paths that a commit changes against its first parent."""
        before = await self.git.run("rev-parse", "--verify", f"{check_commit(commit)}^1", git_dir=mirror)
        return await self.changed(mirror, before, commit)

    async def diffstat(self, mirror: Path, base: str, head: str) -> history.DiffStat:
        """The size of that difference."""
        return await history.diffstat(self.git, mirror, base, head)

    async def log(self, mirror: Path, base: str | None, head: str, *, limit: int = 100) -> list[history.LogEntry]:
        """The commits that head has and base has not, newest first."""
        return await history.log(self.git, mirror, base, head, limit=limit)

    async def files(self, mirror: Path, commit: str, path: str = "") -> list[history.FileEntry]:
        """The files of a commit, or of one folder in it."""
        return await history.files(self.git, mirror, commit, path)

    async def read_file(self, mirror: Path, commit: str, path: str) -> str | None:
        """One file of a commit as text; None if it is not there or no plain file."""
        return await history.read_file(self.git, mirror, commit, path)

    # Checkouts for checks

    @asynccontextmanager
    async def checkout(self, repo: Repository, commit: str) -> AsyncIterator[Path]:
        """A clean checkout of a commit; those who ask for the same one at the same time share it.

        It has a throw-away `.git` (tools ask it for the version), and `home` beside it is an empty directory.
        """
        key = f"{repo.mirror.name}-{check_commit(commit)}"
        async with self.locks.hold(f"checkout {key}"):
            entry = self._checkouts.get(key)
            if entry is None:
                entry = _Checkout(path=await self._make_checkout(repo, commit))
                self._checkouts[key] = entry
            entry.users += 1
        try:
            yield entry.path / "tree"
        finally:
            entry.users -= 1
            if entry.users == 0:
                del self._checkouts[key]
                await self.discard(entry.path)

    async def _make_checkout(self, repo: Repository, commit: str) -> Path:
        path = self.root / "checkouts" / f"{commit[:12]}-{secrets.token_hex(6)}"
        await self.fill(path, repo, commit)
        return path

    async def fill(self, path: Path, repo: Repository, commit: str) -> None:
        """A checkout with an empty home at a place of the caller's, who `discard`s it."""
        card = layout.Card(repo=repo.location, mirror=repo.mirror.name, base=commit, kind="check")
        async with self._gone_if_failed(path):
            await self._fill(path, card, "check", repo)
            await to_thread((path / "home").mkdir)

    async def discard(self, path: Path) -> None:
        """Make a directory below the root vanish."""
        await to_thread(layout.discard, path, self.root / "trash")

    async def unknown_to_git(self, path: Path, repo: Repository) -> list[str]:
        """What lies in a checkout and is not of its commit, ignored or not; whole directories by their name alone."""
        place = self._place(path, repo.mirror)
        listed = await trees.plumb(self.git, place, "ls-files", "--others", "--directory", "-z")
        return [text(name).rstrip("/") for name in listed.split(b"\0") if name]

    async def exclude(self, workspace: Workspace, names: Sequence[str]) -> None:
        """Leave these out of what is committed: they are laid into the tree by the server."""
        async with self._alone(workspace) as (_, place):
            lines = "".join(f"/{_IGNORED.sub(_ESCAPED, name)}\n" for name in names)
            await to_thread(layout.write_durably, place.git_dir / "info" / "exclude", lines)
            await self._refresh(workspace, place)

    # Back to the user

    async def branches(self, repo: Repository, execution_id: str) -> list[tuple[str, str]]:
        """The branches of an execution and their commits, by name."""
        layout.check_name(execution_id, "an execution")
        pattern = f"refs/heads/parallax/{execution_id}/"
        listed = await self.git.run("for-each-ref", "--format=%(objectname) %(refname)", pattern, git_dir=repo.mirror)
        pairs = (line.split(" ", 1) for line in listed.splitlines())
        return [(name.removeprefix("refs/heads/"), commit) for commit, name in pairs]

    async def publish(self, repo: Repository, execution_id: str) -> list[tuple[str, str]]:
        """Bring an execution's branches into the user's repository, under `refs/heads/parallax/` alone."""
        layout.check_name(execution_id, "an execution")
        return await self._landing.publish(repo, execution_id)

    async def land(self, repo: Repository, execution_id: str, *, branch: str | None = None) -> LandResult:
        """Bring the result into the branch the user has checked out, or into a branch of that name."""
        layout.check_name(execution_id, "an execution")
        return await self._landing.land(repo, execution_id, result_branch(execution_id), branch)

    # The parts

    async def _fill(self, path: Path, card: layout.Card, role: str, repo: Repository) -> None:
        await to_thread(_prepare, path, card, card.base, repo.objects)
        fp("clone.mid")
        await trees.write_out(self.git, self._place(path, repo.mirror), card.base)
        await to_thread(_write_agent_git, path, role, repo.objects)

    @asynccontextmanager
    async def _gone_if_failed(self, path: Path) -> AsyncIterator[None]:
        """What could not be made, or was cancelled in the making, leaves nothing behind."""
        try:
            yield
        except BaseException:
            await to_thread(layout.discard, path, self.root / "trash")
            raise

    def _path(self, execution_id: str, role: str, number: int) -> Path:
        return self.root / execution_id / f"{role}.{number}"

    def _place(self, path: Path, mirror: Path) -> trees.Place:
        git_dir = path / "git"
        return trees.Place(git_dir=git_dir, tree=path / "tree", index=git_dir / "index", objects=mirror / "objects")

    @asynccontextmanager
    async def _alone(self, workspace: Workspace) -> AsyncIterator[tuple[Path, trees.Place]]:
        """The only user of this workspace: so a lock file in its git directory is a dead git's."""
        async with self.locks.hold(str(workspace.path)):
            mirror = await self.mirror(workspace)
            await to_thread(layout.clear_locks, workspace.path / "git")
            await to_thread(layout.ensure_tree, workspace.tree)
            yield mirror, self._place(workspace.path, mirror)

    async def _load(self, execution_id: str, role: str, number: int) -> Workspace | None:
        path = self._path(execution_id, role, number)
        try:
            card = await to_thread(layout.read_card, path)
        except NotFoundError:
            return None
        head, _ = await to_thread(layout.read_heads, path / "git")
        return Workspace(
            id=f"{execution_id}.{role}.{number}",
            execution=execution_id,
            role=role,
            number=number,
            kind=card.kind,
            repo=card.repo,
            base=card.base,
            branch=f"parallax/{execution_id}/{slug(role)}",
            head=head,
            state="ready",
            path=path,
        )

    async def _tree_of(self, mirror: Path, commit: str) -> str:
        return await self.git.run("rev-parse", f"{commit}^{{tree}}", git_dir=mirror)

    async def _keep(self, mirror: Path, place: trees.Place, message: str) -> tuple[str, tuple[str, ...]]:
        """A commit of the present state. Staged in a copy of the index, so that a file which the agent ignores later
        is not tracked because a snapshot once saw it."""
        head, merging = await to_thread(layout.read_heads, place.git_dir)
        async with self._index_copy(place) as copy:
            staged = await trees.stage(self.git, copy)
        who = trees.identity("Parallax <parallax@parallax.invalid>")
        words = trees.message_with(message, {}, "Snapshot")
        sha = await trees.commit_tree(self.git, mirror, staged.tree, (head, *merging), words, who)
        return sha, staged.left_out

    async def _keep_debris(self, workspace: Workspace, mirror: Path, place: trees.Place, snapshot: str) -> str | None:
        try:
            sha, _ = await self._keep(mirror, place, f"What was in {workspace.id} before it was restored")
        except GitError:
            # The index is a torn one. It is only a cache: made again from the snapshot, it finds the same files.
            await to_thread(place.index.unlink, missing_ok=True)
            await trees.plumb(self.git, place, "read-tree", snapshot)
            sha, _ = await self._keep(mirror, place, f"What was in {workspace.id} before it was restored")
        now, then = [
            (await self.git.run("show", "-s", "--format=%T %P", name, git_dir=mirror)) for name in (sha, snapshot)
        ]
        if now == then:
            return None
        ref = f"refs/parallax/debris/{workspace.execution}/{slug(workspace.role)}.{workspace.number}/{sha[:12]}"
        await self.git.run("update-ref", ref, sha, git_dir=mirror)
        return sha

    async def _reset(
        self, workspace: Workspace, place: trees.Place, tree: str, head: str, merging: tuple[str, ...]
    ) -> None:
        await trees.write_out(self.git, place, tree)
        await trees.clean(self.git, place)
        await to_thread(layout.write_heads, place.git_dir, head, merging)
        stages = b""
        if not merging:
            # What was uncommitted is uncommitted again; `clean` above needed an index that knew of it.
            await trees.plumb(self.git, place, "read-tree", "--reset", head)
        else:
            stages = (await trees.merge(self.git, await self.mirror(workspace), head, merging[0])).stages
        await self._refresh(workspace, place, stages=stages)

    async def _merge(
        self, mirror: Path, place: trees.Place, head: str, merging: tuple[str, ...], commit: str
    ) -> tuple[MergeResult, bytes]:
        staged = await trees.stage(self.git, place)
        dirty = bool(merging) or staged.tree != await self._tree_of(mirror, head)
        who = trees.identity("Parallax <parallax@parallax.invalid>")
        ours = head
        if dirty:
            words = trees.message_with("Work in progress", {}, "")
            ours = await trees.commit_tree(self.git, mirror, staged.tree, (head, *merging), words, who)
        merged = await trees.merge(self.git, mirror, ours, commit)
        await trees.write_out(self.git, place, merged.tree)
        forward = not merging and await history.is_ancestor(self.git, mirror, head, commit)
        if merged.conflicts:
            await to_thread(layout.write_heads, place.git_dir, head, (*merging, commit))
        elif forward:
            head = commit
            await to_thread(layout.write_heads, place.git_dir, head)
            await trees.plumb(self.git, place, "read-tree", "--reset", head)
        elif dirty:
            await to_thread(layout.write_heads, place.git_dir, head, (*merging, commit))
        else:
            words = trees.message_with("Merge the team's result", {}, "")
            head = await trees.commit_tree(self.git, mirror, merged.tree, (head, commit), words, who)
            await to_thread(layout.write_heads, place.git_dir, head)
        return MergeResult(sha=head, conflicts=merged.conflicts), merged.stages

    async def _conflicts(self, mirror: Path, head: str, merging: tuple[str, ...]) -> tuple[str, ...]:
        names: dict[str, None] = {}
        for other in merging:
            names |= dict.fromkeys((await trees.merge(self.git, mirror, head, other)).conflicts)
        return tuple(names)

    async def _unresolved(
        self, mirror: Path, place: trees.Place, head: str, merging: tuple[str, ...]
    ) -> tuple[str, ...]:
        """Files that conflicted and still hold markers."""
        names = await self._conflicts(mirror, head, merging)
        if not names:
            return ()
        done = await self.git.call(
            *(
                "grep",
                "--cached",
                "-z",
                "-l",
                "-E",
                "^(<<<<<<<|>>>>>>>) ",
                "--",
                *(f":(literal,top){n}" for n in names),
            ),
            git_dir=place.git_dir,
            work_tree=place.tree,
            index=place.index,
            objects=place.objects,
            ok=(0, 1),
        )
        return tuple(text(name) for name in done.out.split(b"\0") if name)

    async def _refresh(
        self, workspace: Workspace, place: trees.Place, objects: Path | None = None, stages: bytes = b""
    ) -> None:
        """A new throw-away `.git` with our index. Where a merge conflicts, the copy shows the sides as unmerged."""
        if not stages:
            await to_thread(_write_agent_git, workspace.path, workspace.role, objects or place.objects)
            return
        async with self._index_copy(place) as copy:
            zero = b"0" * 40
            paths = {entry.partition(b"\t")[2] for entry in stages.split(b"\0") if entry}
            lines = b"".join(b"0 %s\t%s\0" % (zero, path) for path in sorted(paths)) + stages
            await trees.plumb(self.git, copy, "update-index", "-z", "--index-info", input=lines)
            await to_thread(_write_agent_git, workspace.path, workspace.role, objects or place.objects, copy.index)

    @asynccontextmanager
    async def _index_copy(self, place: trees.Place) -> AsyncIterator[trees.Place]:
        # With its time: git has whole seconds only, and looks into files that changed in the second of the index.
        copy = place.git_dir / f"index-{secrets.token_hex(6)}"
        await to_thread(shutil.copy2, place.index, copy)
        try:
            yield trees.Place(git_dir=place.git_dir, tree=place.tree, index=copy, objects=place.objects)
        finally:
            await to_thread(copy.unlink, missing_ok=True)

    async def _all_mirrors(self) -> list[Path]:
        return await to_thread(lambda: [p for p in (self.root / "mirrors").glob("*") if (p / "HEAD").is_file()])

    async def _tell(self, execution: str, kind: str, data: Json) -> None:
        if self._emit is not None:
            await self._emit(execution, kind, data)


def _row(execution: str, role: str, number: int, kind: str, repo: Repository, base: str) -> dict[str, Any]:
    return {
        "id": f"{execution}.{role}.{number}", "execution": execution, "role": role, "number": number, "kind": kind,
        "repo": repo.location, "base": base, "created_at": time.time(),
    }  # fmt: skip


def _prepare(path: Path, card: layout.Card, base: str, objects: Path) -> None:
    (path / "tree").mkdir(parents=True)
    layout.write_server_git(path / "git", base, objects)
    layout.write_card(path / "git", card)


def _write_agent_git(path: Path, role: str, objects: Path, index: Path | None = None) -> None:
    head, merging = layout.read_heads(path / "git")
    layout.write_agent_git(
        path,
        tree=path / "tree",
        index=index or path / "git" / "index",
        role=role,
        head=head,
        merge_heads=merging,
        objects=objects,
    )


def _is_used(record: Path) -> bool:
    """A set-up that is whole and was wanted in the last days."""
    return record.is_file() and time.time() - record.stat().st_mtime < SETUP_KEPT_S


def _sweep(root: Path) -> int:
    """Half-made workspaces and mirrors, all checkouts, the trash, and the locks of a killed git."""
    trash = root / "trash"
    half_made = [*root.glob("*/.tmp-*"), *root.glob("checkouts/*"), *root.glob("*/*/.agent-git-*")]
    half_made += [*root.glob("*/*/.old-*"), *root.glob("*/*/git/index-*"), *root.glob("mirrors/*/changes-*.index*")]
    half_made += [path for path in root.glob("setups/*") if not _is_used(path / "setup.json")]
    for path in half_made:
        layout.discard(path, trash)
    for git_dir in root.glob("*/*/git"):
        layout.clear_locks(git_dir)
    for mirror in root.glob("mirrors/*"):
        if mirror.is_dir():
            layout.clear_mirror(mirror)
    if trash.is_dir():
        for path in trash.iterdir():
            layout.remove(path)
    return len(half_made)
