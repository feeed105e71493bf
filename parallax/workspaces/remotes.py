"""Remotes: the calls of git that leave this machine, with a token where one is needed, and words for what went wrong.

The token goes into the environment of that one process, bound to that one repository's URL: never into an argument, a
URL or a configuration. A cut line is tried again, a token that the remote refuses is replaced once. Called by the
mirrors (fetch) and by `delivery` (push).
"""

from __future__ import annotations

import asyncio
import base64
import random
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, Unpack

from parallax.errors import GitError, RemoteError
from parallax.models import Credential
from parallax.redaction import Secret
from parallax.workspaces.credentials import CredentialService, Wanted
from parallax.workspaces.git import Git, Options, check_url

ATTEMPTS: Final = 3
FIRST_WAIT_S: Final = 0.5

# git's words for what went wrong, in the order in which they are looked for.
_KINDS: Final = (
    ("denied", r"HTTP 40[13]|error: 40[13]|Authentication failed|could not read (Username|Password)"),
    ("missing", r"HTTP 404|error: 404|[Rr]epository .*not found|error: 30[1278]|unable to update url base"),
    ("rejected", r"\[(remote )?rejected\]|pre-receive hook declined|protected branch|stale info|fetch first"),
    ("network", r"early EOF|unexpected disconnect|hung up|RPC failed|transfer closed|Empty reply|invalid index-pack"),
    ("network", r"Connection (reset|refused|timed out)|timed out|took longer|Could(n't| not) (resolve|connect)"),
    ("network", r"Failed to connect|error: 5\d\d|HTTP 5\d\d|bad line length|unable to read"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Errand:
    """A repository's URL and whose errand it is: an execution's step, or nobody's in particular."""

    url: str
    execution: str | None = None
    step: str = ""
    token: Secret | None = None  # given by hand: before there is an execution that it could be kept for


class Remotes:
    """The one way out."""

    def __init__(self, git: Git, credentials: CredentialService | None = None) -> None:
        self._git = git
        self._credentials = credentials

    async def run(self, errand: Errand, access: str, *args: str, **options: Unpack[Options]) -> str:
        """One git command that goes to the remote. Raises RemoteError; only `network` was tried several times."""
        url = check_url(errand.url)
        own = options.get("env") or {}
        renewed, attempt = False, 1
        while True:
            async with self._lent(errand, access) as lent:
                token = errand.token or (lent.token if lent else None)
                options["env"] = own if token is None else {**own, **authorised(url, token)}
                try:
                    return await self._git.run(*args, **options)
                except GitError as error:
                    problem = _explained(error, url, with_token=token is not None, access=access)
                if problem.kind == "denied" and not renewed and lent is not None and errand.token is None:
                    assert self._credentials is not None
                    renewed = await self._credentials.refused(lent)
                    if renewed:
                        continue
            if not problem.retryable or attempt == ATTEMPTS:
                raise problem
            await asyncio.sleep(FIRST_WAIT_S * 2 ** (attempt - 1) * (0.5 + random.random()))  # noqa: S311 - jitter
            attempt += 1

    @asynccontextmanager
    async def _lent(self, errand: Errand, access: str) -> AsyncIterator[Credential | None]:
        if self._credentials is None or errand.token is not None:
            yield None
            return
        wanted = Wanted(url=errand.url, access=access, execution=errand.execution, step=errand.step)
        credential = await self._credentials.issue(wanted)
        if credential is not None:
            await self._credentials.used(credential)
        yield credential

    async def branches(self, errand: Errand) -> tuple[dict[str, str], str | None]:
        """The remote's branches with their commits, and the name of its default branch."""
        answer = await self.run(errand, "read", "ls-remote", "--symref", "--", errand.url, "HEAD", "refs/heads/*")
        found: dict[str, str] = {}
        default = None
        for line in answer.splitlines():
            value, _, ref = line.partition("\t")
            if value.startswith("ref: refs/heads/") and ref == "HEAD":
                default = value.removeprefix("ref: refs/heads/")
            elif ref.startswith("refs/heads/"):
                found[ref.removeprefix("refs/heads/")] = value
        return found, default


def authorised(url: str, token: Secret) -> dict[str, str]:
    """The environment that lets git show a token to this repository and to nobody else."""
    basic = base64.b64encode(f"x-access-token:{token.reveal()}".encode()).decode()
    return {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"http.{url}.extraHeader",
        "GIT_CONFIG_VALUE_0": f"Authorization: Basic {basic}",
    }


def _explained(error: GitError, url: str, *, with_token: bool, access: str) -> RemoteError:
    """What a failure of git means to the person who reads it."""
    if isinstance(error, RemoteError):
        return error
    said = f"{error}\n{error.stderr}"
    kind = next((kind for kind, pattern in _KINDS if re.search(pattern, said, re.IGNORECASE)), "invalid")
    doing = "push to" if access != "read" else "read"
    match kind:
        case "denied":
            why = (
                "the token is wrong, has expired, or may not do this"
                if with_token
                else "it asks for a token, and there is none: set PARALLAX_GIT_TOKENS, use a GitHub App, or give one "
                "with --token-env"
            )
        case "missing":
            why = "there is no such repository there, it was renamed or moved, or the token may not see it"
        case "rejected":
            why = f"the remote refuses it ({_rejection(said)})"
        case "network":
            why = f"it was not reached, or the line was cut ({_first_line(str(error))}): try again"
        case _:
            why = _first_line(str(error))
    return RemoteError(f"cannot {doing} {url}: {why}", kind, error.stderr)


def _rejection(said: str) -> str:
    lines = [line.strip() for line in said.splitlines()]
    told = [line.removeprefix("remote:").strip() for line in lines if line.startswith("remote:")]
    told += [line for line in lines if "rejected]" in line or "declined" in line]
    return "; ".join(dict.fromkeys(line for line in told if line))[:300] or "no reason given"


def _first_line(said: str) -> str:
    return said.strip().splitlines()[0][:300] if said.strip() else "no reason given"
