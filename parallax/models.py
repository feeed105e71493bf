"""The shapes that cross rooms (contracts: frozen, slotted, keyword-only).

Seconds end in `_s`, bytes in `_b`, money is integer micro-dollars. `Json` is strict JSON without NaN. A type that only
one room uses lives in that room.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, TypeAlias

from parallax.redaction import Secret

Json: TypeAlias = Any

PRICED: Final = ("estimated", "reported", "table")  # from the least sure to the surest
_CROCKFORD: Final = "0123456789abcdefghjkmnpqrstvwxyz"
EXECUTION_ID: Final = re.compile(r"[0-9a-hjkmnp-tv-z]{26}")


def new_id() -> str:
    """A ULID in lower case: 48 bits of milliseconds, 80 bits of randomness; sorts by time."""
    number = (int(time.time() * 1000) << 80) | secrets.randbits(80)
    return "".join(_CROCKFORD[(number >> shift) & 31] for shift in range(125, -1, -5))


def hash12(text: str) -> str:
    """Twelve hexadecimal digits of SHA-256: the `{step}` of routes and the name part of pods."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def child_id(parent: str, step_key: str) -> str:
    """The id of the execution that `pattern(...)` starts: a re-run finds the same one."""
    number = int.from_bytes(hashlib.sha256(f"{parent}\0{step_key}".encode()).digest()[:17], "big") >> 6
    return "".join(_CROCKFORD[(number >> shift) & 31] for shift in range(125, -1, -5))


class ExecutionState(StrEnum):
    """queued > running > succeeded | partial | failed | cancelling > cancelled; running <> paused, needs_attention."""

    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    NEEDS_ATTENTION = "needs_attention"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    PARTIAL = "partial"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        """Nothing follows it."""
        return self in {
            ExecutionState.SUCCEEDED,
            ExecutionState.PARTIAL,
            ExecutionState.FAILED,
            ExecutionState.CANCELLED,
        }


class AgentState(StrEnum):
    """The states of an agent's life; `agents/states.py` has the table of legal moves between them."""

    PENDING = "pending"
    STARTING = "starting"
    AUTHENTICATING = "authenticating"
    READY = "ready"
    BUSY = "busy"
    ASKING = "asking"
    PARKED = "parked"
    STOPPING = "stopping"
    STOPPED = "stopped"
    ERROR = "error"


class Source(StrEnum):
    """Where a confidence comes from, in the order in which sources are believed."""

    EVIDENCE = "evidence"
    AGREEMENT = "agreement"
    REPORTED = "reported"
    RECORD = "record"
    PRIOR = "prior"


class Action(StrEnum):
    """What the policy made of a result."""

    ACCEPT = "accept"
    ACCEPT_WITH_WARNING = "accept_with_warning"
    RETRY = "retry"
    ESCALATE = "escalate"
    FAIL = "fail"


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What something used. Input without what came from or went into the provider's cache; output with reasoning.

    `cost` is in micro-dollars; `priced` says where it comes from: `table` (tokens that the provider counted, at list
    prices), `reported` (the CLI's own word), `estimated` (nobody counted, or nobody knows the price). A sum is as sure
    as its least sure part that cost something.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    cost: int = 0
    turns: int = 0
    wall_s: float = 0.0
    priced: str = "estimated"

    @property
    def tokens(self) -> int:
        """All of them: what a budget in tokens counts."""
        return self.input_tokens + self.output_tokens + self.cached_tokens + self.cache_write_tokens

    def __add__(self, other: Usage) -> Usage:
        told = [part.priced for part in (self, other) if part.tokens or part.cost]
        return Usage(
            input_tokens=self.input_tokens + other.input_tokens,
            output_tokens=self.output_tokens + other.output_tokens,
            cached_tokens=self.cached_tokens + other.cached_tokens,
            cache_write_tokens=self.cache_write_tokens + other.cache_write_tokens,
            cost=self.cost + other.cost,
            turns=self.turns + other.turns,
            wall_s=round(self.wall_s + other.wall_s, 6),
            priced=min(told or ["estimated"], key=PRICED.index),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """The most that something may use; None is no limit. `cost` in micro-dollars, `wall_s` of its agents' turns."""

    cost: int | None = None
    tokens: int | None = None
    turns: int | None = None
    wall_s: float | None = None

    @classmethod
    def read(cls, value: Json) -> Budget:
        """As programs and charts write it: dollars, or `{money, tokens, turns, time}` with time in milliseconds.

        Raises ValueError with what was expected.
        """
        given = {"money": value} if isinstance(value, int | float) else value
        if value is None or given == {}:
            return cls()
        if not isinstance(given, dict) or (odd := [name for name in given if name not in BUDGET_PARTS]):
            named = f", got '{odd[0]}'" if isinstance(given, dict) else ""
            raise ValueError(f"a budget is a number of dollars, or an object of {', '.join(BUDGET_PARTS)}{named}")
        for name, amount in given.items():
            whole = name in {"tokens", "turns"}
            if isinstance(amount, bool) or not isinstance(amount, int if whole else int | float) or not amount > 0:
                raise ValueError(f"budget {name} must be a {'whole ' * whole}number above 0, got {amount!r:.40}")
        money, time_ms = given.get("money"), given.get("time")
        return cls(
            cost=None if money is None else round(money * 1e6),
            tokens=given.get("tokens"),
            turns=given.get("turns"),
            wall_s=None if time_ms is None else time_ms / 1000,
        )

    def __and__(self, other: Budget) -> Budget:
        """Both hold: of each kind the lesser."""

        def lesser(a: float | None, b: float | None) -> Any:
            return min((limit for limit in (a, b) if limit is not None), default=None)

        return Budget(
            cost=lesser(self.cost, other.cost),
            tokens=lesser(self.tokens, other.tokens),
            turns=lesser(self.turns, other.turns),
            wall_s=lesser(self.wall_s, other.wall_s),
        )


BUDGET_PARTS: Final = ("money", "tokens", "turns", "time")


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """One record for retry, rework, review rounds and escalation, whoever asked for them. Confidences 0 to 1."""

    accept: float = 0.8
    retry_below: float = 0.6
    escalate_below: float = 0.4
    max_rounds: int = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    """A place in the team. `verify` is what `verify()` takes first, as JSON; `policy` None means: accept what comes."""

    name: str
    agent_types: tuple[str, ...] = ()
    capabilities: tuple[str, ...] = ()
    reports_to: str | None = None
    instances: tuple[int, int] = (1, 1)
    expertise: tuple[str, ...] = ()
    description: str = ""
    policy: Policy | None = None
    verify: Json = None
    budget: Budget = Budget()
    preset: str = "standard"
    workspace: str = "agent"
    recovery: str = "restart"
    timeout_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A question from one of `sources`, on one of `topics`, of one of `message_types`, goes to `target`.

    `*` stands for any role; no topics and no types stand for all. Types are a question's kinds.
    """

    sources: tuple[str, ...]
    target: str
    topics: tuple[str, ...] = ()
    message_types: tuple[str, ...] = ()
    priority: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Escalation:
    """What happens to a question that nobody below has answered."""

    default_behavior: str = "route_to_reports_to"
    topic_routes: Mapping[str, str] = field(default_factory=dict)
    timeout_s: float = 300.0
    max_depth: int = 5
    on_max_depth: str = "surface_to_user"


@dataclass(frozen=True, slots=True, kw_only=True)
class OrgChart:
    """The team: read from the `org` effect only."""

    roles: Mapping[str, Role] = field(default_factory=dict)
    routing: tuple[Route, ...] = ()
    escalation: Escalation = field(default_factory=Escalation)


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """One run of a pattern. `pattern` is its name, `hash` the hash of its bundle. Times are unix seconds.

    A large result lies in the blob `result_blob`. `owner` is the server that runs it, where several share a database.
    """

    id: str
    pattern: str
    version: str
    hash: str
    input: Json
    repo: str | None
    base: str | None
    state: ExecutionState
    created_at: float
    base_branch: str | None = None
    reason: str | None = None
    attempt: int = 1
    epoch: int = 0
    recoveries: int = 0
    parent: str | None = None
    deadline_s: float | None = None
    options: Json = None
    result: Json = None
    result_blob: str | None = None
    confidence: float | None = None
    usage: Usage = field(default_factory=Usage)
    owner: str | None = None
    started_at: float | None = None
    ended_at: float | None = None

    def as_accepted(self) -> Execution:
        """As it was when it was taken in: a repeated request gets the answer that the first one got."""
        return replace(
            self, state=ExecutionState.QUEUED, reason=None, epoch=0, recoveries=0, result=None, result_blob=None,
            confidence=None, usage=Usage(), owner=None, started_at=None, ended_at=None,
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What an oracle saw. `passed` None means it could not run, which is no pass. `log` is the end of its output.

    Of a check: the command, how many tests passed and failed where its output tells, and the verdict: pass, fail, flaky
    (red, then green), red-before (as red without the work).
    """

    oracle: str
    passed: bool | None
    score: float | None
    detail: str
    exit_code: int | None = None
    duration_s: float = 0.0
    log: str | None = None
    command: str | None = None
    tests_passed: int | None = None
    tests_failed: int | None = None
    verdict: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskResult:
    """What an agent claims at the end of a turn. `reported` is its own confidence, `verdict` that of a review.

    `artifacts` are files of its workspace that it names for others.
    """

    task_id: str
    attempt: int
    agent_id: str
    value: Json
    message: str
    stop: str
    reported: float | None = None
    session_ref: str | None = None
    usage: Usage = field(default_factory=Usage)
    denied: tuple[str, ...] = ()
    verdict: str | None = None
    artifacts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """What Parallax holds true of a step: only verification writes `confidence`, `source` and `action`."""

    value: Json
    confidence: float
    source: Source
    action: Action
    evidence: tuple[Evidence, ...] = ()
    commit: str | None = None
    branch: str | None = None
    role: str | None = None
    agent_id: str | None = None
    attempts: int = 1
    usage: Usage = field(default_factory=Usage)
    reported: float | None = None
    artifacts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One turn asked of an agent. `id` is `<execution>/<step_key>/<attempt>`, which is also its idempotency key."""

    id: str
    execution: str
    step_key: str
    attempt: int
    role: str
    text: str
    schema: Json = None
    timeout_s: float = 7200.0
    budget: Budget = Budget()


@dataclass(frozen=True, slots=True, kw_only=True)
class Agent:
    """A member of the team as others see it. Id: `<execution>.<role>.<number>`; registered agents keep their own.

    `reason` says why it is in its state, `until` (unix time) how long it is parked, `stall` what keeps its turn from
    getting anywhere (a kind of `agents/stalls.py`).
    """

    id: str
    type: str
    role: str
    number: int
    execution: str | None
    state: AgentState
    since: float
    model: str | None = None
    capabilities: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    endpoint: str | None = None
    runtime: str = "local"
    reason: str | None = None
    until: float | None = None
    stall: str | None = None
    workspace: str | None = None
    pid: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Credential:
    """A token for one repository. `access`: read, write, or workflows (write, CI definitions included).

    `source`: user (given for one execution), app (minted by a GitHub App, ours to revoke), fixed (of the settings).
    `expires_at` is a unix time; infinite where nobody knows of an end.
    """

    id: str
    repo: str
    access: str
    token: Secret
    expires_at: float
    source: str
    execution: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Minted:
    """A new token of a provider, and the unix time at which it dies."""

    token: Secret
    expires_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PullRequest:
    """What to open: `marker` stands in the body and is how the same one is found again, so that it is opened once."""

    title: str
    body: str
    head: str
    base: str
    marker: str
    draft: bool = False
    labels: tuple[str, ...] = ()
    reviewers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A pull request that is there. `new` when it was opened just now; `problems` are wishes that were not granted."""

    url: str
    number: int
    new: bool
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Workspace:
    """A copy of the repository. On disk: `<path>/git` is the server's, `<path>/tree` the agent's."""

    id: str
    execution: str
    role: str
    number: int
    kind: str
    repo: str
    base: str
    branch: str
    head: str
    state: str
    path: Path

    @property
    def tree(self) -> Path:
        """Where the agent works."""
        return self.path / "tree"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a process may use; None leaves it to the runtime, or to the host where there is no sandbox.

    `memory_b` holds for each process, `processes` counts all of an agent's (with their threads), `files` are those that
    one process has open, `file_b` is the size of one file.
    """

    memory_b: int | None = None
    processes: int | None = None
    files: int | None = None
    file_b: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchSpec:
    """How to start a process, whatever runs it. `env` is the whole environment: nothing is inherited.

    `argv` is never a shell string. `secrets` reach the environment of that one process only. Paths are those of the
    host. In a sandbox the process sees `cwd` as /workspace and may write there, in `home` (private to the agent, kept
    between its turns, /home/agent) and in `writable`; it reads what `readable` names, each at its own path (a program
    with the package that it belongs to), `objects` (the mirror's, also as /mirror/objects), the directories of `shared`
    (each at the place in the tree or the home that its name says, such as `tree/.venv`), and the system. `network`
    is none, gateway or open; `gateway` is the unix socket that is joined to 127.0.0.1:8899 inside. `sandbox` is what
    the agent's type wishes where the user has said nothing: require (None means the same), auto or off.
    """

    argv: tuple[str, ...]
    cwd: Path
    env: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, Secret] = field(default_factory=dict)
    home: Path | None = None
    readable: tuple[Path, ...] = ()
    writable: tuple[Path, ...] = ()
    objects: Path | None = None
    shared: tuple[tuple[str, Path], ...] = ()
    network: str = "gateway"
    gateway: Path | None = None
    limits: Limits = field(default_factory=Limits)
    labels: Mapping[str, str] = field(default_factory=dict)
    sandbox: str | None = None
    image: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """Anything an agent or a program asks: a permission, a question, an approval.

    `options` are the answers offered, each `{id, label}`; without options the answer is free text. `default` is taken
    at the deadline. `depth` counts the agents it has been routed to.
    """

    id: str
    execution: str
    step_key: str
    asker: str
    kind: str
    text: str
    topic: str | None = None
    options: tuple[Mapping[str, str], ...] = ()
    default: str | None = None
    deadline_at: float | None = None
    depth: int = 0
    state: str = "open"
    answer: str | None = None
    answered_by: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What a running turn shows. kind: output, thought, tool, plan, usage. Text is for people, data for machines."""

    kind: str
    text: str = ""
    data: Json = None
