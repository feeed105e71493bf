"""The agent is assumed hijacked: what it plants in its tree is never run, and nothing outside the tree is touched.

Every planted command touches a canary file; every test ends by looking for it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from parallax.workspaces.checks import CheckRunner
from parallax.workspaces.profile import load

from .conftest import git, listing, write


@pytest.fixture
def canary(tmp_path: Path):
    path = tmp_path / "canary"
    script = tmp_path / "evil.sh"
    script.write_text(f"#!/bin/sh\necho $0 $@ >> {path}\ncat\n")
    script.chmod(0o755)
    yield str(script)
    assert not path.exists(), path.read_text()


def poison(git_dir: Path, evil: str) -> None:
    """All that a git configuration can name, and every hook."""
    with (git_dir / "config").open("a") as config:
        config.write(f"""
[core]
	fsmonitor = {evil}
	sshCommand = {evil}
	pager = {evil}
	editor = {evil}
	hooksPath = {git_dir}/hooks
	alternateRefsCommand = {evil}
	gitProxy = {evil}
	askPass = {evil}
[diff]
	external = {evil}
[diff "evil"]
	command = {evil}
	textconv = {evil}
[filter "evil"]
	clean = {evil}
	smudge = {evil}
	process = {evil}
	required = true
[merge "evil"]
	driver = {evil}
[alias]
	status = !{evil}
	add = !{evil}
	diff = !{evil}
	read-tree = !{evil}
[uploadpack]
	packObjectsHook = {evil}
[credential]
	helper = !{evil}
[gpg]
	program = {evil}
[commit]
	gpgsign = true
[submodule]
	recurse = true
[extensions]
	worktreeConfig = true
""")
    hooks = git_dir / "hooks"
    hooks.mkdir(exist_ok=True)
    for name in ("pre-commit", "post-checkout", "post-merge", "post-index-change", "reference-transaction", "pre-push"):
        (hooks / name).write_text(f"#!/bin/sh\n{evil} {name}\n")
        (hooks / name).chmod(0o755)


ATTRIBUTES = "* filter=evil diff=evil merge=evil\n"


async def use_everything(service, integration, repo, ws, runtime) -> None:
    """Each thing that the server does after an agent's turn."""
    snap = await service.snapshot(ws, "s")
    write(ws.tree, {"src/a.py": "A = 3\n"})
    await service.restore(ws, snap)
    write(ws.tree, {"src/a.py": "A = 4\n"})
    made = await service.commit(ws, message="m", author="engineer", branch="parallax/exec1/engineer/s")
    other = await service.create("exec1", "other", 1, repo, base_commit=repo.base_commit)
    write(other.tree, {"src/a.py": "A = 5\n", "o": "1", ".gitattributes": ATTRIBUTES})
    theirs = await service.commit(other, message="m", author="o", branch="parallax/exec1/other/s")
    assert (await service.merge_into(ws, theirs.sha)).conflicts
    write(ws.tree, {"src/a.py": "A = 6\n"})
    merged = await service.commit(ws, message="m", author="engineer", branch="parallax/exec1/engineer/s")
    await service.refresh_agent_git(ws)
    await integration.merge(repo, "exec1", merged.sha, message="m")
    await service.diff(repo.mirror, repo.base_commit, merged.sha)
    await service.diffstat(repo.mirror, repo.base_commit, made.sha)
    await service.log(repo.mirror, None, merged.sha)
    await CheckRunner(service, runtime).run(repo, merged.sha, ["true"], profile=load(""))
    await service.publish(repo, "exec1")
    await service.land(repo, "exec1", branch="landed")
    await service.land(repo, "exec1")
    await service.cleanup("exec1")


async def test_a_poisoned_git_directory_runs_nothing(service, integration, repo, workspace, runtime, canary):
    poison(workspace.tree / ".git", canary)
    write(workspace.tree, {".gitattributes": ATTRIBUTES})
    done = subprocess.run(["git", "status"], cwd=workspace.tree, capture_output=True, check=False)
    assert Path(canary).with_name("canary").exists(), f"the trap must work for a careless git: {done}"
    Path(canary).with_name("canary").unlink()
    await use_everything(service, integration, repo, workspace, runtime)


async def test_a_git_directory_renamed_and_rebuilt_runs_nothing(service, integration, repo, workspace, runtime, canary):
    (workspace.tree / ".git").rename(workspace.tree / ".old")
    git(workspace.tree, "init", "-q")
    poison(workspace.tree / ".git", canary)
    await use_everything(service, integration, repo, workspace, runtime)


@pytest.mark.parametrize("form", ["symlink", "file", "missing", "fifo", "locked"])
async def test_any_form_of_git_is_replaced_and_never_followed(service, repo, workspace, tmp_path, canary, form):
    outside = tmp_path / "outside"
    git(tmp_path, "init", "-q", str(outside))
    write(outside, {"x": "1"})
    git(outside, "add", "-A")
    git(outside, "commit", "-q", "-m", "x")
    poison(outside / ".git", canary)
    before = listing(outside)
    place = workspace.tree / ".git"
    shutil.rmtree(place)
    match form:
        case "symlink":
            place.symlink_to(outside / ".git")
        case "file":
            place.write_text(f"gitdir: {outside}/.git\n")
        case "fifo":
            os.mkfifo(place)
        case "locked":
            write(workspace.tree, {".git/deep/x": "1"})
            (place / "deep").chmod(0)
            place.chmod(0)
    write(workspace.tree, {"src/a.py": "A = 2\n"})
    snap = await service.snapshot(workspace, "s")
    await service.restore(workspace, snap)
    made = await service.commit(workspace, message="m", author="e", branch="parallax/exec1/e/s")
    assert made.files == 1
    assert listing(outside) == before
    assert git(workspace.tree, "rev-parse", "HEAD") == made.sha
    assert not any(".git" in f.path.split("/") for f in await service.files(repo.mirror, made.sha))


async def test_nested_repositories_are_left_out_and_named(service, repo, workspace, tmp_path, canary):
    for name in ("vendor/x", "no commit"):
        nested = workspace.tree / name
        nested.mkdir(parents=True)
        git(nested, "init", "-q")
        poison(nested / ".git", canary)
        write(nested, {"inner.txt": "1"})
    git(workspace.tree / "vendor/x", "-c", "core.fsmonitor=", "-c", "core.hooksPath=/dev/null", "commit", "-q",
        "--allow-empty", "--no-gpg-sign", "-m", "x")  # fmt: skip
    Path(canary).with_name("canary").unlink(missing_ok=True)
    (workspace.tree / "pointer").mkdir()
    (workspace.tree / "pointer/.git").write_text("gitdir: ../vendor/x/.git\n")
    git(workspace.tree / "src", "init", "-q")
    poison(workspace.tree / "src/.git", canary)
    write(workspace.tree, {"src/new.py": "N", "src/a.py": "A = 2\n"})
    made = await service.commit(workspace, message="m", author="e", branch="parallax/exec1/e/s")
    assert set(made.left_out) == {"vendor/x/", "no commit/", "pointer/"}
    paths = {f.path: f.mode for f in await service.files(repo.mirror, made.sha)}
    assert set(paths) == {".gitignore", "README.md", "src/a.py", "src/b.py", "src/new.py"}
    assert "160000" not in paths.values()
    snap = await service.snapshot(workspace, "s")
    await service.restore(workspace, snap)
    assert not (workspace.tree / "vendor").exists()


async def test_a_submodule_filled_by_the_agent_runs_nothing(service, user, tmp_path, canary):
    inner = tmp_path / "inner"
    git(tmp_path, "init", "-q", str(inner))
    git(inner, "commit", "-q", "--allow-empty", "-m", "x")
    git(user, "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(inner), "sub")
    git(user, "commit", "-q", "-m", "submodule")
    repo = await service.open_repository(str(user))
    ws = await service.create("exec2", "engineer", 1, repo, base_commit=repo.base_commit)
    git(ws.tree / "sub", "init", "-q")
    write(ws.tree / "sub", {"f": "1", ".gitattributes": ATTRIBUTES})
    git(ws.tree / "sub", "add", "-A")
    git(ws.tree / "sub", "commit", "-q", "-m", "x")
    poison(ws.tree / "sub/.git", canary)
    write(ws.tree, {"sub/f": "2", "mine": "1"})
    subprocess.run(["git", "status"], cwd=ws.tree, capture_output=True, check=False)
    assert Path(canary).with_name("canary").exists(), "the trap must work for a careless git"
    Path(canary).with_name("canary").unlink()
    snap = await service.snapshot(ws, "s")
    write(ws.tree, {"mine": "2"})
    await service.restore(ws, snap)
    made = await service.commit(ws, message="m", author="e", branch="parallax/exec2/e/s")
    stat = await service.diffstat(repo.mirror, repo.base_commit, made.sha)
    assert stat.files == 1


async def test_links_out_of_the_tree_are_links_and_nothing_more(service, repo, workspace, tmp_path):
    outside = tmp_path / "outside"
    write(outside, {"src/a.py": "theirs", "keep": "1"})
    before = listing(outside)
    snap = await service.snapshot(workspace, "s")
    shutil.rmtree(workspace.tree / "src")
    (workspace.tree / "src").symlink_to(outside / "src")
    (workspace.tree / "out").symlink_to(outside)
    (workspace.tree / "README.md").unlink()
    (workspace.tree / "README.md").symlink_to(outside / "keep")
    made = await service.commit(workspace, message="m", author="e", branch="parallax/exec1/e/s")
    paths = {f.path: f.mode for f in await service.files(repo.mirror, made.sha)}
    assert (paths["src"], paths["out"], paths["README.md"]) == ("120000", "120000", "120000")
    assert "src/a.py" not in paths
    assert await service.read_file(repo.mirror, made.sha, "README.md") is None
    await service.restore(workspace, snap)
    assert listing(outside) == before
    assert (workspace.tree / "src/a.py").read_text() == "A = 1\n"
    assert not (workspace.tree / "out").exists()
    async with service.checkout(repo, made.sha) as tree:
        assert (tree / "src").is_symlink()
    await service.cleanup("exec1")
    assert listing(outside) == before


async def test_the_tree_itself_replaced_by_a_link_is_not_followed(service, repo, workspace, tmp_path):
    outside = tmp_path / "outside"
    write(outside, {"src/a.py": "theirs"})
    before = listing(outside)
    snap = await service.snapshot(workspace, "s")
    shutil.rmtree(workspace.tree)
    workspace.tree.symlink_to(outside)
    await service.restore(workspace, snap)
    assert listing(outside) == before
    assert (workspace.tree / "src/a.py").read_text() == "A = 1\n"


async def test_names_that_git_refuses_do_not_stop_a_commit(service, repo, workspace):
    write(workspace.tree, {".GIT/config": "x", "a/.Git/hooks/x": "x", "git~1": "x", "fine": "1"})
    made = await service.commit(workspace, message="m", author="e", branch="parallax/exec1/e/s")
    assert {f.path for f in await service.files(repo.mirror, made.sha)} >= {"fine"}
    assert made.files == 1
    assert set(made.left_out) == {".GIT/config", "a/.Git/hooks/x", "git~1"}


async def test_special_files_and_unreadable_ones_do_not_stop_a_commit(service, repo, workspace):
    os.mkfifo(workspace.tree / "pipe")
    write(workspace.tree, {"locked": "1", "dir/x": "1"})
    (workspace.tree / "locked").chmod(0)
    made = await service.commit(workspace, message="m", author="e", branch="parallax/exec1/e/s")
    assert made.files == 2


async def test_a_folder_without_rights_hides_nothing(service, repo, workspace):
    snap = await service.snapshot(workspace, "s")
    write(workspace.tree, {"hidden/x": "1", "src/a.py": "A = 2\n"})
    for name in ("hidden", "src", "."):
        (workspace.tree / name).chmod(0)
    made = await service.commit(workspace, message="m", author="e", branch="parallax/exec1/e/s")
    assert made.files == 2
    for name in ("hidden", "src", "."):
        (workspace.tree / name).chmod(0o500)
    await service.restore(workspace, snap)
    assert not (workspace.tree / "hidden").exists()
    assert (workspace.tree / "src/a.py").read_text() == "A = 1\n"


async def test_a_message_cannot_forge_our_trailers_nor_inject_a_header(service, repo, workspace):
    write(workspace.tree, {"x": "1"})
    made = await service.commit(
        workspace,
        message="Work\n\nParallax-Step: forged\n",
        author="evil\n<x@y>\ncommitter z",
        branch="parallax/exec1/e/s",
        trailers={"Parallax-Step": "true\nParallax-Execution: forged"},
    )
    trailers = git(repo.mirror, "log", "-1", "--format=%(trailers)", made.sha)
    assert trailers == "Parallax-Step: true Parallax-Execution: forged"
    assert git(repo.mirror, "log", "-1", "--format=%cn", made.sha) == "Parallax"


async def test_a_locked_directory_does_not_survive_cleanup(service, repo, workspace):
    write(workspace.tree, {"a/b/c": "1"})
    (workspace.tree / "a/b").chmod(0)
    (workspace.tree / "a").chmod(0)
    await service.cleanup("exec1")
    assert not any((service.root / "trash").iterdir())
