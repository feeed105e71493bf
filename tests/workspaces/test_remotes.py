"""Private repositories by URL, tokens of every source, and a remote that fails in every way it can."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import time
from contextlib import asynccontextmanager

import pytest

from parallax.errors import ConfigurationError, ConflictError, RemoteError, RepositoryError
from parallax.models import Execution, ExecutionState, new_id
from parallax.redaction import Redactor, Secret
from parallax.storage.statements import Change, execution_row, insert_row
from parallax.storage.store import Store
from parallax.workspaces import remotes
from parallax.workspaces.credentials import CredentialService, Wanted
from parallax.workspaces.git import Git
from parallax.workspaces.github import GitHub, PlainGit
from parallax.workspaces.remotes import Errand
from parallax.workspaces.sealing import Sealer
from parallax.workspaces.service import WorkspaceService
from tests.forge.forge import APP_ID

from .conftest import git, write


class House:
    """Store, credentials and workspaces on one data directory."""

    def __init__(self, store, credentials, service, redact, told):
        self.store, self.credentials, self.service, self.redact, self.told = store, credentials, service, redact, told

    async def execution(self, state=ExecutionState.RUNNING):
        execution = Execution(
            id=new_id(), pattern="p", version="1", hash="h", input={}, repo=None, base=None, state=state, created_at=1.0
        )
        bundle = {"hash": "h", "path": "p", "bundle": "{}"}
        writes = [insert_row("bundles", bundle, replace_row=True), insert_row("executions", execution_row(execution))]
        await self.store.commit(Change(writes))
        return execution.id


@pytest.fixture
def house(tmp_path, forge):
    data = tmp_path / "house"
    data.mkdir()

    @asynccontextmanager
    async def open_house(*, app=True, fixed=None):
        told = []

        async def tell(execution, kind, value):
            told.append((execution, kind, value))

        redact = Redactor()
        key = Secret(forge.key) if app else None
        async with Store(data / "parallax.db") as store:
            credentials = CredentialService(
                store=store,
                sealer=Sealer.load(None, None, data),
                providers=[GitHub(forge.api_url, app_id=APP_ID if app else None, key=key), PlainGit()],
                fixed={host: Secret(token) for host, token in (fixed or {}).items()},
                redact=redact,
                tell=tell,
            )
            await credentials.start()
            yield House(store, credentials, WorkspaceService(data / "ws", Git(), None, tell, credentials), redact, told)

    return open_house


@pytest.fixture(autouse=True)
def _soon(monkeypatch):
    monkeypatch.setattr(remotes, "FIRST_WAIT_S", 0.01)


@pytest.fixture
def url(forge, user):
    return forge.repository("shop", user)


def host_of(forge):
    return forge.url.removeprefix("http://")


async def test_an_app_reads_a_private_repository_and_no_token_stays(house, forge, url, user, tmp_path):
    async with house() as h:
        repo = await h.service.open_repository(url)
        assert (repo.base_branch, repo.base_commit) == ("main", git(user, "rev-parse", "HEAD"))
        (token,) = forge.tokens
        assert len(token) > 400
        assert forge.tokens[token].permissions == {"contents": "read", "metadata": "read"}
        assert forge.tokens[token].repos == ("shop",)
        await h.service.open_repository(url)
        assert len(forge.tokens) == 1, "cached"
        (grant,) = await h.credentials.grants()
        assert (grant["source"], grant["access"], grant["uses"], grant["state"]) == ("app", "read", 4, "issued")
        await h.credentials.close()
    assert forge.alive == []
    kept = [path for path in (tmp_path / "house").rglob("*") if path.is_file() and token.encode() in path.read_bytes()]
    assert kept == []


async def test_a_tokens_order_is_users_then_app_then_settings(house, forge, url):
    mine, fixed = forge.person("shop"), forge.person("shop")
    async with house(fixed={host_of(forge): fixed}) as h:
        execution = await h.execution()
        wanted = Wanted(url=url, access="write", execution=execution, step="push")
        assert (await h.credentials.issue(wanted)).source == "app"
        await h.credentials.release(execution)
        grant = await h.credentials.give(Wanted(url=url, access="write", execution=execution), Secret(mine), by="ada")
        given = await h.credentials.issue(wanted)
        assert (given.source, given.token.reveal(), given.id) == ("user", mine, grant["id"])
        assert "sealed" not in grant
        assert h.redact(f"it is {mine}!") == "it is [redacted]!"
        other = await h.credentials.issue(Wanted(url=url, access="read", execution=await h.execution()))
        assert other.source == "app", "a user's token is for the one execution"
        await h.credentials.release(execution)
        assert [kind for who, kind, _ in h.told if who == execution] == [
            "credential.issued", "credential.revoked", "credential.issued", "credential.revoked",
        ]  # fmt: skip
    async with house(app=False, fixed={host_of(forge): fixed}) as h:
        assert (await h.credentials.issue(Wanted(url=url, access="read"))).source == "fixed"
        assert await h.credentials.issue(Wanted(url="https://elsewhere.example/a/b", access="read")) is None


async def test_a_token_is_renewed_five_minutes_before_its_end(house, forge, url):
    async with house() as h:
        wanted = Wanted(url=url, access="read")
        forge.token_life_s = 299.0
        first = await h.credentials.issue(wanted)
        forge.token_life_s = 3600.0
        second = await h.credentials.issue(wanted)
        assert first.token != second.token
        assert await h.credentials.issue(wanted) == second
        assert forge.alive == [second.token.reveal()]


async def test_grants_that_a_crash_left_are_revoked_at_the_next_start(house, forge, url):
    async with house() as h:
        ended, live = await h.execution(), await h.execution()
        for execution in (ended, live):
            await h.credentials.issue(Wanted(url=url, access="write", execution=execution, step="push"))
            await h.credentials.give(Wanted(url=url, access="write", execution=execution), Secret("x" * 40), by="me")
        await h.store.commit(Change([insert_row("executions", {
            **(await h.store.rows("executions", id=ended))[0], "state": "failed"}, replace_row=True)]))  # fmt: skip
    assert len(forge.alive) == 2
    async with house() as h:
        assert forge.alive == []
        states = {(g["execution"], g["source"]): g["state"] for g in await h.credentials.grants()}
        assert states == {
            (ended, "app"): "revoked", (live, "app"): "revoked", (ended, "user"): "revoked", (live, "user"): "issued",
        }  # fmt: skip


async def test_a_provider_that_is_down_keeps_the_grant_for_another_try(house, forge, url):
    async with house() as h:
        grant = await h.credentials.issue(Wanted(url=url, access="read"))
        forge.down = True
        with pytest.raises(RemoteError, match="could not be revoked now"):
            await h.credentials.revoke(grant.id)
        forge.down = False
        assert (await h.credentials.revoke(grant.id))["state"] == "revoked"
        with pytest.raises(ConflictError, match="revoked already"):
            await h.credentials.revoke(grant.id)
    assert forge.alive == []


async def test_what_is_kept_is_sealed_to_its_row(house, forge, url, tmp_path):
    async with house() as h:
        one = await h.credentials.issue(Wanted(url=url, access="read"))
        two = await h.credentials.issue(Wanted(url=url, access="write"))
        rows = {row["id"]: row["sealed"] for row in await h.store.rows("credentials")}
    sealer = Sealer.load(None, None, tmp_path / "house")
    assert sealer.open(one.id, rows[one.id]) == one.token
    assert sealer.open(one.id, rows[two.id]) is None
    assert sealer.open(one.id, rows[one.id][:-8] + "AAAAAAA=") is None
    assert Sealer.load("00" * 32, None, tmp_path).open(one.id, rows[one.id]) is None
    assert (tmp_path / "house" / "encryption.key").stat().st_mode & 0o777 == 0o600
    for bad in ("short", "zz" * 32):
        with pytest.raises(ConfigurationError, match="openssl rand"):
            Sealer.load(bad, None, tmp_path)
    database = sqlite3.connect(tmp_path / "house" / "parallax.db")
    assert one.token.reveal() not in "\n".join(database.iterdump())


async def test_wrong_keys_and_missing_rights_are_said(house, forge, url):
    with pytest.raises(ConfigurationError, match="no RSA private key"):
        GitHub(forge.api_url, app_id=APP_ID, key=Secret("not a key"))
    with pytest.raises(ConfigurationError, match="both"):
        GitHub(forge.api_url, app_id=APP_ID)
    async with house() as h:
        forge.granted["contents"] = "read"
        with pytest.raises(RemoteError, match=r"may not have 'write' on acme/shop.*give the App that permission"):
            await h.credentials.issue(Wanted(url=url, access="write"))
        forge.installed = False
        with pytest.raises(RemoteError, match="not installed on acme/shop"):
            await h.credentials.issue(Wanted(url=url, access="read"))
    with pytest.raises(RemoteError, match="the token or key is wrong"):
        await GitHub(forge.api_url, app_id="666", key=Secret(forge.key)).token(url, "read")


@pytest.mark.parametrize("given", [None, "ghp_" + "a" * 40])
async def test_without_a_token_or_with_a_wrong_one_nothing_is_made(house, forge, url, given, tmp_path):
    async with house(app=False) as h:
        errand = Errand(url=url, token=Secret(given) if given else None)
        match = "wrong, has expired" if given else "PARALLAX_GIT_TOKENS"
        with pytest.raises(RemoteError, match=match) as caught:
            await h.service.open_repository(url, errand=errand)
        assert caught.value.kind == "denied"
        assert not list((tmp_path / "house" / "ws").rglob("HEAD"))


async def test_a_token_that_the_remote_refuses_is_replaced_once(house, forge, url):
    async with house() as h:
        await h.service.open_repository(url)
        (token,) = forge.alive
        forge.tokens[token].revoked = True
        await h.service.open_repository(url)
        assert len(forge.alive) == 1
        states = sorted(grant["state"] for grant in await h.credentials.grants())
        assert states == ["issued", "revoked"]


async def test_a_line_cut_in_mid_clone_is_tried_again(house, forge, url, user):
    async with house() as h:
        forge.cut_next_fetch = 1
        repo = await h.service.open_repository(url)
        assert repo.base_commit == git(user, "rev-parse", "HEAD")
        assert git(repo.mirror, "fsck", "--strict") == ""


async def test_a_line_that_stays_cut_leaves_nothing(house, forge, url, tmp_path):
    async with house() as h:
        forge.cut_next_fetch = 99
        with pytest.raises(RemoteError, match="line was cut") as caught:
            await h.service.open_repository(url)
        assert caught.value.retryable
        assert forge.cut_next_fetch == 99 - remotes.ATTEMPTS
        assert not list((tmp_path / "house" / "ws" / "mirrors").iterdir())
        forge.cut_next_fetch = 0
        forge.down = True
        with pytest.raises(RemoteError) as caught:
            await h.service.open_repository(url)
        assert caught.value.retryable


async def test_a_renamed_or_deleted_repository_is_said(house, forge, url):
    async with house(app=False, fixed={host_of(forge): forge.person("shop", "store")}) as h:
        forge.moved["shop"] = "store"
        with pytest.raises(RemoteError, match="renamed or moved"):
            await h.service.open_repository(url)
        forge.moved.clear()
        shutil.rmtree(forge.root / "acme" / "shop.git")
        with pytest.raises(RemoteError, match="no such repository"):
            await h.service.open_repository(url)
    async with house() as h:
        forge.repository("shop")
        forge.moved["shop"] = "store"
        with pytest.raises(RemoteError, match="renamed or moved on GitHub"):
            await h.service.open_repository(url)


async def test_a_deleted_base_branch_is_said(house, forge, url):
    async with house() as h:
        with pytest.raises(RepositoryError, match="has no branch 'gone'"):
            await h.service.open_repository(url, "gone")
        forge.git("shop", "update-ref", "-d", "refs/heads/main")
        with pytest.raises(RepositoryError, match="name a base branch"):
            await h.service.open_repository(url)


async def test_a_shallow_mirror_is_made_whole_when_all_is_wanted(house, forge, user):
    for number in range(5):
        write(user, {"n": str(number)})
        git(user, "add", "-A")
        git(user, "commit", "-q", "-m", str(number))
    url = forge.repository("deep", user, public=True)
    async with house(app=False) as h:
        repo = await h.service.open_repository(url, depth=2)
        assert git(repo.mirror, "rev-list", "--count", repo.base_commit) == "2"
        ws = await h.service.create("e1", "engineer", 1, repo)
        assert (ws.tree / "n").read_text() == "4"
        await h.service.open_repository(url)
        assert git(repo.mirror, "rev-list", "--count", repo.base_commit) == "6"


async def test_the_token_reaches_neither_argument_nor_configuration(house, forge, url, tmp_path):
    seen = tmp_path / "seen"
    fake = tmp_path / "git"
    fake.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >> {seen}\nexec git "$@"\n')
    fake.chmod(0o755)
    mine = forge.person("shop")
    async with house(app=False) as h:
        h.service.remotes._git = Git(str(fake))
        errand = Errand(url=url, token=Secret(mine))
        found, default = await h.service.remotes.branches(errand)
        assert default == "main"
        assert set(found) == {"main"}
    assert mine not in seen.read_text()
    assert "Authorization" not in seen.read_text()


async def test_the_token_goes_to_its_own_host_only(house, forge, url, tmp_path):
    """A redirect to another host is not followed, and a token of one host is not shown to another."""
    hits = []

    async def listen(reader, writer):
        hits.append(await reader.read(4096))
        writer.close()

    server = await asyncio.start_server(listen, "127.0.0.1", 0)
    other = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with house(app=False, fixed={host_of(forge): forge.person("shop")}) as h:
        with pytest.raises(RemoteError):
            await h.service.remotes.branches(Errand(url=f"{other}/acme/shop"))
        assert hits
        assert all(b"uthorization" not in hit for hit in hits)
    server.close()


async def test_ten_at_once_share_one_token(house, forge, url):
    async with house() as h:
        begun = time.monotonic()
        await asyncio.gather(*(h.service.open_repository(url) for _ in range(10)))
        assert len(forge.tokens) == 1
        assert time.monotonic() - begun < 60
