"""Names while compiling: Prism scopes, the Python functions they live in, and what a loop body captures.

Every Prism variable becomes a Python local with a name of ours (`v3_total`), found at compile time. A variable is
*ready* once its declaration was compiled: from there on every read is bare. Before, a read tests for `UNSET` and falls
back to the error, or, where the specification does not pre-declare, to the outer variable of that name.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from . import nodes as n


@dataclass(slots=True, eq=False)
class Frame:
    """One Python function under construction. An outline is a part of the function around it (see `outline`)."""

    name: str
    asynchronous: bool
    outer: Frame | None = None
    outline: bool = False
    body: list[ast.stmt] = field(default_factory=list)
    nonlocals: set[str] = field(default_factory=set)
    loops: int = 0
    blocks: int = 0
    signals: set[str] = field(default_factory=set)
    branch_mark: str | None = None
    loops_outside: bool = False


@dataclass(slots=True, eq=False)
class Variable:
    """A declared name."""

    name: str
    py: str
    frame: Frame
    const: bool = False
    ready: bool = False
    predeclared: bool = False
    conditional: bool = False
    needs_unset: bool = False
    function: bool = False


@dataclass(slots=True, eq=False)
class Scope:
    """One Prism scope; `entry` and `mark` are where its variables are set to UNSET if any read needs it."""

    parent: Scope | None
    frame: Frame
    entry: list[ast.stmt]
    mark: ast.stmt
    names: dict[str, Variable] = field(default_factory=dict)
    variables: list[Variable] = field(default_factory=list)


def pattern_places(pattern: n.Node | None) -> Iterable[tuple[str, n.Node]]:
    """The names a pattern binds, in order, with the nodes that name them."""
    match pattern:
        case n.Identifier(name) | n.Rest(name):
            yield name, pattern
        case n.ArrayPattern(items) | n.ObjectPattern(items):
            for item in items:
                yield from pattern_places(item)
        case n.Element() | n.Field() | n.Parameter():
            yield from pattern_places(pattern.target)


def pattern_names(pattern: n.Node | None) -> Iterable[str]:
    return (name for name, _ in pattern_places(pattern))


def declared_names(statements: Iterable[n.Statement]) -> list[tuple[str, bool, n.Node]]:
    """What a statement list pre-declares: (name, const, where), repeats kept."""
    return [
        (name, statement.kind == "const", place)
        for statement in statements
        if isinstance(statement, n.VariableDeclaration)
        for name, place in pattern_places(statement.target)
    ]


FUNCTIONS = (n.Lambda, n.FunctionDeclaration)


def own_nodes(node: n.Node) -> Iterable[n.Node]:
    """The nodes that run when this one runs: not the insides of functions."""
    stack = [node]
    while stack:
        node = stack.pop()
        yield node
        if not isinstance(node, FUNCTIONS):
            stack.extend(n.children(node))
        elif isinstance(node, n.FunctionDeclaration) and node.confidence is not None:
            stack.append(node.confidence)


def binds(node: n.Node) -> Iterable[str]:
    """The names that this node itself declares where it stands."""
    match node:
        case n.VariableDeclaration():
            return pattern_names(node.target)
        case n.FunctionDeclaration():
            return (node.name,)
        case n.MatchArm():
            return pattern_names(node.pattern)
        case n.Try():
            return (node.name,) if node.name else ()
        case n.ForIn():
            return tuple(name for name in (node.name, node.second) if name)
        case n.Pipeline():
            return ("_",)
    return ()


def captures_own_names(body: Iterable[n.Node]) -> bool:
    """Does a closure made in this loop body use a name that the body declares? Then each round needs its own."""
    declared: set[str] = set()
    used: set[str] = set()
    for statement in body:
        for node in own_nodes(statement):
            declared.update(binds(node))
            if isinstance(node, FUNCTIONS):
                for inner in n.walk(node):
                    if isinstance(inner, n.Identifier | n.AssignmentStatement):
                        used.add(inner.name)
                    elif isinstance(inner, n.Placeholder):
                        used.add("_")
                    elif isinstance(inner, n.DestructuringAssignment):
                        used.update(pattern_names(inner.pattern))
    return not declared.isdisjoint(used)


def declares(node: n.Node) -> Iterable[str]:
    """The names that this node declares, wherever: what `binds` says, and those of parameters, agents and imports."""
    match node:
        case n.Parameter():
            return pattern_names(node.target)
        case n.AgentDeclaration(agents):
            return [agent.name for agent in agents]
        case n.Import():
            return [*(name for name in (node.default, node.namespace) if name), *(s.alias for s in node.names or ())]
        case n.Pipeline():
            return ()
    return binds(node)


def declarations(tree: n.Node) -> Counter[str]:
    """Every name that is declared anywhere, and how often."""
    return Counter(name for node in n.walk(tree) for name in declares(node))


def assigned_names(tree: n.Node) -> set[str]:
    """Every name that something is assigned to."""
    result: set[str] = set()
    for node in n.walk(tree):
        if isinstance(node, n.AssignmentStatement):
            result.add(node.name)
        elif isinstance(node, n.DestructuringAssignment):
            result.update(pattern_names(node.pattern))
    return result


def all_bound_names(tree: n.Node) -> set[str]:
    """Every name that is declared or assigned anywhere: such a name may not stand for the builtin of that name."""
    return set(declarations(tree)) | assigned_names(tree)
