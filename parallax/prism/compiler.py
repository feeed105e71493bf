"""Tree to code object, expressions: Prism becomes Python `ast` nodes, never text.

Why this is safe: every name in the generated code is ours (`v1_x`, `t2`, helpers listed in `runtime`), strings of the
program appear as constants only, no attribute but four slots of our own classes is read, and `__builtins__` is empty.
Why it is fast: a Prism function is a Python function, a variable a Python local, and two plain numbers add in place.

Each node is compiled once, for both worlds: with a host, a function that may reach an effect becomes `async` and
awaits what turns out to be a coroutine; without one everything is synchronous. Line and column of the generated nodes
are those of the source, so a traceback tells where a program failed and a span costs nothing while it runs.
Statements are in `codegen`, patterns in `patterns`; `runtime` is the caller.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from . import nodes as n
from .builtins import QUICK
from .errors import Span
from .scopes import Frame, Scope, Variable, all_bound_names, own_nodes
from .values import truthy

SPILL_EVERY = 16  # an operator chain of this length goes through a variable: CPython's compiler recurses
ARITHMETIC: dict[str, type[ast.operator]] = {"+": ast.Add, "-": ast.Sub, "*": ast.Mult, "/": ast.Div}
COMPARE: dict[str, type[ast.cmpop]] = {
    "<": ast.Lt,
    "<=": ast.LtE,
    ">": ast.Gt,
    ">=": ast.GtE,
    "===": ast.Eq,
    "!==": ast.NotEq,
    "==": ast.Eq,
    "!=": ast.NotEq,
}
LAZY = frozenset(("&&", "||", "??", "~??", "~@>"))
EQUALITY = frozenset(("==", "!=", "===", "!==", "~==", "~!="))
LAZY_TESTS = {"&&": "truthy", "||": "falsy", "??": "is_null", "~??": "unsure", "~@>": "sure"}
OP_NAMES = {
    "+": "add",
    "-": "sub",
    "*": "mul",
    "/": "div",
    "%": "mod",
    "**": "power",
    "<": "lt",
    "<=": "le",
    ">": "gt",
    ">=": "ge",
    "===": "same",
    "!==": "not_same",
    "==": "equal",
    "!=": "not_equal",
    "instanceof": "instance_of",
    "~?>": "gate",
    "~+": "c_add",
    "~-": "c_sub",
    "~*": "c_mul",
    "~/": "c_div",
    "~==": "c_same",
    "~!=": "c_not_same",
    "~<": "c_lt",
    "~<=": "c_le",
    "~>=": "c_ge",
    "~~": "c_chain",
    "~&&": "c_and",
    "~||": "c_or",
    "~||>": "c_best",
}
QUICK_NAMESPACES = frozenset(("Math", "Array"))
CHAINS = (n.Binary, n.Pipeline, n.PropertyAccess, n.OptionalChain, n.Index, n.Call, n.ConfidenceExpression)


def load(name: str) -> ast.Name:
    return ast.Name(name, ast.Load())


def const(value: object) -> ast.Constant:
    return ast.Constant(value)  # type: ignore[arg-type]


def atomic(node: ast.expr) -> bool:
    """May it be evaluated later, or twice?"""
    return isinstance(node, ast.Constant) or (isinstance(node, ast.Name) and node.id[0] == "t")


def simple(node: ast.expr) -> bool:
    """May it be evaluated twice in a row?"""
    return isinstance(node, ast.Constant | ast.Name)


class ExpressionCompiler:
    """Compiles expressions into the frame at hand, whose current statement list is `out`."""

    def __init__(self, tree: n.Program, path: str, *, hosted: bool, traced: bool, builtins: frozenset[str]) -> None:
        self.tree = tree
        self.path = path
        self.hosted = hosted
        self.traced = traced
        self.builtins = builtins
        self.bound = all_bound_names(tree)
        self.unknown: list[tuple[str, Span | None]] = []  # names that no scope declares: for `check`
        self.counter = 0
        self.frame = Frame("main", hosted)
        self.out: list[ast.stmt] = self.frame.body
        self.emitted = 0
        self.owners: dict[str, Frame] = {}
        self.scope = Scope(None, self.frame, self.out, ast.Pass())
        self.span: Span | None = None
        self.placeholders: list[tuple[str, list[bool]]] = []

    # --- building ---

    def at(self, node: ast.expr, span: Span | None) -> ast.expr:
        """Give a node its place in the source."""
        if span is not None:
            node.lineno = node.end_lineno = span.line
            node.col_offset, node.end_col_offset = span.column, span.column + 1
        return node

    def helper(self, name: str, *args: ast.expr, span: Span | None = None) -> ast.expr:
        return self.at(ast.Call(load(name), list(args), []), span)

    def emit(self, statement: ast.stmt) -> None:
        self.out.append(statement)
        if not isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
            self.emitted += 1

    def fresh(self, prefix: str = "t") -> str:
        self.counter += 1
        name = f"{prefix}{self.counter}"
        self.owners[name] = self.frame
        return name

    def store(self, name: str) -> ast.Name:
        if self.owners[name] is not self.frame:
            self.frame.nonlocals.add(name)
        return ast.Name(name, ast.Store())

    def assign(self, name: str, value: ast.expr) -> None:
        self.emit(ast.Assign([self.store(name)], value))

    def spill(self, value: ast.expr) -> ast.expr:
        """The value through a variable of its own."""
        if atomic(value):
            return value
        name = self.fresh()
        self.assign(name, value)
        return load(name)

    @contextmanager
    def into(self, out: list[ast.stmt]) -> Iterator[None]:
        saved, self.out = self.out, out
        yield
        self.out = saved

    def operands(self, operands: Sequence[n.Node], first: ast.expr | None = None) -> list[ast.expr]:
        """Expressions in order; when a later one needs statements, the earlier ones move before them."""
        results: list[ast.expr] = [] if first is None else [first]
        for node in operands:
            place, emitted = len(self.out), self.emitted
            value = self.expr(node.value if isinstance(node, n.Spread) else node)  # type: ignore[arg-type]
            if self.emitted > emitted:
                moved: list[ast.stmt] = []
                for index, earlier in enumerate(results):
                    if not atomic(earlier):
                        name = self.fresh()
                        moved.append(ast.Assign([self.store(name)], earlier))
                        results[index] = load(name)
                self.out[place:place] = moved
            results.append(value)
        return results

    def twice(self, value: ast.expr) -> tuple[ast.expr, ast.expr]:
        """For a value that is used twice: the first use and the second."""
        if simple(value):
            return value, value
        name = self.fresh()
        return ast.NamedExpr(ast.Name(name, ast.Store()), value), load(name)

    def awaited(self, value: ast.expr) -> ast.expr:
        """Await what turns out to be a coroutine."""
        if not self.frame.asynchronous:
            return value
        name = self.fresh()
        test = ast.Compare(
            self.helper("type", ast.NamedExpr(ast.Name(name, ast.Store()), value)), [ast.IsNot()], [load("CORO")]
        )
        waiting = ast.Await(load(name))
        if isinstance(value, ast.Call) and hasattr(value, "lineno"):
            self.at(waiting, Span("", value.lineno, value.col_offset))
        return ast.IfExp(test, load(name), waiting)

    # --- names ---

    def declare(self, name: str, *, const: bool = False, ready: bool = True) -> Variable:
        self.counter += 1
        variable = Variable(name, f"v{self.counter}_{name}", self.scope.frame, const, ready)
        variable.needs_unset = self.scope.frame is not self.frame
        self.owners[variable.py] = self.scope.frame
        self.scope.names[name] = variable
        self.scope.variables.append(variable)
        return variable

    def read(self, name: str, span: Span | None, scope: Scope | None = None) -> ast.expr:
        scope = scope or self.scope
        at: Scope | None = scope
        while at is not None:
            variable = at.names.get(name)
            if variable is not None:
                if variable.ready:
                    return load(variable.py)
                variable.needs_unset = True
                if variable.predeclared or at.parent is None:
                    fallback = self.undefined(name, span)
                else:
                    fallback = self.read(name, span, at.parent)
                test = ast.Compare(load(variable.py), [ast.IsNot()], [load("UNSET")])
                return ast.IfExp(test, load(variable.py), fallback)
            at = at.parent
        if name in self.builtins:
            return load(f"g_{name}")
        if scope is self.scope:
            self.unknown.append((name, span))
        place = span or Span(self.path, 0, 0)
        return self.helper("lookup", const(name), const(place.line), const(place.column), span=span)

    def undefined(self, name: str, span: Span | None) -> ast.expr:
        place = span or Span(self.path, 0, 0)
        return self.helper("undefined", const(name), const(place.line), const(place.column), span=span)

    # --- expressions ---

    def expr(self, node: n.Expr) -> ast.expr:
        """Chains lean to the left and may be long, so the left spine is a loop."""
        spine: list[n.Expr] = []
        while isinstance(node, CHAINS):
            spine.append(node)
            node = _left(node)
        value = self.leaf(node)
        for count, outer in enumerate(reversed(spine), 1):
            if count % SPILL_EVERY == 0:
                value = self.spill(value)
            value = self.link(outer, value)
        return value

    def leaf(self, node: n.Expr) -> ast.expr:
        method = getattr(self, "do_" + type(node).__name__)
        result: ast.expr = method(node)
        return result

    def link(self, node: n.Expr, left: ast.expr) -> ast.expr:
        match node:
            case n.Binary():
                return self.lazy(node, left) if node.op in LAZY else self.binary(node, left)
            case n.PropertyAccess():
                return self.helper("get_sure" if node.confident else "get", left, const(node.name), span=node.span)
            case n.OptionalChain():
                return self.helper("get_optional", left, const(node.name), span=node.span)
            case n.Index():
                return self.helper("index", *self.operands([node.index], left), span=node.span)
            case n.ConfidenceExpression():
                return self.helper("attach", *self.operands([node.confidence], left), span=node.span)
            case n.Call():
                return self.call(node, left)
            case n.Pipeline():
                return self.pipeline(node, left)
        raise TypeError(type(node).__name__)

    def do_Number(self, node: n.Number) -> ast.expr:  # noqa: N802
        return const(float(node.value))

    def do_String(self, node: n.String) -> ast.expr:  # noqa: N802
        return const(node.value)

    def do_Boolean(self, node: n.Boolean) -> ast.expr:  # noqa: N802
        return const(node.value)

    def do_Null(self, _node: n.Null) -> ast.expr:  # noqa: N802
        return const(None)

    def do_Identifier(self, node: n.Identifier) -> ast.expr:  # noqa: N802
        return self.read(node.name, node.span)

    def do_Placeholder(self, _node: n.Placeholder) -> ast.expr:  # noqa: N802
        if not self.placeholders:  # only `check` compiles a misplaced one
            return const(None)
        name, used = self.placeholders[-1]
        used[0] = True
        return load(name)

    def do_Interpolated(self, node: n.Interpolated) -> ast.expr:  # noqa: N802
        holes = self.operands([part for part in node.parts if not isinstance(part, str)])
        values = iter(holes)
        parts = [
            const(p) if isinstance(p, str) else self.awaited(self.helper("plain_text", next(values), span=node.span))
            for p in node.parts
        ]
        return self.helper("concat", ast.Tuple(parts, ast.Load()), span=node.span)

    def do_Unary(self, node: n.Unary) -> ast.expr:  # noqa: N802
        value = self.expr(node.operand)
        if node.op == "!":
            return ast.UnaryOp(ast.Not(), self.test(value))
        if node.op == "~":
            return value
        if node.op == "-" and isinstance(value, ast.Constant) and type(value.value) is float:
            return const(-value.value)
        return self.helper(
            {"-": "negate", "<~": "confidence_of", "typeof": "type_name"}[node.op], value, span=node.span
        )

    def do_Await(self, node: n.Await) -> ast.expr:  # noqa: N802
        return self.helper("settle", self.expr(node.value), span=node.span)

    def do_Ternary(self, node: n.Ternary) -> ast.expr:  # noqa: N802
        return self.choice(self.condition(node.test), node.yes, node.no)

    def do_ConfidentTernary(self, node: n.ConfidentTernary) -> ast.expr:  # noqa: N802
        test = self.spill(self.expr(node.test))
        chosen = self.choice(self.test(test), node.yes, node.no)
        return self.helper("confident_choice", test, chosen, span=node.span)

    def choice(self, test: ast.expr, yes: n.Expr, no: n.Expr) -> ast.expr:
        results: list[ast.expr] = []
        lists: list[list[ast.stmt]] = []
        for branch in (yes, no):
            out: list[ast.stmt] = []
            with self.into(out):
                results.append(self.expr(branch))
            lists.append(out)
        if not lists[0] and not lists[1]:
            return ast.IfExp(test, results[0], results[1])
        name = self.fresh()
        for out, result in zip(lists, results, strict=True):
            out.append(ast.Assign([self.store(name)], result))
        self.emit(ast.If(test, lists[0], lists[1]))
        return load(name)

    def do_Array(self, node: n.Array) -> ast.expr:  # noqa: N802
        values = self.operands(node.items)
        items = [
            ast.Starred(self.helper("spread_array", value, span=item.span), ast.Load())
            if isinstance(item, n.Spread)
            else value
            for item, value in zip(node.items, values, strict=True)
        ]
        if any(isinstance(item, ast.Starred) for item in items):
            pieces = [
                self.helper("spread_array", v, span=i.span) if isinstance(i, n.Spread) else ast.Tuple([v], ast.Load())
                for i, v in zip(node.items, values, strict=True)
            ]
            return self.helper("join_arrays", ast.Tuple(pieces, ast.Load()), span=node.span)
        return self.helper("array", ast.Tuple(items, ast.Load()), span=node.span)

    def do_Object(self, node: n.Object) -> ast.expr:  # noqa: N802
        values = self.operands([prop.value for prop in node.props])
        keys: list[ast.expr | None] = []
        for index, prop in enumerate(node.props):
            if isinstance(prop, n.Spread):
                keys.append(None)
                values[index] = self.helper("spread_object", values[index], span=prop.span)
            else:
                keys.append(const(prop.key))
        return self.helper("object", ast.Dict(keys, values), span=node.span)

    # --- operators ---

    def binary(self, node: n.Binary, left: ast.expr, *, condition: bool = False) -> ast.expr:
        a, b = self.operands([node.right], left)
        slow_name = OP_NAMES[node.op]
        fast: ast.expr
        if node.op not in ARITHMETIC and node.op not in COMPARE:
            slow = self.slow(node, slow_name, a, b)
            return self.test(slow) if condition else slow
        numbers = [isinstance(each, ast.Constant) and type(each.value) is float for each in (a, b)]
        if (simple(a) and simple(b)) or isinstance(b, ast.Constant):
            a_first, a = self.twice(a)
            b_first = b
        else:
            name_a, name_b = self.fresh(), self.fresh()
            a_first = ast.NamedExpr(ast.Name(name_a, ast.Store()), a)
            b_first = ast.NamedExpr(ast.Name(name_b, ast.Store()), b)
            a, b = load(name_a), load(name_b)
        floats = load("float_")
        if all(numbers):
            test: ast.expr = const(True)
        elif numbers[1]:
            test = ast.Compare(self.helper("type", a_first), [ast.Is()], [floats])
        elif numbers[0] and simple(a_first):
            test = ast.Compare(self.helper("type", b_first), [ast.Is()], [floats])
        else:
            test = ast.Compare(
                self.helper("type", a_first), [ast.Is(), ast.Is()], [self.helper("type", b_first), floats]
            )
        if node.op == "/":
            test = ast.BoolOp(ast.And(), [test, ast.Compare(b, [ast.NotEq()], [const(0.0)])])
        slow = self.slow(node, slow_name, a, b)
        if node.op in COMPARE:
            fast = ast.Compare(a, [COMPARE[node.op]()], [b])
            slow = self.test(slow) if condition else slow
        else:
            fast = ast.BinOp(a, ARITHMETIC[node.op](), b)
        return ast.IfExp(test, fast, slow)

    def slow(self, node: n.Binary, name: str, a: ast.expr, b: ast.expr) -> ast.expr:
        """The rule for an operator; comparing large values takes so long that the event loop must run meanwhile."""
        value = self.helper(name, a, b, span=node.span)
        return self.awaited(value) if node.op in EQUALITY and not _short(node) else value

    def lazy(self, node: n.Binary, left: ast.expr) -> ast.expr:
        """`a op b` where b may not run: the operand that decides, as it is."""
        first, again = self.twice(left)
        if isinstance(first, ast.Name) and not atomic(first):
            name = self.fresh()
            first, again = ast.NamedExpr(ast.Name(name, ast.Store()), left), load(name)
        out: list[ast.stmt] = []
        with self.into(out):
            right = self.expr(node.right)
        test = self.helper(LAZY_TESTS[node.op], first)
        if not out:
            return ast.IfExp(test, right, again)
        result = self.fresh()
        held = self.fresh()
        self.assign(held, first)
        out.append(ast.Assign([self.store(result)], right))
        self.emit(
            ast.If(self.helper(LAZY_TESTS[node.op], load(held)), out, [ast.Assign([self.store(result)], load(held))])
        )
        return load(result)

    def test(self, value: ast.expr) -> ast.expr:
        if isinstance(value, ast.UnaryOp) and isinstance(value.op, ast.Not):
            return value
        if isinstance(value, ast.Constant):
            return const(truthy(value.value))
        first, again = self.twice(value)
        is_true = ast.Compare(first, [ast.Is()], [const(True)])
        not_false = ast.Compare(again, [ast.IsNot()], [const(False)])
        return ast.BoolOp(ast.Or(), [is_true, ast.BoolOp(ast.And(), [not_false, self.helper("truthy", again)])])

    def condition(self, node: n.Expr) -> ast.expr:
        """The truth of an expression, as a Python boolean."""
        if isinstance(node, n.Binary) and node.op in COMPARE:
            return self.binary(node, self.expr(node.left), condition=True)
        if isinstance(node, n.Unary) and node.op == "!":
            return ast.UnaryOp(ast.Not(), self.condition(node.operand))
        return self.test(self.expr(node))

    # --- calls ---

    def call(self, node: n.Call, callee: ast.expr) -> ast.expr:
        """`callee` is what `link` made of the left spine: for a method the object alone."""
        spread = any(isinstance(arg, n.Spread) for arg in node.args)
        values = self.operands(node.args, callee)
        callee, args = values[0], values[1:]
        depth = load("d")
        if spread:
            args = [
                ast.Starred(self.helper("spread_call", value, span=node.span), ast.Load())
                if isinstance(arg, n.Spread)
                else value
                for arg, value in zip(node.args, args, strict=True)
            ]
        if isinstance(node.callee, n.PropertyAccess) and not node.callee.confident:
            return self.awaited(
                self.helper("invoke", callee, const(node.callee.name), depth, *args, span=node.callee.span)
            )
        if spread:
            return self.awaited(self.helper("call", callee, depth, *args, span=node.span))
        first, again = self.twice(callee)
        if isinstance(first, ast.Constant):
            return self.awaited(self.helper("call", callee, depth, *args, span=node.span))
        fits = ast.BoolOp(
            ast.And(),
            [
                ast.Compare(self.helper("type", first), [ast.Is()], [load("Fn")]),
                ast.Compare(ast.Attribute(again, "arity", ast.Load()), [ast.Eq()], [const(len(args))]),
            ],
        )
        target = ast.IfExp(fits, ast.Attribute(again, "call", ast.Load()), self.helper("bound", again, span=node.span))
        return self.awaited(self.at(ast.Call(target, [depth, *args], []), node.span))

    def pipeline(self, node: n.Pipeline, left: ast.expr) -> ast.expr:
        name = self.fresh("p")
        self.assign(name, left)
        used = [False]
        self.placeholders.append((name, used))
        right = self.expr(node.right)
        self.placeholders.pop()
        if not used[0]:
            right = self.awaited(self.helper("pipe", right, load("d"), load(name), span=node.span))
        if node.op == "~|>":
            right = self.helper("piped", load(name), right, span=node.span)
        return right

    # --- functions ---

    def do_Lambda(self, node: n.Lambda) -> ast.expr:  # noqa: N802
        return self.function("lambda", node.params, node.body, "Lambda", node.span)

    def may_wait(self, body: Sequence[n.Node]) -> bool:
        """With a host: may this function reach an effect, or run long? Then it is a coroutine."""
        if not self.hosted:
            return False
        for part in body:
            for node in own_nodes(part):
                if isinstance(
                    node,
                    n.For | n.ForIn | n.While | n.DoWhile | n.UncertainFor | n.UncertainWhile | n.Import | n.Export,
                ):
                    return True
                if isinstance(node, n.Pipeline | n.Interpolated) or (
                    isinstance(node, n.Call) and not self.quick_call(node)
                ):
                    return True
                if isinstance(node, n.Binary) and node.op in EQUALITY and not _short(node):
                    return True
        return False

    def quick_call(self, node: n.Call) -> bool:
        callee = node.callee
        if isinstance(callee, n.PropertyAccess) and isinstance(callee.object, n.Identifier):
            return callee.object.name in QUICK_NAMESPACES and callee.object.name not in self.bound
        return isinstance(callee, n.Identifier) and callee.name in QUICK and callee.name not in self.bound

    def function(
        self, name: str, params: Sequence[n.Parameter], body: n.Node, kind: str, span: Span | None
    ) -> ast.expr:
        raise NotImplementedError

    def do_Match(self, node: n.Match) -> ast.expr:  # noqa: N802
        raise NotImplementedError


def _short(node: n.Binary) -> bool:
    """Is one side a literal? Then they are compared at once, but for `==`, which may ask for a long text form."""
    literals: tuple[type[n.Node], ...] = (n.Number, n.Boolean, n.Null)
    if node.op not in ("==", "!="):
        literals = (*literals, n.String)
    return isinstance(node.left, literals) or isinstance(node.right, literals)


def _left(node: n.Expr) -> n.Expr:
    match node:
        case n.Binary() | n.Pipeline():
            return node.left
        case n.PropertyAccess() | n.OptionalChain() | n.Index():
            return node.object
        case n.ConfidenceExpression():
            return node.value
        case n.Call():
            callee = node.callee
            return callee.object if isinstance(callee, n.PropertyAccess) and not callee.confident else callee
    raise TypeError(type(node).__name__)
