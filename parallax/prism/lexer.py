"""Text to tokens (section 1).

One regular expression finds the next token; strings are read by hand because they nest. A string with `${…}` becomes
a template token: its texts, and for each expression the range of source that the parser reads with a lexer of its
own, so positions inside stay real. Called by `parser`.
"""

from __future__ import annotations

import re
from typing import NamedTuple, NoReturn

from .errors import PrismLexError, Span
from .limits import DEFAULT, Limits, exceeded

RESERVED = frozenset(
    [
        "if",
        "else",
        "uncertain",
        "high",
        "medium",
        "low",
        "default",
        "in",
        "context",
        "agents",
        "Agent",
        "function",
        "fn",
        "return",
        "let",
        "const",
        "match",
        "true",
        "false",
        "null",
        "undefined",
        "for",
        "while",
        "break",
        "continue",
        "typeof",
        "instanceof",
        "import",
        "export",
        "from",
        "as",
        "async",
        "await",
        "try",
        "catch",
        "finally",
        "do",
        "throw",
    ]
)

_OPERATORS = [
    "~||>",
    "...",
    "===",
    "!==",
    "~>=",
    "~??",
    "~?>",
    "~&&",
    "~@>",
    "~|>",
    "~||",
    "~+=",
    "~-=",
    "~*=",
    "~/=",
    "~==",
    "~!=",
    "~<=",
    "+=",
    "->",
    "-=",
    "*=",
    "**",
    "/=",
    "%=",
    "?.",
    "??",
    "==",
    "=>",
    "!=",
    "<=",
    "<~",
    ">=",
    "~>",
    "~?",
    "~+",
    "~-",
    "~*",
    "~/",
    "~<",
    "~.",
    "~~",
    "&&",
    "|>",
    "||",
    "+",
    "-",
    "*",
    "/",
    "%",
    "(",
    ")",
    "{",
    "}",
    "[",
    "]",
    ",",
    ".",
    ":",
    ";",
    "?",
    "=",
    "!",
    "<",
    ">",
    "~",
]

_TOKEN = re.compile(
    r"(?P<space>(?:[ \t\r\n]+|//[^\n]*|/\*[^*]*(?:\*(?!/)[^*]*)*(?:\*/|\Z))+)"
    r"|(?P<num>[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)"
    r"|(?P<id>[A-Za-z_][A-Za-z0-9_]*)"
    r"|(?P<quote>[\"'`])"
    r"|(?P<op>" + "|".join(re.escape(op) for op in _OPERATORS) + ")"
)
_STOPS = {
    '"': re.compile(r'["\\\n]|\$\{'),
    "'": re.compile(r"['\\\n]"),
    "`": re.compile(r"[`\\]|\$\{"),
    "```": re.compile(r"```|\$\{"),
}
_DEEPER = frozenset("()[]{}")
_PREFIX = frozenset(("!", "-", "~", "<~", "typeof", "await"))
_INNER = re.compile(r"[\"'`{}\n]|/\*")
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r"}


class Hole(NamedTuple):
    """The source range of one `${…}`."""

    start: int
    end: int


class Token(NamedTuple):
    """kind: num, str, template, id, word (reserved), op, eof. `parts` belongs to a template."""

    kind: str
    text: str
    start: int
    end: int
    line: int
    column: int
    parts: tuple[str | Hole, ...] = ()
    quote: str = ""


class Lexer:
    """Reads `source[start:end]`; positions are those of the whole source."""

    def __init__(
        self,
        source: str,
        path: str = "<source>",
        *,
        start: int = 0,
        end: int | None = None,
        limits: Limits = DEFAULT,
        lines: list[int] | None = None,
    ) -> None:
        self.source = source
        self.path = path
        self.start = start
        self.end = len(source) if end is None else end
        self.limits = limits
        self.lines = line_starts(source) if lines is None else lines
        self.comments: list[Token] = []
        self.errors: list[PrismLexError] | None = None  # set by `check`: note an error and go on

    def tokens(self) -> list[Token]:
        """All tokens, the last of kind eof."""
        source, end, match = self.source, self.end, _TOKEN.match
        result: list[Token] = []
        lines = self.lines
        pos = self.start
        row = self._row(pos)
        limit = self.limits.tokens
        nesting = self.limits.parse_nesting
        depth = prefixes = 0  # brackets and prefixes are levels of nesting: a text of nothing else ends here, early
        while pos < end:
            while row + 1 < len(lines) and lines[row + 1] <= pos:
                row += 1
            line, column = row + 1, pos - lines[row]
            found = match(source, pos, end)
            if found is None:
                shown = source[pos].encode("utf-8", "backslashreplace").decode()
                message = f"Unexpected character '{shown}' at line {line}, column {column}"
                error = PrismLexError(message, span=Span(self.path, line, column), hint=_HINTS.get(source[pos]))
                self._note(error)
                pos += 1
                continue
            kind, text, stop = found.lastgroup, found.group(), found.end()
            if kind == "space":
                self.comments.append(Token("space", text, pos, stop, line, column)) if "/" in text else None
                pos = stop
                continue
            if kind == "quote":
                try:
                    token = self._string(pos, line, column)
                except PrismLexError as unclosed:
                    self._note(unclosed)
                    newline = source.find("\n", pos, end)
                    stop = end if newline < 0 else newline
                    token = Token("str", "", pos, stop, line, column, (), text)
            elif kind == "id":
                kind = "op" if text == "_" else "word" if text in RESERVED else "id"
                token = Token(kind, text, pos, stop, line, column)
            else:
                token = Token(kind or "op", text, pos, stop, line, column)
            result.append(token)
            pos = token.end
            if text in _DEEPER:
                depth += 1 if text in "([{" else -1
                if depth > nesting:
                    exceeded("parse nesting", nesting, depth, Span(self.path, line, column))
            prefixes = prefixes + 1 if text in _PREFIX else 0
            if prefixes > nesting + 1:  # the first of them may be an operator between two values
                exceeded("parse nesting", nesting, prefixes, Span(self.path, line, column))
            if len(result) > limit:
                exceeded("tokens", limit, len(result), Span(self.path, line, column))
        row = self._row(end)
        result.append(Token("eof", "", end, end, row + 1, end - lines[row]))
        return result

    def _note(self, error: PrismLexError) -> None:
        if self.errors is None:
            raise error
        self.errors.append(error)

    def _row(self, pos: int) -> int:
        low, high = 0, len(self.lines)
        while low + 1 < high:
            middle = (low + high) // 2
            if self.lines[middle] <= pos:
                low = middle
            else:
                high = middle
        return low

    def place(self, pos: int) -> Span:
        row = self._row(pos)
        return Span(self.path, row + 1, pos - self.lines[row])

    def _string(self, start: int, line: int, column: int) -> Token:
        source = self.source
        quote = source[start]
        if quote == "`" and source.startswith("```", start):
            quote = "```"
        parts: list[str | Hole] = []
        text: list[str] = []
        stop = _STOPS[quote]
        pos = start + len(quote)
        while True:
            found = stop.search(source, pos, self.end)
            if found is None:
                self._unterminated(quote, start)
            text.append(source[pos : found.start()])
            mark, pos = found.group(), found.end()
            if mark == quote:
                break
            if mark == "\n":
                self._newline(found.start())
            if mark == "\\":
                if pos >= self.end:
                    place = self.place(pos - 1)
                    raise PrismLexError(f"Unterminated escape sequence at line {place.line}", span=place)
                text.append(_ESCAPES.get(source[pos], source[pos]))
                pos += 1
            else:
                close = self._hole(pos, quote, start)
                if quote == '"' and "\n" in source[pos:close]:
                    self._newline(source.index("\n", pos))
                if text:
                    parts.append("".join(text))
                    text = []
                parts.append(Hole(pos, close))
                pos = close + 1
        rest = "".join(text)
        if not any(isinstance(part, Hole) for part in parts):
            return Token(
                "str", "".join([*[p for p in parts if isinstance(p, str)], rest]), start, pos, line, column, (), quote
            )
        parts.append(rest)
        kept = tuple(part for part in parts if part != "")
        return Token("template", source[start:pos], start, pos, line, column, kept, quote)

    def _hole(self, pos: int, quote: str, start: int) -> int:
        """The place of the `}` that closes the expression starting at pos."""
        depth: list[str] = []  # open braces and, between them, the strings whose expressions they are in
        source = self.source
        nesting = self.limits.parse_nesting
        while True:
            if len(depth) > 2 * nesting:  # a level is at most a string and the brace in it
                exceeded("parse nesting", nesting, len(depth) // 2 + 1, self.place(pos))
            if depth and depth[-1] in _STOPS:
                inside = depth[-1]
                found = _STOPS[inside].search(source, pos, self.end)
                if found is None:
                    self._unterminated(quote, start)
                mark, pos = found.group(), found.end()
                if mark == inside:
                    depth.pop()
                elif mark == "\\":
                    pos += 1
                elif mark == "\n":
                    self._newline(found.start())
                else:
                    depth.append("{")
            else:
                found = _INNER.search(source, pos, self.end)
                if found is None:
                    self._unterminated(quote, start)
                mark, pos = found.group(), found.end()
                if mark == "\n":
                    if quote == '"':
                        self._newline(found.start())
                elif mark == "}":
                    if not depth:
                        return found.start()
                    depth.pop()
                elif mark == "/*":
                    close = source.find("*/", pos, self.end)
                    if close < 0:
                        self._unterminated(quote, start)
                    pos = close + 2
                elif mark == "{":
                    depth.append("{")
                elif mark == "`" and source.startswith("```", pos - 1):
                    depth.append("```")
                    pos += 2
                else:
                    depth.append(mark)

    def _newline(self, pos: int) -> None:
        place = self.place(pos)
        raise PrismLexError(
            f"Unexpected newline in string at line {place.line}",
            span=place,
            hint="a string over several lines takes single backticks: `…`",
        )

    def _unterminated(self, quote: str, start: int) -> NoReturn:
        place = self.place(start)
        at = f"line {place.line}, column {place.column}"
        if quote.startswith("`"):
            hint = f"close it with {quote}; a ${{ inside needs its }}"
            raise PrismLexError(f"Unterminated multiline string starting at {at}", span=place, hint=hint)
        raise PrismLexError(f"Unterminated string at {at}", span=place, hint=f"close it with {quote}")


_HINTS = {
    "&": "'and' is &&",
    "|": "'or' is ||, a pipeline is |>",
    "#": "a comment starts with //",
    "$": "names have no $; an expression in a string is ${…}",
    "\u201c": 'use straight quotes: "',
    "\u201d": 'use straight quotes: "',
    "\u2018": "use straight quotes: '",
    "\u2019": "use straight quotes: '",
    "^": "a power is **",
}


def line_starts(source: str) -> list[int]:
    """The offset of each line's first character."""
    return [0, *(found.end() for found in re.finditer("\n", source))]
