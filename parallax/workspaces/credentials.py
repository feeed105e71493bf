"""CredentialService: the server's tokens for git remotes, each for one repository and no more than is needed.

Asked by `remotes` before git goes out. Who gives: the user's token for this execution, else a GitHub App's installation
token, else the fixed token of the settings for that host. An App's token lives for a step: it is issued, cached until
shortly before its end, renewed, and revoked at the provider when the step, the execution or the server ends; one that
a crash left behind is revoked at the next start. Every grant is a row that tells who, what, when; a token is only ever
kept sealed. No agent is given any of them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias
from urllib.parse import urlsplit

from parallax.errors import ConflictError, NotFoundError, ParallaxError, RemoteError, UsageError
from parallax.failpoints import fp
from parallax.models import Credential, Json, new_id
from parallax.ports import GitProvider
from parallax.redaction import Redactor, Secret
from parallax.storage.statements import Change, insert_row
from parallax.storage.store import Store
from parallax.telemetry import logger
from parallax.workspaces.git import Locks, check_url
from parallax.workspaces.sealing import Sealer

RENEW_S: Final = 300.0
ACCESSES: Final = ("read", "write", "workflows")
_AT_START_S: Final = 5.0  # a provider that does not answer must not hold the start back
_FOREVER: Final = 253402300799.0  # the last second of the year 9999: JSON has no infinity
_log = logger("credentials")

Tell: TypeAlias = Callable[[str, str, Json], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is asked for. `step` names what it is for, and with `execution` who asks; an App's token is for it alone."""

    url: str
    access: str
    execution: str | None = None
    step: str = ""

    @property
    def repo(self) -> str:
        """The repository as grants name it."""
        return repository_of(self.url)


def repository_of(url: str) -> str:
    """The one spelling of a repository's URL."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.lower()}{parts.path.rstrip('/').removesuffix('.git')}"


class CredentialService:
    """Every token for a git remote that this server holds."""

    def __init__(
        self,
        *,
        store: Store,
        sealer: Sealer,
        providers: Sequence[GitProvider],
        fixed: Mapping[str, Secret],
        redact: Redactor,
        tell: Tell,
    ) -> None:
        self._store = store
        self._sealer = sealer
        self._providers = providers
        self._fixed = {host.lower(): token for host, token in fixed.items()}
        self._redact = redact
        self._tell = tell
        self._locks = Locks()
        self._cached: dict[Wanted, Credential] = {}
        for token in fixed.values():
            redact.learn(token)

    def provider(self, url: str) -> GitProvider:
        """Who keeps the repository at this URL."""
        return next(provider for provider in self._providers if provider.serves(url))

    # -- giving --------------------------------------------------------------------------------------------------------

    async def issue(self, wanted: Wanted) -> Credential | None:
        """A token that lives for at least five minutes more, or None where nobody has one. Raises RemoteError."""
        if wanted.access not in ACCESSES:
            raise UsageError(f"'{wanted.access}' is no access to a repository: {', '.join(ACCESSES)}")
        check_url(wanted.url)
        async with self._locks.hold(repr(wanted)):
            cached = self._cached.get(wanted)
            if cached is not None and cached.expires_at - time.time() > RENEW_S:
                return cached
            made = await self._users(wanted) or await self._minted(wanted) or await self._of_settings(wanted)
            if made is not None:
                self._cached[wanted] = made
            if cached is not None:
                await self._end(cached.id, "renewed")
        return made

    async def _users(self, wanted: Wanted) -> Credential | None:
        """The token that the user gave for this execution and repository."""
        if wanted.execution is None:
            return None
        for row in await self._store.rows("credentials", execution=wanted.execution, state="issued", source="user"):
            token = self._sealer.open(row["id"], row["sealed"] or "")
            if row["repo"] == wanted.repo and token is not None:
                self._redact.learn(token)
                return _credential(row, token)
        return None

    async def _minted(self, wanted: Wanted) -> Credential | None:
        minted = await self.provider(wanted.url).token(wanted.url, wanted.access)
        if minted is None:
            return None
        return await self._granted(wanted, minted.token, "app", minted.expires_at)

    async def _of_settings(self, wanted: Wanted) -> Credential | None:
        token = self._fixed.get(urlsplit(wanted.url).netloc.lower())
        return None if token is None else await self._granted(wanted, token, "fixed", _FOREVER)

    async def _granted(self, wanted: Wanted, token: Secret, source: str, expires_at: float) -> Credential:
        self._redact.learn(token)
        row = self.row(wanted, token, source=source, expires_at=expires_at)
        try:
            await self._store.commit(Change([insert_row("credentials", row)]))
        except BaseException:
            if source == "app":  # what is not on record is not used
                await self.provider(wanted.url).revoke(token)
            raise
        fp("token.minted_before_use")
        await self._told("issued", row)
        return _credential(row, token)

    def row(
        self, wanted: Wanted, token: Secret, *, source: str, expires_at: float = _FOREVER, by: str = "server"
    ) -> dict[str, Any]:
        """A grant as a row of its table. `fixed` tokens are in the settings and not kept again."""
        grant = new_id()
        return {
            "id": grant,
            "execution": wanted.execution,
            "step": wanted.step,
            "repo": wanted.repo,
            "access": wanted.access,
            "source": source,
            "state": "issued",
            "sealed": None if source == "fixed" else self._sealer.seal(grant, token),
            "asked_by": by,
            "issued_at": time.time(),
            "expires_at": expires_at,
            "uses": 0,
        }

    async def give(self, wanted: Wanted, token: Secret, *, by: str) -> dict[str, Any]:
        """Keep a user's token for an execution, until that ends. Returns the grant without the token."""
        check_url(wanted.url)
        if wanted.execution is None:
            raise UsageError("a token of yours is given for one execution: name it")
        if await self._store.ended(wanted.execution):
            raise ConflictError(f"execution '{wanted.execution}' has ended: it needs no token any more")
        self._redact.learn(token)
        row = self.row(wanted, token, source="user", by=by)
        await self._store.commit(Change([insert_row("credentials", row)]))
        await self._told("issued", row)
        return _shown(row)

    # -- using and ending ----------------------------------------------------------------------------------------------

    async def used(self, credential: Credential) -> None:
        """Note that git goes out with it now."""
        row = await self._row(credential.id)
        await self._keep(row | {"uses": row["uses"] + 1, "used_at": time.time()})

    async def refused(self, credential: Credential) -> bool:
        """The remote took it for wrong or dead. Whether another may be had: only an App makes new ones."""
        self._forget(credential.id)
        if credential.source != "app":
            return False
        await self._end(credential.id, "refused by the remote")
        return True

    async def revoke(self, grant: str) -> dict[str, Any]:
        """End a grant now; at the provider, too, where the token is ours. Raises NotFoundError, RemoteError."""
        row = await self._row(grant)
        if row["state"] != "issued":
            raise ConflictError(f"grant '{grant}' is {row['state']} already")
        await self._end(grant, "asked for")
        row = await self._row(grant)
        if row["state"] == "issued":
            raise RemoteError(f"grant '{grant}' could not be revoked now: the provider was not reached", "network")
        return _shown(row)

    async def release(self, execution: str | None, *, step: str | None = None) -> None:
        """Everything that was issued for an execution, or for one step of it, ends. Never raises for a provider.

        None stands for what is done before there is an execution.
        """
        more = {} if step is None else {"step": step}
        for row in await self._store.rows("credentials", execution=execution, state="issued", **more):
            await self._end(row["id"], "the step ended" if step else "the execution ended")

    async def grants(self, execution: str | None = None) -> list[dict[str, Any]]:
        """The audit: every grant, newest first, without tokens."""
        only = {} if execution is None else {"execution": execution}
        rows = await self._store.rows("credentials", **only)
        return [_shown(row) for row in sorted(rows, key=lambda row: row["id"], reverse=True)]

    async def start(self) -> int:
        """Revoke what a former life of this server left behind; returns how many that were."""
        issued = await self._store.rows("credentials", state="issued")
        left = [row["id"] for row in issued if row["source"] != "user" or await self._store.ended(row["execution"])]
        try:
            async with asyncio.timeout(_AT_START_S):
                await asyncio.gather(*(self._end(grant, "left by a former life of the server") for grant in left))
        except TimeoutError:
            _log.warning("grants were not revoked", cause="the provider does not answer; tried again at the next start")
        return len(left)

    async def close(self) -> None:
        """At the server's end: nothing that it minted outlives it."""
        for credential in list(self._cached.values()):
            if credential.source != "user":
                await self._end(credential.id, "the server stops")

    async def _end(self, grant: str, why: str) -> None:
        row = await self._row(grant)
        if row["state"] != "issued":
            return
        self._forget(grant)
        state = "expired" if row["expires_at"] <= time.time() else "revoked"
        token = self._sealer.open(grant, row["sealed"] or "")
        if row["source"] == "app" and state == "revoked":
            if token is None:
                return  # sealed with another key: it dies by itself, and is told so then
            try:
                await self.provider(row["repo"]).revoke(token)
            except RemoteError as error:
                _log.warning("a grant was not revoked", grant=grant, cause=str(error))
                return  # it stays issued: the next start tries again
        if token is not None:
            self._redact.forget(token)
        ended = row | {"state": state, "sealed": None, "revoked_at": time.time(), "why": why}
        await self._keep(ended)
        await self._told(state, ended)

    def _forget(self, grant: str) -> None:
        self._cached = {wanted: kept for wanted, kept in self._cached.items() if kept.id != grant}

    async def _row(self, grant: str) -> dict[str, Any]:
        rows = await self._store.rows("credentials", id=grant)
        if not rows:
            raise NotFoundError(f"there is no grant '{grant}'")
        return rows[0]

    async def _keep(self, row: dict[str, Any]) -> None:
        await self._store.commit(Change([insert_row("credentials", row, replace_row=True)]))

    async def _told(self, what: str, row: dict[str, Any]) -> None:
        if row["execution"] is None:
            return
        data = {name: row[name] for name in ("id", "repo", "access", "source", "step")}
        try:
            await self._tell(row["execution"], f"credential.{what}", data)
        except ParallaxError as error:  # the row is what counts
            _log.warning("a grant was not told", grant=row["id"], cause=str(error))


def _credential(row: Mapping[str, Any], token: Secret) -> Credential:
    names = ("id", "repo", "access", "expires_at", "source", "execution")
    return Credential(token=token, **{name: row[name] for name in names})


def _shown(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "sealed"}
