"""The tree of a program: plain frozen records, easy to build by hand.

The parser makes them, the compiler and the printer read them, and the org-chart and workflow compilers of other rooms
build them with the helpers at the end. Two trees are equal if they mean the same text: spans and comments take no
part in equality.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from .errors import Span


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """Anything in the tree."""

    span: Span | None = field(default=None, compare=False, repr=False, kw_only=True)

    def __eq__(self, other: object) -> bool:
        """Equal texts; without recursion, because chains of operators may be long."""
        if type(self) is not type(other):
            return NotImplemented
        stack: list[tuple[Any, Any]] = [(self, other)]
        while stack:
            left, right = stack.pop()
            if left is right:
                continue
            if type(left) is not type(right):
                return False
            if isinstance(left, Node):
                stack.extend((getattr(left, name), getattr(right, name)) for name in compared(type(left)))
            elif type(left) is tuple:
                if len(left) != len(right):
                    return False
                stack.extend(zip(left, right, strict=True))
            elif left != right:
                return False
        return True

    def __hash__(self) -> int:
        return hash((type(self), *(v for v in map(self.__getattribute__, compared(type(self))) if type(v) is str)))


class Expr(Node):
    """Something with a value."""

    __slots__ = ()


@dataclass(frozen=True, slots=True, eq=False)
class Statement(Node):
    """Something that is done; a comment is printed above it."""

    comment: str | None = field(default=None, compare=False, repr=False, kw_only=True)


# --- expressions ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Number(Expr):
    value: float


@dataclass(frozen=True, slots=True, eq=False)
class String(Expr):
    value: str
    fenced: bool = field(default=False, compare=False, repr=False, kw_only=True)


@dataclass(frozen=True, slots=True, eq=False)
class Interpolated(Expr):
    """Texts and expressions in turn, as written."""

    parts: tuple[str | Expr, ...]
    fenced: bool = field(default=False, compare=False, repr=False, kw_only=True)


@dataclass(frozen=True, slots=True, eq=False)
class Boolean(Expr):
    value: bool


@dataclass(frozen=True, slots=True, eq=False)
class Null(Expr):
    pass


@dataclass(frozen=True, slots=True, eq=False)
class Identifier(Expr):
    name: str


@dataclass(frozen=True, slots=True, eq=False)
class Placeholder(Expr):
    """`_`: the left value in a pipeline, the wildcard in a match pattern."""


@dataclass(frozen=True, slots=True, eq=False)
class Binary(Expr):
    op: str
    left: Expr
    right: Expr


@dataclass(frozen=True, slots=True, eq=False)
class Unary(Expr):
    op: str
    operand: Expr


@dataclass(frozen=True, slots=True, eq=False)
class Await(Expr):
    value: Expr


@dataclass(frozen=True, slots=True, eq=False)
class Spread(Node):
    value: Expr


@dataclass(frozen=True, slots=True, eq=False)
class Call(Expr):
    callee: Expr
    args: tuple[Expr | Spread, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Ternary(Expr):
    test: Expr
    yes: Expr
    no: Expr


@dataclass(frozen=True, slots=True, eq=False)
class ConfidentTernary(Expr):
    test: Expr
    yes: Expr
    no: Expr


@dataclass(frozen=True, slots=True, eq=False)
class Array(Expr):
    items: tuple[Expr | Spread, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Property(Node):
    key: str
    value: Expr


@dataclass(frozen=True, slots=True, eq=False)
class Object(Expr):
    props: tuple[Property | Spread, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class PropertyAccess(Expr):
    """`object.name`, or `object~.name` when confident."""

    object: Expr
    name: str
    confident: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class OptionalChain(Expr):
    object: Expr
    name: str


@dataclass(frozen=True, slots=True, eq=False)
class Index(Expr):
    object: Expr
    index: Expr


@dataclass(frozen=True, slots=True, eq=False)
class Parameter(Node):
    target: Identifier | ArrayPattern | ObjectPattern
    default: Expr | None = None
    rest: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Lambda(Expr):
    params: tuple[Parameter, ...]
    body: Block | Expr


@dataclass(frozen=True, slots=True, eq=False)
class Pipeline(Expr):
    """`left |> right` or `left ~|> right`."""

    op: str
    left: Expr
    right: Expr


@dataclass(frozen=True, slots=True, eq=False)
class ConfidenceExpression(Expr):
    value: Expr
    confidence: Expr


@dataclass(frozen=True, slots=True, eq=False)
class Rest(Node):
    name: str


@dataclass(frozen=True, slots=True, eq=False)
class Element(Node):
    """One place of an array pattern; in a match the target may be a literal or `_`."""

    target: Pattern
    threshold: Expr | None = None


@dataclass(frozen=True, slots=True, eq=False)
class ArrayPattern(Node):
    items: tuple[Element | Rest | None, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Field(Node):
    key: str
    target: Pattern
    threshold: Expr | None = None
    default: Expr | None = None


@dataclass(frozen=True, slots=True, eq=False)
class ObjectPattern(Node):
    items: tuple[Field | Rest, ...]


Pattern = Identifier | ArrayPattern | ObjectPattern | Number | String | Boolean | Null | Placeholder


@dataclass(frozen=True, slots=True, eq=False)
class MatchArm(Node):
    pattern: Pattern
    body: Block | Expr
    threshold: Expr | None = None
    guard: Expr | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Match(Expr):
    subject: Expr
    arms: tuple[MatchArm, ...]


# --- statements -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Block(Statement):
    """`tail` is a comment after the last statement."""

    statements: tuple[Statement, ...] = ()
    tail: str | None = field(default=None, compare=False, repr=False, kw_only=True)


@dataclass(frozen=True, slots=True, eq=False)
class Program(Node):
    statements: tuple[Statement, ...] = ()
    tail: str | None = field(default=None, compare=False, repr=False, kw_only=True)


@dataclass(frozen=True, slots=True, eq=False)
class ExpressionStatement(Statement):
    value: Expr


@dataclass(frozen=True, slots=True, eq=False)
class VariableDeclaration(Statement):
    kind: str
    target: Identifier | ArrayPattern | ObjectPattern
    value: Expr | None = None


@dataclass(frozen=True, slots=True, eq=False)
class FunctionDeclaration(Statement):
    name: str
    params: tuple[Parameter, ...]
    body: Block
    confidence: Expr | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Return(Statement):
    value: Expr | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Throw(Statement):
    value: Expr


@dataclass(frozen=True, slots=True, eq=False)
class Break(Statement):
    pass


@dataclass(frozen=True, slots=True, eq=False)
class Continue(Statement):
    pass


@dataclass(frozen=True, slots=True, eq=False)
class AssignmentStatement(Statement):
    """`name op value`; also the update slot of a `for`."""

    name: str
    op: str
    value: Expr


@dataclass(frozen=True, slots=True, eq=False)
class DestructuringAssignment(Statement):
    pattern: ArrayPattern | ObjectPattern
    value: Expr
    threshold: Expr | None = None


@dataclass(frozen=True, slots=True, eq=False)
class If(Statement):
    test: Expr
    then: Statement
    otherwise: Statement | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Branch(Node):
    band: str
    body: Block


@dataclass(frozen=True, slots=True, eq=False)
class UncertainIf(Statement):
    value: Expr
    branches: tuple[Branch, ...]
    bands: Expr | None = None


@dataclass(frozen=True, slots=True, eq=False)
class For(Statement):
    init: VariableDeclaration | AssignmentStatement | Expr | None
    test: Expr | None
    update: AssignmentStatement | Expr | None
    body: Statement


@dataclass(frozen=True, slots=True, eq=False)
class ForIn(Statement):
    name: str
    iterable: Expr
    body: Statement
    second: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class While(Statement):
    test: Expr
    body: Statement


@dataclass(frozen=True, slots=True, eq=False)
class DoWhile(Statement):
    body: Statement
    test: Expr


@dataclass(frozen=True, slots=True, eq=False)
class UncertainFor(Statement):
    init: VariableDeclaration | AssignmentStatement | Expr | None
    test: Expr | None
    update: AssignmentStatement | Expr | None
    branches: tuple[Branch, ...]


@dataclass(frozen=True, slots=True, eq=False)
class UncertainWhile(Statement):
    test: Expr
    branches: tuple[Branch, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Context(Statement):
    name: str
    body: Block
    target: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Agent(Node):
    name: str
    settings: tuple[Property, ...]


@dataclass(frozen=True, slots=True, eq=False)
class AgentDeclaration(Statement):
    agents: tuple[Agent, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Try(Statement):
    body: Block
    handler: Block | None = None
    name: str | None = None
    finalizer: Block | None = None


@dataclass(frozen=True, slots=True, eq=False)
class ImportSpecifier(Node):
    name: str
    alias: str


@dataclass(frozen=True, slots=True, eq=False)
class Import(Statement):
    source: str
    default: str | None = None
    namespace: str | None = None
    names: tuple[ImportSpecifier, ...] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class ExportSpecifier(Node):
    name: str
    alias: str


@dataclass(frozen=True, slots=True, eq=False)
class Export(Statement):
    """One of: a declaration, `default value`, names (from a source), or everything of a source."""

    declaration: Statement | None = None
    default: Expr | None = None
    names: tuple[ExportSpecifier, ...] | None = None
    source: str | None = None


# --- walking ----------------------------------------------------------------------------------------------------------

_NAMES: dict[type, tuple[str, ...]] = {}


def compared(kind: type[Node]) -> tuple[str, ...]:
    """The fields that carry meaning."""
    names = _NAMES.get(kind)
    if names is None:
        names = _NAMES[kind] = tuple(f.name for f in fields(kind) if f.compare)
    return names


def children(node: Node) -> Iterator[Node]:
    """The nodes right below, in source order of their fields."""
    for field_name in compared(type(node)):
        value = getattr(node, field_name)
        if isinstance(value, Node):
            yield value
        elif type(value) is tuple:
            for item in value:
                if isinstance(item, Node):
                    yield item


def walk(node: Node) -> Iterator[Node]:
    """The node and everything below it, without recursion: chains of operators may be long."""
    stack = [node]
    while stack:
        node = stack.pop()
        yield node
        stack.extend(reversed(list(children(node))))


# --- building by hand -------------------------------------------------------------------------------------------------


def name(text: str) -> Identifier:
    return Identifier(text)


def string(text: str) -> String:
    return String(text)


def number(value: float) -> Expr:
    """A number; the language has no negative literal, so a sign becomes an operator."""
    value = float(value)
    if math.isnan(value):
        raise ValueError("NaN has no literal")
    return Unary("-", Number(-value)) if math.copysign(1.0, value) < 0 else Number(value)


def call(callee: str | Expr, *args: Expr) -> Call:
    return Call(Identifier(callee) if isinstance(callee, str) else callee, args)


def obj(entries: Mapping[str, Expr] | None = None, /, **more: Expr) -> Object:
    return Object(tuple(Property(k, v) for k, v in {**(entries or {}), **more}.items()))


def array(items: Sequence[Expr]) -> Array:
    return Array(tuple(items))


def member(base: Expr, *path: str) -> Expr:
    for part in path:
        base = PropertyAccess(base, part)
    return base


def template(*parts: str | Expr) -> Expr:
    """A string with expressions in it; plain text alone stays a plain string."""
    merged: list[str | Expr] = []
    for part in parts:
        if isinstance(part, str) and merged and isinstance(merged[-1], str):
            merged[-1] += part
        elif part != "":
            merged.append(part)
    if all(isinstance(part, str) for part in merged):
        return String("".join(part for part in merged if isinstance(part, str)))
    return Interpolated(tuple(merged))


def lambda_(params: Sequence[str], body: Block | Expr) -> Lambda:
    return Lambda(tuple(Parameter(Identifier(p)) for p in params), body)


def const(target: str, value: Expr, *, comment: str | None = None) -> VariableDeclaration:
    return VariableDeclaration("const", Identifier(target), value, comment=comment)


def let(target: str, value: Expr | None = None, *, comment: str | None = None) -> VariableDeclaration:
    return VariableDeclaration("let", Identifier(target), value, comment=comment)


def do(value: Expr, *, comment: str | None = None) -> ExpressionStatement:
    return ExpressionStatement(value, comment=comment)


def ret(value: Expr | None = None, *, comment: str | None = None) -> Return:
    return Return(value, comment=comment)


def block(*statements: Statement) -> Block:
    return Block(statements)


def from_json(value: Any) -> Expr:
    """The literal of plain data."""
    match value:
        case None:
            return Null()
        case bool():
            return Boolean(value)
        case int() | float():
            return number(value)
        case str():
            return String(value)
        case Mapping():
            return Object(tuple(Property(str(k), from_json(v)) for k, v in value.items()))
        case list() | tuple():
            return Array(tuple(from_json(v) for v in value))
    raise TypeError(f"no literal for {type(value).__name__}")
