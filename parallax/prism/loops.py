"""Tree to code object, loops, outlines and `try`: whatever may have to become a Python function of its own.

CPython allows twenty nested blocks, and a loop body whose variables are captured needs fresh ones each round: in both
cases the part becomes an outline, a function that tells by what it returns whether the program meant `return`,
`break` or `continue`. `codegen` completes the class.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence

from . import nodes as n
from .compiler import const, load
from .errors import Span
from .patterns import PatternCompiler
from .scopes import Frame, captures_own_names

RETURN = "return"
MAX_BLOCKS = 12


class LoopCompiler(PatternCompiler):
    """Adds loops and `try`."""

    # --- loops ---

    def loop(self, build: Callable[[str | None], None], target: str | None) -> None:
        """Where a loop stands: its value in a variable of this function, and not too deep in blocks."""
        if target == RETURN:
            target = self.fresh()
            self.loop(build, target)
            self.leave(load(target))
            return
        if target is not None:
            self.assign(target, const(None))
        if self.frame.blocks >= MAX_BLOCKS:
            self.outline(lambda: build(target))
        else:
            build(target)

    def rounds(self, node: n.Node, head: ast.stmt, body: Sequence[n.Node], build: Callable[[], None]) -> None:
        """The Python loop: count the round, charge its nodes, then do what `build` says."""
        counter = self.fresh("c")
        self.emit(ast.Assign([ast.Name(counter, ast.Store())], const(0)))
        out: list[ast.stmt] = []
        self.frame.loops += 1
        self.frame.blocks += 1
        with self.into(out):
            self.emit(ast.AugAssign(ast.Name(counter, ast.Store()), ast.Add(), const(1)))
            over = ast.Compare(load(counter), [ast.Gt()], [load("MAX_LOOPS")])
            self.emit(ast.If(over, [ast.Expr(self.helper("too_many_rounds", load(counter), span=node.span))], []))
            self.charge(body)
            build()
        self.frame.loops -= 1
        self.frame.blocks -= 1
        head.body = out  # type: ignore[attr-defined]
        self.emit(head)

    def round_body(self, body: n.Statement, target: str | None) -> None:
        """One round; only a completed one gives the loop its value."""
        value = None if target is None else self.fresh()
        if captures_own_names([body]):
            self.outline(lambda: self.body(body, value), owned=value)
        else:
            self.body(body, value)
        if target is not None and value is not None:
            self.assign(target, load(value))

    def on_ForIn(self, node: n.ForIn, target: str | None) -> None:  # noqa: N802
        def build(target: str | None) -> None:
            pairs = self.fresh()
            self.assign(pairs, self.helper("each", self.expr(node.iterable), span=node.span))
            outer, self.scope = self.scope, self.new_scope()
            first = self.declare(node.name)
            second = self.declare(node.second) if node.second else None
            left, right = self.fresh(), self.fresh()
            head = ast.For(ast.Tuple([self.store(left), self.store(right)], ast.Store()), load(pairs), [], [])

            def round_() -> None:
                self.assign(first.py, load(left))
                if second is not None:
                    self.assign(second.py, load(right))
                self.round_body(node.body, target)

            self.rounds(node, head, [node.body], round_)
            self.close_scope()
            self.scope = outer

        self.loop(build, target)

    def on_While(self, node: n.While, target: str | None) -> None:  # noqa: N802
        def build(target: str | None) -> None:
            def round_() -> None:
                self.stop_unless(self.condition(node.test))
                self.round_body(node.body, target)

            self.rounds(node, self.forever(), [node.test, node.body], round_)

        self.loop(build, target)

    def on_DoWhile(self, node: n.DoWhile, target: str | None) -> None:  # noqa: N802
        def build(target: str | None) -> None:
            again = self.fresh()
            self.assign(again, const(False))

            def round_() -> None:
                test = self.branch_of(lambda: self.stop_unless(self.condition(node.test)))
                self.emit(ast.If(load(again), test, [ast.Assign([self.store(again)], const(True))]))
                self.round_body(node.body, target)

            self.rounds(node, self.forever(), [node.body, node.test], round_)

        self.loop(build, target)

    def on_For(self, node: n.For, target: str | None) -> None:  # noqa: N802
        def build(target: str | None) -> None:
            def round_() -> None:
                if node.test is not None:
                    self.stop_unless(self.condition(node.test))
                self.round_body(node.body, target)

            self.c_loop(node, [node.body], round_)

        self.loop(build, target)

    def c_loop(self, node: n.For | n.UncertainFor, body: Sequence[n.Node], round_: Callable[[], None]) -> None:
        """Init in a scope of the loop; the update runs before each round but the first, so `continue` needs no care."""
        outer, self.scope = self.scope, self.new_scope()
        if isinstance(node.init, n.Expr):
            self.give(None, self.expr(node.init))
        elif node.init is not None:
            self.statement(node.init, None)
        parts = [part for part in (node.test, node.update) if part is not None]
        if node.update is None:
            self.rounds(node, self.forever(), [*body, *parts], round_)
        else:
            again = self.fresh()
            self.assign(again, const(False))
            update = node.update

            def with_update() -> None:
                if isinstance(update, n.Expr):
                    step = self.branch_of(lambda: self.give(None, self.expr(update)))
                else:
                    step = self.branch_of(lambda: self.on_AssignmentStatement(update, None))
                self.emit(ast.If(load(again), step, [ast.Assign([self.store(again)], const(True))]))
                round_()

            self.rounds(node, self.forever(), [*body, *parts], with_update)
        self.close_scope()
        self.scope = outer

    def on_UncertainFor(self, node: n.UncertainFor, target: str | None) -> None:  # noqa: N802
        def build(target: str | None) -> None:
            seen = self.fresh()
            self.assign(seen, const(1.0))

            def round_() -> None:
                if node.test is not None:
                    test = self.fresh()
                    self.assign(test, self.expr(node.test))
                    self.stop_unless(self.test(load(test)))
                    self.assign(seen, self.helper("seen_confidence", load(test), load(seen)))
                self.uncertain_round(node.branches, load(seen), target, node.span)

            self.c_loop(node, node.branches, round_)

        self.loop(build, target)

    def on_UncertainWhile(self, node: n.UncertainWhile, target: str | None) -> None:  # noqa: N802
        def build(target: str | None) -> None:
            def round_() -> None:
                test = self.fresh()
                self.assign(test, self.expr(node.test))
                self.stop_unless(self.test(load(test)))
                self.uncertain_round(node.branches, self.helper("confidence_of", load(test)), target, node.span)

            self.rounds(node, self.forever(), [node.test, *node.branches], round_)

        self.loop(build, target)

    def uncertain_round(
        self, branches: Sequence[n.Branch], confidence: ast.expr, target: str | None, span: Span | None
    ) -> None:
        value = None if target is None else self.fresh()
        band = self.fresh()
        self.assign(band, self.helper("loop_band", confidence))

        def choose() -> None:
            self.bands(branches, band, value, span, lambda: self.jump("break"))

        if captures_own_names(branches):
            self.outline(choose, owned=value)
        else:
            choose()
        if target is not None and value is not None:
            self.assign(target, load(value))

    @staticmethod
    def forever() -> ast.stmt:
        return ast.While(const(True), [], [])

    def stop_unless(self, test: ast.expr) -> None:
        self.emit(ast.If(ast.UnaryOp(ast.Not(), test), [ast.Break()], []))

    # --- outlines ---

    def outline(self, build: Callable[[], None], *, owned: str | None = None) -> None:
        """Compile a part as a function of its own, call it, and do what it signals."""
        if owned is not None:
            self.assign(owned, const(None))
        name = self.fresh("f")
        asynchronous = self.frame.asynchronous
        frame = Frame(name, asynchronous, self.frame, outline=True)
        outer, self.frame = self.frame, frame
        with self.into(frame.body):
            build()
            self.finish_frame()
        self.frame = outer
        self.emit_function(name, plain_arguments([]), frame)
        call: ast.expr = ast.Call(load(name), [], [])
        if asynchronous:
            call = ast.Await(call)
        if not frame.signals:
            self.emit(ast.Expr(call))
            return
        signal = self.fresh()
        self.assign(signal, call)
        self.act_on(signal, frame.signals)

    def act_on(self, signal: str, signals: set[str]) -> None:
        for kind in ("break", "continue"):
            if kind in signals:
                test = ast.Compare(load(signal), [ast.Eq()], [const(kind)])
                self.emit(ast.If(test, self.branch_of(lambda kind=kind: self.jump(kind)), []))  # type: ignore[misc]
        if "return" in signals:
            test = ast.Compare(self.helper("type", load(signal)), [ast.Is()], [load("tuple_")])
            value = ast.Subscript(load(signal), const(0), ast.Load())
            self.emit(ast.If(test, self.branch_of(lambda: self.leave(value)), []))

    def emit_function(self, name: str, arguments: ast.arguments, frame: Frame) -> None:
        kind = ast.AsyncFunctionDef if frame.asynchronous else ast.FunctionDef
        self.emit(kind(name, arguments, frame.body or [ast.Pass()], [], None, None))

    # --- try ---

    def on_Try(self, node: n.Try, target: str | None) -> None:  # noqa: N802
        if target == RETURN:
            target = self.fresh()
            self.on_Try(node, target)
            self.leave(load(target))
        elif self.frame.blocks >= MAX_BLOCKS:
            self.outline(lambda: self.try_(node, target), owned=target)
        else:
            self.try_(node, target)

    def try_(self, node: n.Try, target: str | None) -> None:
        if node.finalizer is None:
            self.try_catch(node, target)
            return
        finalizer = node.finalizer
        name = self.fresh("f")
        frame = Frame(name, self.frame.asynchronous, self.frame, outline=True)
        outer, self.frame = self.frame, frame
        with self.into(frame.body):
            self.block(finalizer, None)
            self.finish_frame()
        self.frame = outer
        self.emit_function(name, plain_arguments([]), frame)
        pending, error = self.fresh(), self.fresh("e")
        self.assign(pending, const(None))
        self.frame.blocks += 2
        body = self.branch_of(lambda: self.try_catch(node, target) if node.handler else self.block(node.body, target))
        fatal = ast.ExceptHandler(
            load("FATAL"), error, [ast.Assign([self.store(pending)], load(error)), ast.Raise(None, None)]
        )

        def last() -> None:
            call: ast.expr = ast.Call(load(name), [], [])
            call = ast.Await(call) if self.frame.asynchronous else call
            rites: list[ast.stmt] = [
                ast.Expr(self.helper("grace")),
                ast.Try([ast.Expr(call)], [ast.ExceptHandler(load("ANY"), None, [ast.Pass()])], [], []),
            ]
            signal = self.fresh()

            def usual() -> None:
                self.assign(signal, call)
                self.act_on(signal, frame.signals)

            self.emit(ast.If(ast.Compare(load(pending), [ast.IsNot()], [const(None)]), rites, self.branch_of(usual)))

        finish = self.branch_of(last)
        self.frame.blocks -= 2
        self.emit(ast.Try(body, [fatal], [], finish))

    def try_catch(self, node: n.Try, target: str | None) -> None:
        self.frame.blocks += 1
        body = self.branch_of(lambda: self.block(node.body, target))
        error = self.fresh("e")

        def handle() -> None:
            outer, self.scope = self.scope, self.new_scope()
            value = self.helper("caught", load(error))
            if node.name:
                self.assign(self.declare(node.name).py, value)
            else:
                self.emit(ast.Expr(value))
            assert node.handler is not None
            self.block(node.handler, target)
            self.close_scope()
            self.scope = outer

        handler = ast.ExceptHandler(load("CATCHABLE"), error, self.branch_of(handle))
        self.frame.blocks -= 1
        self.emit(ast.Try(body, [handler], [], []))

    # --- what `codegen` adds ---

    def finish_frame(self) -> None:
        raise NotImplementedError

    def give(self, target: str | None, value: ast.expr) -> None:
        raise NotImplementedError

    def leave(self, value: ast.expr) -> None:
        raise NotImplementedError

    def statement(self, node: n.Statement, target: str | None) -> None:
        raise NotImplementedError

    def body(self, node: n.Statement, target: str | None) -> None:
        raise NotImplementedError

    def branch_of(self, build: Callable[[], None]) -> list[ast.stmt]:
        raise NotImplementedError

    def charge(self, body: Sequence[n.Node]) -> None:
        raise NotImplementedError

    def jump(self, kind: str) -> None:
        raise NotImplementedError

    def on_AssignmentStatement(self, node: n.AssignmentStatement, target: str | None) -> None:  # noqa: N802
        raise NotImplementedError

    def bands(
        self,
        branches: Sequence[n.Branch],
        band: str,
        target: str | None,
        span: Span | None,
        missing: Callable[[], None] | None = None,
    ) -> None:
        raise NotImplementedError


def plain_arguments(names: Sequence[str], rest: str | None = None, defaults: int = 0) -> ast.arguments:
    return ast.arguments(
        posonlyargs=[],
        args=[ast.arg(name) for name in names],
        vararg=ast.arg(rest) if rest else None,
        kwonlyargs=[],
        kw_defaults=[],
        kwarg=None,
        defaults=[load("UNSET") for _ in range(defaults)],
    )
