"""GitHub: tokens of a GitHub App for one repository, pull requests with labels and reviewers, the end of a token.

Also Enterprise, by its API's URL. A pull request is opened once whatever happens between: it is looked for by its head
and by a marker in its body before it is made, and after a refusal that says it is there. Called by `credentials` and
`delivery` through the port `GitProvider`; `PlainGit` stands for every other host, which can be pushed to and no more.
"""

from __future__ import annotations

import time
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, urlsplit

from parallax.errors import ConfigurationError, RemoteError
from parallax.models import Minted, Opened, PullRequest
from parallax.redaction import Secret

if TYPE_CHECKING:
    import httpx

PUBLIC_API: Final = "https://api.github.com"
_WRITE: Final = {"contents": "write", "pull_requests": "write", "metadata": "read"}
_PERMISSIONS: Final = {
    "read": {"contents": "read", "metadata": "read"},
    "write": _WRITE,
    "workflows": _WRITE | {"workflows": "write"},
}
_CLOCK_SKEW_S: Final = 60
_ASSERTION_S: Final = 540  # GitHub takes at most ten minutes


class PlainGit:
    """Any git host: it takes pushes, makes no tokens and has no pull requests."""

    def serves(self, url: str) -> bool:
        """Every URL: the last provider that is asked."""
        return True

    async def token(self, url: str, access: str) -> Minted | None:
        """None: it makes none."""
        return None

    async def pull_request(self, url: str, token: Secret, wanted: PullRequest) -> Opened:
        """There is no such thing here."""
        raise RemoteError(
            f"{urlsplit(url).netloc} is not a GitHub that this server knows: the branch {wanted.head} is pushed, open "
            "the pull request there (for GitHub Enterprise set PARALLAX_GITHUB_API_URL)",
            "invalid",
        )

    async def revoke(self, token: Secret) -> None:
        """A token of the user's own is not ours to end."""


class GitHub:
    """One GitHub, public or Enterprise. Without an App it makes no tokens, but opens pull requests with others'."""

    def __init__(self, api_url: str = PUBLIC_API, *, app_id: str | None = None, key: Secret | None = None) -> None:
        if (app_id is None) != (key is None):
            raise ConfigurationError(
                "a GitHub App needs both PARALLAX_GITHUB_APP_ID and PARALLAX_GITHUB_PRIVATE_KEY (or _PATH): "
                "set both or neither"
            )
        self._api = api_url.rstrip("/")
        self._app_id = app_id
        self._key = key
        self._host = "github.com" if self._api == PUBLIC_API else urlsplit(self._api).netloc
        if key is not None:
            self._assertion()  # a key that cannot sign is said at the start, not in the night

    def serves(self, url: str) -> bool:
        """Whether the repository lies on this GitHub."""
        return urlsplit(url).netloc.lower() == self._host.lower()

    async def token(self, url: str, access: str) -> Minted | None:
        """An installation token for this one repository."""
        if self._key is None:
            return None
        owner, name = _parts(url)
        assertion = self._assertion()
        found = await self._ask("GET", f"/repos/{quote(owner)}/{quote(name)}/installation", assertion, bearer=True)
        if found.status_code == 404:
            raise RemoteError(
                f"the GitHub App {self._app_id} is not installed on {owner}/{name}, or the repository is not there: "
                "install the App there",
                "missing",
            )
        installation = _good(found, f"the App {self._app_id}")["id"]
        body = {"repositories": [name], "permissions": _PERMISSIONS[access]}
        made = await self._ask("POST", f"/app/installations/{installation}/access_tokens", assertion, body, bearer=True)
        if made.status_code == 422:
            raise RemoteError(
                f"the GitHub App {self._app_id} may not have '{access}' on {owner}/{name} ({_words(made)}): "
                "give the App that permission",
                "denied",
            )
        value = _good(made, f"the App {self._app_id}")
        return Minted(token=Secret(value["token"]), expires_at=datetime.fromisoformat(value["expires_at"]).timestamp())

    async def pull_request(self, url: str, token: Secret, wanted: PullRequest) -> Opened:
        """Open it, or find it."""
        owner, name = _parts(url)
        repository = f"/repos/{quote(owner)}/{quote(name)}"
        if (there := await self._found(repository, owner, token, wanted)) is not None:
            return there
        body = {
            "title": wanted.title, "body": wanted.body, "head": wanted.head, "base": wanted.base, "draft": wanted.draft,
        }  # fmt: skip
        made = await self._ask("POST", f"{repository}/pulls", token, body)
        if made.status_code == 422:
            if (there := await self._found(repository, owner, token, wanted)) is not None:
                return there
            raise RemoteError(await self._why_not(repository, token, wanted, _words(made)), "invalid")
        value = _good(made, f"{owner}/{name}")
        problems = await self._wishes(repository, token, value["number"], wanted)
        return Opened(url=value["html_url"], number=value["number"], new=True, problems=problems)

    async def revoke(self, token: Secret) -> None:
        """End an installation token."""
        answer = await self._ask("DELETE", "/installation/token", token)
        if answer.status_code not in {204, 401, 403, 404}:  # dead already, or of a kind that cannot be ended
            _good(answer, "the end of a token")

    async def _found(self, repository: str, owner: str, token: Secret, wanted: PullRequest) -> Opened | None:
        """The pull request for this head: an open one, whoever opened it, or one of ours that was closed since."""
        query = f"?head={quote(owner, safe='')}:{quote(wanted.head, safe='')}&state=all&per_page=100"
        listed = _good(await self._ask("GET", f"{repository}/pulls{query}", token), repository.removeprefix("/repos/"))
        fitting = [
            entry
            for entry in listed
            if entry["head"]["ref"] == wanted.head
            and (entry["state"] == "open" or wanted.marker in (entry["body"] or ""))
        ]
        if not fitting:
            return None
        found = next((entry for entry in fitting if wanted.marker in (entry["body"] or "")), fitting[0])
        problems: tuple[str, ...] = ()
        if found["state"] == "open":
            problems = await self._wishes(repository, token, found["number"], wanted)
        else:
            problems = ("it was closed since, and is left so",)
        return Opened(url=found["html_url"], number=found["number"], new=False, problems=problems)

    async def _wishes(self, repository: str, token: Secret, number: int, wanted: PullRequest) -> tuple[str, ...]:
        """Labels and reviewers. Asking again changes nothing, and what is refused leaves the pull request standing."""
        problems = []
        if wanted.labels:
            body: Any = {"labels": list(wanted.labels)}
            answer = await self._ask("POST", f"{repository}/issues/{number}/labels", token, body)
            if answer.status_code >= 400:
                problems.append(f"labels {', '.join(wanted.labels)}: {_words(answer)}")
        if wanted.reviewers:
            teams = [name.partition("/")[2] for name in wanted.reviewers if "/" in name]
            body = {"reviewers": [name for name in wanted.reviewers if "/" not in name], "team_reviewers": teams}
            answer = await self._ask("POST", f"{repository}/pulls/{number}/requested_reviewers", token, body)
            if answer.status_code >= 400:
                problems.append(f"reviewers {', '.join(wanted.reviewers)}: {_words(answer)}")
        return tuple(problems)

    async def _why_not(self, repository: str, token: Secret, wanted: PullRequest, words: str) -> str:
        base = await self._ask("GET", f"{repository}/branches/{quote(wanted.base, safe='')}", token)
        if base.status_code == 404:
            return (
                f"the base branch '{wanted.base}' is not on the remote any more: the work is pushed as {wanted.head}, "
                "open the pull request onto another branch (--onto NAME)"
            )
        return f"GitHub would not open a pull request from {wanted.head} into {wanted.base}: {words}"

    def _assertion(self) -> Secret:
        """What proves that we are the App, for some minutes."""
        import jwt  # here, with cryptography below it: only a server that is an App pays for them at its start

        assert self._key is not None
        now = int(time.time())
        claims = {"iat": now - _CLOCK_SKEW_S, "exp": now + _ASSERTION_S, "iss": self._app_id}
        try:
            return Secret(jwt.encode(claims, self._key.reveal(), algorithm="RS256"))
        except (ValueError, TypeError, jwt.PyJWTError):
            raise ConfigurationError(
                "PARALLAX_GITHUB_PRIVATE_KEY is no RSA private key in PEM form: download a new one from the App's page"
            ) from None

    async def _ask(
        self, method: str, path: str, token: Secret, body: Any = None, *, bearer: bool = False
    ) -> httpx.Response:
        import httpx  # here, because nothing asks GitHub before a remote is used

        from parallax import http

        headers = {
            "Authorization": f"{'Bearer' if bearer else 'token'} {token.reveal()}",
            "Accept": "application/vnd.github+json",
            "X-GitHub-Api-Version": "2022-11-28",
            "User-Agent": "parallax",
        }
        try:
            async with http.client(self._api, headers=headers) as client:
                return await client.request(method, path, json=body)
        except httpx.TransportError as error:
            raise RemoteError(
                f"{self._host} was not reached ({type(error).__name__}): try again later", "network"
            ) from None


def _parts(url: str) -> tuple[str, str]:
    """Owner and name of a repository's URL."""
    path = urlsplit(url).path.strip("/").removesuffix(".git").split("/")
    if len(path) != 2:
        raise RemoteError(f"{url} is no repository of GitHub's: expected https://HOST/OWNER/NAME", "invalid")
    return path[0], path[1]


def _good(answer: httpx.Response, what: str) -> Any:
    """The body of an answer that is one; else a RemoteError in words."""
    code = answer.status_code
    if code < 300:
        return answer.json()
    if code in {301, 302, 307, 308}:
        raise RemoteError(f"{what} was renamed or moved on GitHub: give its new URL", "missing")
    if code == 429 or code >= 500 or answer.headers.get("x-ratelimit-remaining") == "0":
        raise RemoteError(f"GitHub cannot answer for {what} now ({code} {_words(answer)}): try again later", "network")
    kind = {401: "denied", 403: "denied", 404: "missing"}.get(code, "invalid")
    hint = {
        "denied": ": the token or key is wrong, dead, or may not do this",
        "missing": ": it is not there, or the token may not see it",
    }.get(kind, "")
    raise RemoteError(f"GitHub refuses {what} ({code} {_words(answer)}){hint}", kind)


def _words(answer: httpx.Response) -> str:
    """GitHub's own words, of an error."""
    try:
        value = answer.json()
        more = [
            entry.get("message") or entry.get("code") for entry in value.get("errors", []) if isinstance(entry, dict)
        ]
        return "; ".join([str(value.get("message", "")), *(str(word) for word in more if word)])[:300]
    except (ValueError, AttributeError):
        return answer.text[:200]
