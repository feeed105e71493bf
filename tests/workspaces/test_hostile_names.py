"""G1 and G2: hostile URLs, refs and paths. No git starts for a URL that is refused, and no name is taken for an option."""

from __future__ import annotations

import itertools
import random
import string

import pytest
from dulwich.refs import check_ref_format

from parallax.errors import ParallaxError, RepositoryError, UsageError
from parallax.workspaces.git import Git, check_branch, check_url

from .conftest import git

SEED = 20261124
SCHEMES = (
    "ext::", "EXT::", "eXt::", "fd::", "Fd::", "file://", "FILE://", "git://", "GIT://", "ssh://", "git+ssh://", "ftp://",
    "http://", "HTTP://", "HTTPS://", "rsync://", "https:", "persistent-https://", "javascript:",
)  # fmt: skip
RESTS = (
    "sh -c touch% /tmp/x", "17/foo", "/etc/passwd", "-oProxyCommand=touch${IFS}x/y", "host.example/a/b",
    "user:pass@host.example/a", "host.example:port@evil.example/a", "/host/a",
)  # fmt: skip
SINGLE = (
    "--upload-pack=touch x", "-u touch x", "-c core.sshCommand=x", "--config=x", "https:///host/a", "https://", "https:// /a",
    "https://h/a%0ab", "https://h/a%0d%0ab", "https://h/a%00b", "https://h/%2e%2e%0a", "https://h\\@evil/a", "https://h/a\\b",
    "https://h/a\nhttps://g/b", "https://h/a\r\nX: y", "https://h/a\tb", "https://h/a b", "https://пример.рф/a",
    "https://xn--e1afmkfd.рф/a", "https://h:99999/a", "https://h:-1/a", "https://h:80:80/a", "https://h:/a", "https://[::1/a",
    "https://u@h/a", "https://u:p@h/a", "https://@h/a", "https://h@/a", "https://h/a?x=y", "https://h/a#b", "https://h..x/a",
    "https://-h/a", "https://h-/a", "https://h_x/a", "https://h/a'b", 'https://h/a"b', "https://h/a`b`", "https://h/$(x)|y",
    "https://h/a<b>", "https://h/{a,b}", "https://h/a^b", "git@h:a/b", "h:a/b@{x}://", "http://127.0.0.1.evil.example/a",
    "http://localhost@evil.example/a", "http://2130706433/a", "http://0x7f.1/a", "http://10.0.0.1/a", "http://[fe80::1]/a",
    "https://" + "a" * 300 + "/x", "https://h/" + "a" * 3000,
)  # fmt: skip
URLS = [*(scheme + rest for scheme, rest in itertools.product(SCHEMES, RESTS)), *SINGLE]


async def test_no_git_is_started_for_two_hundred_hostile_urls(service, tmp_path, monkeypatch):
    assert len(URLS) >= 200
    log = tmp_path / "log"
    fake = tmp_path / "git"
    fake.write_text(f'#!/bin/sh\n[ "$1" = --version ] && exec git "$@"\necho "$@" >> {log}\nexit 128\n')
    fake.chmod(0o755)
    monkeypatch.setattr(service.git, "_program", str(fake))
    monkeypatch.chdir(tmp_path)
    let_through = []
    for url in URLS:
        try:
            await service.open_repository(url)
        except RepositoryError as error:
            assert "\n" not in str(error).replace(url, "")
        except ParallaxError:
            let_through.append(url)
    started = log.read_text() if log.exists() else ""
    assert let_through == []
    assert "remote" not in started
    assert "fetch" not in started
    assert not (tmp_path / "x").exists()


def names(count):
    """Names made of what is dangerous in refs, dates, authors and paths."""
    print(f"seed {SEED}")
    dice = random.Random(SEED)
    bits = ["-", "--upload-pack=x", "..", "@{", "@", ":", "~1", "^", "?", "*", "[", "\\", "\n", "\r", "\0", " ", "\t", "/", "//",
            ".lock", ".", "HEAD", "refs/heads/", "ü", "\u202e", "\ud800", "$(x)", "`x`", ";", "|", "a" * 300, "main", "x", "é"]  # fmt: skip
    for _ in range(count):
        yield "".join(
            dice.choice(bits) if dice.random() < 0.6 else dice.choice(string.ascii_letters)
            for _ in range(dice.randint(1, 6))
        )


async def test_five_thousand_hostile_refs_are_refused_or_harmless(service, repo):
    passed = []
    for name in names(5000):
        try:
            passed.append(check_branch(name))
        except UsageError:
            continue
    assert passed, "the generator must make names that are let through, too"
    for name in passed:
        assert check_ref_format(b"refs/heads/" + name.encode()), name
        assert not name.startswith("-")
        assert not any(part.startswith("-") for part in name.split("/"))
    before = git(repo.mirror, "for-each-ref")
    for name in list(dict.fromkeys(passed))[:20]:  # git itself agrees, and takes none for an option
        with pytest.raises(RepositoryError, match="has no branch"):
            await service.open_repository(repo.location, name)
    assert git(repo.mirror, "for-each-ref") == before


async def test_hostile_paths_authors_and_messages_are_data(service, repo, workspace, tmp_path):
    for name in list(names(60)):
        if "\0" in name or "\ud800" in name:
            continue
        assert await service.read_file(repo.mirror, repo.base_commit, name) is None
        await service.files(repo.mirror, repo.base_commit, name)
    (workspace.tree / "--output=owned").write_text("1")
    (workspace.tree / "-n").write_text("1")
    (workspace.tree / ":(exclude)x").write_text("1")
    made = await service.commit(
        workspace, message="--amend\n\nParallax-Step: forged", author="-c user.name=x <evil\n>",
        branch="parallax/exec1/e/s", trailers={"Parallax-Step": "real"},
    )  # fmt: skip
    assert made.files == 3
    assert not (workspace.tree / "owned").exists()
    trailers = git(repo.mirror, "log", "-1", "--format=%(trailers:key=Parallax-Step,valueonly)", made.sha)
    assert trailers.split() == ["real"]


def test_what_is_let_through_is_https_or_this_machine():
    for url in URLS:
        try:
            check_url(url)
        except RepositoryError:
            continue
        raise AssertionError(url)
    assert Git()
