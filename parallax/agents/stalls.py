"""Twelve ways in which an agent stops getting anywhere, each recognised by one small pure function.

`watch` gathers `Signals` of a running turn several times within the silence limit, and once more when the turn ends;
`detect` goes through the table and returns the first stall that fits. Silent means: no output, no model traffic at the
gateway and no processor time of the whole process tree. Silence that fits nothing in the table is `silent`.

What is certain (an exit code, a question of the protocol) has its consequence at once, words that look like a prompt
after some more silence; a stall that is only silence is named, and has its consequence at the second limit.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, TypeAlias

from parallax.agents.clients.failures import login_in, short
from parallax.agents.clients.report import has_marks
from parallax.errors import (
    AgentCrashed,
    AgentError,
    AgentStalled,
    EmptyTurn,
    HelpNeeded,
    LoginNeeded,
    ProviderLimited,
)
from parallax.models import Question, TaskResult

FULL: Final = 0.9  # share of the context window from which an empty turn is the window's fault
REFUSALS: Final = 2  # refused calls to the model, one after another, that are more than bad luck
PATIENCE: Final = 3.0  # silence limits until words that look like a prompt are believed: its model may only be slow
LINGER_S: Final = 5.0  # how long a process may take to leave after its last line

_TRUST: Final = re.compile(r"\btrust(?:s|ed)?\b[^\n]{0,40}\b(?:folder|directory|workspace|files|project)\b", re.I)
_PERMISSION: Final = re.compile(
    r"[\[(]y(?:es)?/n(?:o)?[\])]|\(y\)es\b|\ballow (?:this|once|always)\b|\bapprove (?:this|the)\b"
    r"|\bdo you want to (?:proceed|allow|run|continue|make this edit)\b|\bwaiting for (?:permission|approval)\b",
    re.I,
)
_QUESTION: Final = re.compile(
    r"\?\s*(?:[>❯:]\s*)?$|\bpress (?:enter|return|any key)\b|\buse arrow keys\b|\b(?:select|choose) (?:an?|one)\b"
    r"|\benter your (?:choice|answer)\b",
    re.I,
)
_SIGN_IN: Final = re.compile(r"(?:^|\s)/login\b|\b(?:sign|log) ?in (?:to|with|at)\b|\bsession expired\b", re.I)
_MCP: Final = re.compile(r"\bmcp__|\bmcp\b", re.I)


class Consequence(StrEnum):
    """What a stall leads to."""

    ASK = "ask"  # a person is asked: about the agent's own question, or to put right what keeps it from working
    PARK = "park"  # it sleeps until a known time, without using up an attempt
    RETRY = "retry"  # the attempt ends; the retry layer decides
    END = "end"  # what it has reported is taken, and its process ended


@dataclass(frozen=True, slots=True, kw_only=True)
class Signals:
    """All that is known of a turn at one moment. Ages in seconds, None where there is no such thing.

    `words` are the last lines that came beside the protocol, if nothing has come since. `refused` counts refused calls
    to the model one after another, up to now. `claimed` says that the agent has reported without ending its turn,
    `final` that it says there will be nothing more. `result` or `error` is how the turn ended, if it has.
    """

    limit_s: float
    output_s: float = 0.0
    cpu_s: float = 0.0
    traffic_s: float | None = None
    in_flight: int = 0
    refused: int = 0
    status: int | None = None
    limited: bool = False
    resets_at: float | None = None
    context_fill: float | None = None
    tool: str | None = None
    tool_s: float = 0.0
    words: str = ""
    question: Question | None = None
    claimed: bool = False
    final: bool = False
    exit_code: int | None = None
    result: TaskResult | None = None
    error: AgentError | None = None

    @property
    def silent_s(self) -> float:
        """Seconds without any sign of life. An open question is no silence: the agent waits for us."""
        if self.question is not None:
            return 0.0
        return min(self.output_s, self.cpu_s, self.output_s if self.traffic_s is None else self.traffic_s)

    @property
    def silent(self) -> bool:
        """For longer than the limit, in a turn that goes on."""
        return not self.ended and self.silent_s >= self.limit_s

    @property
    def long_silent(self) -> bool:
        """For so long that words which look like a prompt are one."""
        return self.silent and self.silent_s >= PATIENCE * self.limit_s

    @property
    def ended(self) -> bool:
        """The turn is over, one way or the other."""
        return self.result is not None or self.error is not None

    @property
    def empty(self) -> bool:
        """It called its turn ended, and there is nothing in it."""
        return isinstance(self.error, EmptyTurn)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stall:
    """What is the matter, in words, and what follows. `certain`: at once; else when the silence goes on."""

    kind: str
    cause: str
    consequence: Consequence
    certain: bool = False
    until: float | None = None

    def error(self, agent_id: str) -> AgentError:
        """The consequence as the error that ends the attempt."""
        told = f"{agent_id}: {self.cause}"
        match self.consequence:
            case Consequence.PARK:
                return ProviderLimited(told, self.until)
            case Consequence.ASK if self.kind == "login":
                return LoginNeeded(told)
            case Consequence.ASK:
                return HelpNeeded(told, self.kind)
            case _:
                return AgentStalled(told)


Detect: TypeAlias = Callable[[Signals], Stall | None]


def _prompt(s: Signals, kind: str, pattern: re.Pattern[str], what: str) -> Stall | None:
    """A question of the protocol of this kind, or the same as text at a terminal that is not there."""
    if s.question is not None:
        return Stall(kind=kind, cause=short(s.question.text), consequence=Consequence.ASK, certain=True)
    if s.silent and s.words and pattern.search(s.words):
        cause = f"it waits at {what} that only a terminal can answer: {short(s.words)}"
        return Stall(kind=kind, cause=cause, consequence=Consequence.ASK, certain=s.long_silent)
    return None


def permission(s: Signals) -> Stall | None:
    """It asks whether it may."""
    if s.question is not None and s.question.kind != "permission":
        return None
    return _prompt(s, "permission", _PERMISSION, "a permission prompt")


def trust_dialog(s: Signals) -> Stall | None:
    """It asks whether the folder is to be trusted: Parallax's own copy, made for it."""
    if s.question is not None and not _TRUST.search(s.question.text):
        return None
    return _prompt(s, "trust", _TRUST, "a trust dialog")


def question(s: Signals) -> Stall | None:
    """It asks something else."""
    return _prompt(s, "question", _QUESTION, "a question")


def login_needed(s: Signals) -> Stall | None:
    """Its account is not logged in, or no longer: a person has to do that, once."""
    told, certain = s.error if isinstance(s.error, LoginNeeded) else None, True
    if told is None and s.status in {401, 403} and (s.empty or s.refused >= REFUSALS):
        told = LoginNeeded(f"the provider refuses the account (status {s.status})")
    if told is None and s.silent and s.words:
        told = login_in(s.words) or (LoginNeeded(short(s.words)) if _SIGN_IN.search(s.words) else None)
        certain = s.long_silent
    if told is None:
        return None
    return Stall(kind="login", cause=f"login needed: {told}", consequence=Consequence.ASK, certain=certain)


def hung_tool(s: Signals) -> Stall | None:
    """A command or an edit of its own does not come back."""
    if not s.silent or s.tool is None or _MCP.search(s.tool):
        return None
    cause = f"its tool '{short(s.tool)}' has run for {s.tool_s:.0f} s and does nothing"
    return Stall(kind="hung_tool", cause=cause, consequence=Consequence.RETRY)


def hung_mcp_server(s: Signals) -> Stall | None:
    """A tool of an MCP server does not come back."""
    if not s.silent or s.tool is None or not _MCP.search(s.tool):
        return None
    cause = f"the MCP tool '{short(s.tool)}' has not answered for {s.tool_s:.0f} s"
    return Stall(kind="hung_mcp", cause=cause, consequence=Consequence.RETRY)


def hidden_limit(s: Signals) -> Stall | None:
    """A rate limit or a used-up window, which some CLIs call a normal end of the turn."""
    if isinstance(s.error, ProviderLimited):
        until = s.error.resets_at or s.resets_at
        return Stall(kind="limit", cause=str(s.error), consequence=Consequence.PARK, certain=True, until=until)
    # A whole report is no hidden limit, though the last call, perhaps for a title, was refused.
    bare = s.result is not None and s.result.stop == "end_turn" and not has_marks(s.result.message)
    if s.limited and (s.empty or bare):
        cause = f"its turn ended with the model's provider refusing (status {s.status})"
        return Stall(kind="limit", cause=cause, consequence=Consequence.PARK, certain=True, until=s.resets_at)
    return None


def full_context(s: Signals) -> Stall | None:
    """Nothing comes out any more because nothing more goes in."""
    stopped = s.result is not None and s.result.stop == "max_tokens" and not s.result.message.strip()
    if not (s.empty or stopped) or (s.context_fill or 0.0) < FULL:
        return None
    cause = f"an empty turn with {s.context_fill or 0:.0%} of the context used: it needs a fresh session"
    return Stall(kind="full_context", cause=cause, consequence=Consequence.RETRY, certain=True)


def never_ends(s: Signals) -> Stall | None:
    """It has reported and neither ends its turn nor its process."""
    if s.ended or not s.claimed:
        return None
    if s.silent_s < (min(LINGER_S, s.limit_s) if s.final else s.limit_s):
        return None
    cause = f"it has reported, and then not ended its turn for {s.silent_s:.0f} s: the report is taken"
    return Stall(kind="never_ends", cause=cause, consequence=Consequence.END, certain=True)


def left_with_nothing(s: Signals) -> Stall | None:
    """It leaves or ends its turn as if all were well, and there is nothing."""
    if s.exit_code == 0 and isinstance(s.error, AgentCrashed):
        return Stall(kind="nothing", cause=str(s.error), consequence=Consequence.RETRY, certain=True)
    if s.empty:
        return Stall(kind="nothing", cause=str(s.error), consequence=Consequence.RETRY, certain=True)
    return None


def silent_retry(s: Signals) -> Stall | None:
    """It tries again and again by itself and tells nobody."""
    if s.ended or s.refused < REFUSALS or s.output_s < s.limit_s or s.tool is not None:
        return None
    cause = f"the model's provider has refused {s.refused} calls in a row (status {s.status}), and it goes on trying"
    if s.limited:
        return Stall(kind="silent_retry", cause=cause, consequence=Consequence.PARK, certain=True, until=s.resets_at)
    return Stall(kind="silent_retry", cause=cause, consequence=Consequence.RETRY)


def dead_peer(s: Signals) -> Stall | None:
    """Whoever it waits for, or we wait for, is gone without a word."""
    if isinstance(s.error, AgentCrashed) and s.exit_code is None:
        return Stall(kind="dead_peer", cause=str(s.error), consequence=Consequence.RETRY, certain=True)
    if s.silent and s.in_flight and s.tool is None:
        cause = f"its model has not sent a byte for {s.silent_s:.0f} s"
        return Stall(kind="dead_peer", cause=cause, consequence=Consequence.RETRY)
    return None


# In the order in which they are asked: the narrower sign before the wider.
KINDS: Final[Mapping[str, Detect]] = {
    "trust": trust_dialog,
    "permission": permission,
    "login": login_needed,
    "limit": hidden_limit,
    "full_context": full_context,
    "nothing": left_with_nothing,
    "never_ends": never_ends,
    "silent_retry": silent_retry,
    "hung_mcp": hung_mcp_server,
    "hung_tool": hung_tool,
    "dead_peer": dead_peer,
    "question": question,
}


def detect(signals: Signals) -> Stall | None:
    """The first kind that fits, `silent` when none does, None for a turn that lives."""
    for look in KINDS.values():
        if (stall := look(signals)) is not None:
            return stall
    if not signals.silent:
        return None
    cause = f"no sign of life for {signals.silent_s:.0f} s: no output, no model traffic, no processor time"
    return Stall(kind="silent", cause=cause, consequence=Consequence.RETRY)
