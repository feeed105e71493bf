"""The errors of Prism: one tree, each with a place in the source.

A message is one short sentence. Where it happened is data (`path`, `line`, `column`), filled in at the latest when
the error leaves the runtime; `excerpt` then shows the source line with a caret. Raised everywhere in this room,
read by hosts, `check` and the command line.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

EXCERPT_WIDTH = 160


@dataclass(frozen=True, slots=True)
class Span:
    """A place in a source: lines count from 1, columns from 0."""

    path: str
    line: int
    column: int


class PrismError(Exception):
    """Anything that keeps a Prism program from its result."""

    label = "RUNTIME_ERROR"
    retryable = False

    def __init__(self, message: str, *, span: Span | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.path: str | None = None
        self.line = 0
        self.column = 0
        self.excerpt = ""
        self.output: list[str] = []  # what was printed before
        if span is not None:
            self.place(span)

    def place(self, span: Span, source: str | None = None) -> None:
        """Say where it happened; the first place told stays, a later call may add the source line."""
        if self.path is None:
            self.path, self.line, self.column = span.path, span.line, span.column
        if source is not None and not self.excerpt and span.path == self.path:
            self.excerpt = excerpt(source, self.line, self.column)

    def render(self) -> str:
        """The error as it is shown to a person."""
        text = f"ERROR: [{self.label}] {self.message}"
        if self.path is not None:
            text += f"\n --> {self.line}:{self.column}"
        if self.excerpt:
            text += f"\n{self.excerpt}"
        if self.hint:
            text += f"\nhint: {self.hint}"
        return text


class PrismLexError(PrismError):
    """The text is no sequence of tokens."""

    label = "LEXER_ERROR"


class PrismParseError(PrismError):
    """The tokens are no program, or a check before the run failed."""

    label = "PARSER_ERROR"


class PrismRuntimeError(PrismError):
    """The program failed while it ran; a program may catch it."""


class PrismThrow(PrismRuntimeError):
    """`throw value`. The message is made when somebody outside asks, for most throws are caught inside."""

    def __init__(self, value: Any) -> None:
        super().__init__("Uncaught throw")
        self.value = value


class PrismLimitError(PrismError):
    """A limit of section 14 was reached; no program can catch it."""

    label = "LIMIT_ERROR"

    def __init__(self, name: str, limit: float, amount: float, *, span: Span | None = None) -> None:
        super().__init__(
            f"Limit exceeded: {name} ({limit:g})" if limit % 1 else f"Limit exceeded: {name} ({int(limit)})", span=span
        )
        self.name = name
        self.limit = limit
        self.amount = amount


class PrismCancelled(PrismError):  # the name is the specification's
    """The host cancelled the run."""

    label = "CANCELLED"


class PrismHostError(PrismError):
    """An effect failed. The program may catch it unless the host said otherwise."""

    label = "HOST_ERROR"

    def __init__(self, message: str, *, catchable: bool = True, span: Span | None = None) -> None:
        super().__init__(message, span=span)
        self.catchable = catchable


def excerpt(source: str, line: int, column: int) -> str:
    """The source line and a caret below the column; a very long line is cut around it."""
    lines = source.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    if not 1 <= line <= len(lines):
        return ""
    text = lines[line - 1]
    start = max(0, column - EXCERPT_WIDTH // 2) if len(text) > EXCERPT_WIDTH else 0
    shown = text[start : start + EXCERPT_WIDTH]
    lead = "".join("\t" if c == "\t" else " " for c in shown[: column - start])
    return f"{shown}\n{lead}^"
