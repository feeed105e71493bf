"""Finaliser: what leaves the house. Looks at the work, pushes it, opens the pull request; each exactly once.

A push and a pull request are effects that a crash may cut off from their record, so both are found again by looking:
the remote's branch is compared before and after, the pull request is searched by its head and marker. Whoever calls
again after a crash gets what is there. A change of a protected path or of a CI definition, or what looks like a secret,
goes out only with a person's approval. Called by `execution.finalising` at the end of a run and by `parallax land`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Self

from parallax.errors import ConflictError, NotFoundError, RemoteError, RepositoryError, UsageError
from parallax.failpoints import fp
from parallax.models import Json, Opened, PullRequest
from parallax.redaction import TOKEN_FORMATS, Redactor
from parallax.workspaces import history
from parallax.workspaces.credentials import CredentialService, Wanted
from parallax.workspaces.git import check_branch, text
from parallax.workspaces.github import PlainGit
from parallax.workspaces.profile import Profile, matching
from parallax.workspaces.remotes import Errand
from parallax.workspaces.repository import Repository
from parallax.workspaces.service import WorkspaceService, result_branch

PUSH_TIMEOUT_S: Final = 1800.0
STEP: Final = "finalise"
# Who may change these runs what they like on the forge's machines, with the forge's secrets.
CI_PATHS: Final = (
    ".github/workflows/**", ".github/actions/**", ".gitlab-ci.yml", ".circleci/**", "Jenkinsfile",
    "azure-pipelines.yml",
)  # fmt: skip
_PROBE: Final = "parallax/probe"  # a branch that is only asked for, never made
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._:/@+-]{0,99}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What shall become of a result. `onto` is the pull request's base, the base branch of the run by default."""

    push: bool = False
    pull_request: bool = False
    branch: str | None = None
    onto: str | None = None
    draft: bool = False
    labels: tuple[str, ...] = ()
    reviewers: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return self.push or self.pull_request

    @classmethod
    def read(cls, value: Json) -> Self:
        """From JSON; raises UsageError for what cannot be wished."""
        wish = cls(
            **{**value, "labels": tuple(value.get("labels", ())), "reviewers": tuple(value.get("reviewers", ()))}
        )
        if not wish.pull_request and (wish.draft or wish.labels or wish.reviewers or wish.onto):
            raise UsageError("a draft, labels, reviewers and a base belong to a pull request: add --pr")
        for name in (*wish.labels, *wish.reviewers):
            if not _NAME.fullmatch(name):
                raise UsageError(f"{name[:60]!r} is no name of a label or reviewer")
        for branch in filter(None, (wish.branch, wish.onto)):
            check_branch(branch)
        return wish


@dataclass(frozen=True, slots=True, kw_only=True)
class Looked:
    """What would go out. `sensitive` says, in words, what a person has to approve; `ci` whether CI definitions do."""

    url: str
    branch: str
    sha: str
    files: int
    sensitive: tuple[str, ...] = ()
    ci: bool = False
    there: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pushed:
    """Where the work is on the remote; `new` when it was not there before."""

    url: str
    branch: str
    sha: str
    new: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """Title and body of a pull request, without the marker."""

    title: str
    body: str


class Finaliser:
    """Pushes results and opens pull requests; one at a time for each execution."""

    def __init__(self, service: WorkspaceService, credentials: CredentialService, redact: Redactor) -> None:
        self._service = service
        self._git = service.git
        self._credentials = credentials
        self._redact = redact

    async def check(self, repo: Repository, wish: Wish, errand: Errand) -> None:
        """Whether the wish can be granted at all, before anybody works for it. Raises RemoteError, RepositoryError."""
        url = await self._service.remote_of(repo)
        if wish.pull_request and isinstance(self._credentials.provider(url), PlainGit):
            raise RepositoryError(
                f"{url} lies on no GitHub that this server knows: leave --pr out, or set PARALLAX_GITHUB_API_URL"
            )
        outward = Errand(url=url, token=errand.token, step=STEP)
        try:
            await self._check_remote(repo, wish, outward)
        finally:
            await self._credentials.release(None, step=STEP)

    async def _check_remote(self, repo: Repository, wish: Wish, outward: Errand) -> None:
        url = outward.url
        await self._service.remotes.run(
            outward, "write", "push", "--dry-run", "--no-verify", "--", url, f"{repo.base_commit}:refs/heads/{_PROBE}",
            git_dir=repo.mirror,
        )  # fmt: skip
        if wish.pull_request:
            branches, _ = await self._service.remotes.branches(outward)
            onto = wish.onto or repo.base_branch
            if onto not in branches:
                raise RepositoryError(f"{url} has no branch '{onto}' to open a pull request onto: name one with --onto")

    async def look(self, repo: Repository, execution: str, wish: Wish, profile: Profile) -> Looked:
        """What would go out; touches nothing."""
        sha = await history.ref(self._git, repo.mirror, f"refs/heads/{result_branch(execution)}")
        if sha is None:
            raise NotFoundError(f"execution '{execution}' has no result: nothing was integrated")
        url = await self._service.remote_of(repo)
        branch = wish.branch or result_branch(execution)
        branches, _ = await self._service.remotes.branches(self._errand(url, execution))
        changed = [text(path) for path in await history.changed_files(self._git, repo.mirror, repo.base_commit, sha)]
        ci = matching(changed, CI_PATHS)
        told = [f"CI definition {path}" for path in ci]
        told += [f"protected path {path}" for path in matching(changed, profile.protected) if path not in ci]
        told += await self._secrets(repo, sha)
        return Looked(
            url=url,
            branch=branch,
            sha=sha,
            files=len(changed),
            sensitive=tuple(told),
            ci=bool(ci),
            there=branches.get(branch),
        )

    async def _secrets(self, repo: Repository, sha: str) -> list[str]:
        """Files to which something was added that looks like a token, or is one of ours."""
        path, found = "?", dict[str, None]()
        for line in (await history.diff(self._git, repo.mirror, repo.base_commit, sha)).splitlines():
            if line.startswith("+++ "):
                path = line[4:].removeprefix("b/")
            elif line.startswith("+") and (TOKEN_FORMATS.search(line) or self._redact(line) != line):
                found[f"what looks like a secret in {path}"] = None
        return list(found)

    async def push(self, repo: Repository, execution: str, looked: Looked, *, dry_run: bool = False) -> Pushed:
        """Bring the work to the remote's branch, which only ever moves forward. What is there already is not sent."""
        pushed = Pushed(url=looked.url, branch=looked.branch, sha=looked.sha, new=looked.there != looked.sha)
        if not pushed.new:
            return pushed
        if looked.there is not None and not await self._behind(repo, looked.there, looked.sha):
            raise RemoteError(
                f"branch '{looked.branch}' of {looked.url} has commits that the result has not: push to another one "
                "with --branch",
                "rejected",
            )
        errand, ref = self._errand(looked.url, execution), f"refs/heads/{looked.branch}"
        fp("push.before")
        try:
            await self._service.remotes.run(
                errand, "workflows" if looked.ci else "write",
                *("push", "--no-verify", "--recurse-submodules=no", *(["--dry-run"] if dry_run else [])),
                f"--force-with-lease={ref}:{looked.there or ''}", "--", looked.url, f"{looked.sha}:{ref}",
                git_dir=repo.mirror, timeout_s=PUSH_TIMEOUT_S,
            )  # fmt: skip
        except RemoteError as refused:
            # The answer may have been lost where the push was not: only the remote knows.
            if not await self._is_there(errand, looked):
                raise refused from None
        if not dry_run:
            fp("push.done_before_record")
            if not await self._is_there(errand, looked):
                raise RemoteError(f"{looked.url} took the push of '{looked.branch}' but does not show it", "rejected")
        return pushed

    async def _is_there(self, errand: Errand, looked: Looked) -> bool:
        try:
            return (await self._service.remotes.branches(errand))[0].get(looked.branch) == looked.sha
        except RemoteError:
            return False

    async def _behind(self, repo: Repository, there: str, sha: str) -> bool:
        known = await self._git.call("cat-file", "-e", f"{there}^{{commit}}", git_dir=repo.mirror, ok=(0, 1, 128))
        return known.code == 0 and await history.is_ancestor(self._git, repo.mirror, there, sha)

    async def pull_request(self, repo: Repository, execution: str, looked: Looked, wish: Wish, words: Words) -> Opened:
        """Open it, or find it: a second call gives the first one's."""
        marker = f"<!-- parallax:{execution} -->"
        wanted = PullRequest(
            title=self._redact(words.title),
            body=f"{self._redact(words.body)}\n\n{marker}\n",
            head=looked.branch,
            base=wish.onto or repo.base_branch,
            marker=marker,
            draft=wish.draft,
            labels=wish.labels,
            reviewers=wish.reviewers,
        )
        if not wanted.base:
            raise ConflictError(f"the run began from no branch: say with --onto where {looked.branch} shall go")
        credential = await self._credentials.issue(
            Wanted(url=looked.url, access="write", execution=execution, step=STEP)
        )
        if credential is None:
            raise RemoteError(f"there is no token for {looked.url} to open a pull request with", "denied")
        await self._credentials.used(credential)
        opened = await self._credentials.provider(looked.url).pull_request(looked.url, credential.token, wanted)
        fp("pr.created_before_record")
        return opened

    async def stat(self, repo: Repository, looked: Looked) -> history.DiffStat:
        """How much the work changes."""
        return await history.diffstat(self._git, repo.mirror, repo.base_commit, looked.sha)

    async def done(self, execution: str) -> None:
        """The step is over: its tokens end."""
        await self._credentials.release(execution, step=STEP)

    def _errand(self, url: str, execution: str) -> Errand:
        return Errand(url=url, execution=execution, step=STEP)


def approval_problem(looked: Looked) -> str:
    """One sentence for what needs a person."""
    return f"the push to {looked.url} needs your approval, since it brings {'; '.join(looked.sensitive[:10])}"
