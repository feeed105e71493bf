"""The error tree of Parallax. Every room raises these; the doors turn them into problem+json and exit codes.

ParallaxError                 .retryable decides whether another attempt makes sense
├── UsageError                what the user gave cannot be used: exit code 2, HTTP 4xx
│   ├── NotFoundError         no such pattern, execution, agent, question ...
│   ├── ConflictError         it exists, but not in a state that allows this
│   ├── PatternError          a pattern that does not load, with its place
│   ├── ProfileError          a .parallax.yaml that does not load, with its place
│   └── RepositoryError       not a git repository, no commit, no such branch
├── ConfigurationError        this installation: data directory, port, missing program
├── StorageError              the store could not keep its promise
│   ├── FencedError           another owner holds the execution: stop, discard
│   ├── StorageFull           the disk has no room left: HTTP 507
│   └── SchemaError           a database that a newer Parallax wrote
├── JournalError              the journal and the program do not fit
│   └── ReplayDivergence      a recorded effect was asked with another request
├── AgentError                an agent did not do its turn
│   ├── AgentUnavailable      its program is missing or would not start
│   ├── HelpNeeded            only a person can put right what keeps it from working
│   │   └── LoginNeeded       its account is not logged in
│   ├── AgentStalled          silent beyond the limit
│   ├── AgentCrashed          the process ended in mid-turn
│   ├── ProviderLimited       a rate limit or a used-up window; `resets_at` when known
│   └── ProtocolViolation     what it sent is not the protocol
│       └── EmptyTurn         a normal end of a turn in which nothing was said or done
├── RunStopped                the whole run stops here, whatever its program would say
│   ├── BudgetExhausted       what may be spent is spent: what is finished is kept
│   └── AttentionNeeded       it goes on when a person says so (`parallax resume`)
├── StepFailed                a step ended without an acceptable result
└── GitError                  git said no; `.stderr` holds its words
    ├── MergeConflict         two branches changed the same lines; `.files` names them
    └── RemoteError           a remote or its provider said no, or was not reached; `.kind` says which
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass


class ParallaxError(Exception):
    """Base of all errors of Parallax. The message is one sentence that says what was wrong, where, and what to do."""

    retryable = False

    @property
    def message(self) -> str:
        """The sentence for people."""
        return str(self)


class UsageError(ParallaxError):
    """What the user gave cannot be used."""


class NotFoundError(UsageError):
    """There is no such thing."""


class ConflictError(UsageError):
    """The thing exists, but not in a state that allows this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mistake:
    """One mistake in a file: where it is, what it is, what to do. Lines count from 1, columns from 0."""

    path: str
    line: int
    column: int
    message: str
    hint: str | None = None
    severity: str = "error"

    def __str__(self) -> str:
        hint = f" ({self.hint})" if self.hint else ""
        return f"{self.path}:{self.line}:{self.column + 1}: {self.message}{hint}"


class PatternError(UsageError):
    """A pattern that does not load; `mistakes` lists every place."""

    def __init__(self, message: str, mistakes: tuple[Mistake, ...] = ()) -> None:
        super().__init__(message if not mistakes else "\n".join([message, *(f"  {m}" for m in mistakes)]))
        self.mistakes = mistakes


class ProfileError(UsageError):
    """A .parallax.yaml that does not load."""


class RepositoryError(UsageError):
    """The repository cannot be worked on."""


class ConfigurationError(ParallaxError):
    """This installation is not fit: a directory, a port, a program."""


class StorageError(ParallaxError):
    """The store could not keep its promise."""


class FencedError(StorageError):
    """Another owner holds the execution; nothing of ours is written any more."""


class StorageFull(StorageError):
    """The disk of the data directory has no room left; nothing of the change was kept."""

    retryable = True


class SchemaError(StorageError):
    """The database was written by a newer Parallax."""


class JournalError(ParallaxError):
    """The journal and the program do not fit."""


class ReplayDivergence(JournalError):
    """A program takes another course than its journal; nothing was run. `step_key` is the first effect that differs.

    None stands for the end of the program.
    """

    def __init__(self, step_key: str | None, how: str) -> None:
        at = "at its end" if step_key is None else f"at step '{step_key}'"
        super().__init__(f"the program takes another course than its journal {at}: {how}")
        self.step_key = step_key
        self.how = how


class AgentError(ParallaxError):
    """An agent did not do its turn."""

    retryable = True


class AgentUnavailable(AgentError):
    """The agent's program is missing or would not start."""

    retryable = False


class HelpNeeded(AgentError):
    """Only a person can put right what keeps the agent from working; `kind` is that of the stall."""

    retryable = False

    def __init__(self, message: str, kind: str = "prompt") -> None:
        super().__init__(message)
        self.kind = kind


class LoginNeeded(HelpNeeded):
    """The agent's account is not logged in."""

    def __init__(self, message: str) -> None:
        super().__init__(message, "login")


class AgentStalled(AgentError):
    """The agent was silent for longer than the limit."""


class WorkspaceFull(AgentError):
    """An agent has written more than its workspace may hold; another attempt would, too."""

    retryable = False


class AgentCrashed(AgentError):
    """The agent's process ended in mid-turn."""


class ProviderLimited(AgentError):
    """The model's provider refuses for now; `resets_at` is a unix time where it said one."""

    def __init__(self, message: str, resets_at: float | None = None) -> None:
        super().__init__(message)
        self.resets_at = resets_at


class ProtocolViolation(AgentError):
    """What the agent sent is not the protocol it speaks."""


class RunStopped(ParallaxError):
    """The whole run stops here: no program can catch it, what is finished is kept."""


class BudgetExhausted(RunStopped):
    """What may be spent is spent."""


class AttentionNeeded(RunStopped):
    """The run goes on when a person says so."""


class EmptyTurn(ProtocolViolation):
    """The agent called its turn ended, and nothing was said or done in it."""


class StepFailed(ParallaxError):
    """A step ended without an acceptable result."""


class GitError(ParallaxError):
    """git said no."""

    def __init__(self, message: str, stderr: str = "") -> None:
        super().__init__(message)
        self.stderr = stderr


class MergeConflict(GitError):
    """Two branches changed the same lines; `files` names the conflicting paths."""

    def __init__(self, message: str, files: tuple[str, ...] = (), tree: str | None = None) -> None:
        super().__init__(message)
        self.files = files
        self.tree = tree


class RemoteError(GitError):
    """A remote repository, or the provider that keeps it, said no or was not reached.

    `kind`: denied (the token is wrong, dead, or may not), missing (no such repository or branch), rejected (the remote
    refuses this change), network (not reached, or cut off: another attempt makes sense), invalid (the request).
    """

    def __init__(self, message: str, kind: str, stderr: str = "") -> None:
        super().__init__(message, stderr)
        self.kind = kind
        self.retryable = kind == "network"


def leaf(error: BaseException) -> BaseException:
    """The one cause inside a task group's exception group: groups are how tasks end together, not what went wrong."""
    while isinstance(error, BaseExceptionGroup):
        named = [e for e in error.exceptions if not isinstance(e, asyncio.CancelledError)]
        error = (named or error.exceptions)[0]
    return error
