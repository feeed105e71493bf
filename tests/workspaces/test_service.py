"""The life of a workspace: made, snapshotted, committed, restored, merged, cleaned up."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import time

import pytest

from parallax.errors import GitError, UsageError
from parallax.workspaces.git import Git
from parallax.workspaces.service import WorkspaceService, branch_name, slug

from .conftest import git, listing, write


async def test_a_workspace_is_a_clean_copy_in_which_the_agents_git_works(workspace, user):
    assert listing(workspace.tree, but=(".git",)) == listing(user, but=(".git",))
    assert git(workspace.tree, "status", "--porcelain") == ""
    assert git(workspace.tree, "log", "--format=%s") == "first"
    write(workspace.tree, {"src/a.py": "A = 2\n"})
    assert "+A = 2" in git(workspace.tree, "diff")


async def test_a_second_create_returns_what_is_there(service, repo, workspace):
    write(workspace.tree, {"new.txt": "mine"})
    again = await service.create("exec1", "engineer", 1, repo, base_commit=repo.base_commit)
    assert again == workspace
    assert (again.tree / "new.txt").read_text() == "mine"


async def test_commit_takes_all_changes_and_says_how_many(service, workspace, repo):
    write(workspace.tree, {"src/a.py": "A = 2\n", "new dir/ü.txt": "x\ny\n", "noise.log": "ignored"})
    (workspace.tree / "src/b.py").unlink()
    made = await service.commit(
        workspace,
        message="Change things",
        author="engineer",
        branch="parallax/exec1/engineer/one",
        trailers={"Parallax-Execution": "exec1", "Parallax-Step": "one"},
    )
    assert made is not None
    assert (made.files, made.insertions, made.deletions) == (3, 3, 2)
    assert git(repo.mirror, "rev-parse", "parallax/exec1/engineer/one") == made.sha
    assert git(repo.mirror, "log", "-1", "--format=%(trailers:key=Parallax-Step,valueonly)", made.sha) == "one"
    assert git(repo.mirror, "log", "-1", "--format=%an %ae %cn", made.sha) == (
        "engineer engineer@parallax.invalid Parallax"
    )
    assert git(workspace.tree, "status", "--porcelain") == ""
    assert git(workspace.tree, "rev-parse", "HEAD") == made.sha
    assert (workspace.tree / "noise.log").read_text() == "ignored"
    assert await service.commit(workspace, message="x", author="e", branch="parallax/exec1/engineer/two") is None


async def test_the_agents_own_commits_are_squashed(service, workspace, repo):
    write(workspace.tree, {"x": "1"})
    git(workspace.tree, "add", "-A")
    git(workspace.tree, "commit", "-q", "-m", "agent's own")
    made = await service.commit(workspace, message="ours", author="e", branch="parallax/exec1/e/s")
    assert git(repo.mirror, "log", "--format=%s", made.sha) == "ours\nfirst"


async def test_restore_brings_back_exactly_the_snapshot_and_keeps_the_debris(service, workspace, repo):
    write(workspace.tree, {"untracked.txt": "kept", "keep.log": "ignored", "src/a.py": "A = 5\n"})
    before = listing(workspace.tree, but=(".git",))
    sha = await service.snapshot(workspace, "step-1")
    assert git(repo.mirror, "rev-parse", "refs/parallax/snapshots/exec1/step-1") == sha
    write(workspace.tree, {"src/a.py": "broken", "more/junk.txt": "junk"})
    (workspace.tree / "untracked.txt").unlink()
    shutil.rmtree(workspace.tree / "src")
    (workspace.tree / "src").write_text("a file now")
    debris = await service.restore(workspace, sha)
    assert listing(workspace.tree, but=(".git",)) == before
    assert git(repo.mirror, "show", f"{debris}:more/junk.txt") == "junk"
    assert await service.head(workspace) == repo.base_commit
    assert await service.restore(workspace, sha) is None
    assert git(workspace.tree, "status", "--porcelain") == "M src/a.py\n?? untracked.txt"


async def test_a_change_in_the_second_of_the_checkout_is_seen_a_second_later(service, user, repo):
    """git compares whole seconds, and the time of the index tells it which files to look into: a copy must keep it."""
    while time.time() % 1 > 0.3:
        await asyncio.sleep(0.02)
    ws = await service.create("exec1", "engineer", 1, repo)
    write(ws.tree, {"src/a.py": "A = 9\n"})  # as long as before
    write(user, {"src/b.py": "B = 9\n"})
    git(user, "add", "-A")
    write(user, {"src/b.py": "B = 8\n"})
    await asyncio.sleep(1)
    snap = await service.snapshot(ws, "s")
    assert await service.read_file(repo.mirror, snap, "src/a.py") == "A = 9\n"
    assert git(ws.tree, "status", "--porcelain") == "M src/a.py"
    changed = await service.open_repository(str(user), with_changes=True)
    assert await service.read_file(repo.mirror, changed.base_commit, "src/b.py") == "B = 8\n"


async def test_restore_takes_back_a_commit(service, workspace, repo, commit):
    sha = await service.snapshot(workspace, "before")
    await commit(workspace, {"x": "1"})
    await service.restore(workspace, sha)
    assert await service.head(workspace) == repo.base_commit
    assert not (workspace.tree / "x").exists()


async def test_restore_works_on_a_torn_index_and_left_locks(service, workspace):
    sha = await service.snapshot(workspace, "s")
    write(workspace.tree, {"junk": "1", "src/a.py": "bad"})
    (workspace.path / "git" / "index").write_bytes(b"DIRC torn")
    (workspace.path / "git" / "index.lock").write_bytes(b"")
    assert await service.restore(workspace, sha)
    assert (workspace.tree / "src/a.py").read_text() == "A = 1\n"
    assert not (workspace.tree / "junk").exists()


async def test_a_file_ignored_later_is_not_tracked_because_of_a_snapshot(service, workspace, repo):
    write(workspace.tree, {"gen.out": "x"})
    await service.snapshot(workspace, "s")
    write(workspace.tree, {".gitignore": "*.out\n"})
    made = await service.commit(workspace, message="m", author="e", branch="parallax/exec1/e/s")
    assert "gen.out" not in git(repo.mirror, "ls-tree", "-r", "--name-only", made.sha)


async def test_merge_into_a_clean_workspace_moves_it_forward(service, repo, workspace, commit):
    other = await service.create("exec1", "tester", 1, repo, base_commit=repo.base_commit)
    sha = await commit(other, {"t.py": "T = 1\n"})
    merged = await service.merge_into(workspace, sha)
    assert (merged.sha, merged.conflicts) == (sha, ())
    assert (workspace.tree / "t.py").exists()
    assert git(workspace.tree, "status", "--porcelain") == ""
    assert (await service.merge_into(workspace, sha)).sha == sha


async def test_merge_of_two_sides_is_a_merge_commit_and_keeps_uncommitted_work(service, repo, workspace, commit):
    other = await service.create("exec1", "tester", 1, repo, base_commit=repo.base_commit)
    theirs = await commit(other, {"t.py": "T = 1\n"})
    ours = await commit(workspace, {"o.py": "O = 1\n"})
    write(workspace.tree, {"wip.py": "W"})
    merged = await service.merge_into(workspace, theirs)
    assert merged.sha == ours
    assert (workspace.tree / "wip.py").read_text() == "W"
    assert (workspace.tree / "t.py").exists()
    made = await service.commit(workspace, message="m", author="e", branch="parallax/exec1/e/s")
    assert git(repo.mirror, "rev-parse", f"{made.sha}^1", f"{made.sha}^2").split() == [ours, theirs]


async def test_a_conflict_leaves_markers_and_the_next_commit_is_the_merge(service, repo, workspace, commit):
    other = await service.create("exec1", "tester", 1, repo, base_commit=repo.base_commit)
    theirs = await commit(other, {"src/a.py": "A = 'theirs'\n", "free.py": "F"})
    ours = await commit(workspace, {"src/a.py": "A = 'ours'\n"})
    merged = await service.merge_into(workspace, theirs)
    assert merged.conflicts == ("src/a.py",)
    assert "<<<<<<<" in (workspace.tree / "src/a.py").read_text()
    assert "UU src/a.py" in git(workspace.tree, "status", "--porcelain")
    assert (await service.merge_into(workspace, theirs)).conflicts == ("src/a.py",)
    snap = await service.snapshot(workspace, "in-conflict")
    write(workspace.tree, {"src/a.py": "gone wrong"})
    await service.restore(workspace, snap)
    assert "<<<<<<<" in (workspace.tree / "src/a.py").read_text()
    assert "UU src/a.py" in git(workspace.tree, "status", "--porcelain")
    write(workspace.tree, {"src/a.py": "A = 'both'\n"})
    made = await service.commit(workspace, message="m", author="e", branch="parallax/exec1/e/s")
    assert made.unresolved == ()
    assert git(repo.mirror, "rev-parse", f"{made.sha}^1", f"{made.sha}^2").split() == [ours, theirs]
    assert git(repo.mirror, "show", f"{made.sha}:free.py") == "F"


async def test_markers_that_the_agent_left_are_reported(service, repo, workspace, commit):
    other = await service.create("exec1", "tester", 1, repo, base_commit=repo.base_commit)
    theirs = await commit(other, {"src/a.py": "A = 'theirs'\n"})
    await commit(workspace, {"src/a.py": "A = 'ours'\n"})
    await service.merge_into(workspace, theirs)
    made = await service.commit(workspace, message="m", author="e", branch="parallax/exec1/e/s")
    assert made.unresolved == ("src/a.py",)


async def test_move_to_another_commit_leaves_nothing_of_before(service, repo, workspace, commit):
    first = await commit(workspace, {"x": "1"})
    write(workspace.tree, {"y": "2"})
    await service.move_to(workspace, repo.base_commit)
    assert not (workspace.tree / "x").exists()
    assert not (workspace.tree / "y").exists()
    await service.move_to(workspace, first)
    assert (workspace.tree / "x").read_text() == "1"


async def test_strange_names_and_kinds_of_files_survive(service, user, repo, commit):
    names = {
        "with space.txt": "1",
        "ünï/çødé.txt": "2",
        "new\nline.txt": "3",
        "crlf.txt": b"a\r\nb\r\n",
        "tab\t\"q'.t": "4",
    }
    write(user, names)
    (user / "run.sh").write_text("#!/bin/sh\n")
    (user / "run.sh").chmod(0o755)
    os.symlink("src/a.py", user / "link")
    os.symlink("/etc", user / "outside")
    (user / os.fsdecode(b"latin\xe9.txt")).write_text("5")
    git(user, "add", "-A")
    git(user, "commit", "-q", "-m", "strange")
    repo = await service.open_repository(str(user))
    ws = await service.create("exec2", "engineer", 1, repo, base_commit=repo.base_commit)
    assert listing(ws.tree, but=(".git",)) == listing(user, but=(".git",))
    (ws.tree / "empty").mkdir()
    os.symlink("b.py", ws.tree / "src/link")
    (ws.tree / "src/a.py").chmod(0o755)
    write(ws.tree, {"more\nlines\n": "6"})
    before = listing(ws.tree, but=(".git", "empty"))
    snap = await service.snapshot(ws, "s")
    for path in ("src/link", "more\nlines\n", "run.sh"):
        (ws.tree / path).unlink()
    (ws.tree / "outside").unlink()
    await service.restore(ws, snap)
    assert listing(ws.tree, but=(".git", "empty")) == before
    made = await service.commit(ws, message="m", author="e", branch="parallax/exec2/e/s")
    assert made.files == 3


async def test_cleanup_deletes_workspaces_and_snapshots_and_keeps_branches(service, repo, workspace, commit):
    sha = await commit(workspace, {"x": "1"})
    await service.snapshot(workspace, "s")
    (workspace.tree / "locked").mkdir()
    write(workspace.tree, {"locked/x": "1"})
    (workspace.tree / "locked").chmod(0o000)
    await service.cleanup("exec1")
    assert not workspace.path.exists()
    assert not any((service.root / "trash").iterdir())
    assert git(repo.mirror, "for-each-ref", "--format=%(refname)", "refs/parallax/snapshots") == ""
    assert git(repo.mirror, "rev-parse", "parallax/exec1/engineer/step") == sha


@pytest.mark.parametrize("point", ["clone.mid", "clone.done_before_record", "snapshot.before_step"])
async def test_a_kill_in_the_middle_is_harmless(tmp_path, user, point):
    root = tmp_path / "data" / "workspaces"
    program = f"""
import asyncio
from pathlib import Path
from parallax import failpoints
from parallax.workspaces.git import Git
from parallax.workspaces.service import WorkspaceService
failpoints.arm("{point}=kill")
async def main():
    service = WorkspaceService(Path({str(root)!r}), Git())
    repo = await service.open_repository({str(user)!r})
    ws = await service.create("exec1", "engineer", 1, repo)
    await service.snapshot(ws, "s")
asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", program], check=False)
    assert done.returncode == -9
    service = WorkspaceService(root, Git())
    await service.sweep()
    repo = await service.open_repository(str(user))
    ws = await service.create("exec1", "engineer", 1, repo)
    assert listing(ws.tree, but=(".git",)) == listing(user, but=(".git",))
    snap = await service.snapshot(ws, "s")
    await service.restore(ws, snap)
    assert [p.name for p in (root / "exec1").iterdir()] == ["engineer.1"]
    assert not list(root.rglob("*.lock"))


async def test_after_a_kill_at_any_moment_restore_brings_the_snapshot_back(tmp_path, user):
    root = tmp_path / "data" / "workspaces"
    program = f"""
import asyncio, itertools
from pathlib import Path
from parallax.workspaces.git import Git
from parallax.workspaces.service import WorkspaceService
async def main():
    service = WorkspaceService(Path({str(root)!r}), Git())
    await service.sweep()
    repo = await service.open_repository({str(user)!r})
    ws = await service.create("exec1", "engineer", 1, repo)
    other = await service.create("exec1", "tester", 1, repo)
    (other.tree / "src/a.py").write_text("A = 'theirs'")
    theirs = await service.commit(other, message="t", author="t", branch="parallax/exec1/tester/t")
    theirs = theirs.sha if theirs else await service.head(other)
    (ws.tree / "wip.txt").write_text("wip")
    snap = await service.snapshot(ws, "s")
    print(snap, flush=True)
    for n in itertools.count():
        (ws.tree / "src/a.py").write_text(f"A = {{n}}")
        for name in ("x", "y"):
            (ws.tree / f"{{name}}{{n}}").write_text("junk" * 5000)
        await service.commit(ws, message="m", author="e", branch="parallax/exec1/engineer/s")
        await service.merge_into(ws, theirs)
        await service.restore(ws, snap)
asyncio.run(main())
"""
    for delay in (0.013, 0.031, 0.057, 0.083, 0.111, 0.139):
        process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
        snap = process.stdout.readline().strip()
        time.sleep(delay)
        process.kill()
        process.communicate()
        service = WorkspaceService(root, Git())
        await service.sweep()
        ws = await service.find("exec1", "engineer", 1)
        await service.restore(ws, snap)
        expected = listing(user, but=(".git",)) | {"wip.txt": (0o644, b"wip")}
        assert listing(ws.tree, but=(".git",)) == expected
        assert git(ws.tree, "status", "--porcelain") == "?? wip.txt"
        assert sorted(p.name for p in (root / "exec1").iterdir()) == ["engineer.1", "tester.1"]
        git(next((root / "mirrors").glob("*/HEAD")).parent, "fsck", "--connectivity-only")


async def test_a_workspace_moves_into_a_folder_that_its_role_has_already(service, repo):
    scratch = service.root / "exec1" / "engineer.1" / "scratch"
    write(scratch, {"notes": "1"})
    write(scratch.parent / "tree", {"half-made": "1"})
    ws = await service.create("exec1", "engineer", 1, repo)
    assert (ws.tree / "src/a.py").exists()
    assert not (ws.tree / "half-made").exists()
    assert (scratch / "notes").exists()
    assert [p.name for p in (service.root / "exec1").iterdir()] == ["engineer.1"]


async def test_what_fails_in_the_making_leaves_nothing(service, repo):
    with pytest.raises(GitError):
        await service.create("exec1", "engineer", 1, repo, base_commit="0" * 39 + "1")
    assert list((service.root / "exec1").iterdir()) == []


async def test_events_tell_the_life_of_a_workspace(service, repo, workspace, commit, events):
    await service.snapshot(workspace, "s")
    await commit(workspace, {"x": "1"})
    await service.cleanup("exec1")
    assert [kind for _, kind, _ in events] == [
        f"workspace.{kind}" for kind in ("provisioning", "ready", "snapshot", "finalising", "cleaned_up")
    ]


@pytest.mark.parametrize("role", ["../x", "a/b", ".hidden", "-x", "", "a\nb", "a\0b"])
async def test_a_role_that_leads_elsewhere_is_refused(service, repo, role):
    with pytest.raises(UsageError, match="name of a role"):
        await service.create("exec1", role, 1, repo, base_commit=repo.base_commit)


def test_branch_names_follow_the_language():
    assert branch_name("e", "engineer", "build", has_id=True) == "parallax/e/engineer/build"
    assert branch_name("e", "engineer", "build 1.2", has_id=True) == f"parallax/e/engineer/{slug('build 1.2')}"
    assert slug("build 1.2").startswith("build-1-2-")
    assert len(slug("build 1.2")) == len("build-1-2-") + 6
    assert branch_name("e", "engineer", "par[2]/assign#1", has_id=False).rpartition("/")[2].isalnum()


async def test_a_checkout_is_shared_while_in_use_and_gone_afterwards(service, repo):
    async with service.checkout(repo, repo.base_commit) as one, service.checkout(repo, repo.base_commit) as two:
        assert one == two
        assert (one / "src/a.py").read_text() == "A = 1\n"
        assert git(one, "describe", "--always") == repo.base_commit[:7]
        assert list((one.parent / "home").iterdir()) == []
    assert not one.parent.exists()


async def test_history_is_read_from_the_mirror(service, repo, workspace, commit):
    sha = await commit(workspace, {"x y.txt": "1\n2\n", "bin": b"\0\1"})
    assert "+1" in await service.diff(repo.mirror, repo.base_commit, sha)
    assert "x y.txt" in await service.diff(repo.mirror, repo.base_commit, sha, stat=True)
    stat = await service.diffstat(repo.mirror, repo.base_commit, sha)
    assert (stat.files, stat.insertions, stat.deletions) == (2, 2, 0)
    [entry] = await service.log(repo.mirror, repo.base_commit, sha)
    assert (entry.sha, entry.parents, entry.subject) == (sha, (repo.base_commit,), "work of step")
    assert {f.path for f in await service.files(repo.mirror, sha, "src")} == {"src/a.py", "src/b.py"}
    assert await service.read_file(repo.mirror, sha, "x y.txt") == "1\n2\n"
    assert await service.read_file(repo.mirror, sha, "nope") is None
