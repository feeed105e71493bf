"""Tokens to tree: statements, programs, and `parse`, the way into the parser.

With `recover` the parser notes an error, skips to the next statement and goes on; only `check` asks for that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from . import nodes as n
from .errors import PrismError, PrismLexError, PrismParseError
from .lexer import Token
from .limits import DEFAULT, Limits, exceeded
from .parser import ASSIGNMENTS, IMMUTABLE, ExpressionParser

S = TypeVar("S", bound=n.Statement)
BANDS = ("high", "medium", "low", "default")
STARTERS = frozenset(
    [
        "if",
        "uncertain",
        "in",
        "agents",
        "function",
        "fn",
        "return",
        "let",
        "const",
        "for",
        "while",
        "break",
        "continue",
        "import",
        "export",
        "async",
        "try",
        "do",
        "throw",
    ]
)


class Parser(ExpressionParser):
    """Statements on top of expressions."""

    def program(self) -> n.Program:
        statements = self.statements(lambda: self.token.kind == "eof")
        return n.Program(tuple(statements), tail=self.take_comment(self.token), span=self.span(self.tokens[0]))

    def statements(self, done: Callable[[], bool]) -> list[n.Statement]:
        result: list[n.Statement] = []
        while not done():
            if self.accept(";"):
                continue
            start = self.at
            state = (self.nesting, self.plain_arrow)
            try:
                if self.is_op("}") and self.nesting == 0:
                    self.fail("Expected expression", hint="this '}' closes nothing")
                result.append(self.statement())
            except (PrismParseError, PrismLexError) as error:
                if self.errors is None:
                    raise
                self.errors.append(error)
                self.nesting, self.plain_arrow = state
                self.skip(start)
        return result

    def skip(self, start: int) -> None:
        """After an error: to the next statement, over whole brackets."""
        if self.at == start:
            self.advance()
        while self.token.kind != "eof":
            if self.is_op(";") or (self.is_op("}") and self.nesting):
                return
            new_line = self.at > 0 and self.token.line > self.tokens[self.at - 1].line
            if new_line and (self.token.kind == "id" or (self.token.kind == "word" and self.token.text in STARTERS)):
                return
            self.move(self.closing.get(self.at, self.at) + 1)

    def take_comment(self, token: Token) -> str | None:
        return comment_text(self.comments.pop(token.start)) if token.start in self.comments else None

    def statement(self) -> n.Statement:
        if not self.comments:
            return self.bare_statement()
        comment = self.take_comment(self.token)
        result = self.bare_statement()
        return replace(result, comment=comment) if comment else result

    def bare_statement(self) -> n.Statement:
        token = self.token
        if token.kind == "word":
            parse = _STATEMENTS.get(token.text)
            if parse is not None:
                return parse(self)
        elif token.kind == "op":
            if token.text == ";":
                self.advance()
                return n.Block((), span=self.span(token))
            if token.text == "{" and not self.brace_is_expression():
                return self.block("")
        return self.expression_statement()

    def end(self, statement: S) -> S:
        self.accept(";")
        return statement

    def block(self, message: str) -> n.Block:
        token = self.expect("{", message)
        with self.nest():
            items = self.statements(lambda: self.is_op("}") or self.token.kind == "eof")
            tail = self.take_comment(self.token)
            self.expect("}", "Expected '}' after block")
        return n.Block(tuple(items), tail=tail, span=self.span(token))

    def body(self) -> n.Statement:
        """A `{` here is always a block; a single statement counts as a level, for `else if` chains nest."""
        if self.is_op("{"):
            return self.block("")
        with self.nest():
            return self.statement()

    def brace_is_expression(self) -> bool:
        """2.2 rule 2."""
        first, second = self.peek(1), self.peek(2)
        if first.kind == "op":
            return first.text in ("}", "...")
        if first.kind in ("word", "str"):
            return second.kind == "op" and second.text == ":"
        if first.kind == "id" and second.kind == "op":
            return second.text in (",", ":", "}", "~>") or (second.text == "=" and self.destructuring_follows())
        return False

    # --- expression statements and assignments ---

    def expression_statement(self) -> n.Statement:
        token = self.token
        span = self.span(token)
        if token.kind == "op" and token.text in ("[", "{") and self.destructuring_follows():
            pattern = self.pattern()
            threshold = self.expr() if self.accept("~>") else None
            self.advance()
            return self.end(n.DestructuringAssignment(pattern, self.expr(), threshold, span=span))
        following = self.peek()
        if token.kind == "id" and following.kind == "op" and following.text in ASSIGNMENTS:
            self.move(self.at + 2)
            return self.end(n.AssignmentStatement(token.text, following.text, self.expr(), span=span))
        value = self.expr()
        if self.token.kind == "op" and self.token.text in ASSIGNMENTS:
            self.refuse_assignment(value)
        return self.end(n.ExpressionStatement(value, span=span))

    def refuse_assignment(self, target: n.Expr) -> None:
        if isinstance(target, n.PropertyAccess | n.Index | n.OptionalChain):
            self.fail(IMMUTABLE)
        self.fail("Expected expression")

    def destructuring_follows(self) -> bool:
        """2.2 rule 3; the answer is remembered, so nested trials cost no more than one."""
        start = self.at
        known = self.destructures.get(start)
        if known is None:
            known = False
            close = self.closing.get(start)
            if close is not None and self.tokens[close + 1].text in ("=", "~>") and self.tokens[close + 1].kind == "op":
                state = (start, self.nesting, self.plain_arrow)
                errors, self.errors = self.errors, None
                comments = dict(self.comments)
                try:
                    self.pattern()
                    if self.accept("~>"):
                        self.expr()
                    known = self.is_op("=")
                except PrismParseError:
                    known = False
                self.errors, self.comments = errors, comments
                self.attempt(*state)
            self.destructures[start] = known
        return known

    def slot(self, *, update: bool) -> n.AssignmentStatement | n.Expr:
        """An init or update slot of a `for`."""
        token, following = self.token, self.peek()
        if token.kind == "id" and following.kind == "op" and following.text == "=":
            self.move(self.at + 2)
            return n.AssignmentStatement(token.text, "=", self.expr(), span=self.span(token))
        value = self.expr()
        if self.token.kind == "op" and self.token.text in ASSIGNMENTS:
            if isinstance(value, n.Identifier) and update:
                self.fail("Expected expression", hint="the update of a for takes '=' only: i = i + 1")
            self.refuse_assignment(value)
        return value

    # --- declarations ---

    def variable(self, *, end: bool = True) -> n.VariableDeclaration:
        token = self.advance()
        target: n.Identifier | n.ArrayPattern | n.ObjectPattern
        if self.is_op("[") or self.is_op("{"):
            at = self.token
            try:
                target = self.pattern()
            except PrismParseError as error:
                if error.message != "Expected variable name":
                    raise
                self.fail("Expected variable name", self.token if self.token.kind != "eof" else at)
            self.expect("=", "Expected '=' after destructuring pattern")
            value: n.Expr | None = self.expr()
        else:
            target = n.Identifier(self.identifier("Expected variable name"), span=self.span(self.tokens[self.at - 1]))
            value = self.expr() if self.accept("=") else None
            if value is None and token.text == "const":
                self.fail("const declarations must have an initializer")
        result = n.VariableDeclaration(token.text, target, value, span=self.span(token))
        return self.end(result) if end else result

    def function(self) -> n.FunctionDeclaration:
        token = self.advance()
        name = self.identifier("Expected function name")
        self.expect("(", "Expected '(' after function name")
        params = self.parameters()
        confidence = self.expr() if self.accept("~>") else None
        body = self.block("Expected '{' before function body")
        return n.FunctionDeclaration(name, params, body, confidence, span=self.span(token))

    def async_function(self) -> n.Statement:
        self.advance()
        if not (self.is_word("function") or self.is_word("fn")):
            self.fail("Expected 'function' after 'async'")
        return self.function()

    def return_(self) -> n.Statement:
        token = self.advance()
        if self.token.kind == "eof" or self.is_op(";") or self.is_op("}"):
            return self.end(n.Return(None, span=self.span(token)))
        return self.end(n.Return(self.expr(), span=self.span(token)))

    def throw(self) -> n.Statement:
        token = self.advance()
        return self.end(n.Throw(self.expr(), span=self.span(token)))

    def break_(self) -> n.Statement:
        token = self.advance()
        kind = n.Break if token.text == "break" else n.Continue
        return self.end(kind(span=self.span(token)))

    # --- control ---

    def if_(self) -> n.Statement:
        token = self.advance()
        self.expect("(", "Expected '(' after 'if'")
        with self.nest():
            test = self.expr()
            self.expect(")", "Expected ')' after if condition")
        then = self.body()
        otherwise = self.body() if self.accept("else") else None
        return n.If(test, then, otherwise, span=self.span(token))

    def for_(self) -> n.Statement:
        token = self.advance()
        span = self.span(token)
        if self.token.kind == "id":
            second = None
            if self.peek(1).text == "in" and self.peek(1).kind == "word":
                name = self.advance().text
            elif self.peek(1).text == "," and self.peek(2).kind == "id" and self.peek(3).text == "in":
                name = self.advance().text
                self.advance()
                second = self.advance().text
            else:
                return n.For(*self.for_head(), self.body(), span=span)
            self.advance()
            iterable = self.expr()
            return n.ForIn(name, iterable, self.body(), second, span=span)
        return n.For(*self.for_head(), self.body(), span=span)

    def for_head(
        self,
    ) -> tuple[
        n.VariableDeclaration | n.AssignmentStatement | n.Expr | None,
        n.Expr | None,
        n.AssignmentStatement | n.Expr | None,
    ]:
        init: n.VariableDeclaration | n.AssignmentStatement | n.Expr | None = None
        start = self.token
        hint = None
        if start.text == "(" and start.kind == "op":
            hint = "a for loop takes no parentheses: for x in xs { … } or for let i = 0; i < n; i = i + 1 { … }"
        try:
            if self.is_word("let") or self.is_word("const"):
                init = self.variable(end=False)
            elif not self.is_op(";"):
                init = self.slot(update=False)
            self.expect(";", "Expected ';' after for loop initializer")
        except PrismParseError as error:
            error.hint = hint or error.hint
            raise
        test = None if self.is_op(";") else self.expr()
        self.expect(";", "Expected ';' after for loop condition")
        update = None if self.is_op("{") else self.slot(update=True)
        return init, test, update

    def while_(self) -> n.Statement:
        token = self.advance()
        test = self.expr()
        return n.While(test, self.body(), span=self.span(token))

    def do(self) -> n.Statement:
        token = self.advance()
        body = self.body()
        self.expect("while", "Expected 'while' after do-while body")
        return self.end(n.DoWhile(body, self.expr(), span=self.span(token)))

    def uncertain(self) -> n.Statement:
        token = self.advance()
        span = self.span(token)
        if self.accept("if"):
            self.expect("(", "Expected '(' after 'uncertain if'")
            with self.nest():
                value = self.expr()
                bands = self.expr() if self.accept(",") else None
                self.expect(")", "Expected ')' after condition")
            return n.UncertainIf(value, self.branches("Expected '{' after condition"), bands, span=span)
        if self.accept("for"):
            head = self.for_head()
            return n.UncertainFor(*head, self.branches("Expected '{' after uncertain for loop header"), span=span)
        if self.accept("while"):
            test = self.expr()
            return n.UncertainWhile(test, self.branches("Expected '{' after uncertain while condition"), span=span)
        return self.fail("Expected 'if', 'for', or 'while' after 'uncertain'")

    def branches(self, message: str) -> tuple[n.Branch, ...]:
        self.expect("{", message)
        result: list[n.Branch] = []
        with self.nest():
            while not self.is_op("}"):
                token = self.token
                if token.kind != "word" or token.text not in BANDS:
                    self.fail("Expected 'high', 'medium', 'low', or 'default' branch")
                self.advance()
                result.append(
                    n.Branch(token.text, self.block(f"Expected '{{' after '{token.text}'"), span=self.span(token))
                )
            self.advance()
        return tuple(result)

    def context(self) -> n.Statement:
        token = self.advance()
        self.expect("context", "Expected 'context' after 'in'")
        name = self.name_or_string("Expected context name after 'context'")
        body = self.block("Expected '{' to start context body")
        target = self.name_or_string("Expected context name after '->'") if self.accept("->") else None
        return n.Context(name, body, target, span=self.span(token))

    def name_or_string(self, message: str) -> str:
        if self.token.kind not in ("id", "str"):
            self.fail(message)
        return self.advance().text

    def agents(self) -> n.Statement:
        token = self.advance()
        self.expect("{", "Expected '{' after 'agents'")
        result: list[n.Agent] = []
        with self.nest():
            while not self.is_op("}"):
                if self.token.kind == "eof":
                    self.fail("Expected '}' after agents block")
                result.append(self.agent())
                self.accept(",") or self.accept(";")
            self.advance()
        return n.AgentDeclaration(tuple(result), span=self.span(token))

    def agent(self) -> n.Agent:
        span = self.span()
        name = self.identifier("Expected agent name")
        self.expect(":", "Expected ':' after agent name")
        self.expect("Agent", "Expected 'Agent' keyword")
        self.expect("{", "Expected '{' to start agent configuration")
        settings: list[n.Property] = []
        with self.nest():
            while not self.is_op("}"):
                token = self.token
                if token.kind == "eof":
                    self.fail("Expected '}' after agent configuration")
                if token.kind not in ("id", "word"):
                    self.fail("Expected configuration key")
                self.advance()
                self.expect(":", "Expected ':' after configuration key")
                settings.append(n.Property(token.text, self.expr(), span=self.span(token)))
                self.accept(",") or self.accept(";")
            self.advance()
        return n.Agent(name, tuple(settings), span=span)

    def try_(self) -> n.Statement:
        token = self.advance()
        body = self.block("Expected '{' after 'try'")
        name = handler = finalizer = None
        if self.accept("catch"):
            if self.accept("("):
                name = self.identifier("Expected error variable name in catch")
                self.expect(")", "Expected ')' after error variable")
            handler = self.block("Expected '{' after 'catch'")
        if self.accept("finally"):
            finalizer = self.block("Expected '{' after 'finally'")
        if handler is None and finalizer is None:
            self.fail("Expected 'catch' or 'finally' after 'try'")
        return n.Try(body, handler, name, finalizer, span=self.span(token))

    # --- modules ---

    def import_(self) -> n.Statement:
        token = self.advance()
        default = namespace = names = None
        if self.accept("*"):
            self.expect("as", "Expected 'as' after '*'")
            namespace = self.identifier("Expected namespace name after 'as'")
        elif self.is_op("{"):
            names = tuple(n.ImportSpecifier(*pair) for pair in self.specifiers("import"))
        else:
            default = self.identifier("Expected import specifier")
            if self.accept(","):
                if not self.is_op("{"):
                    self.fail("Expected import specifier")
                names = tuple(n.ImportSpecifier(*pair) for pair in self.specifiers("import"))
        self.expect("from", "Expected 'from' after import specifiers")
        return self.end(n.Import(self.module_path(), default, namespace, names, span=self.span(token)))

    def module_path(self) -> str:
        if self.token.kind != "str":
            self.fail("Expected module path after 'from'")
        return self.advance().text

    def specifiers(self, word: str) -> list[tuple[str, str]]:
        self.advance()
        result: list[tuple[str, str]] = []
        while not self.is_op("}"):
            if self.token.kind == "eof":
                self.fail("Expected '}' after import specifiers")
            name = self.identifier(f"Expected {word} name")
            alias = self.identifier(f"Expected {word} name") if self.accept("as") else name
            result.append((name, alias))
            if not self.accept(",") and not self.is_op("}"):
                self.fail(f"Expected ',' or '}}' after {word} specifier")
        self.advance()
        return result

    def export(self) -> n.Statement:
        token = self.advance()
        span = self.span(token)
        if self.accept("default"):
            value = self.expr()
            return self.end(n.Export(default=value, span=span))
        if self.accept("*"):
            self.expect("from", "Expected 'from' after import specifiers")
            return self.end(n.Export(source=self.module_path(), span=span))
        if self.is_op("{"):
            names = tuple(n.ExportSpecifier(*pair) for pair in self.specifiers("export"))
            source = self.module_path() if self.accept("from") else None
            return self.end(n.Export(names=names, source=source, span=span))
        return n.Export(declaration=self.statement(), span=span)


_STATEMENTS: dict[str, Callable[[Parser], n.Statement]] = {
    "if": Parser.if_,
    "uncertain": Parser.uncertain,
    "in": Parser.context,
    "agents": Parser.agents,
    "function": Parser.function,
    "fn": Parser.function,
    "async": Parser.async_function,
    "return": Parser.return_,
    "throw": Parser.throw,
    "let": Parser.variable,
    "const": Parser.variable,
    "for": Parser.for_,
    "while": Parser.while_,
    "do": Parser.do,
    "break": Parser.break_,
    "continue": Parser.break_,
    "import": Parser.import_,
    "export": Parser.export,
    "try": Parser.try_,
}


def comment_text(raw: str) -> str:
    """The words of comments, a line each."""
    lines: list[str] = []
    for piece in _pieces(raw):
        for line in piece.split("\n"):
            text = line.strip()
            lines.append(text)
    while lines and not lines[-1]:
        lines.pop()
    return "\n".join(lines)


def _pieces(raw: str) -> list[str]:
    result: list[str] = []
    pos = 0
    while (pos := raw.find("/", pos)) >= 0:
        if raw[pos + 1] == "/":
            stop = raw.find("\n", pos)
            stop = len(raw) if stop < 0 else stop
            result.append(raw[pos + 2 : stop])
        else:
            stop = raw.find("*/", pos + 2)
            stop = len(raw) if stop < 0 else stop
            result.append(raw[pos + 2 : stop].strip())
            stop += 2
        pos = stop
    return result


def check_size(source: str, limits: Limits = DEFAULT) -> None:
    size = len(source) if source.isascii() else len(source.encode("utf-8", "surrogatepass"))
    if size > limits.source_size:
        exceeded("source size", limits.source_size, size)


def parse_program(
    source: str, path: str = "<source>", *, limits: Limits = DEFAULT, comments: bool = False
) -> n.Program:
    """The tree of a source, or the first error."""
    check_size(source, limits)
    return Parser(source, path, limits=limits, comments=comments).program()


def parse_with_errors(
    source: str, path: str = "<source>", *, limits: Limits = DEFAULT
) -> tuple[n.Program, list[PrismError]]:
    """The tree of what could be read, and every error."""
    check_size(source, limits)
    parser = Parser(source, path, limits=limits, recover=True)
    tree = parser.program()
    return tree, [*(parser.lexer.errors or []), *(parser.errors or [])]
