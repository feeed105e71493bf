"""What is checked before anything runs (2.2 rule 12): loops, placeholders, parallel branches, built text for `verify`.

`problems` collects every breach in source order; `enforce` raises the first. Called by `parse`, `compile` and `check`.
"""

from __future__ import annotations

from collections.abc import Iterator

from . import nodes as n
from .errors import PrismParseError, Span
from .scopes import declarations, declares, pattern_names

PLACEHOLDER = "Placeholder (_) can only be used within pipeline expressions"
BUILT_TEXT = "verify() takes a check name or an array of arguments, not built text"
Context = tuple[bool, bool]  # inside a loop of this function, inside a pipeline's right side


def enforce(tree: n.Program) -> None:
    found = problems(tree)
    if found:
        raise found[0]


def problems(tree: n.Program) -> list[PrismParseError]:
    found: list[PrismParseError] = []

    def report(message: str, node: n.Node, hint: str | None = None) -> None:
        found.append(PrismParseError(message, span=node.span or Span("<source>", 1, 0), hint=hint))

    declared = frozenset(declarations(tree))
    stack: list[tuple[n.Node, Context]] = [(tree, (False, False))]
    while stack:
        node, (loop, pipe) = stack.pop()
        match node:
            case n.Break() | n.Continue() if not loop:
                word = "break" if isinstance(node, n.Break) else "continue"
                report(f"'{word}' is not inside a loop", node, "to leave a function or the program use return")
            case n.Placeholder() if not pipe:
                report(PLACEHOLDER, node, "name the value: x => f(x)")
            case n.UncertainFor() | n.UncertainWhile():
                seen: set[str] = set()
                for branch in node.branches:
                    if branch.band in seen:
                        report(f"Duplicate '{branch.band}' branch in uncertain statement", branch)
                    seen.add(branch.band)
            case n.Call(n.Identifier(name), args):
                if name == "verify" and args and isinstance(args[0], n.Interpolated):
                    report(BUILT_TEXT, args[0], 'pass an array: verify(["npm", "test", "${x}"])')
                if name in ("parallel", "race"):
                    for lambda_ in _branches(name, args):
                        for assigned, place in outside_assignments(lambda_, declared):
                            message = f"A parallel branch may not assign '{assigned}', which is declared outside it"
                            report(message, place, "return the value from the branch: parallel gives an array of them")
        stack.extend(reversed(list(_below(node, loop, pipe))))
    found.sort(key=lambda error: (error.line, error.column))
    return found


def _below(node: n.Node, loop: bool, pipe: bool) -> Iterator[tuple[n.Node, Context]]:
    match node:
        case n.Lambda() | n.FunctionDeclaration():
            for child in n.children(node):
                yield child, (False, pipe)
        case n.For() | n.ForIn() | n.While() | n.DoWhile():
            for child in n.children(node):
                yield child, (loop or child is node.body, pipe)
        case n.UncertainFor() | n.UncertainWhile():
            for child in n.children(node):
                yield child, (loop or isinstance(child, n.Branch), pipe)
        case n.Pipeline():
            yield node.left, (loop, pipe)
            yield node.right, (loop, True)
        case n.MatchArm() | n.Element() | n.Field():
            target = node.pattern if isinstance(node, n.MatchArm) else node.target
            for child in n.children(node):
                if not (child is target and isinstance(child, n.Placeholder)):
                    yield child, (loop, pipe)
        case _:
            for child in n.children(node):
                yield child, (loop, pipe)


def _branches(name: str, args: tuple[n.Expr | n.Spread, ...]) -> Iterator[n.Lambda]:
    if args and isinstance(args[0], n.Array):
        yield from (item for item in args[0].items if isinstance(item, n.Lambda))
    if name == "parallel" and len(args) > 1 and isinstance(args[1], n.Lambda):
        yield args[1]


def outside_assignments(branch: n.Lambda, declared: frozenset[str]) -> Iterator[tuple[str, n.Node]]:
    """The names that a branch assigns though they are declared outside it."""
    stack: list[tuple[n.Node, frozenset[str]]] = [(branch, frozenset())]
    while stack:
        node, inside = stack.pop()
        match node:
            case n.AssignmentStatement(name=name):
                targets = [name]
            case n.DestructuringAssignment(pattern=pattern):
                targets = list(pattern_names(pattern))
            case _:
                targets = []
        for name in targets:
            if name not in inside and name in declared:
                yield name, node
        own: set[str] = set()
        if isinstance(node, n.Block):
            for statement in node.statements:
                own.update(
                    declares(
                        statement.declaration
                        if isinstance(statement, n.Export) and statement.declaration
                        else statement
                    )
                )
        elif isinstance(node, n.For | n.UncertainFor) and isinstance(node.init, n.VariableDeclaration):
            own.update(declares(node.init))
        elif isinstance(node, n.Lambda | n.FunctionDeclaration):
            for param in node.params:
                own.update(declares(param))
        else:
            own.update(declares(node))
        inner = inside | own
        stack.extend((child, inner) for child in reversed(list(n.children(node))))
