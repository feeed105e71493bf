"""What leaves the house: pushed once, a pull request opened once, nothing without approval, whatever fails between."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from pathlib import Path
from types import SimpleNamespace

import pytest
from budget_helpers import living

from parallax import failpoints
from parallax.errors import ConflictError, RemoteError, RepositoryError, UsageError
from parallax.execution import finalising
from parallax.execution.journal import Journal
from parallax.execution.questions import QuestionDesk
from parallax.models import ExecutionState
from parallax.redaction import Secret
from parallax.workspaces import remotes
from parallax.workspaces.finalising import Looked, Wish
from parallax.workspaces.profile import matching
from tests.conftest import IDENTITY, git
from tests.forge.forge import APP_ID

FIX = {
    "roles": {
        "engineer": [{"do": [{"edit": {"path": "answer.txt", "content": "42\n"}}, {"answer": {"value": "fixed"}}]}]
    }
}
PATTERN = """
name: one
roles:
  engineer: {description: You work.}
input:
  goal: {type: string}
steps:
  - {id: fix, type: assign, role: engineer, task: "Do it: ${input.goal}", verify: quick}
"""


@pytest.fixture(autouse=True)
def _soon(monkeypatch):
    monkeypatch.setattr(remotes, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(finalising, "_LATER_S", (0.05, 0.05))
    yield
    failpoints.arm("")


@pytest.fixture
def shop(forge, repository):
    """The repository on the forge, with the user's checkout following it."""
    url = forge.repository("shop", repository)
    git(repository, "remote", "add", "origin", url)
    return url


@pytest.fixture
def app(forge):
    return {"github_api_url": forge.api_url, "github_app_id": APP_ID, "github_private_key": forge.key}


WISH = Wish(push=True, pull_request=True, labels=("parallax",), reviewers=("ada",), draft=True)


async def test_a_run_ends_with_one_pull_request_that_tells_its_evidence(team, forge, shop, app, tmp_path):
    async with team(FIX, **app) as t:
        execution = await t.run(PATTERN, {"goal": "make it <42> @everyone #1"}, wish=WISH)
        assert execution.state is ExecutionState.SUCCEEDED, execution.reason
        branch = f"parallax/{execution.id}/result"
        assert forge.git("shop", "show", f"{branch}:answer.txt") == "42"
        log = forge.git("shop", "log", "-1", "--format=%an|%(trailers:key=Parallax-Execution,valueonly)", branch)
        assert log.strip() == f"engineer|{execution.id}"
        (pull,) = forge.pulls["shop"]
        assert (pull.head, pull.base, pull.draft) == (branch, "main", True)
        assert (pull.labels, pull.reviewers) == (["parallax"], ["ada"])
        assert "`quick` passed on `fix`" in pull.body
        assert "`grep -q 42 answer.txt`, exit code 0" in pull.body
        assert "@everyone" not in pull.body
        assert "<42>" not in pull.body
        assert pull.body.count("<!-- parallax:") == 1
        assert [e["number"] for e in await t.told(execution, "pull_request.opened")] == [1]
        assert [e["branch"] for e in await t.told(execution, "branch.pushed")] == [branch]
        types = [event.type for event in await t.events(execution)]
        assert types[-1] == "execution.succeeded"
        assert types.count("credential.issued") == types.count("credential.revoked") > 0
        assert forge.alive == []
        again = await t.parallax.push(
            execution, await t.parallax.workspaces.open_repository(str(t.repository), execution.base), WISH,
            approved=False, dry_run=False,
        )  # fmt: skip
        assert not again.pushed.new
        assert again.opened is not None
        assert not again.opened.new
        assert len(forge.pulls["shop"]) == 1
        assert forge.alive == []
        rows = await t.parallax.credentials.grants(execution.id)
        assert {row["access"] for row in rows} == {"read", "write"}
        assert all(row["state"] == "revoked" and row["uses"] > 0 for row in rows)


@pytest.mark.parametrize(
    "point", ["token.minted_before_use", "push.before", "push.done_before_record", "pr.created_before_record"]
)
async def test_what_a_crash_cut_off_from_its_record_is_found_and_not_repeated(team, forge, shop, app, point):
    async with team(FIX, **app) as t:
        failpoints.arm(f"{point}=raise@{3 if point == 'token.minted_before_use' else 1}")  # two to check the wish
        execution = await t.start(PATTERN, {"goal": "x"}, wish=WISH)
        async with asyncio.timeout(30):
            while (await t.parallax.store.execution(execution.id)).state is not ExecutionState.NEEDS_ATTENTION:
                await asyncio.sleep(0.02)
        failpoints.arm("")
        pushes = [path for method, path in forge.requests if method == "POST" and path.endswith("git-receive-pack")]
    async with team(FIX, **app) as t:
        await t.parallax.engine.release(execution.id)
        execution = await t.finish(execution)
        assert execution.state is ExecutionState.SUCCEEDED, execution.reason
        assert len(forge.pulls["shop"]) == 1
        assert len(await t.told(execution, "pull_request.opened")) == 1
        assert len(await t.told(execution, "branch.pushed")) == 1
        after = [path for method, path in forge.requests if method == "POST" and path.endswith("git-receive-pack")]
        assert len(after) - len(pushes) == (1 if point in {"token.minted_before_use", "push.before"} else 0)
        assert len(t.ledger()) == 2, "no turn was run again"
    assert forge.alive == []


async def test_an_answer_that_is_lost_opens_no_second_pull_request(team, forge, shop, app):
    forge.unanswered_pulls = 1
    async with team(FIX, **app) as t:
        execution = await t.run(PATTERN, {"goal": "x"}, wish=WISH)
        assert execution.state is ExecutionState.SUCCEEDED, execution.reason
        assert len(forge.pulls["shop"]) == 1
        assert forge.pulls["shop"][0].labels == ["parallax"]


async def test_a_token_that_dies_in_mid_push_is_renewed(team, forge, shop, app):
    forge.expire_in_mid_push = True
    async with team(FIX, **app) as t:
        execution = await t.run(PATTERN, {"goal": "x"}, wish=Wish(push=True))
        assert execution.state is ExecutionState.SUCCEEDED, execution.reason
        assert f"parallax/{execution.id}/result" in forge.branches("shop")
    assert not forge.expire_in_mid_push


async def test_a_protected_branch_is_said_and_the_work_is_kept(team, forge, shop, app):
    forge.protect("shop", "release")
    before = forge.branches("shop")
    async with team(FIX, **app) as t:
        execution = await t.run(PATTERN, {"goal": "x"}, wish=Wish(push=True, branch="release"))
        assert execution.state is ExecutionState.PARTIAL
        assert "GH006: Protected branch update failed for release" in (execution.reason or "")
        assert t.branch_file(execution, "answer.txt") == "42\n"
    assert forge.branches("shop") == before
    assert forge.alive == []


async def test_a_forge_that_stays_down_keeps_the_work_for_land(team, forge, shop, app):
    async with team(FIX, **app) as t:
        execution = await t.start(PATTERN, {"goal": "x"}, wish=WISH)
        forge.down = True
        execution = await t.finish(execution)
        assert execution.state is ExecutionState.PARTIAL
        assert "parallax land" in (execution.reason or "")
        forge.down = False
        repo = await t.parallax.workspaces.open_repository(str(t.repository), execution.base)
        dry = await t.parallax.push(execution, repo, WISH, approved=False, dry_run=True)
        assert dry.pushed.new
        assert dry.opened is None
        assert "shop" not in forge.pulls
        assert set(forge.branches("shop")) == {"main"}
        done = await t.parallax.push(execution, repo, WISH, approved=False, dry_run=False)
        assert done.opened is not None
        assert done.opened.new
    assert forge.alive == []


async def test_a_branch_that_somebody_else_moved_is_not_overwritten(team, forge, shop, app, repository):
    async with team(FIX, **app) as t:
        execution = await t.run(PATTERN, {"goal": "x"}, wish=Wish(push=True, branch="work"))
        assert execution.state is ExecutionState.SUCCEEDED, execution.reason
        other = forge.git("shop", *IDENTITY, "commit-tree", "-m", "theirs", "-p", "work", "work^{tree}")
        forge.git("shop", "update-ref", "refs/heads/work", other)
        repo = await t.parallax.workspaces.open_repository(str(t.repository), execution.base)
        with pytest.raises(RemoteError, match="has commits that the result has not"):
            await t.parallax.push(execution, repo, Wish(push=True, branch="work"), approved=True, dry_run=False)
        assert forge.branches("shop")["work"] == other


CI = {
    "rules": [
        {
            "do": [
                {"edit": {"path": "answer.txt", "content": "42\n"}},
                {"edit": {"path": ".github/workflows/evil.yml", "content": "on: push\n"}},
                {"edit": {"path": "leak.txt", "content": "ghp_" + "a1" * 20 + "\n"}},
                {"answer": {"value": "done"}},
            ]
        }
    ]
}


@pytest.mark.parametrize("answer", ["approve", "reject"])
async def test_ci_definitions_and_secrets_go_out_with_approval_only(team, forge, shop, app, answer):
    async with team(CI, **app) as t:
        execution = await t.start(PATTERN, {"goal": "x"}, wish=WISH)
        async with asyncio.timeout(30):
            while not (asked := await t.parallax.store.questions(execution=execution.id, states=("with_person",))):
                await asyncio.sleep(0.02)
        assert "CI definition .github/workflows/evil.yml" in asked[0].text
        assert "what looks like a secret in leak.txt" in asked[0].text
        assert set(forge.branches("shop")) == {"main"}
        await t.parallax.desk.answer(asked[0].id, answer)
        execution = await t.finish(execution)
        if answer == "approve":
            assert execution.state is ExecutionState.SUCCEEDED, execution.reason
            assert any(token.permissions.get("workflows") == "write" for token in forge.tokens.values())
            return
        assert execution.state is ExecutionState.PARTIAL
        assert set(forge.branches("shop")) == {"main"}
        repo = await t.parallax.workspaces.open_repository(str(t.repository), execution.base)
        with pytest.raises(ConflictError, match="--allow-protected"):
            await t.parallax.push(execution, repo, WISH, approved=False, dry_run=False)


async def test_an_approval_is_of_one_commit_and_outlives_a_restart(tmp_path):
    async with living(tmp_path / "parallax.db") as house:
        await house.take_in("e1")
        desk = QuestionDesk(house.store, house.bus, house.waits)
        answers = {"a" * 40: "approve", "b" * 40: "reject"}
        for sha, answer in answers.items():
            for _ in ("first", "after a restart"):
                journal = await Journal.load(house.store, house.bus, "e1", 0)
                course = SimpleNamespace(execution=await house.store.execution("e1"), journal=journal, desk=desk)
                looked = Looked(url="u", branch="b", sha=sha, files=1, sensitive=("CI definition x.yml",))
                asking = asyncio.create_task(finalising.Finalising(course, None)._approved(looked))
                while not asking.done():
                    for question in await house.store.questions(execution="e1", states=("with_person",)):
                        await desk.answer(question.id, answer)
                    await asyncio.sleep(0.01)
                assert isinstance(asking.exception(), ConflictError if answer == "reject" else type(None))
        assert [told["answer"] for told in await house.told("question.answered")] == ["approve", "reject"]


async def test_what_cannot_be_pushed_is_said_before_anybody_works(team, forge, shop, app, repository):
    async with team(FIX, **app) as t:
        with pytest.raises(RepositoryError, match="no branch 'gone' to open a pull request onto"):
            await t.start(PATTERN, {"goal": "x"}, wish=Wish(push=True, pull_request=True, onto="gone"))
        forge.granted["contents"] = "read"
        with pytest.raises(RemoteError, match="may not have 'write'"):
            await t.start(PATTERN, {"goal": "x"}, wish=WISH)
        git(repository, "remote", "remove", "origin")
        with pytest.raises(RepositoryError, match="has no remote 'origin'"):
            await t.start(PATTERN, {"goal": "x"}, wish=WISH)
        assert await t.parallax.store.executions() == []
    async with team(FIX) as t:
        git(repository, "remote", "add", "origin", shop)
        with pytest.raises(RepositoryError, match="PARALLAX_GITHUB_API_URL"):
            await t.start(PATTERN, {"goal": "x"}, wish=WISH)
    with pytest.raises(UsageError, match="belong to a pull request"):
        Wish.read({"push": True, "draft": True})
    with pytest.raises(UsageError, match="no valid branch name"):
        Wish.read({"push": True, "branch": "--force"})


async def test_a_users_token_serves_its_execution_and_is_kept_sealed_until_its_end(
    team, forge, shop, repository, place
):
    mine = forge.person("shop")
    async with team(FIX, repository=None, github_api_url=forge.api_url) as t:
        execution = await t.start(PATTERN, {"goal": "x"}, token=Secret(mine), wish=WISH, repo=shop)
        (row,) = await t.parallax.store.rows("credentials", execution=execution.id)
        assert row["sealed"]
        execution = await t.finish(execution)
        assert execution.state is ExecutionState.SUCCEEDED, execution.reason
        (row,) = await t.parallax.store.rows("credentials", execution=execution.id)
        assert (row["state"], row["sealed"], row["source"]) == ("revoked", None, "user")
        assert len(forge.pulls["shop"]) == 1
    dump = "\n".join(sqlite3.connect(place / "data" / "parallax.db").iterdump())
    assert mine not in dump
    assert mine not in json.dumps([str(p) for p in Path(place).rglob("*")])


def test_patterns_of_protected_paths():
    paths = ["a/migrations/1.sql", "migrations/2.sql", "src/x.py", "LICENSE", "a/LICENSE", "src/deep/y.py", "srcx"]
    assert matching(paths, ["migrations/**"]) == ["migrations/2.sql"]
    assert matching(paths, ["**/migrations/*.sql"]) == ["a/migrations/1.sql", "migrations/2.sql"]
    assert matching(paths, ["src"]) == ["src/x.py", "src/deep/y.py"]
    assert matching(paths, ["src/*.py"]) == ["src/x.py"]
    assert matching(paths, ["LICENSE"]) == ["LICENSE", "a/LICENSE"]
    assert matching(paths, []) == []
