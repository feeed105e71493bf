"""Checks: what Parallax itself ran on a clean checkout, with real processes."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import pytest

from parallax.errors import NotFoundError, ProfileError
from parallax.workspaces.checks import CheckRunner
from parallax.workspaces.outputs import counts_in, failed_in, is_named
from parallax.workspaces.profile import load

from .conftest import git, write


@pytest.fixture
def checks(service, runtime):
    return CheckRunner(service, runtime)


async def test_pass_and_fail_are_what_the_exit_code_says(checks, repo, service):
    profile = load("checks: {good: test -f src/a.py, bad: 'echo no; exit 3'}")
    good = await checks.run(repo, repo.base_commit, "good", profile=profile)
    assert (good.passed, good.score, good.detail, good.exit_code) == (True, 1.0, "passed", 0)
    bad = await checks.run(repo, repo.base_commit, "bad", profile=profile)
    assert (bad.passed, bad.score, bad.detail, bad.log) == (False, 0.0, "failed with exit code 3", "no\n")
    assert not list((service.root / "checkouts").iterdir())


async def test_a_check_sees_the_commit_and_neither_the_users_files_nor_their_environment(
    checks, repo, user, runtime, monkeypatch
):
    monkeypatch.setenv("SECRET_TOKEN", "canary")
    write(user, {"uncommitted": "x"})
    profile = load("env: {TZ: UTC}\nchecks: {look: 'ls; env; ls -a $HOME'}")
    evidence = await checks.run(repo, repo.base_commit, "look", profile=profile)
    assert "uncommitted" not in evidence.log
    assert "canary" not in evidence.log
    assert "TZ=UTC" in evidence.log
    assert set(runtime.specs[0].env) == {"PATH", "HOME", "LANG", "CI", "TZ"}
    assert runtime.specs[0].network == "none"
    assert runtime.specs[0].argv[:2] == ("sh", "-c")


async def test_what_cannot_start_is_no_pass_and_no_fail(checks, repo):
    profile = load("checks: {shell: no-such-program-x}")
    for check in ("shell", ["no-such-program-x", "-q"]):
        evidence = await checks.run(repo, repo.base_commit, check, profile=profile)
        assert (evidence.passed, evidence.score) == (None, None)
        assert "could not run" in evidence.detail
        assert "no-such-program-x" in evidence.detail


async def test_an_argument_list_is_run_as_it_is(checks, repo):
    evidence = await checks.run(repo, repo.base_commit, ["echo", "$HOME; exit 1"], profile=load(""))
    assert (evidence.passed, evidence.log) == (True, "$HOME; exit 1\n")


async def test_a_name_that_is_no_check_is_refused(checks, repo):
    with pytest.raises(NotFoundError, match="no check 'tset': did you mean 'test'"):
        await checks.run(repo, repo.base_commit, "tset", profile=load("checks: {test: x}"))


async def test_a_timeout_is_a_fail_and_leaves_no_process(checks, repo, tmp_path):
    pidfile = tmp_path / "pid"
    profile = load(f"checks: {{slow: {{run: 'sleep 60 & echo $! > {pidfile}; sleep 60', timeout: 300ms}}}}")
    begun = time.monotonic()
    evidence = await checks.run(repo, repo.base_commit, "slow", profile=profile)
    assert (evidence.passed, evidence.detail, evidence.exit_code) == (False, "timed out after 0.3 s", None)
    assert time.monotonic() - begun < 10
    await asyncio.sleep(0.1)
    state = Path(f"/proc/{pidfile.read_text().strip()}/stat")
    assert not state.exists() or state.read_text().split()[2] == "Z"


async def test_cancelling_a_check_ends_its_processes(checks, repo, tmp_path, service):
    started = tmp_path / "started"
    profile = load(f"checks: {{slow: 'touch {started}; sleep 60'}}")
    task = asyncio.create_task(checks.run(repo, repo.base_commit, "slow", profile=profile))
    while not started.exists():
        await asyncio.sleep(0.02)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not list((service.root / "checkouts").iterdir())


async def test_a_child_that_holds_the_pipes_does_not_hang_the_check(checks, repo):
    begun = time.monotonic()
    evidence = await checks.run(repo, repo.base_commit, ["sh", "-c", "sleep 60 & echo done"], profile=load(""))
    assert (evidence.passed, evidence.log) == (True, "done\n")
    assert time.monotonic() - begun < 8


async def test_a_score_pattern_counts(checks, repo):
    text = "checks: {s: {run: 'echo 3 ok, 1 bad; exit 1', score_pattern: '(?P<passed>\\d+) ok, (?P<failed>\\d+) bad'}}"
    evidence = await checks.run(repo, repo.base_commit, "s", profile=load(text))
    assert (evidence.passed, evidence.score, evidence.detail) == (False, 0.75, "3 passed, 1 failed")


async def test_the_log_is_the_end_of_a_large_output(checks, repo):
    command = "yes 0123456789 | head -c 3000000; echo the end"
    evidence = await checks.run(repo, repo.base_commit, ["sh", "-c", command], profile=load(""))
    assert evidence.log.endswith("the end\n")
    assert len(evidence.log) <= 8192


async def test_a_verdict_is_kept_by_tree_command_and_environment(checks, repo, user, service, runtime):
    profile = load("checks: {t: 'true'}")
    for _ in range(3):
        await checks.run(repo, repo.base_commit, "t", profile=profile)
    git(user, "commit", "-q", "--allow-empty", "-m", "same tree")
    again = await service.open_repository(str(user))
    await checks.run(again, again.base_commit, "t", profile=profile)
    assert len(runtime.specs) == 1
    await checks.run(repo, repo.base_commit, "t", profile=load("env: {A: b}\nchecks: {t: 'true'}"))
    await asyncio.gather(*(checks.run(repo, repo.base_commit, ["true", "x"], profile=profile) for _ in range(3)))
    assert len(runtime.specs) == 3


async def test_at_most_two_run_at_once(checks, repo, tmp_path):
    log = tmp_path / "log"
    commands = [["sh", "-c", f"echo + >> {log}; sleep 0.2; echo - >> {log}", str(n)] for n in range(5)]
    await asyncio.gather(*(checks.run(repo, repo.base_commit, c, profile=load("")) for c in commands))
    running = most = 0
    for line in log.read_text().split():
        running += 1 if line == "+" else -1
        most = max(most, running)
    assert most == 2


async def test_listed_files_are_copied_and_never_through_a_link(checks, service, user, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    write(user, {".env.example": "A=1\n", "local.cfg": "mine", ".gitignore": "local.cfg\n"})
    os.symlink(outside, user / "link")
    git(user, "add", "-A")
    git(user, "commit", "-q", "-m", "x")
    repo = await service.open_repository(str(user))
    profile = load(
        "copy: [.env.example -> .env, local.cfg, local.cfg -> link/evil, missing]\nchecks: {t: 'cat .env local.cfg'}"
    )
    evidence = await checks.run(repo, repo.base_commit, "t", profile=profile)
    assert evidence.log == "A=1\nmine"
    assert list(outside.iterdir()) == []


async def test_the_profile_comes_from_the_base_commit(checks, service, user):
    write(user, {".parallax.yaml": "checks: {mine: 'true'}\n"})
    git(user, "add", "-A")
    git(user, "commit", "-q", "-m", "profile")
    write(user, {".parallax.yaml": "broken: ["})
    profile, written = await checks.profile(await service.open_repository(str(user)))
    assert (list(profile.checks), written) == (["mine"], True)
    git(user, "commit", "-qam", "broken")
    with pytest.raises(ProfileError, match=r".parallax.yaml:"):
        await checks.profile(await service.open_repository(str(user)))


async def test_without_a_profile_it_is_guessed(checks, service, user):
    write(user, {"Makefile": "test:\n\ttrue\n"})
    git(user, "add", "-A")
    git(user, "commit", "-q", "-m", "make")
    profile, written = await checks.profile(await service.open_repository(str(user)))
    assert (profile.checks["test"].run, written) == ("make test", False)


async def test_try_out_runs_set_up_and_checks_on_head(checks, user):
    profile = load("setup: ['true']\nchecks: {good: 'true', bad: 'false'}")
    done = await checks.try_out(user, profile)
    assert [(e.oracle, e.passed) for e in done] == [("setup: true", True), ("good", True), ("bad", False)]


@pytest.mark.parametrize(
    ("output", "counts"),
    [
        ("...\n12 passed, 1 failed, 2 skipped in 0.31s\n", (12, 1)),
        ("==== 1 failed, 12 passed in 61.2s (0:01:01) ====\n", (12, 1)),
        ("1 error in 0.1s", (0, 1)),
        ("Ran 5 tests in 0.001s\n\nOK (skipped=1)\n", (4, 0)),
        ("Ran 5 tests in 0.001s\n\nFAILED (failures=1, errors=1)\n", (3, 2)),
        ("Tests:       1 failed, 4 passed, 5 total\n", (4, 1)),
        ("      Tests  3 passed (3)\n", (3, 0)),
        ("ok  \texample.org/a\t0.01s\nFAIL\texample.org/b\t0.2s\nFAIL\n", (1, 1)),
        ("--- PASS: TestA (0.00s)\n--- FAIL: TestB (0.00s)\n", (1, 1)),
        ("test result: ok. 5 passed; 0 failed; 0 ignored\ntest result: FAILED. 1 passed; 2 failed\n", (6, 2)),
        ("# tests 3\n# pass 2\n# fail 1\n", (2, 1)),
        ("  4 passing (10ms)\n  1 failing\n", (4, 1)),
        ("all good", None),
    ],
)
def test_counts_of_known_runners_are_read(output, counts):
    assert counts_in(output) == counts


async def test_red_and_then_green_is_flaky_and_a_pass_only_where_that_is_known(checks, repo):
    command = "test -f ../home/seen || { touch ../home/seen; exit 1; }"
    found = await checks.run(repo, repo.base_commit, "c", profile=load(f"checks: {{c: '{command}'}}"))
    assert (found.passed, found.verdict, found.score) == (False, "flaky", 0.0)
    assert "flaky: failed with exit code 1, then passed" in found.detail
    known = await checks.run(
        repo, repo.base_commit, "c", profile=load(f"flaky: [c]\nchecks: {{c: 'true && {command}'}}")
    )
    assert (known.passed, known.verdict) == (True, "flaky")
    assert known.score == 0.7
    plain = await checks.run(repo, repo.base_commit, "c", profile=load("checks: {c: 'echo 3; exit 3'}"))
    assert (plain.verdict, plain.command, plain.exit_code) == ("fail", "echo 3; exit 3", 3)


@pytest.mark.parametrize(
    ("output", "names"),
    [
        ("FAILED tests/a.py::test_one - assert 1 == 2\nERROR tests/b.py::test_two[x y]\n",
         {"tests/a.py::test_one", "tests/b.py::test_two[x y]"}),
        ("FAIL: test_one (test_a.A.test_one)\n", {"test_one (test_a.A.test_one)"}),
        ("test a::one ... FAILED\ntest a::two ... ok\n", {"a::one"}),
        ("--- FAIL: TestOne (0.00s)\n", {"TestOne"}),
        ("not ok 2 - adds\n", {"adds"}),
        ("  \u25cf shop \u203a adds\n", {"shop \u203a adds"}),
        ("Traceback: FAILED to say anything\n", set()),
    ],
)  # fmt: skip
def test_the_names_of_failed_tests_are_read(output, names):
    assert failed_in(output) == names


@pytest.mark.parametrize("name", ["tests/a.py::test_one", "test_one", "tests/a.py::*"])
def test_a_test_is_named_in_full_by_its_last_part_or_with_a_star(name):
    assert is_named("tests/a.py::test_one", [name])
    assert not is_named("tests/b.py::test_two", [name])


RED = "echo 'FAILED t.py::test_old - no'; %s echo '%s failed, 4 passed in 0.1s'; exit 1"


async def test_a_test_that_is_known_to_be_red_does_not_count(checks, repo):
    text = f'known_red: [test_old]\nchecks: {{t: "{RED % ("", 1)}"}}'
    evidence = await checks.run(repo, repo.base_commit, "t", profile=load(text))
    assert (evidence.passed, evidence.score, evidence.verdict) == (True, 1.0, "red-before")
    assert "known to be red: t.py::test_old" in evidence.detail


@pytest.mark.parametrize("more", ["echo 'FAILED t.py::test_new - no';", ""])
async def test_a_new_failure_beside_a_known_one_counts(checks, repo, more):
    text = f'known_red: [test_old]\nchecks: {{t: "{RED % (more, 2)}"}}'
    evidence = await checks.run(repo, repo.base_commit, "t", profile=load(text))
    assert (evidence.passed, evidence.verdict) == (False, "fail")


async def test_a_check_that_is_known_to_be_red_is_worth_little_and_blames_nobody(checks, repo):
    profile = load("known_red: [t]\nchecks: {t: exit 1}")
    evidence = await checks.run(repo, repo.base_commit, "t", profile=profile)
    assert (evidence.passed, evidence.score, evidence.verdict) == (True, 0.7, "red-before")
    unknown = await checks.run(repo, repo.base_commit, "t", profile=load("checks: {t: exit 1}"))
    assert unknown.passed is False


async def test_checks_that_run_at_once_have_ports_of_their_own(checks, repo, service):
    look = "echo $PORT $ADMIN_PORT; sleep 0."
    profile = load(f"ports: [PORT, ADMIN_PORT]\nchecks: {{a: '{look}3', b: '{look}4'}}")
    found = await asyncio.gather(*(checks.run(repo, repo.base_commit, name, profile=profile) for name in "ab"))
    ports = [int(port) for evidence in found for port in evidence.log.split()]
    assert len(set(ports)) == 4
    assert not list((service.root / "ports").iterdir())
