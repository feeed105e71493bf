"""Tree to code object, patterns: destructuring, parameters and `match` (sections 5 and 2).

A pattern becomes a row of small steps on variables: take the container apart, fetch an item, test a threshold, bind.
What each step means is in `binding`; this file only says in which order they happen.
"""

from __future__ import annotations

import ast
from collections.abc import Callable

from . import nodes as n
from .compiler import ExpressionCompiler, const, load
from .errors import Span
from .scopes import Scope

Bind = Callable[[str, ast.expr, Span | None], None]


class PatternCompiler(ExpressionCompiler):
    """Adds patterns to expressions."""

    def destructure(self, pattern: n.Pattern, value: str, bind: Bind, threshold: str | None = None) -> None:
        """Bind the names of a pattern to the parts of the value in a variable."""
        if isinstance(pattern, n.Identifier):
            bind(pattern.name, load(value), pattern.span)
            return
        kind = "array" if isinstance(pattern, n.ArrayPattern) else "object"
        parts = self.fresh()
        self.assign(parts, self.helper(f"take_{kind}", load(value), span=pattern.span))
        if isinstance(pattern, n.ArrayPattern):
            for index, item in enumerate(pattern.items):
                if isinstance(item, n.Rest):
                    rest = self.helper(
                        "rest_array", load(parts), const(index), load(threshold or "NO_THRESHOLD"), span=item.span
                    )
                    bind(item.name, rest, item.span)
                elif item is not None:
                    fetched = self.helper("item_array", load(parts), const(index), span=item.span)
                    self.part(item, fetched, "Element", bind, threshold, inherit=False)
        elif isinstance(pattern, n.ObjectPattern):
            keys = [item.key for item in pattern.items if isinstance(item, n.Field)]
            for each in pattern.items:
                if isinstance(each, n.Rest):
                    names = ast.Tuple([const(key) for key in keys], ast.Load())
                    rest = self.helper(
                        "rest_object", load(parts), names, load(threshold or "NO_THRESHOLD"), span=each.span
                    )
                    bind(each.name, rest, each.span)
                else:
                    self.part(each, self.field_value(each, parts), "Property", bind, threshold, inherit=True)

    def field_value(self, item: n.Field, parts: str) -> ast.expr:
        key = const(item.key)
        if item.default is None:
            return self.helper("item_object", load(parts), key, span=item.span)
        out: list[ast.stmt] = []
        name = self.fresh()
        with self.into(out):
            self.assign(name, self.helper("default_object", load(parts), self.expr(item.default), span=item.span))
        self.emit(
            ast.If(
                self.helper("has_key", load(parts), key),
                [ast.Assign([self.store(name)], self.helper("item_object", load(parts), key, span=item.span))],
                out,
            )
        )
        return load(name)

    def part(
        self,
        item: n.Element | n.Field,
        fetched: ast.expr,
        kind: str,
        bind: Bind,
        threshold: str | None,
        *,
        inherit: bool,
    ) -> None:
        """One element or property: its own threshold, else the global one, then its target."""
        name = self.fresh()
        self.assign(name, fetched)
        limit = threshold
        if item.threshold is not None:
            limit = self.fresh()
            self.assign(limit, self.helper("threshold", self.expr(item.threshold), const(kind), span=item.span))
        if limit is not None:
            empty = {n.ArrayPattern: "EMPTY_ARRAY", n.ObjectPattern: "EMPTY_OBJECT"}.get(type(item.target), "NULL")
            self.assign(name, self.helper("passing", load(name), load(limit), load(empty)))
        passed_on = limit if inherit or item.threshold is None else threshold
        self.destructure(item.target, name, bind, passed_on)

    # --- match ---

    def do_Match(self, node: n.Match) -> ast.expr:  # noqa: N802
        """Arms in order; `hit` says that one was taken."""
        subject = self.fresh()
        self.assign(subject, self.expr(node.subject))
        result, hit = self.fresh(), self.fresh()
        self.assign(result, const(None))
        self.assign(hit, const(False))
        for index, arm in enumerate(node.arms):
            out: list[ast.stmt] = []
            with self.into(out):
                self.arm(arm, subject, result, hit)
            if index == 0:
                self.out.extend(out)
            else:
                self.emit(ast.If(ast.UnaryOp(ast.Not(), load(hit)), out, []))
        return load(result)

    def arm(self, arm: n.MatchArm, subject: str, result: str, hit: str) -> None:
        outer, self.scope = self.scope, self.new_scope()
        ok = self.fresh()
        threshold = None
        if arm.threshold is not None:
            threshold = self.fresh()
            self.assign(
                threshold, self.helper("threshold", self.expr(arm.threshold), const("Confidence"), span=arm.span)
            )
            self.assign(ok, self.helper("meets", load(subject), load(threshold)))
        else:
            self.assign(ok, const(True))
        self.fit(arm.pattern, subject, ok, threshold)
        out: list[ast.stmt] = []
        with self.into(out):
            if arm.guard is not None:
                inner: list[ast.stmt] = []
                guard = self.condition(arm.guard)
                with self.into(inner):
                    self.arm_body(arm, result, hit)
                self.emit(ast.If(guard, inner, []))
            else:
                self.arm_body(arm, result, hit)
        self.emit(ast.If(load(ok), out, []))
        self.close_scope()
        self.scope = outer

    def arm_body(self, arm: n.MatchArm, result: str, hit: str) -> None:
        self.assign(hit, const(True))
        if isinstance(arm.body, n.Block):
            self.block(arm.body, result)
        else:
            self.assign(result, self.expr(arm.body))

    def fit(self, pattern: n.Pattern, value: str, ok: str, threshold: str | None) -> None:
        """Set `ok` to whether the value has the pattern's shape, binding names on the way."""
        match pattern:
            case n.Placeholder():
                return
            case n.Identifier(name):
                self.assign(self.declare(name).py, load(value))
            case n.ArrayPattern() | n.ObjectPattern():
                out: list[ast.stmt] = []
                with self.into(out):
                    self.fit_container(pattern, value, ok, threshold)
                self.emit(ast.If(load(ok), out, []))
            case _:
                literal = self.leaf(pattern)
                out = [ast.Assign([self.store(ok)], self.helper("matches", load(value), literal))]
                self.emit(ast.If(load(ok), out, []))

    def fit_container(
        self, pattern: n.ArrayPattern | n.ObjectPattern, value: str, ok: str, threshold: str | None
    ) -> None:
        parts = self.fresh()
        has_rest = any(isinstance(item, n.Rest) for item in pattern.items)
        if isinstance(pattern, n.ArrayPattern):
            count = len(pattern.items) - has_rest
            self.assign(parts, self.helper("match_array", load(value), const(count), const(has_rest)))
        else:
            keys = ast.Tuple([const(item.key) for item in pattern.items if isinstance(item, n.Field)], ast.Load())
            self.assign(parts, self.helper("match_object", load(value), keys))
        self.assign(ok, ast.Compare(load(parts), [ast.IsNot()], [const(None)]))
        for index, item in enumerate(pattern.items):
            if item is None:
                continue
            out: list[ast.stmt] = []
            with self.into(out):
                self.fit_item(pattern, index, item, parts, ok, threshold)
            self.emit(ast.If(load(ok), out, []))

    def fit_item(
        self,
        pattern: n.ArrayPattern | n.ObjectPattern,
        index: int,
        item: n.Element | n.Field | n.Rest,
        parts: str,
        ok: str,
        threshold: str | None,
    ) -> None:
        is_array = isinstance(pattern, n.ArrayPattern)
        if isinstance(item, n.Rest):
            if is_array:
                rest = self.helper("slice_rest", load(parts), const(index))
            else:
                keys = ast.Tuple([const(each.key) for each in pattern.items if isinstance(each, n.Field)], ast.Load())
                rest = self.helper("key_rest", load(parts), keys)
            self.assign(self.declare(item.name).py, rest)
            return
        name = self.fresh()
        self.assign(name, ast.Subscript(load(parts), const(index if is_array else item.key), ast.Load()))  # type: ignore[union-attr]
        limit = threshold
        if item.threshold is not None:
            limit = self.fresh()
            kind = "Element" if is_array else "Property"
            self.assign(limit, self.helper("threshold", self.expr(item.threshold), const(kind), span=item.span))
        if limit is not None:
            self.assign(ok, self.helper("meets", load(name), load(limit)))
        self.fit(item.target, name, ok, limit)

    def block(self, node: n.Block, target: str | None) -> None:
        raise NotImplementedError

    def new_scope(self) -> Scope:
        raise NotImplementedError

    def close_scope(self) -> None:
        raise NotImplementedError
