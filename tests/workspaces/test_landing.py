"""The user's own repository: opened without a trace, published to under refs/heads/parallax/, landed in with care."""

from __future__ import annotations

import os
import shutil

import pytest

from parallax.errors import ConflictError, NotFoundError, RemoteError, RepositoryError, UsageError

from .conftest import git, listing, write


def state(user):
    """Everything of the user's that must not change: HEAD, index, refs but ours, files, stash, config."""
    refs = [
        line
        for line in git(user, "for-each-ref", "--format=%(refname) %(objectname)").splitlines()
        if not line.startswith("refs/heads/parallax/")
    ]
    own = ("objects", "refs/heads/parallax", "logs/refs/heads/parallax", "logs", "refs")
    return refs, listing(user, but=(".git",)), listing(user / ".git", but=own)


async def test_opening_leaves_no_trace(service, user):
    write(user, {"src/a.py": "changed\n", "new.txt": "n", "noise.log": "i"})
    os.utime(user / "README.md", (1, 1))  # a stale index entry, which `git status` likes to refresh on disk
    before = state(user)
    repo = await service.open_repository(str(user))
    assert (repo.base_branch, repo.dirty, repo.local) == ("main", 2, user)
    assert repo.base_commit == git(user, "rev-parse", "HEAD")
    await service.open_repository(str(user), with_changes=True)
    assert state(user) == before


async def test_with_changes_takes_tracked_and_untracked_files_as_the_base(service, user):
    write(user, {"src/a.py": "changed\n", "new ü.txt": "n", "noise.log": "i"})
    (user / "src/b.py").unlink()
    git(user, "add", "src/a.py")
    before = state(user)
    repo = await service.open_repository(str(user), with_changes=True)
    assert git(repo.mirror, "rev-parse", f"{repo.base_commit}^") == git(user, "rev-parse", "HEAD")
    ws = await service.create("e", "engineer", 1, repo)
    expected = listing(user, but=(".git", "noise.log"))
    assert listing(ws.tree, but=(".git",)) == expected
    assert state(user) == before


async def test_a_base_of_before_is_opened_again_without_asking_the_repository(service, user, served):
    write(user, {"src/a.py": "changed\n"})
    local = await service.open_repository(str(user), with_changes=True)
    url = await service.open_repository(f"{served}/project/.git")
    git(user, "commit", "-q", "--amend", "-m", "history was rewritten")
    git(user, "reflog", "expire", "--expire=now", "--all")
    git(user, "gc", "-q", "--prune=now")
    assert (await service.open_repository(str(user), local.base_commit)).base_commit == local.base_commit
    again = await service.open_repository(f"{served}/project/.git", url.base_commit)
    assert (again.base_commit, again.mirror) == (url.base_commit, url.mirror)
    assert (await service.create("e", "r", 1, again)).tree.joinpath("src/a.py").read_text() == "A = 1\n"


async def test_the_users_global_excludes_count(service, user, tmp_path):
    ignore = tmp_path / "users-home" / ".config" / "git" / "ignore"
    ignore.parent.mkdir(parents=True)
    ignore.write_text(".DS_Store\n")
    write(user, {".DS_Store": "x"})
    assert (await service.open_repository(str(user))).dirty == 0


async def test_a_subfolder_a_worktree_and_a_bare_repository_are_understood(service, user, tmp_path):
    assert (await service.open_repository(str(user / "src"))).local == user
    git(user, "worktree", "add", "-q", "-b", "side", str(tmp_path / "linked"))
    write(tmp_path / "linked", {"s": "1"})
    git(tmp_path / "linked", "add", "-A")
    git(tmp_path / "linked", "commit", "-q", "-m", "side")
    linked = await service.open_repository(str(tmp_path / "linked"))
    main = await service.open_repository(str(user))
    assert linked.mirror == main.mirror
    assert linked.base_branch == "side"
    assert (await service.open_repository(str(user), "side")).base_commit == linked.base_commit
    git(user, "clone", "-q", "--bare", str(user), str(tmp_path / "bare.git"))
    bare = await service.open_repository(str(tmp_path / "bare.git"))
    assert bare.base_commit == main.base_commit


async def test_the_mirror_follows_the_repository(service, user):
    await service.open_repository(str(user))
    write(user, {"later": "1"})
    git(user, "add", "-A")
    git(user, "commit", "-q", "-m", "later")
    git(user, "checkout", "-q", "--detach")
    repo = await service.open_repository(str(user))
    assert (repo.base_branch, repo.base_commit) == ("", git(user, "rev-parse", "HEAD"))
    assert (await service.create("e", "r", 1, repo)).tree.joinpath("later").exists()


async def test_what_cannot_be_opened_is_said_clearly(service, user, tmp_path):
    with pytest.raises(RepositoryError, match="not a git repository"):
        await service.open_repository(str(tmp_path))
    with pytest.raises(RepositoryError, match="not a directory"):
        await service.open_repository(str(tmp_path / "nowhere"))
    empty = tmp_path / "empty"
    empty.mkdir()
    git(empty, "init", "-q")
    with pytest.raises(RepositoryError, match="has no commit yet"):
        await service.open_repository(str(empty))
    git(user, "branch", "develop")
    with pytest.raises(RepositoryError, match="no branch 'devlop': did you mean 'develop'"):
        await service.open_repository(str(user), "devlop")
    for base in ("--upload-pack=x", "a..b", "x\ny"):
        with pytest.raises(RepositoryError, match="no valid branch name"):
            await service.open_repository(str(user), base)
    with pytest.raises(RemoteError, match=r"cannot read http://127\.0\.0\.1:9/x"):
        await service.open_repository("http://127.0.0.1:9/x")
    git(user, "commit", "-q", "--allow-empty", "-m", "2")
    with pytest.raises(RepositoryError, match="belong to what is checked out"):
        await service.open_repository(str(user), "develop", with_changes=True)
    assert not list((service.root / "mirrors").glob(".tmp-*"))


async def test_a_tag_a_commit_and_a_shallow_clone_can_be_the_base(service, user, tmp_path):
    first = git(user, "rev-parse", "HEAD")
    git(user, "tag", "v1")
    write(user, {"second": "2"})
    git(user, "add", "-A")
    git(user, "commit", "-q", "-m", "second")
    for base in ("v1", first):
        repo = await service.open_repository(str(user), base)
        assert (repo.base_branch, repo.base_commit) == ("", first)
    git(tmp_path, "clone", "-q", "--depth", "1", f"file://{user}", "shallow")
    repo = await service.open_repository(str(tmp_path / "shallow"))
    ws = await service.create("e", "r", 1, repo)
    assert (ws.tree / "second").exists()
    write(ws.tree, {"x": "1"})
    assert await service.commit(ws, message="m", author="e", branch="parallax/e/r/s")
    assert await service.publish(repo, "e")


async def test_a_branch_called_parallax_is_said_clearly(service, user, repo, workspace, commit):
    await commit(workspace, {"x": "1"})
    git(user, "branch", "parallax")
    with pytest.raises(RepositoryError, match="could not be brought into"):
        await service.publish(repo, "exec1")


async def test_a_url_is_mirrored_and_followed(service, user, served):
    url = f"{served}/project/.git"
    repo = await service.open_repository(url)
    assert (repo.base_branch, repo.local, repo.dirty) == ("main", None, 0)
    ws = await service.create("e", "r", 1, repo)
    assert (ws.tree / "src/a.py").exists()
    write(user, {"later": "1"})
    git(user, "add", "-A")
    git(user, "commit", "-q", "-m", "later")
    again = await service.open_repository(url, "main")
    assert again.base_commit == git(user, "rev-parse", "HEAD")
    assert again.mirror == repo.mirror
    assert await service.publish(repo, "e") == []
    with pytest.raises(ConflictError, match="is a URL"):
        await service.land(repo, "e")
    with pytest.raises(RepositoryError, match="no branch 'mian': did you mean 'main'"):
        await service.open_repository(url, "mian")
    before = sorted((service.root / "mirrors").iterdir())
    with pytest.raises(RemoteError, match="no such repository"):
        await service.open_repository(f"{served}/nothing.git")
    with pytest.raises(RemoteError, match="renamed or moved"):
        await service.open_repository(f"{served}/redirect/project/.git")
    assert sorted((service.root / "mirrors").iterdir()) == before


@pytest.fixture
async def result(integration, service, repo, workspace, commit):
    sha = await commit(workspace, {"src/a.py": "A = 2\n", "made.py": "M = 1\n"})
    await integration.merge(repo, "exec1", sha, message="m")
    return sha


async def test_publish_brings_our_branches_and_touches_nothing_else(service, user, repo, result):
    write(user, {"src/b.py": "mine\n", "u": "untracked"})
    (user / ".git/hooks").mkdir(exist_ok=True)
    for hook in ("post-checkout", "reference-transaction", "post-merge"):
        (user / ".git/hooks" / hook).write_text(f"#!/bin/sh\ntouch {user}/canary\n")
        (user / ".git/hooks" / hook).chmod(0o755)
    before = state(user)
    published = await service.publish(repo, "exec1")
    assert state(user) == before
    assert published == [("parallax/exec1/engineer/step", result), ("parallax/exec1/result", result)]
    assert git(user, "show", "parallax/exec1/result:made.py") == "M = 1"
    assert await service.publish(repo, "exec1") == published
    assert await service.publish(repo, "other") == []


async def test_a_published_branch_that_the_user_checked_out_is_left_alone(
    service, user, repo, workspace, result, commit
):
    await service.publish(repo, "exec1")
    git(user, "checkout", "-q", "parallax/exec1/engineer/step")
    await commit(workspace, {"more": "1"})
    before = state(user)
    assert [name for name, _ in await service.publish(repo, "exec1")] == ["parallax/exec1/result"]
    assert state(user) == before


async def test_land_fast_forwards_and_keeps_unrelated_changes(service, user, repo, result):
    write(user, {"src/b.py": "mine\n", "untracked": "u"})
    landed = await service.land(repo, "exec1")
    assert (landed.branch, landed.sha, landed.how, landed.files) == ("main", result, "fast_forward", 2)
    assert git(user, "rev-parse", "main") == result
    assert (user / "made.py").read_text() == "M = 1\n"
    assert git(user, "status", "--porcelain") == "M src/b.py\n?? untracked"
    assert (await service.land(repo, "exec1")).how == "nothing"


async def test_land_merges_with_the_users_identity(service, user, repo, result):
    write(user, {"src/b.py": "B = 2\n"})
    git(user, "commit", "-qam", "meanwhile")
    landed = await service.land(repo, "exec1")
    assert landed.how == "merge"
    assert git(user, "log", "-1", "--format=%an|%cn|%s") == ("Ada|Ada|Merge the result of Parallax execution exec1")
    assert git(user, "status", "--porcelain") == ""


@pytest.mark.parametrize(
    "change", [{"src/a.py": "mine\n"}, {"made.py": "mine\n"}, {"made.py/inside": "mine\n"}], ids=str
)
async def test_land_refuses_to_overwrite_the_users_changes(service, user, repo, result, change):
    write(user, change)
    before = state(user)
    name = next(iter(change))
    with pytest.raises(ConflictError, match=rf"uncommitted changes in {name}.*--branch NAME"):
        await service.land(repo, "exec1")
    assert state(user) == before
    landed = await service.land(repo, "exec1", branch="team/work")
    assert (landed.branch, landed.how) == ("team/work", "created")
    assert git(user, "rev-parse", "team/work") == result
    assert git(user, "symbolic-ref", "HEAD") == "refs/heads/main"


async def test_land_refuses_to_overwrite_an_ignored_file(service, user, repo, workspace, integration, commit):
    write(workspace.tree, {".gitignore": ""})
    sha = await commit(workspace, {"x.log": "from the agent"})
    await integration.merge(repo, "exec1", sha, message="m")
    write(user, {"x.log": "mine"})
    with pytest.raises(ConflictError, match="--branch NAME"):
        await service.land(repo, "exec1")
    assert (user / "x.log").read_text() == "mine"


async def test_land_names_conflicting_files_and_leaves_everything(service, user, repo, result):
    write(user, {"src/a.py": "A = 'mine'\n"})
    git(user, "commit", "-qam", "meanwhile")
    before = state(user)
    with pytest.raises(ConflictError, match=r"both changed src/a.py"):
        await service.land(repo, "exec1")
    assert state(user) == before


async def test_land_on_a_branch_goes_only_forward(service, user, repo, result, workspace, commit, integration):
    await service.land(repo, "exec1", branch="work")
    later = await commit(workspace, {"later": "1"}, "two")
    await integration.merge(repo, "exec1", later, message="m")
    assert (await service.land(repo, "exec1", branch="work")).how == "fast_forward"
    assert (await service.land(repo, "exec1", branch="work")).how == "nothing"
    git(user, "commit", "-q", "--allow-empty", "-m", "x")
    git(user, "branch", "other")
    with pytest.raises(ConflictError, match="has commits that the result has not"):
        await service.land(repo, "exec1", branch="other")
    with pytest.raises(ConflictError, match="checked out"):
        await service.land(repo, "exec1", branch="main")
    with pytest.raises(UsageError, match="no valid branch name"):
        await service.land(repo, "exec1", branch="-D")
    with pytest.raises(NotFoundError, match="has no result"):
        await service.land(repo, "nothing")
    git(user, "checkout", "-q", "--detach")
    with pytest.raises(ConflictError, match="HEAD is detached"):
        await service.land(repo, "exec1")


async def test_land_needs_an_identity_only_for_a_merge(service, user, repo, result, tmp_path):
    (tmp_path / "users-home" / ".gitconfig").unlink()
    write(user, {"src/b.py": "B = 2\n"})
    git(user, "commit", "-qam", "meanwhile")
    with pytest.raises(ConflictError, match=r"set user.name and user.email"):
        await service.land(repo, "exec1")


async def test_a_repository_that_moved_is_opened_anew(service, user, tmp_path):
    await service.open_repository(str(user))
    shutil.move(user, tmp_path / "moved")
    with pytest.raises(RepositoryError, match="not a directory"):
        await service.open_repository(str(user))
    assert (await service.open_repository(str(tmp_path / "moved"))).base_branch == "main"
