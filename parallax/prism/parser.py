"""Tokens to tree (section 2): expressions, patterns and what they share.

Recursive descent for brackets, precedence climbing for operators. Every bracket, prefix and branch counts towards the
nesting limit, so no text can exhaust the interpreter's stack; chains of operators are loops. The statements are in
`statements`, which completes the class; `parse` there is the way in.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn, TypeVar

from . import hints
from . import nodes as n
from .errors import PrismError, PrismLimitError, PrismParseError, Span
from .lexer import Hole, Lexer, Token
from .limits import DEFAULT, Limits, exceeded

T = TypeVar("T")

BINARY = {
    **dict.fromkeys(("||", "~||", "~||>", "~@>"), 1),
    "??": 2,
    "~??": 3,
    **dict.fromkeys(("&&", "~&&"), 4),
    **dict.fromkeys(("==", "!=", "===", "!==", "~==", "~!="), 5),
    **dict.fromkeys((">", ">=", "<", "<=", "~>=", "~<", "~<=", "instanceof"), 6),
    **dict.fromkeys(("+", "-", "~+", "~-"), 7),
    **dict.fromkeys(("*", "/", "%", "~*", "~/"), 8),
}
PREFIX = frozenset(("!", "-", "~", "<~", "typeof", "await"))
ASSIGNMENTS = frozenset(("=", "+=", "-=", "*=", "/=", "%=", "~+=", "~-=", "~*=", "~/="))
IMMUTABLE = (
    "Values are immutable: cannot assign to a member or an index; "
    "build a new value with spread, as in {...o, key: v} or [...xs, v]"
)
LITERALS = {"true": n.Boolean(True), "false": n.Boolean(False), "null": n.Null(), "undefined": n.Null()}
OPENERS = {"(": ")", "[": "]", "{": "}"}


class ExpressionParser:
    """Expressions and patterns over one list of tokens."""

    def __init__(
        self,
        source: str,
        path: str = "<source>",
        *,
        limits: Limits = DEFAULT,
        comments: bool = False,
        recover: bool = False,
    ) -> None:
        self.source = source
        self.path = path
        self.limits = limits
        self.lexer = Lexer(source, path, limits=limits)
        self.lexer.errors = [] if recover else None
        self.nesting = 0
        self.plain_arrow = False  # a guard or an arm's threshold: `=>` ends it (2.2 rule 5)
        self.errors: list[PrismError] | None = [] if recover else None
        self.keep_comments = comments
        self.comments: dict[int, str] = {}
        self.set_tokens(self.lexer.tokens())

    # --- tokens ---

    def set_tokens(self, tokens: list[Token]) -> None:
        self.tokens = tokens
        self.at = 0
        self.token = tokens[0]
        self.closing = _closing(tokens)
        self.destructures: dict[int, bool] = {}
        if self.keep_comments:
            self.comments.update((c.end, c.text) for c in self.lexer.comments)

    def move(self, at: int) -> None:
        self.at = at
        self.token = self.tokens[at]

    def advance(self) -> Token:
        token = self.token
        if token.kind != "eof":
            self.move(self.at + 1)
        return token

    def peek(self, ahead: int = 1) -> Token:
        return self.tokens[min(self.at + ahead, len(self.tokens) - 1)]

    def is_op(self, text: str) -> bool:
        return self.token.text == text and self.token.kind == "op"

    def is_word(self, text: str) -> bool:
        return self.token.text == text and self.token.kind == "word"

    def accept(self, text: str) -> bool:
        if self.token.text == text and self.token.kind in ("op", "word"):
            self.advance()
            return True
        return False

    def expect(self, text: str, message: str) -> Token:
        if self.token.text != text or self.token.kind not in ("op", "word"):
            self.fail(message)
        return self.advance()

    def identifier(self, message: str) -> str:
        if self.token.kind != "id":
            self.fail(message)
        return self.advance().text

    def span(self, token: Token | None = None) -> Span:
        token = token or self.token
        return Span(self.path, token.line, token.column)

    def fail(self, message: str, token: Token | None = None, hint: str | None = None) -> NoReturn:
        token = token or self.token
        before = self.tokens[self.at - 1] if self.at else None
        start = self.at
        while start and self.tokens[start - 1].line == token.line:
            start -= 1
        first = self.tokens[start]
        raise PrismParseError(
            message, span=self.span(token), hint=hint or hints.for_parse(message, token, before, first)
        )

    @contextmanager
    def nest(self, *, arrow: bool = False) -> Iterator[None]:
        """One level deeper; inside brackets a lambda may stand again."""
        self.nesting += 1
        if self.nesting > self.limits.parse_nesting:
            exceeded("parse nesting", self.limits.parse_nesting, self.nesting, self.span())
        plain, self.plain_arrow = self.plain_arrow, self.plain_arrow and arrow
        yield
        self.plain_arrow = plain
        self.nesting -= 1

    def attempt(self, at: int, nesting: int, plain: bool) -> None:
        """Go back to where a trial started."""
        self.move(at)
        self.nesting = nesting
        self.plain_arrow = plain

    # --- expressions ---

    def expr(self) -> n.Expr:
        left = self.ternary()
        while self.token.kind == "op" and self.token.text in ("|>", "~|>", "~?>"):
            token = self.advance()
            right = self.ternary()
            if token.text == "~?>":
                left = n.Binary("~?>", left, right, span=self.span(token))
            else:
                left = n.Pipeline(token.text, left, right, span=self.span(token))
        return left

    def ternary(self) -> n.Expr:
        test = self.conf()
        token = self.token
        if token.kind != "op" or token.text not in ("?", "~?"):
            return test
        self.advance()
        with self.nest(arrow=True):
            yes = self.expr()
            of = "confident ternary operator" if token.text == "~?" else "ternary operator"
            self.expect(":", f"Expected ':' after true branch of {of}")
            no = self.expr()
        kind = n.ConfidentTernary if token.text == "~?" else n.Ternary
        return kind(test, yes, no, span=self.span(token))

    def conf(self) -> n.Expr:
        left = self.binary(1)
        token = self.token
        if token.kind != "op" or token.text not in ("~>", "~~"):
            return left
        if token.text == "~>":
            self.advance()
            left = n.ConfidenceExpression(left, self.postfix(), span=self.span(token))
        else:
            while self.is_op("~~"):
                token = self.advance()
                left = n.Binary("~~", left, self.binary(1), span=self.span(token))
        if self.is_op("~>") or self.is_op("~~"):
            self.fail("Expected expression", hint="only one ~> at a time: use parentheses")
        return left

    def binary(self, level: int) -> n.Expr:
        left = self.power()
        while True:
            token = self.token
            if token.kind not in ("op", "word"):
                return left
            binds = BINARY.get(token.text)
            if binds is None or binds < level:
                return left
            self.advance()
            right = self.binary(binds + 1)
            left = n.Binary(token.text, left, right, span=self.span(token))

    def power(self) -> n.Expr:
        left = self.unary()
        if not self.is_op("**"):
            return left
        token = self.advance()
        with self.nest(arrow=True):
            return n.Binary("**", left, self.power(), span=self.span(token))

    def unary(self) -> n.Expr:
        token = self.token
        if token.text not in PREFIX or token.kind not in ("op", "word"):
            return self.postfix()
        self.advance()
        with self.nest(arrow=True):
            operand = self.unary()
        if token.text == "await":
            return n.Await(operand, span=self.span(token))
        return n.Unary(token.text, operand, span=self.span(token))

    def postfix(self) -> n.Expr:
        start = self.token
        left = self.primary()
        while self.token.kind == "op":
            token = self.token
            if token.text == "(":
                left = n.Call(left, self.arguments(), span=self.span(start))
            elif token.text in (".", "?.", "~."):
                self.advance()
                if self.token.kind not in ("id", "word"):
                    self.fail(f"Expected property name after '{token.text}'")
                name = self.advance().text
                if token.text == "?.":
                    left = n.OptionalChain(left, name, span=self.span(token))
                else:
                    left = n.PropertyAccess(left, name, token.text == "~.", span=self.span(token))
            elif token.text == "[":
                self.advance()
                with self.nest():
                    index = self.expr()
                    self.expect("]", "Expected ']' after index")
                left = n.Index(left, index, span=self.span(token))
            else:
                break
        return left

    def arguments(self) -> tuple[n.Expr | n.Spread, ...]:
        self.advance()
        items: list[n.Expr | n.Spread] = []
        with self.nest():
            while not self.is_op(")"):
                items.append(self.spread_or_expr())
                if not self.accept(","):
                    break
            self.expect(")", "Expected ')' after arguments")
        return tuple(items)

    def spread_or_expr(self) -> n.Expr | n.Spread:
        token = self.token
        if self.accept("..."):
            return n.Spread(self.expr(), span=self.span(token))
        return self.expr()

    def primary(self) -> n.Expr:
        token = self.token
        text, kind = token.text, token.kind
        if kind == "num":
            self.advance()
            return n.Number(float(text), span=self.span(token))
        if kind == "str":
            self.advance()
            return n.String(text, fenced=token.quote == "```", span=self.span(token))
        if kind == "template":
            self.advance()
            return self.template(token)
        if kind == "id":
            if self.peek().text == "=>" and self.peek().kind == "op" and not self.plain_arrow:
                return self.lambda_()
            self.advance()
            return n.Identifier(text, span=self.span(token))
        if kind == "op":
            if text == "_":
                self.advance()
                return n.Placeholder(span=self.span(token))
            if text == "(":
                return self.lambda_() if self.arrow_follows() else self.group()
            if text == "[":
                return self.array()
            if text == "{":
                return self.object()
        elif kind == "word":
            if text in LITERALS:
                self.advance()
                return (
                    n.Boolean(text == "true", span=self.span(token))
                    if text in ("true", "false")
                    else n.Null(span=self.span(token))
                )
            if text == "context":
                self.advance()
                return n.Identifier(text, span=self.span(token))
            if text == "match":
                return self.match()
        return self.fail("Expected expression")

    def arrow_follows(self) -> bool:
        close = self.closing.get(self.at)
        return (
            close is not None
            and not self.plain_arrow
            and self.tokens[close + 1].text == "=>"
            and self.tokens[close + 1].kind == "op"
        )

    def group(self) -> n.Expr:
        self.advance()
        with self.nest():
            inner = self.expr()
            self.expect(")", "Expected ')' after expression")
        return inner

    def lambda_(self) -> n.Expr:
        token = self.token
        if token.kind == "id":
            self.advance()
            params: tuple[n.Parameter, ...] = (
                n.Parameter(n.Identifier(token.text, span=self.span(token)), span=self.span(token)),
            )
        else:
            self.advance()
            params = self.parameters()
        self.expect("=>", "Expected '=>' after parameters")
        with self.nest(arrow=True):
            body: n.Block | n.Expr = self.block("") if self.is_op("{") else self.ternary()
        return n.Lambda(params, body, span=self.span(token))

    def template(self, token: Token) -> n.Expr:
        parts: list[str | n.Expr] = []
        with self.nest():
            parts.extend(self.hole(part) if isinstance(part, Hole) else part for part in token.parts)
        return n.Interpolated(tuple(parts), fenced=token.quote == "```", span=self.span(token))

    def hole(self, hole: Hole) -> n.Expr:
        """One `${…}`: an expression over tokens of its own; what comes after it is ignored."""
        lexer = self.lexer
        inner = Lexer(self.source, self.path, start=hole.start, end=hole.end, limits=self.limits, lines=lexer.lines)
        tokens = inner.tokens()
        if tokens[0].kind == "eof":
            hint = "write an expression between ${ and }"
            raise PrismParseError("Empty interpolation expression", span=lexer.place(hole.start), hint=hint)
        saved = (self.tokens, self.at, self.closing, self.destructures)
        self.tokens, self.closing, self.destructures = tokens, _closing(tokens), {}
        self.move(0)
        try:
            return self.expr()
        finally:
            self.tokens, at, self.closing, self.destructures = saved
            self.move(at)

    def array(self) -> n.Expr:
        token = self.advance()
        items: list[n.Expr | n.Spread] = []
        with self.nest():
            while not self.is_op("]"):
                if self.is_op(","):
                    items.append(n.Null(span=self.span()))
                    self.advance()
                    continue
                items.append(self.spread_or_expr())
                if not self.accept(","):
                    break
            self.expect("]", "Expected ']' after array elements")
        return n.Array(tuple(items), span=self.span(token))

    def object(self) -> n.Expr:
        token = self.token
        if self.peek().text == ",":
            self.fail("Expected expression")
        self.advance()
        props: list[n.Property | n.Spread] = []
        with self.nest():
            while not self.is_op("}"):
                props.append(self.property())
                if not self.accept(","):
                    break
            if self.is_op("="):
                self.fail("Unexpected '=' in object literal")
            self.expect("}", "Expected '}' after object properties")
        return n.Object(tuple(props), span=self.span(token))

    def property(self) -> n.Property | n.Spread:
        token = self.token
        span = self.span(token)
        if self.accept("..."):
            return n.Spread(self.expr(), span=span)
        if token.kind == "word":
            self.advance()
            self.expect(":", f"Expected ':' after reserved word '{token.text}'")
            return n.Property(token.text, self.expr(), span=span)
        if token.kind not in ("id", "str"):
            self.fail("Expected property name")
        self.advance()
        if self.accept(":"):
            return n.Property(token.text, self.expr(), span=span)
        if self.is_op("="):
            self.fail("Unexpected '=' in object literal")
        return n.Property(token.text, n.Identifier(token.text, span=span), span=span)

    # --- match ---

    def match(self) -> n.Expr:
        token = self.advance()
        subject = self.expr()
        self.expect("{", "Expected '{' after match expression")
        arms: list[n.MatchArm] = []
        with self.nest():
            while not self.is_op("}"):
                arms.append(self.arm())
                if not (self.accept(",") or self.accept(";")) and not self.is_op("}"):
                    self.fail("Expected ',' or '}' after match arm")
            self.advance()
        return n.Match(subject, tuple(arms), span=self.span(token))

    def arm(self) -> n.MatchArm:
        token = self.token
        pattern = self.match_pattern()
        threshold = self.guard() if self.accept("~>") else None
        guard = self.guard() if self.accept("if") else None
        self.expect("=>", "Expected '=>' after match pattern")
        body: n.Block | n.Expr = self.block("") if self.is_op("{") else self.expr()
        return n.MatchArm(pattern, body, threshold, guard, span=self.span(token))

    def guard(self) -> n.Expr:
        plain, self.plain_arrow = self.plain_arrow, True
        value = self.expr()
        self.plain_arrow = plain
        return value

    def match_pattern(self) -> n.Pattern:
        token = self.token
        span = self.span(token)
        if token.kind == "num":
            self.advance()
            return n.Number(float(token.text), span=span)
        if token.kind == "str":
            self.advance()
            return n.String(token.text, span=span)
        if token.kind == "word" and token.text in LITERALS:
            self.advance()
            return n.Boolean(token.text == "true", span=span) if token.text in ("true", "false") else n.Null(span=span)
        if token.kind == "id":
            self.advance()
            return n.Identifier(token.text, span=span)
        if self.accept("_"):
            return n.Placeholder(span=span)
        if token.kind == "op" and token.text in ("[", "{"):
            return self.array_pattern(match=True) if token.text == "[" else self.object_pattern(match=True)
        return self.fail("Expected match pattern")

    # --- patterns ---

    def pattern(self) -> n.ArrayPattern | n.ObjectPattern:
        return self.array_pattern() if self.is_op("[") else self.object_pattern()

    def target(self, match: bool) -> n.Pattern:
        if match:
            return self.match_pattern()
        if self.is_op("[") or self.is_op("{"):
            return self.pattern()
        token = self.token
        return n.Identifier(self.identifier("Expected variable name"), span=self.span(token))

    def array_pattern(self, *, match: bool = False) -> n.ArrayPattern:
        token = self.advance()
        items: list[n.Element | n.Rest | None] = []
        with self.nest():
            while not self.is_op("]"):
                span = self.span()
                if self.accept(","):
                    items.append(None)
                    continue
                if self.accept("..."):
                    items.append(n.Rest(self.identifier("Expected variable name"), span=span))
                    self.accept(",")
                    break
                target = self.target(match)
                threshold = self.expr() if self.accept("~>") else None
                items.append(n.Element(target, threshold, span=span))
                if not self.accept(","):
                    break
            self.expect("]", "Expected match pattern" if match else "Expected variable name")
        return n.ArrayPattern(tuple(items), span=self.span(token))

    def object_pattern(self, *, match: bool = False) -> n.ObjectPattern:
        token = self.advance()
        items: list[n.Field | n.Rest] = []
        with self.nest():
            while not self.is_op("}"):
                items.append(self.field(match))
                rest = isinstance(items[-1], n.Rest)
                if not self.accept(",") or rest:
                    break
            self.expect("}", "Expected match pattern" if match else "Expected variable name")
        return n.ObjectPattern(tuple(items), span=self.span(token))

    def field(self, match: bool) -> n.Field | n.Rest:
        token = self.token
        span = self.span(token)
        if self.accept("..."):
            return n.Rest(self.identifier("Expected variable name"), span=span)
        target: n.Pattern = n.Identifier(token.text, span=span)
        if token.kind == "word":
            self.advance()
            self.expect(":", f"Expected ':' after reserved word '{token.text}'")
            target = self.target(match)
        else:
            self.identifier("Expected match pattern" if match else "Expected variable name")
            if self.accept(":"):
                target = self.target(match)
        threshold = self.expr() if self.accept("~>") else None
        default = self.ternary() if not match and self.accept("=") else None
        return n.Field(token.text, target, threshold, default, span=span)

    def parameters(self) -> tuple[n.Parameter, ...]:
        """The list after `(`, with its `)`."""
        items: list[n.Parameter] = []
        with self.nest():
            while not self.is_op(")"):
                span = self.span()
                if self.accept("..."):
                    items.append(
                        n.Parameter(
                            self.parameter_target("Expected parameter name or pattern after '...'"),
                            None,
                            True,
                            span=span,
                        )
                    )
                    if self.is_op(","):
                        self.fail("Rest parameter must be last formal parameter")
                    break
                target = self.parameter_target("Expected parameter name or pattern")
                default = self.ternary() if self.accept("=") else None
                if default is None and items and items[-1].default is not None:
                    self.fail("A parameter without a default cannot follow one with a default", self.token_at(span))
                items.append(n.Parameter(target, default, span=span))
                if not self.accept(","):
                    break
            self.expect(")", "Expected ')' after parameters")
        return tuple(items)

    def token_at(self, span: Span) -> Token:
        return self.token._replace(line=span.line, column=span.column)

    def parameter_target(self, message: str) -> n.Identifier | n.ArrayPattern | n.ObjectPattern:
        token = self.token
        if token.kind == "op" and token.text in ("[", "{"):
            at = self.at
            try:
                return self.pattern()
            except PrismLimitError:
                raise
            except PrismParseError as error:
                if error.message != "Expected variable name":
                    raise
                self.move(at)
                self.fail("Expected parameter pattern")
        return n.Identifier(self.identifier(message), span=self.span(token))

    def block(self, message: str) -> n.Block:
        raise NotImplementedError


def _closing(tokens: list[Token]) -> dict[int, int]:
    """For each opening bracket the index of the one that closes it."""
    result: dict[int, int] = {}
    stack: list[int] = []
    for index, token in enumerate(tokens):
        if token.kind != "op":
            continue
        if token.text in OPENERS:
            stack.append(index)
        elif token.text in (")", "]", "}"):
            if not stack or OPENERS[tokens[stack[-1]].text] != token.text:
                stack.clear()
            else:
                result[stack.pop()] = index
    return result
