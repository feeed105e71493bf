"""Everything that can be said about a source without running it.

`check` goes on after an error. Lexical, syntax and compile-time errors are errors; what it says beyond the
specification (unknown names, wrong counts, results nobody uses, advice of the house dialect) are warnings, for they
never stop a program that the specification lets run.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Literal

from . import nodes as n
from .codegen import CodeGenerator
from .errors import PrismError, Span, excerpt
from .limits import DEFAULT, Limits
from .rules import problems
from .scopes import all_bound_names, assigned_names, declarations
from .statements import parse_with_errors

FENCE = "Triple-backtick string: a Markdown fence inside ends it; use single backticks"
HOST_NAMES = frozenset(("input", "context"))
_COUNTED: tuple[tuple[str, int, int | None], ...] = (
    ("Number String Boolean confidence threshold groupBy best average majorityVote", 1, 1),
    ("voting consensus merge first aggregate sortBy askHuman verify sleep delay select llm org race", 1, 2),
    ("assign fanout review approve escalate reduce", 2, 3),
    ("now random uuid", 0, 1),
    ("range pattern emit parallel", 1, 3),
    ("map filter", 2, 2),
    ("integrate", 0, 2),
    ("max min", 1, None),
)
COUNTS = {name: (least, most) for names, least, most in _COUNTED for name in names.split()}
BUILTINS = frozenset((*COUNTS, "print", "console", "Object", "JSON", "Math", "Array", "Promise"))
PURE_METHODS = frozenset(
    ("push", "concat", "slice", "sort", "reverse", "filter", "flat", "replace", "replaceAll", "trim")
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnostic:
    """One finding, with its place and the source line."""

    severity: Literal["error", "warning"]
    message: str
    line: int
    column: int
    hint: str | None = None
    excerpt: str = ""

    def render(self) -> str:
        text = f"{self.severity.upper()}: {self.message}\n --> {self.line}:{self.column}\n{self.excerpt}"
        return f"{text}\nhint: {self.hint}" if self.hint else text


def check(source: str, *, path: str = "<source>", limits: Limits = DEFAULT) -> list[Diagnostic]:
    """All findings, errors and warnings together in source order."""
    try:
        tree, errors = parse_with_errors(source, path, limits=limits)
    except PrismError as error:  # a limit: there is no tree to look at
        return [_diagnostic("error", error.message, Span(path, error.line or 1, error.column), error.hint, source)]
    broken = bool(errors)
    errors += problems(tree)
    found = [_diagnostic("error", e.message, Span(path, e.line, e.column), e.hint, source) for e in errors]
    for message, span, hint in (
        *_unknown_names(tree, source, broken=broken),
        *_counts(tree),
        *_unused(tree),
        *_house(tree),
    ):
        found.append(_diagnostic("warning", message, span or Span(path, 1, 0), hint, source))
    unique = {(d.severity, d.message, d.line, d.column): d for d in found}
    return sorted(unique.values(), key=lambda d: (d.line, d.column, d.severity))


def _diagnostic(
    severity: Literal["error", "warning"], message: str, span: Span, hint: str | None, source: str
) -> Diagnostic:
    shown = excerpt(source, span.line, span.column)
    return Diagnostic(severity=severity, message=message, line=span.line, column=span.column, hint=hint, excerpt=shown)


Finding = tuple[str, Span | None, str | None]


def _unknown_names(tree: n.Program, source: str, *, broken: bool) -> Iterator[Finding]:
    """The compiler knows which names no scope declares; after a syntax error some declarations may be missing."""
    generator = CodeGenerator(tree, "<check>", hosted=True, traced=False, builtins=BUILTINS)
    generator.program()
    declared = declarations(tree)
    known = declared.keys() | BUILTINS | HOST_NAMES
    for name, span in generator.unknown:
        if name in HOST_NAMES or (broken and re.search(rf"\b(let|const|fn|function|for)\s+{name}\b", source)):
            continue
        close = difflib.get_close_matches(name, sorted(known), n=1)
        yield f"Unknown name: {name}", span, f"did you mean '{close[0]}'?" if close else None
    if not broken:
        yield from _undeclared(tree, declared.keys())


def _undeclared(tree: n.Program, declared: Collection[str]) -> Iterator[Finding]:
    for node in n.walk(tree):
        if isinstance(node, n.AssignmentStatement) and node.name not in declared:
            close = difflib.get_close_matches(node.name, sorted(declared), n=1)
            hint = f"did you mean '{close[0]}'?" if close else f"declare it with 'let {node.name}'"
            yield f"Assignment to an undeclared name: {node.name}", node.span, hint


def _own_counts(tree: n.Program) -> dict[str, tuple[int, int | None]]:
    """How many arguments the program's own functions take, where a name can mean only one of them."""
    declared, assigned = declarations(tree), assigned_names(tree)
    counts = {}
    for node in n.walk(tree):
        match node:
            case n.FunctionDeclaration(name=name, params=params):
                pass
            case n.VariableDeclaration(target=n.Identifier(name=name), value=n.Lambda(params=params)):
                pass
            case _:
                continue
        if declared[name] == 1 and name not in assigned:
            least = sum(not param.rest and param.default is None for param in params)
            counts[name] = (least, None if any(param.rest for param in params) else len(params))
    return counts


def _counts(tree: n.Program) -> Iterator[Finding]:
    bound = all_bound_names(tree)
    counts = {name: count for name, count in COUNTS.items() if name not in bound} | _own_counts(tree)
    for node in n.walk(tree):
        match node:
            case n.Call(callee=n.Identifier(name=name), args=args) if name in counts:
                least, most = counts[name]
                if any(isinstance(arg, n.Spread) for arg in args) or (
                    least <= len(args) and (most is None or len(args) <= most)
                ):
                    continue
                expected = (
                    f"at least {least}" if most is None else str(least) if least == most else f"{least} to {most}"
                )
                plural = "" if expected in ("1", "at least 1") else "s"
                yield f"{name}() takes {expected} argument{plural}, got {len(args)}", node.span, None


def _unused(tree: n.Program) -> Iterator[Finding]:
    """Statements whose value is lost and that do nothing else."""
    for node in n.walk(tree):
        if not isinstance(node, n.Program | n.Block):
            continue
        for statement in node.statements[:-1]:
            if not isinstance(statement, n.ExpressionStatement):
                continue
            match statement.value:
                case n.Call(callee=n.PropertyAccess(name=name)) if name in PURE_METHODS:
                    yield f"The result of {name}() is not used", statement.span, "values are immutable: xs = xs.push(x)"
                case n.Binary(op="==" | "===", left=n.Identifier(name=name)):
                    yield "The result of this comparison is not used", statement.span, f"to assign write {name} = …"
                case value if _is_pure(value):
                    yield "The value of this statement is not used", statement.span, None


def _is_pure(node: n.Expr) -> bool:
    effects = (n.Call, n.Pipeline, n.Match, n.Await)
    return not any(isinstance(each, effects) for each in n.walk(node))


def _house(tree: n.Program) -> Iterator[Finding]:
    for node in n.walk(tree):
        if isinstance(node, n.String | n.Interpolated) and node.fenced:
            yield FENCE, node.span, None
