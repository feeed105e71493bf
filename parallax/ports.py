"""Every seam of the house on one page (but `Host`, in prism, and the event log, in events).

An AgentRuntime gives a process with byte streams wherever it runs; an AgentCLI knows one program's dialect and does no
I/O; an AgentClient joins the two and speaks; a registry knows who is there. `app` chooses the adapters.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, runtime_checkable

from parallax.models import (
    Agent,
    Json,
    LaunchSpec,
    Minted,
    Opened,
    Progress,
    PullRequest,
    Question,
    Task,
    TaskResult,
    Usage,
)
from parallax.redaction import Secret


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelDoor:
    """An agent's only road out: the gateway's base URL for one session, and the token that opens it there.

    `url` holds no secret; the token is worth nothing elsewhere. `url + "/model/<provider>"` is what a CLI gets as its
    base URL (for OpenAI's dialects with `/v1` behind it), `url + "/mcp"` are the team tools. `socket` is the same door
    as a unix socket of this session alone, for a sandbox without a network: its directory (0700) may be mounted, its
    path fits the system's limit of about 100 bytes. `providers` are those whose key the gateway adds; `logins` those
    where it passes the CLI's own login on (the token then goes into the header `x-parallax-session`). Without either,
    the door opens the team tools alone; `has_tools` says whether they are there,
    `has_way_out` whether CONNECT reaches any host.
    """

    url: str
    token: Secret
    socket: Path | None = None
    providers: frozenset[str] = frozenset()
    logins: frozenset[str] = frozenset()
    has_tools: bool = False
    has_way_out: bool = False

    @property
    def proxy(self) -> Secret:
        """What HTTPS_PROXY says in a session whose network is the gateway: the way to named hosts."""
        return Secret(f"http://agent:{self.token.reveal()}@{self.url.removeprefix('http://')}")


SETUP: Final = "setup"  # the type of a session that installs what a repository needs: it reaches the registries


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolsDoor:
    """The team tools of one agent: an MCP server over streamable HTTP, `Authorization: Bearer <token>`.

    A CLI gets it under the name `parallax`, and never with less patience than `TOOL_S`: a call of `ask` lasts as long
    as the question waits, for a person up to a day.
    """

    url: str
    token: Secret


TOOLS_NAME: Final = "parallax"
TOOL_S: Final = 25 * 3600.0


@dataclass(slots=True, kw_only=True)
class Traffic:
    """What one session's door has seen so far; a live object, to be read. Times are `time.monotonic`.

    `limited` says that the newest answer was a limit; `resets_at` is the unix time at which it ends, where known.
    `context_tokens` is what the newest call sent and got; `context_fill` its share of the model's window (0 to 1),
    where known.
    """

    agent_id: str
    last_byte_at: float
    in_flight: int = 0
    requests: int = 0
    last_status: int | None = None
    last_error: str | None = None
    limited: bool = False
    resets_at: float | None = None
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    context_tokens: int = 0
    context_fill: float | None = None

    def silent_s(self) -> float:
        """Seconds since a byte passed."""
        return time.monotonic() - self.last_byte_at


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSession:
    """What an agent needs to start: who it is, where it lives and works, what it may do.

    `home` is private to the agent, kept between turns, never under a world-writable directory. `cli_session` is the
    CLI's own session id, when one is to be resumed. `door` is the gateway's; None where there is no gateway. `objects`
    are the git objects that the tree borrows. `shut_in`: a sandbox of ours holds it, and all names are those inside.
    `capabilities` are what the role asks for: they choose among registered agents. `shared`: see LaunchSpec.
    """

    agent_id: str
    execution: str
    role: str
    type: str
    home: Path
    tree: Path
    preset: str = "standard"
    model: str | None = None
    cli_session: str | None = None
    door: ModelDoor | None = None
    env: Mapping[str, str] | None = None
    objects: Path | None = None
    shut_in: bool = False
    capabilities: tuple[str, ...] = ()
    shared: tuple[tuple[str, Path], ...] = ()

    @property
    def model_door(self) -> ModelDoor | None:
        """The door, if it opens a model with a key of the server's; None means that the CLI uses its own login."""
        return self.door if self.door is not None and self.door.providers else None

    @property
    def tools(self) -> ToolsDoor | None:
        """The door to the team tools, for a CLI that speaks MCP over HTTP."""
        if self.door is None or not self.door.has_tools:
            return None
        return ToolsDoor(url=f"{self.door.url}/mcp", token=self.door.token)


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolSpec:
    """One tool as a model sees it. `schema` is the JSON Schema of its arguments; `reads`: it changes nothing."""

    name: str
    description: str
    schema: Mapping[str, Json]
    reads: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolAnswer:
    """What a tool call came to: text for the model, and the same as a JSON object. `failed`: it may be put right."""

    text: str
    value: Json = None
    failed: bool = False


class TeamTools(Protocol):
    """What an agent can call while its turn runs."""

    @property
    def specs(self) -> Sequence[ToolSpec]:
        """The tools, the same for every agent."""
        ...

    async def call(self, agent_id: str, tool: str, arguments: Mapping[str, Json]) -> ToolAnswer:
        """One call; a mistake of the caller's is an answer that failed, never an exception."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCall:
    """A call to a model before it goes out: whose it is, where it goes, the most that it may use, priced."""

    agent_id: str
    provider: str
    model: str
    most: Usage


class Meter(Protocol):
    """What holds budgets and counts: the gateway asks it before each call and tells it after."""

    async def reserve(self, call: ModelCall) -> str:
        """Set the most aside, durably; returns the call's id. Waits while only calls in flight stand in the way.

        Raises BudgetExhausted when it does not fit into what is left.
        """
        ...

    async def settle(self, call_id: str, used: Usage, *, account: str, status: int | None) -> None:
        """What the call did use; the rest of what was set aside is free again. `status` None: no answer came."""
        ...


class Doors(Protocol):
    """Where an agent's road out comes from: the gateway."""

    async def open_session(self, session: AgentSession) -> ModelDoor:
        """A door for one agent; an older one of the same agent is shut."""
        ...

    async def close_session(self, agent_id: str) -> None:
        """The door is shut: its token opens nothing any more. Unknown agents are no error."""
        ...

    def traffic(self, agent_id: str) -> Traffic | None:
        """What the agent's door has seen; None without a door."""
        ...

    def limited_until(self, type_: str) -> float | None:
        """The unix time until which every account that an agent type could use is limited; None while one is open."""
        ...


class AgentProcess(Protocol):
    """A running process with separate byte streams."""

    @property
    def handle(self) -> Mapping[str, str]:
        """What finds the process again: `pid`, and what else the runtime needs."""
        ...

    async def write(self, data: bytes) -> None:
        """Write all of it to standard input; raises AgentCrashed when the process is gone."""
        ...

    async def close_input(self) -> None:
        """Close standard input: the polite way to say that nothing more will come."""
        ...

    async def read_out(self, n: int) -> bytes:
        """At most n bytes of standard output; empty at its end."""
        ...

    async def read_err(self, n: int) -> bytes:
        """At most n bytes of standard error; empty at its end."""
        ...

    async def wait(self) -> int:
        """The exit code; negative for a signal."""
        ...

    async def stop(self, grace_s: float) -> int:
        """Close input, wait, SIGTERM to all of it, wait, SIGKILL to all of it. Returns the exit code."""
        ...

    def cpu_s(self) -> float:
        """Seconds of processor time that the whole process tree has used so far: a sign of life."""
        ...


class AgentRuntime(Protocol):
    """A place where agent processes run."""

    name: str

    @property
    def shuts_in(self) -> bool:
        """Whether what it starts is in a sandbox, where directories can be mounted."""

    def inside(self, session: AgentSession) -> AgentSession:
        """The session with the names that its places have for the agent: what a CLI module is given."""
        ...

    async def start(self, spec: LaunchSpec) -> AgentProcess:
        """Start the process; raises AgentUnavailable when its program is missing."""
        ...

    async def sweep(self) -> int:
        """End every process that a former life of this server left behind; returns how many."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Quirks:
    """What is peculiar to a CLI. Each field has one reader in a client or in the supervisor."""

    protocol: str = "acp"  # acp, stream_json or text
    resume: str = "none"  # none, load or resume: how a session is continued by a new process
    mode: str | None = None  # the ACP session mode to set after session/new
    end_turn_hides_limit: bool = False  # a rate limit can look like a normal end of turn
    exits_on_eof: bool = True
    auth: str | None = None  # the ACP authentication method to call before session/new
    own_tools: bool = False  # the team tools stand in its configuration: ACP need not name them


class AgentCLI(Protocol):
    """The dialect of one CLI. Pure: no I/O, so every line of it is tested with recorded lines."""

    @property
    def type(self) -> str:
        """The agent type, as patterns name it."""
        ...

    @property
    def quirks(self) -> Quirks:
        """What is peculiar to it."""
        ...

    def launch(self, session: AgentSession, program: str) -> LaunchSpec:
        """How to start it (for one-turn CLIs: without the prompt)."""
        ...

    def files(self, session: AgentSession) -> Mapping[str, str]:
        """Configuration files to write into the agent's home before it starts: relative path -> text."""
        ...


@runtime_checkable
class HeadlessCLI(AgentCLI, Protocol):
    """A CLI without a protocol: one process a turn, whose output is read line by line."""

    def prompt(self, task: Task) -> tuple[tuple[str, ...], bytes]:
        """Further arguments and the bytes for standard input."""
        ...

    def read(self, line: bytes) -> Progress | TaskResult | None:
        """Read one line of output. A TaskResult ends the turn; the client fills in its ids."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Vitals:
    """What a client sees of its agent at one moment.

    `output_s` is the age of the last output on any stream. `words` are the last lines that came beside the protocol
    (standard error, banners, prompts), if nothing else has come since. `claimed`: the running turn has a report that
    `claim` would return; `final`: nothing more will come but the end. `exit_code` None: its process runs.
    """

    output_s: float
    words: str = ""
    claimed: bool = False
    final: bool = False
    exit_code: int | None = None


class AgentClient(Protocol):
    """How a running agent is spoken to."""

    async def open(self) -> str | None:
        """Start and greet; returns the CLI's session id. Raises AgentUnavailable, LoginNeeded, ProtocolViolation."""
        ...

    def turn(self, task: Task) -> AsyncGenerator[Progress | Question | TaskResult, None]:
        """One turn. Yields what it shows and asks; the last item is the TaskResult. At most one turn at a time.

        Raises AgentCrashed, ProtocolViolation, ProviderLimited, LoginNeeded. A Question must be answered by `answer`
        before the agent goes on; iterating further meanwhile is allowed.
        """
        ...

    async def answer(self, question_id: str, answer: str) -> None:
        """Answer a question that `turn` yielded: an option's id, or text."""
        ...

    async def cancel(self) -> None:
        """Ask the agent to end the running turn."""
        ...

    async def close(self) -> None:
        """End the agent and leave no process behind."""
        ...

    @property
    def alive(self) -> bool:
        """Whether another turn can be asked of it."""
        ...

    @property
    def resumable(self) -> str | None:
        """The CLI's own id of the session, if another process can go on with it."""
        ...

    def vitals(self) -> Vitals:
        """What is seen of it now; costs little and changes nothing."""
        ...

    def cpu_s(self) -> float:
        """Seconds of processor time that its process tree has used so far; looks at every process of the tree."""
        ...

    def claim(self) -> TaskResult | None:
        """The result of the running turn as far as the agent has reported it, without having ended the turn."""
        ...

    @property
    def version(self) -> str | None:
        """The CLI's version, where it is known: it is recorded with every run."""
        ...

    @property
    def pid(self) -> int | None:
        """The process, for people who look."""
        ...


class GitProvider(Protocol):
    """Who keeps a remote repository, and what it can do beside taking a push. Failures are RemoteError."""

    def serves(self, url: str) -> bool:
        """Whether the repository at this URL is kept there."""
        ...

    async def token(self, url: str, access: str) -> Minted | None:
        """A new token for this one repository with no more than this access; None where it cannot make any."""
        ...

    async def pull_request(self, url: str, token: Secret, wanted: PullRequest) -> Opened:
        """Open it, or find the one that is there already for the same head."""
        ...

    async def revoke(self, token: Secret) -> None:
        """End a token's life; one that is dead already is no error."""
        ...


class AgentRegistry(Protocol):
    """Who is known."""

    async def register(self, agent: Agent, ttl_s: float | None = None) -> None:
        """Add or replace; without ttl it stays until removed."""
        ...

    async def remove(self, agent_id: str) -> None:
        """Forget it; unknown ids are no error."""
        ...

    async def get(self, agent_id: str) -> Agent | None:
        """One agent, or None."""
        ...

    async def find(
        self, capabilities: frozenset[str] = frozenset(), labels: Mapping[str, str] | None = None
    ) -> list[Agent]:
        """All that have every capability and label."""
        ...
