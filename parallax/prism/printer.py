"""Tree to text in the house style: `parse(unparse(tree)) == tree`.

Two spaces, double quotes, no semicolons but where the next line would go on with the expression. An object, array or
call is broken over lines when it is too long, or when its source was. Used by `format`, by the compilers of patterns
to show what they made, and by tests.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import TypeVar

from . import nodes as n
from .lexer import RESERVED
from .parser import BINARY
from .values import number_text

T = TypeVar("T")
WIDTH = 100
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
KEYED = re.compile(r'\{"(?:[^"\\]|\\.)*":')
LOOSE, PIPE, TERNARY, CONF, POWER, UNARY, POSTFIX, PRIMARY = -1, 0, 1, 2, 11, 12, 13, 14
CONTINUES = ("(", "[", "-")  # how a line may start that would go on with the one before
ESCAPES = {"\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r"}


def level(node: n.Node) -> int:
    """How tightly a node binds."""
    match node:
        case n.Lambda() | n.Ternary() | n.ConfidentTernary():
            return LOOSE
        case n.Pipeline() | n.Binary(op="~?>"):
            return PIPE
        case n.ConfidenceExpression() | n.Binary(op="~~"):
            return CONF
        case n.Binary(op="**"):
            return POWER
        case n.Binary(op=op):
            return BINARY[op] + 2
        case n.Unary() | n.Await():
            return UNARY
        case n.Number(value=value) if value < 0:
            return UNARY
        case n.Call() | n.PropertyAccess() | n.OptionalChain() | n.Index():
            return POSTFIX
    return PRIMARY


def key_text(key: str) -> str:
    return key if NAME.fullmatch(key) and key != "_" else quoted(key)


def name_or_string(text: str) -> str:
    return text if NAME.fullmatch(text) and text != "_" and text not in RESERVED else quoted(text)


def escaped(text: str, quote: str) -> str:
    """Text between quotes; a backtick string keeps its line breaks."""
    keep = "\n" if quote == "`" else ""
    result = "".join(char if char in keep else ESCAPES.get(char, char) for char in text)
    return result.replace(quote, "\\" + quote).replace("${", "\\${")


def quoted(text: str) -> str:
    return f'"{escaped(text, chr(34))}"'


def number(value: float) -> str:
    return ("-" if value < 0 else "") + "1e999" if math.isinf(value) else number_text(value)


class Printer:
    """Prints one tree. `inline` is set inside `${…}` of a double-quoted string, where no line may break."""

    def __init__(self) -> None:
        self.indent = 0
        self.inline = 0
        self.written: dict[tuple[int, int], str] = {}

    # --- expressions ---

    def expr(self, node: n.Expr, least: int = LOOSE) -> str:
        """Text that binds at least so tightly; left spines are loops, for chains may be long."""
        spine: list[n.Expr] = []
        at: n.Expr = node
        while (left := _spine_left(at)) is not None and level(left) >= _left_level(at):
            spine.append(at)
            at = left
        text = self.bare(at) if not spine else self.group(at, _left_level(spine[-1]))
        for outer in reversed(spine):
            text = self.link(outer, text)
        return f"({text})" if level(node) < least else text

    def group(self, node: n.Expr, least: int) -> str:
        return self.expr(node, least)

    def bare(self, node: n.Expr) -> str:
        left = _spine_left(node)
        if left is not None:
            return self.link(node, self.expr(left, _left_level(node)))
        method: Callable[[n.Expr], str] = getattr(self, "do_" + type(node).__name__)
        return method(node)

    def link(self, node: n.Expr, left: str) -> str:
        match node:
            case n.Binary(op=op, right=right):
                least = {"~?>": TERNARY, "~~": CONF + 1, "**": POWER}.get(op, level(node) + 1)
                return f"{left} {op} {self.expr(right, least)}"
            case n.Pipeline(op=op, right=right):
                return f"{left} {op} {self.expr(right, TERNARY)}"
            case n.ConfidenceExpression(confidence=confidence):
                return f"{left} ~> {self.expr(confidence, POSTFIX)}"
            case n.PropertyAccess(name=name, confident=confident):
                return f"{left}{'~.' if confident else '.'}{name}"
            case n.OptionalChain(name=name):
                return f"{left}?.{name}"
            case n.Index(index=index):
                return f"{left}[{self.expr(index)}]"
            case n.Call(args=args):
                return left + self.items(args, "(", ")", hug=True)
        raise TypeError(type(node).__name__)

    def do_Number(self, node: n.Number) -> str:  # noqa: N802
        return number(node.value)

    def do_String(self, node: n.String) -> str:  # noqa: N802
        if "\n" in node.value.rstrip("\n") and not self.inline:
            return f"`{escaped(node.value, '`')}`"
        return quoted(node.value)

    def do_Boolean(self, node: n.Boolean) -> str:  # noqa: N802
        return "true" if node.value else "false"

    def do_Null(self, _node: n.Null) -> str:  # noqa: N802
        return "null"

    def do_Identifier(self, node: n.Identifier) -> str:  # noqa: N802
        return node.name

    def do_Placeholder(self, _node: n.Placeholder) -> str:  # noqa: N802
        return "_"

    def do_Interpolated(self, node: n.Interpolated) -> str:  # noqa: N802
        text = "".join(part for part in node.parts if isinstance(part, str))
        many = "\n" in text.rstrip("\n") and not self.inline
        quote = "`" if many else '"'
        self.inline += 1
        parts = [escaped(part, quote) if isinstance(part, str) else f"${{{self.expr(part)}}}" for part in node.parts]
        self.inline -= 1
        for index in range(len(parts) - 1):  # a text that ends in $ before a hole would open another
            if isinstance(node.parts[index], str) and parts[index].endswith("$"):
                parts[index] = parts[index][:-1] + "\\$"
        return quote + "".join(parts) + quote

    def do_Unary(self, node: n.Unary) -> str:  # noqa: N802
        gap = " " if node.op in ("typeof", "~", "<~") else ""
        return f"{node.op}{gap}{self.expr(node.operand, UNARY)}"

    def do_Await(self, node: n.Await) -> str:  # noqa: N802
        return f"await {self.expr(node.value, UNARY)}"

    def do_Ternary(self, node: n.Ternary | n.ConfidentTernary) -> str:  # noqa: N802
        mark = "?" if isinstance(node, n.Ternary) else "~?"
        return f"{self.expr(node.test, CONF)} {mark} {self.branch(node.yes)} : {self.branch(node.no)}"

    do_ConfidentTernary = do_Ternary  # noqa: N815

    def branch(self, node: n.Expr) -> str:
        """A branch of a ternary; another ternary needs no parentheses there."""
        return self.expr(node, LOOSE if isinstance(node, n.Ternary | n.ConfidentTernary) else PIPE)

    def do_Array(self, node: n.Array) -> str:  # noqa: N802
        return self.items(node.items, "[", "]", spread_out=_broken(node, node.items))

    def do_Object(self, node: n.Object) -> str:  # noqa: N802
        return self.items(node.props, "{", "}", spread_out=_broken(node, node.props))

    def item(self, node: n.Node) -> str:
        return self.once(node, self.bare_item)

    def once(self, node: T, write: Callable[[T], str]) -> str:
        """A text is tried in several layouts; each part of it is written once for each indentation."""
        key = (id(node), -1 if self.inline else self.indent)
        text = self.written.get(key)
        if text is None:
            text = self.written[key] = write(node)
        return text

    def bare_item(self, node: n.Node) -> str:
        match node:
            case n.Spread(value=value):
                return f"...{self.expr(value)}"
            case n.Property(key=key, value=n.Identifier(name=name)) if key == name:
                return name_or_string(key)  # `{"k"}` reads the variable k, whatever its name
            case n.Property(key=key, value=value):
                return f"{key_text(key)}: {self.expr(value)}"
        assert isinstance(node, n.Expr)
        return self.expr(node)

    def items(
        self, nodes: Sequence[n.Node], open_: str, close: str, *, hug: bool = False, spread_out: bool = False
    ) -> str:
        """A bracketed list on one line, or one item a line; a call may hold its last argument on its own lines."""
        if not nodes:
            return open_ + close
        self.inline += 1
        flat = open_ + ", ".join(map(self.item, nodes)) + close
        self.inline -= 1
        if self.inline:
            return flat
        normal = open_ + ", ".join(map(self.item, nodes)) + close
        if not spread_out and self.indent * 2 + len(flat) <= WIDTH and "\n" not in normal:
            return flat
        if hug and not spread_out:
            head = normal.split("\n", 1)[0]
            if "\n" in normal and len(head) + self.indent * 2 <= WIDTH and _can_hug(nodes):
                return normal
        self.indent += 1
        lines = [self.line(self.item(node)) for node in nodes]
        self.indent -= 1
        return open_ + "\n" + ",\n".join(lines) + "\n" + "  " * self.indent + close

    def line(self, text: str) -> str:
        return "  " * self.indent + text

    def do_Lambda(self, node: n.Lambda) -> str:  # noqa: N802
        if (
            len(node.params) == 1
            and node.params[0] == n.Parameter(node.params[0].target)
            and isinstance(node.params[0].target, n.Identifier)
        ):
            head = node.params[0].target.name
        else:
            head = self.params(node.params)
        if isinstance(node.body, n.Block):
            return f"{head} => {self.block(node.body)}"
        least = LOOSE if level(node.body) == LOOSE else TERNARY
        return f"{head} => {self.unbraced(node.body, least)}"

    def unbraced(self, node: n.Expr, least: int = LOOSE) -> str:
        """Where a `{` would open a block."""
        text = self.expr(node, least)
        return f"({text})" if text.startswith("{") else text

    def params(self, params: Sequence[n.Parameter]) -> str:
        parts = []
        for param in params:
            text = ("..." if param.rest else "") + self.pattern(param.target)
            parts.append(text if param.default is None else f"{text} = {self.expr(param.default, TERNARY)}")
        return f"({', '.join(parts)})"

    def do_Match(self, node: n.Match) -> str:  # noqa: N802
        head = f"match {self.expr(node.subject, PIPE)} "
        if not node.arms:
            return head + "{ }"
        if self.inline:
            return head + "{ " + ", ".join(map(self.arm, node.arms)) + " }"
        self.indent += 1
        lines = [self.line(self.arm(arm)) for arm in node.arms]
        self.indent -= 1
        return head + "{\n" + ",\n".join(lines) + "\n" + self.line("}")

    def arm(self, arm: n.MatchArm) -> str:
        text = self.pattern(arm.pattern)
        if arm.threshold is not None:
            text += f" ~> {self.expr(arm.threshold, PIPE)}"
        if arm.guard is not None:
            text += f" if {self.expr(arm.guard, PIPE)}"
        return f"{text} => {self.block(arm.body) if isinstance(arm.body, n.Block) else self.unbraced(arm.body)}"

    # --- patterns ---

    def pattern(self, node: n.Node | None) -> str:
        match node:
            case n.ArrayPattern(items=items):
                return "[" + ", ".join(map(self.pattern, items)) + ("," if items and items[-1] is None else "") + "]"
            case n.ObjectPattern(items=items):
                return "{" + ", ".join(map(self.pattern, items)) + "}"
            case n.Rest(name=name):
                return f"...{name}"
            case n.Element(target=target, threshold=threshold):
                return self.pattern(target) + self.threshold(threshold)
            case n.Field():
                short = (
                    isinstance(node.target, n.Identifier) and node.target.name == node.key and node.key not in RESERVED
                )
                text = node.key if short else f"{node.key}: {self.pattern(node.target)}"
                text += self.threshold(node.threshold)
                return text if node.default is None else f"{text} = {self.expr(node.default, TERNARY)}"
            case None:
                return ""
        assert isinstance(node, n.Expr)
        return self.expr(node)

    def threshold(self, node: n.Expr | None) -> str:
        return "" if node is None else f" ~> {self.expr(node, PIPE)}"

    # --- statements ---

    def block(self, node: n.Block, *, short: bool = False) -> str:
        """A block after its head; `short` lets one small statement stay on the line."""
        if not node.statements and not node.tail:
            return "{ }"
        if self.inline:
            return "{ " + self.joined(node.statements, "; ") + " }"
        if short and len(node.statements) == 1 and not node.tail and node.statements[0].comment is None:
            text = self.statement(node.statements[0])
            if "\n" not in text and len(text) + self.indent * 2 <= WIDTH:
                return f"{{ {text} }}"
        self.indent += 1
        lines = self.lines(node.statements, node.tail)
        self.indent -= 1
        return "{\n" + "\n".join(lines) + "\n" + self.line("}")

    def joined(self, statements: Sequence[n.Statement], separator: str) -> str:
        return separator.join(map(self.statement, statements))

    def lines(self, statements: Sequence[n.Statement], tail: str | None) -> list[str]:
        """Statements, one below the other, with their comments; a `;` where the next would be read as more of this."""
        result: list[str] = []
        texts = [self.statement(statement) for statement in statements]
        for index, (statement, text) in enumerate(zip(statements, texts, strict=True)):
            following = texts[index + 1] if index + 1 < len(texts) else ""
            if _open_ended(statement) and (following.startswith(CONTINUES) or (_bare_return(statement) and following)):
                text += ";"
            if index and self.indent == 0 and ("\n" in texts[index] or "\n" in texts[index - 1] or statement.comment):
                result.append("")
            result.extend(self.comment(statement.comment))
            result.append(self.line(text))
        if tail:
            result.extend(self.comment(tail))
        return result

    def comment(self, text: str | None) -> list[str]:
        return [self.line(f"// {line}".rstrip()) for line in text.split("\n")] if text else []

    def statement(self, node: n.Statement) -> str:
        method: Callable[[n.Statement], str] = getattr(self, "on_" + type(node).__name__)
        return self.once(node, method)

    def body(self, node: n.Statement, *, before_else: bool = False) -> str:
        if isinstance(node, n.Block):
            return self.block(node)
        if before_else and _ends_in_if(node):
            return self.block(n.Block((node,)))
        text = self.statement(node)
        if text.startswith("{"):
            text = f"({text})"
        return text + ";" if before_else and _bare_return(node) else text

    def on_ExpressionStatement(self, node: n.ExpressionStatement) -> str:  # noqa: N802
        text = self.expr(node.value)
        # `{"k"` without a colon would open a block (2.2 rule 2).
        return f"({text})" if text.startswith('{"') and not KEYED.match(text) else text

    def on_VariableDeclaration(self, node: n.VariableDeclaration) -> str:  # noqa: N802
        text = f"{node.kind} {self.pattern(node.target)}"
        return text if node.value is None else f"{text} = {self.expr(node.value)}"

    def on_FunctionDeclaration(self, node: n.FunctionDeclaration) -> str:  # noqa: N802
        confidence = "" if node.confidence is None else f" ~> {self.expr(node.confidence, PIPE)}"
        return f"fn {node.name}{self.params(node.params)}{confidence} {self.block(node.body)}"

    def on_Return(self, node: n.Return) -> str:  # noqa: N802
        return "return" if node.value is None else f"return {self.expr(node.value)}"

    def on_Throw(self, node: n.Throw) -> str:  # noqa: N802
        return f"throw {self.expr(node.value)}"

    def on_Break(self, _node: n.Break) -> str:  # noqa: N802
        return "break"

    def on_Continue(self, _node: n.Continue) -> str:  # noqa: N802
        return "continue"

    def on_AssignmentStatement(self, node: n.AssignmentStatement) -> str:  # noqa: N802
        return f"{node.name} {node.op} {self.expr(node.value)}"

    def on_DestructuringAssignment(self, node: n.DestructuringAssignment) -> str:  # noqa: N802
        return f"{self.pattern(node.pattern)}{self.threshold(node.threshold)} = {self.expr(node.value)}"

    def on_Block(self, node: n.Block) -> str:  # noqa: N802
        if not node.statements:
            return "{ ; }"
        text = self.block(node)
        looks_like_object = re.match(r"\{\s*(//[^\n]*\s*)*([A-Za-z_]\w*\s*(,|:|\}|~>)|\"[^\n]*\"\s*:)", text)
        return "{ ;" + text[1:] if looks_like_object else text

    def on_If(self, node: n.If) -> str:  # noqa: N802
        text = ""
        at: n.Statement | None = node
        while isinstance(at, n.If):
            text += f"if ({self.expr(at.test)}) {self.body(at.then, before_else=at.otherwise is not None)}"
            at = at.otherwise
            text += " else " if at is not None else ""
        return text if at is None else text + self.body(at)

    def on_UncertainIf(self, node: n.UncertainIf) -> str:  # noqa: N802
        bands = "" if node.bands is None else f", {self.expr(node.bands)}"
        return f"uncertain if ({self.expr(node.value)}{bands}) {self.branches(node.branches)}"

    def branches(self, branches: Sequence[n.Branch]) -> str:
        if not branches:
            return "{ }"
        if self.inline:
            return "{ " + " ".join(f"{b.band} {self.block(b.body)}" for b in branches) + " }"
        self.indent += 1
        lines = [self.line(f"{branch.band} {self.block(branch.body, short=True)}") for branch in branches]
        self.indent -= 1
        return "{\n" + "\n".join(lines) + "\n" + self.line("}")

    def head(self, node: n.For | n.UncertainFor) -> str:
        init = (
            ""
            if node.init is None
            else self.expr(node.init)
            if isinstance(node.init, n.Expr)
            else self.statement(node.init)
        )
        test = "" if node.test is None else f" {self.expr(node.test)}"
        update = node.update
        step = (
            ""
            if update is None
            else " " + (self.expr(update) if isinstance(update, n.Expr) else self.statement(update))
        )
        return f"{init};{test};{step} "

    def on_For(self, node: n.For) -> str:  # noqa: N802
        return f"for {self.head(node)}{self.body(node.body)}"

    def on_UncertainFor(self, node: n.UncertainFor) -> str:  # noqa: N802
        return f"uncertain for {self.head(node)}{self.branches(node.branches)}"

    def on_ForIn(self, node: n.ForIn) -> str:  # noqa: N802
        names = node.name if node.second is None else f"{node.name}, {node.second}"
        return f"for {names} in {self.expr(node.iterable)} {self.body(node.body)}"

    def on_While(self, node: n.While) -> str:  # noqa: N802
        return f"while {self.expr(node.test)} {self.body(node.body)}"

    def on_UncertainWhile(self, node: n.UncertainWhile) -> str:  # noqa: N802
        return f"uncertain while {self.expr(node.test)} {self.branches(node.branches)}"

    def on_DoWhile(self, node: n.DoWhile) -> str:  # noqa: N802
        body = self.body(node.body)
        return f"do {body}{';' if _bare_return(node.body) else ''} while {self.expr(node.test)}"

    def on_Context(self, node: n.Context) -> str:  # noqa: N802
        target = "" if node.target is None else f" -> {name_or_string(node.target)}"
        return f"in context {name_or_string(node.name)} {self.block(node.body)}{target}"

    def on_AgentDeclaration(self, node: n.AgentDeclaration) -> str:  # noqa: N802
        if not node.agents:
            return "agents { }"
        agents = [
            f"{a.name}: Agent {{ {', '.join(f'{s.key}: {self.expr(s.value)}' for s in a.settings)} }}"
            for a in node.agents
        ]
        if self.inline:
            return "agents { " + ", ".join(agents) + " }"
        inner = "  " * (self.indent + 1)
        return "agents {\n" + ",\n".join(inner + agent for agent in agents) + "\n" + self.line("}")

    def on_Try(self, node: n.Try) -> str:  # noqa: N802
        text = f"try {self.block(node.body)}"
        if node.handler is not None:
            name = f" ({node.name})" if node.name else ""
            text += f" catch{name} {self.block(node.handler)}"
        return text if node.finalizer is None else f"{text} finally {self.block(node.finalizer)}"

    def on_Import(self, node: n.Import) -> str:  # noqa: N802
        if node.namespace is not None:
            what = f"* as {node.namespace}"
        else:
            parts = [node.default] if node.default else []
            if node.names is not None:
                parts.append(_specifiers(node.names))
            what = ", ".join(parts)
        return f"import {what} from {quoted(node.source)}"

    def on_Export(self, node: n.Export) -> str:  # noqa: N802
        if node.declaration is not None:
            return f"export {self.statement(node.declaration)}"
        if node.default is not None:
            return f"export default {self.expr(node.default)}"
        source = "" if node.source is None else f" from {quoted(node.source)}"
        return f"export {'*' if node.names is None else _specifiers(node.names)}{source}"


def _spine_left(node: n.Expr) -> n.Expr | None:
    match node:
        case n.Binary() | n.Pipeline():
            return node.left
        case n.ConfidenceExpression():
            return node.value
        case n.PropertyAccess() | n.OptionalChain() | n.Index():
            return node.object
        case n.Call():
            return node.callee
    return None


def _left_level(node: n.Expr) -> int:
    """How tightly the left side of this node must bind."""
    match node:
        case n.Binary(op="**"):
            return UNARY
        case n.ConfidenceExpression():
            return CONF + 1
        case n.Binary(op="~~"):
            left = node.left
            return CONF if isinstance(left, n.Binary) and left.op == "~~" else CONF + 1
        case n.Call() | n.PropertyAccess() | n.OptionalChain() | n.Index():
            return POSTFIX
    return level(node)


def _broken(node: n.Node, items: Sequence[n.Node]) -> bool:
    """Did the source put the first item on a line of its own?"""
    first = items[0].span if items else None
    return node.span is not None and first is not None and first.line > node.span.line


def _can_hug(nodes: Sequence[n.Node]) -> bool:
    """Only the last argument breaks, and it has brackets of its own."""
    last = nodes[-1]
    return isinstance(last, n.Object | n.Array | n.Call) or (
        isinstance(last, n.Lambda) and isinstance(last.body, n.Block | n.Call)
    )


def _specifiers(names: Sequence[n.ImportSpecifier | n.ExportSpecifier]) -> str:
    return "{" + ", ".join(s.name if s.name == s.alias else f"{s.name} as {s.alias}" for s in names) + "}"


def _last(node: n.Statement) -> n.Statement:
    """The statement that the text of this one ends with."""
    while True:
        match node:
            case n.If(otherwise=None) | n.For() | n.ForIn() | n.While():
                node = node.then if isinstance(node, n.If) else node.body
            case n.If(otherwise=n.Statement() as otherwise):
                node = otherwise
            case n.Export(declaration=n.Statement() as declaration):
                node = declaration
            case _:
                return node


def _open_ended(node: n.Statement) -> bool:
    """Could the next line be read as more of this statement?"""
    last = _last(node)
    closed = (
        n.Block,
        n.FunctionDeclaration,
        n.UncertainIf,
        n.UncertainFor,
        n.UncertainWhile,
        n.Context,
        n.AgentDeclaration,
        n.Try,
        n.Break,
        n.Continue,
        n.Import,
    )
    return not isinstance(last, closed)


def _bare_return(node: n.Statement) -> bool:
    last = _last(node)
    return isinstance(last, n.Return) and last.value is None


def _ends_in_if(node: n.Statement) -> bool:
    """An `else` after this statement would belong to an `if` within it."""
    while True:
        match node:
            case n.If(otherwise=None):
                return True
            case n.If(otherwise=n.Statement() as inner) | n.For(body=inner) | n.ForIn(body=inner) | n.While(body=inner):
                node = inner
            case n.Export(declaration=n.Statement() as inner):
                node = inner
            case _:
                return False


def unparse(tree: n.Node) -> str:
    """The text of a program, a statement or an expression."""
    printer = Printer()
    if isinstance(tree, n.Program):
        lines = printer.lines(tree.statements, tree.tail)
        return "\n".join(lines) + "\n" if lines else ""
    if isinstance(tree, n.Statement):
        return printer.statement(tree)
    assert isinstance(tree, n.Expr)
    return printer.expr(tree)
