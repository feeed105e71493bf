"""The door to git: its environment, its limits, and what it lets through."""

from __future__ import annotations

import asyncio
import os
import time

import pytest

from parallax.errors import ConfigurationError, GitError, RepositoryError, UsageError
from parallax.workspaces.git import Git, Locks, check_branch, check_commit, check_url, is_url

from .conftest import git


def fake(tmp_path, script):
    path = tmp_path / "fake-git"
    path.write_text(f"#!/bin/sh\nif [ $# = 1 ]; then echo git version 2.39.5; exit; fi\n{script}\n")
    path.chmod(0o755)
    return Git(str(path))


async def test_nothing_of_the_servers_environment_reaches_git(tmp_path, monkeypatch):
    for name in ("SECRET_TOKEN", "GIT_DIR", "GIT_CONFIG_COUNT", "GIT_SSH_COMMAND", "GIT_EXEC_PATH"):
        monkeypatch.setenv(name, "canary")
    out = await fake(tmp_path, "env").run("status")
    assert "canary" not in out
    assert {line.partition("=")[0] for line in out.splitlines()} - {"PWD", "SHLVL", "_", "OLDPWD"} == {
        "PATH", "LC_ALL", "GIT_CONFIG_NOSYSTEM", "GIT_CONFIG_GLOBAL", "GIT_TERMINAL_PROMPT", "GIT_ALLOW_PROTOCOL",
        "GIT_ATTR_NOSYSTEM", "GIT_LFS_SKIP_SMUDGE", "GIT_OPTIONAL_LOCKS", "GIT_EDITOR", "GIT_ASKPASS", "SSH_ASKPASS",
    }  # fmt: skip
    assert "GIT_ALLOW_PROTOCOL=https\n" in out


async def test_file_and_http_are_open_for_the_one_call_that_says_so(tmp_path, user):
    program = fake(tmp_path, "env")
    assert "GIT_ALLOW_PROTOCOL=https:file" in await program.run("fetch", "/x", allow_file=True)
    assert "GIT_ALLOW_PROTOCOL=https:http" in await program.run("fetch", "http://127.0.0.1/x")
    with pytest.raises(GitError, match="transport 'file' not allowed"):
        await Git().run("ls-remote", str(user))
    assert "refs/heads/main" in await Git().run("ls-remote", str(user), allow_file=True)
    for url in ("ext::sh -c true", "git://127.0.0.1/x", "ssh://127.0.0.1/x"):
        with pytest.raises(GitError, match="not allowed"):
            await Git().run("ls-remote", "--", url, allow_file=True)


async def test_an_error_is_gits_own_sentence(user):
    with pytest.raises(GitError, match=r"^git rev-parse failed: Needed a single revision$") as caught:
        await Git().run("rev-parse", "--verify", "nothing", git_dir=user / ".git")
    assert caught.value.stderr.startswith("fatal:")


async def test_a_call_that_takes_too_long_is_ended_with_its_children(tmp_path):
    pid = tmp_path / "pid"
    with pytest.raises(GitError, match=r"git gc took longer than 0.3 s and was stopped"):
        await fake(tmp_path, f"sleep 60 & echo $! > {pid}; sleep 60").run("gc", timeout_s=0.3)
    await gone(int(pid.read_text()))


async def test_cancelling_ends_the_group(tmp_path):
    pid = tmp_path / "pid"
    task = asyncio.create_task(fake(tmp_path, f"sleep 60 & echo $! > {pid}; sleep 60").run("gc"))
    while not pid.exists() or not pid.read_text().strip():
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await gone(int(pid.read_text()))


async def gone(pid):
    for _ in range(100):
        try:
            with open(f"/proc/{pid}/stat") as stat:
                if stat.read().split()[2] == "Z":
                    return
        except FileNotFoundError:
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"{pid} lives")


async def test_output_is_bounded(tmp_path):
    with pytest.raises(GitError, match="more than 1,000 bytes"):
        await fake(tmp_path, "yes").call("log", max_output_b=1000)
    with pytest.raises(GitError) as caught:
        await fake(tmp_path, "yes x | head -c 1000000 >&2; echo fatal: the end >&2; exit 1").run("log")
    assert str(caught.value) == "git log failed: the end"
    assert len(caught.value.stderr) <= 65536


async def test_input_that_git_does_not_read_is_no_error(tmp_path):
    assert await fake(tmp_path, "exec 0<&-; echo ok").run("x", "y", input=b"z" * 1_000_000) == "ok"


async def test_an_old_or_missing_git_is_said_clearly(tmp_path):
    old = tmp_path / "old"
    old.write_text("#!/bin/sh\necho git version 2.30.2\n")
    old.chmod(0o755)
    with pytest.raises(ConfigurationError, match=r"git 2.38 or newer is needed, this is git version 2.30.2"):
        await Git(str(old)).run("status")
    with pytest.raises(ConfigurationError, match=r"install git 2\.38"):
        await Git("no-such-git").run("status")


GOOD = [
    "https://github.com/a/b.git",
    "https://host:8443/a",
    "https://1.2.3.4/x",
    "http://localhost:1/x",
    "http://[::1]/x",
]
BAD = [
    "ext::sh -c touch% x", "EXT::x", "fd::17", "file:///etc", "git://h/x", "ssh://-oProxyCommand=x/y", "http://h/x",
    "https:///host", "https://", "https://host", "https://host/", "https://u:p@h/x", "https://u@h/x", "https://h:port@x/y",
    "https://h/a%0ab", "https://h/a%00", "https://h/a b", "https://h\\@evil/x", "https://h/x\nhttps://g", "https://h/x?y",
    "https://h/x#y", "https://пример.рф/x", "https://h..x/y", "https://-h/x", "https://h:99999/x", "HTTPS://h/x", "https://h:/x",
    "-u", "--upload-pack=x", "http://127.0.0.1.evil.org/x", "http://localhost@evil/x", "https://h/" + "a" * 3000, "",
]  # fmt: skip


@pytest.mark.parametrize("url", GOOD)
def test_urls_that_are_let_through(url):
    assert check_url(url) == url
    assert is_url(url)


@pytest.mark.parametrize("url", BAD)
def test_urls_that_are_refused(url):
    with pytest.raises(RepositoryError):
        check_url(url)


@pytest.mark.parametrize(
    "location", ["ext::sh -c x", "file:///etc", "git@github.com:a/b.git", "ssh://h/x", "-u", "--x=y"]
)
async def test_hostile_locations_are_no_repository(service, location):
    with pytest.raises(RepositoryError):
        await service.open_repository(location)


@pytest.mark.parametrize("name", ["main", "feature/a-b", "v1.2", "ünï", "a@b"])
def test_branch_names_that_are_let_through(name):
    assert check_branch(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "", "-x", "a..b", "a b", "a\nb", "@{u}", "a@{1}", "a:b", "a~1", "a^", "a?", "*", "[a", "a\\b", "/a", "a/",
        "a//b", ".a", "a/.b",
        "a.lock", "a.lock/b", "a.", "@", "HEAD", "refs/heads/x", "x" * 300, "a/-b", "a\x7f", "a\udc80",
    ],
)  # fmt: skip
def test_branch_names_that_are_refused(name):
    with pytest.raises(UsageError):
        check_branch(name)


@pytest.mark.parametrize("commit", ["", "HEAD", "abc", "-" * 40, "A" * 40, "a" * 41, "a" * 40 + "\n"])
def test_only_full_commit_ids_are_commits(commit):
    with pytest.raises(UsageError):
        check_commit(commit)


async def test_a_lock_is_forgotten_when_nobody_holds_it():
    locks, log = Locks(), []

    async def use(name):
        async with locks.hold("key"):
            log.append(name)
            await asyncio.sleep(0.01)
            log.append(name)

    await asyncio.gather(use(1), use(2), use(3))
    assert log == [1, 1, 2, 2, 3, 3]
    assert not locks._locks


async def test_a_large_repository_opens_and_gets_a_workspace_in_reasonable_time(service, tmp_path):
    user = tmp_path / "large"
    for n in range(5000):
        path = user / f"d{n // 100}" / f"f{n}.txt"
        if n % 100 == 0:
            path.parent.mkdir(parents=True)
        path.write_text(f"{n}\n" * 20)
    git(user, "init", "-q", "-b", "main")
    git(user, "add", "-A")
    git(user, "commit", "-q", "-m", "x")
    begun = time.monotonic()
    repo = await service.open_repository(str(user))
    opened = time.monotonic()
    spaces = await asyncio.gather(*(service.create("e", "r", n, repo) for n in range(3)))
    made = time.monotonic()
    (spaces[0].tree / "d1/f100.txt").write_text("changed")
    await service.snapshot(spaces[0], "s")
    snapped = time.monotonic()
    print(f"open {opened - begun:.2f} create x3 {made - opened:.2f} snapshot {snapped - made:.2f}")
    assert opened - begun < 10
    assert made - opened < 15
    assert snapped - made < 5
    assert len(os.listdir(spaces[2].tree)) == 51
