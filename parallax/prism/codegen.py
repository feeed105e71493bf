"""Tree to code object, statements and functions; `generate` is the way in.

A statement is compiled with a target: the variable that receives its value, `RETURN` where the value leaves the
function, or None where nobody asks. CPython allows twenty nested blocks, and a loop body whose variables are captured
needs fresh ones each round: in both cases the part becomes a function of its own (an outline), which tells by what it
returns whether the program meant `return`, `break` or `continue`.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from types import CodeType

from . import nodes as n
from .compiler import const, load
from .errors import Span
from .loops import RETURN, LoopCompiler, plain_arguments
from .scopes import Frame, Scope, Variable, declared_names


def cost(body: Sequence[n.Node]) -> int:
    """How many nodes one pass evaluates; loops and functions count their own."""
    total = 0
    stack = list(body)
    loops = (n.For, n.ForIn, n.While, n.DoWhile, n.UncertainFor, n.UncertainWhile, n.Lambda, n.FunctionDeclaration)
    while stack:
        node = stack.pop()
        total += 1
        if not isinstance(node, loops):
            stack.extend(n.children(node))
    return total


class CodeGenerator(LoopCompiler):
    """Adds statements, functions and programs."""

    # --- programs ---

    def program(self) -> ast.Module:
        statements = self.tree.statements
        self.scope = self.new_scope()
        self.predeclare(statements, late=False)
        functions = [f for s in statements if (f := _function_of(s)) is not None]
        for statement in statements:
            if isinstance(statement, n.Import):
                self.statement(statement, None)
        for function in functions:
            if function.name not in self.scope.names:
                self.declare(function.name, ready=function.confidence is None).function = True
            elif not self.scope.names[function.name].function:
                self.emit(ast.Expr(self.helper("duplicate", const(function.name), span=function.span)))
        self.late_names(statements)
        for function in functions:
            self.declare_function(function)
        self.charge(statements)
        self.statements(statements, RETURN)
        self.close_scope()
        self.finish_frame()
        kind = ast.AsyncFunctionDef if self.hosted else ast.FunctionDef
        main = kind("main", plain_arguments(["d"]), self.frame.body or [ast.Pass()], [], None, None)
        module = ast.Module([main], [])
        _locate(module)
        return module

    def finish_frame(self) -> None:
        """Names that the function assigns but does not own, and its mark of the branch it runs in."""
        frame = self.frame
        head: list[ast.stmt] = []
        if frame.nonlocals:
            head.append(ast.Nonlocal(sorted(frame.nonlocals)))
        if frame.branch_mark:
            head.append(ast.Assign([ast.Name(frame.branch_mark, ast.Store())], self.helper("branch")))
        frame.body[0:0] = head

    # --- scopes ---

    def new_scope(self) -> Scope:
        mark = ast.Pass()
        self.out.append(mark)
        return Scope(self.scope, self.frame, self.out, mark)

    def close_scope(self) -> None:
        """Replace the mark by what sets the variables that some read could meet too early."""
        scope = self.scope
        names = [v.py for v in scope.variables if v.needs_unset]
        at = next(i for i, s in enumerate(scope.entry) if s is scope.mark)
        targets: list[ast.expr] = [ast.Name(name, ast.Store()) for name in names]
        scope.entry[at : at + 1] = [ast.Assign(targets, load("UNSET"))] if targets else []

    def predeclare(self, statements: Sequence[n.Statement], *, late: bool = True) -> None:
        for name, constant, place in declared_names(statements):
            if name in self.scope.names:
                self.emit(ast.Expr(self.helper("duplicate", const(name), span=place.span)))
            else:
                self.declare(name, const=constant, ready=False).predeclared = True
        if late:
            self.late_names(statements)

    def late_names(self, statements: Sequence[n.Statement], *, body: bool = False) -> None:
        """Names that come to be when their statement runs; until then they mean the outer name.

        Known from the start all the same, because a closure made earlier sees them later.
        """
        for statement in statements:
            match statement:
                case n.FunctionDeclaration(name) | n.Export(declaration=n.FunctionDeclaration(name)):
                    if name not in self.scope.names:
                        self.declare(name, ready=False).function = True
                case n.Export(declaration=n.VariableDeclaration() as inner):
                    self.late_variables([inner])
                case n.VariableDeclaration() if body:
                    self.late_variables([statement])
                case n.Context(body=inner_block):
                    self.late_names(inner_block.statements, body=True)
                case n.AgentDeclaration(agents):
                    for agent in agents:
                        if agent.name not in self.scope.names:
                            self.declare(agent.name, ready=False)

    def late_variables(self, statements: Sequence[n.Statement]) -> None:
        for name, constant, _ in declared_names(statements):
            if name not in self.scope.names:
                self.declare(name, const=constant, ready=False)

    # --- statement lists ---

    def give(self, target: str | None, value: ast.expr) -> None:
        if target is None:
            if not isinstance(value, ast.Constant):
                self.emit(ast.Expr(value))
        elif target == RETURN:
            self.leave(value)
        else:
            self.assign(target, value)

    def leave(self, value: ast.expr) -> None:
        """`return`, also out of an outline."""
        if self.frame.outline:
            self.frame.signals.add("return")
            value = ast.Tuple([value], ast.Load())
        self.emit(ast.Return(value))

    def statements(self, statements: Sequence[n.Statement], target: str | None) -> None:
        if not statements:
            self.give(target, const(None))
        for index, statement in enumerate(statements):
            self.statement(statement, target if index == len(statements) - 1 else None)

    def statement(self, node: n.Statement, target: str | None) -> None:
        if self.traced and node.span is not None:
            place = (const(node.span.line), const(node.span.column))
            self.emit(
                ast.Expr(
                    self.helper("trace", const("statement"), const(type(node).__name__), const(node.span.path), *place)
                )
            )
        method: Callable[[n.Statement, str | None], None] = getattr(self, "on_" + type(node).__name__)
        method(node, target)

    def block(self, node: n.Block, target: str | None) -> None:
        outer, self.scope = self.scope, self.new_scope()
        self.predeclare(node.statements)
        self.statements(node.statements, target)
        self.close_scope()
        self.scope = outer

    on_Block = block  # noqa: N815

    def body(self, node: n.Statement, target: str | None) -> None:
        """A body is a block, or one statement in the scope around it whose declarations may not happen."""
        if isinstance(node, n.Block):
            self.block(node, target)
            return
        known = set(self.scope.names)
        self.statement(node, target)
        for name, variable in self.scope.names.items():
            if name not in known:
                variable.ready, variable.conditional, variable.needs_unset = False, True, True

    def branch_of(self, build: Callable[[], None]) -> list[ast.stmt]:
        out: list[ast.stmt] = []
        with self.into(out):
            build()
        return out or [ast.Pass()]

    def charge(self, body: Sequence[n.Node]) -> None:
        """Count nodes; at the stop the runtime yields, or ends the run."""
        self.emit(ast.AugAssign(ast.Attribute(load("m"), "nodes", ast.Store()), ast.Add(), const(cost(body))))
        pause = self.helper("checkpoint", span=body[0].span if body else None)
        if self.frame.asynchronous:
            pause = self.at(
                ast.Await(self.helper("pause", span=body[0].span if body else None)), body[0].span if body else None
            )
        over = ast.Compare(
            ast.Attribute(load("m"), "nodes", ast.Load()), [ast.Gt()], [ast.Attribute(load("m"), "stop", ast.Load())]
        )
        self.emit(ast.If(over, [ast.Expr(pause)], []))

    # --- simple statements ---

    def on_ExpressionStatement(self, node: n.ExpressionStatement, target: str | None) -> None:  # noqa: N802
        self.give(target, self.expr(node.value))

    def on_VariableDeclaration(self, node: n.VariableDeclaration, target: str | None) -> None:  # noqa: N802
        value = const(None) if node.value is None else self.expr(node.value)
        constant = node.kind == "const"
        if isinstance(node.target, n.Identifier):
            if isinstance(node.value, n.Lambda) or not isinstance(node.target, n.Identifier):
                value = self.spill(value)
            self.initialise(node.target.name, value, node.target.span or node.span, constant)
        else:
            name = self.fresh()
            self.assign(name, value)
            self.destructure(node.target, name, lambda each, v, span: self.initialise(each, v, span, constant))
        self.give(target, const(None))

    def initialise(self, name: str, value: ast.expr, span: Span | None, constant: bool) -> None:
        """Give a declared variable its first value."""
        variable = self.scope.names.get(name)
        if variable is not None and not variable.ready and not variable.conditional and not variable.function:
            pass
        elif variable is not None:
            value = self.spill(value)
            if variable.conditional:
                variable.needs_unset = True
                test = ast.Compare(load(variable.py), [ast.IsNot()], [load("UNSET")])
                self.emit(ast.If(test, [ast.Expr(self.helper("duplicate", const(name), span=span))], []))
            else:
                self.emit(ast.Expr(self.helper("duplicate", const(name), span=span)))
        else:
            value = self.spill(value)
            variable = self.declare(name, const=constant, ready=False)
        self.assign(variable.py, value)
        variable.ready = True

    def on_FunctionDeclaration(self, node: n.FunctionDeclaration, target: str | None) -> None:  # noqa: N802
        variable = self.declare_function(node)
        self.give(target, load(variable.py))

    def declare_function(self, node: n.FunctionDeclaration) -> Variable:
        variable = self.scope.names.get(node.name)
        if variable is not None and not variable.function:
            self.emit(ast.Expr(self.helper("duplicate", const(node.name), span=node.span)))
        if variable is None or not variable.function:
            variable = self.declare(node.name)
            variable.function = True
        variable.ready = True
        value = self.function(node.name, node.params, node.body, "Function", node.span)
        if node.confidence is not None:
            value = self.helper(
                "attach", *self.operands([node.confidence], value), span=node.confidence.span or node.span
            )
        self.assign(variable.py, value)
        return variable

    def on_AssignmentStatement(self, node: n.AssignmentStatement, target: str | None) -> None:  # noqa: N802
        value = self.assigned(node)
        if target is not None:
            value = self.spill(value)
        self.set_name(node.name, value, node.span)
        if target is not None:
            self.give(target, value)

    def assigned(self, node: n.AssignmentStatement) -> ast.expr:
        if node.op == "=":
            return self.expr(node.value)
        left = n.Identifier(node.name, span=node.span)
        return self.link(n.Binary(node.op[:-1], left, node.value, span=node.span), self.read(node.name, node.span))

    def set_name(self, name: str, value: ast.expr, span: Span | None) -> None:
        scope: Scope | None = self.scope
        while scope is not None and name not in scope.names:
            scope = scope.parent
        if scope is None:
            self.emit(ast.Expr(self.helper("assign_global", const(name), value, span=span)))
            return
        self.set_variable(scope.names[name], scope, value, span)

    def set_variable(self, variable: Variable, scope: Scope, value: ast.expr, span: Span | None) -> None:
        name = variable.name
        if not variable.ready:
            value = self.spill(value)
            variable.needs_unset = True
            early: list[ast.stmt] = []
            with self.into(early):
                if variable.predeclared or scope.parent is None:
                    self.emit(ast.Expr(self.helper("too_early", const(name), span=span)))
                else:
                    saved, self.scope = self.scope, scope.parent
                    self.set_name(name, value, span)
                    self.scope = saved
            late: list[ast.stmt] = []
            with self.into(late):
                self.put(variable, value, span)
            self.emit(ast.If(ast.Compare(load(variable.py), [ast.Is()], [load("UNSET")]), early, late))
            return
        self.put(variable, value, span)

    def put(self, variable: Variable, value: ast.expr, span: Span | None) -> None:
        if variable.const:
            self.emit(ast.Expr(value))
            self.emit(ast.Expr(self.helper("is_const", const(variable.name), span=span)))
            return
        owner = variable.frame
        while owner.outline and owner.outer is not None:
            owner = owner.outer
        here: Frame | None = self.frame
        while here is not None and here.outline:
            here = here.outer
        if self.hosted and here is not owner:
            if owner.branch_mark is None:
                owner.branch_mark = self.fresh("b")
            value = self.spill(value)
            self.emit(ast.Expr(self.helper("guard_branch", load(owner.branch_mark), const(variable.name), span=span)))
        self.assign(variable.py, value)

    def on_DestructuringAssignment(self, node: n.DestructuringAssignment, target: str | None) -> None:  # noqa: N802
        name = self.fresh()
        threshold = None
        if node.threshold is not None:
            threshold = self.fresh()
            self.assign(
                threshold, self.helper("threshold", self.expr(node.threshold), const("Confidence"), span=node.span)
            )
        self.assign(name, self.expr(node.value))
        self.destructure(node.pattern, name, self.set_name, threshold)
        self.give(target, load(name))

    def on_Return(self, node: n.Return, _target: str | None) -> None:  # noqa: N802
        self.leave(const(None) if node.value is None else self.expr(node.value))

    def on_Throw(self, node: n.Throw, _target: str | None) -> None:  # noqa: N802
        self.emit(ast.Expr(self.helper("throw", self.expr(node.value), span=node.span)))

    def on_Break(self, _node: n.Break, _target: str | None) -> None:  # noqa: N802
        self.jump("break")

    def on_Continue(self, _node: n.Continue, _target: str | None) -> None:  # noqa: N802
        self.jump("continue")

    def jump(self, kind: str) -> None:
        if self.frame.loops:
            self.emit(ast.Break() if kind == "break" else ast.Continue())
        else:
            self.frame.signals.add(kind)
            self.emit(ast.Return(const(kind)))

    # --- branches ---

    def on_If(self, node: n.If, target: str | None) -> None:  # noqa: N802
        test = self.condition(node.test)
        then = self.branch_of(lambda: self.body(node.then, target))
        otherwise = node.otherwise
        if otherwise is None:
            rest = self.branch_of(lambda: self.give(target, const(None)))
        else:
            rest = self.branch_of(lambda: self.body(otherwise, target))
        self.emit(ast.If(test, then, rest))

    def on_UncertainIf(self, node: n.UncertainIf, target: str | None) -> None:  # noqa: N802
        value = self.fresh()
        self.assign(value, self.helper("sure_only", self.expr(node.value), span=node.span))
        bands = const(None) if node.bands is None else self.expr(node.bands)
        band = self.fresh()
        self.assign(band, self.helper("band", load(value), bands, span=node.span))
        self.bands(node.branches, band, target, node.span)

    def bands(
        self,
        branches: Sequence[n.Branch],
        band: str,
        target: str | None,
        span: Span | None,
        missing: Callable[[], None] | None = None,
    ) -> None:
        """Choose by the band's name; `default` takes what is left, else `missing` or null."""
        chosen = {branch.band: branch.body for branch in branches}
        if self.traced and span is not None:
            place = (const(span.path), const(span.line), const(span.column))
            self.emit(ast.Expr(self.helper("trace", const("band"), load(band), *place)))
        default = chosen.pop("default", None)
        if default is not None:
            rest = self.branch_of(lambda: self.block(default, target))
        else:
            rest = self.branch_of(missing or (lambda: self.give(target, const(None))))
        for name, body in reversed(chosen.items()):
            test = ast.Compare(load(band), [ast.Eq()], [const(name)])
            rest = [ast.If(test, self.branch_of(lambda body=body: self.block(body, target)), rest)]  # type: ignore[misc]
        self.out.extend(rest)
        self.emitted += 1

    # --- the rest ---

    def on_Context(self, node: n.Context, target: str | None) -> None:  # noqa: N802
        self.block_without_scope(node.body, target)

    def block_without_scope(self, node: n.Block, target: str | None) -> None:
        """`in context` creates no scope: its names belong to the one around it."""
        self.statements(node.statements, target)

    def on_AgentDeclaration(self, node: n.AgentDeclaration, target: str | None) -> None:  # noqa: N802
        for agent in node.agents:
            value = self.expr(n.Object(agent.settings, span=agent.span))
            self.initialise(agent.name, value, agent.span, False)
        self.give(target, const(None))

    def on_Import(self, node: n.Import, target: str | None) -> None:  # noqa: N802
        module = self.fresh()
        call = self.helper("import_module", const(self.path), const(node.source), span=node.span)
        if self.frame.asynchronous:
            call = self.at(ast.Await(call), node.span)
        self.assign(module, call)
        pick = [(node.default, "default"), (node.namespace, "*"), *((s.alias, "=" + s.name) for s in node.names or ())]
        for name, what in pick:
            if name is None:
                continue
            value = self.helper("imported", load(module), const(what), span=node.span)
            if name in self.scope.names:
                self.assign(self.scope.names[name].py, value)
                self.scope.names[name].ready = True
            else:
                self.assign(self.declare(name).py, value)
        self.give(target, const(None))

    def on_Export(self, node: n.Export, target: str | None) -> None:  # noqa: N802
        self.emit(ast.Expr(self.helper("check_export", span=node.span)))
        if node.default is not None:
            value = self.spill(self.expr(node.default))
            self.export("default", value, node.span)
            self.give(target, value)
        elif node.declaration is not None:
            inner = node.declaration
            self.statement(inner, target if not isinstance(inner, n.AssignmentStatement) and target != RETURN else None)
            for name in _exported(inner):
                self.export(name, self.read(name, node.span), node.span)
            if isinstance(inner, n.AssignmentStatement):
                self.give(target, self.read(inner.name, inner.span))
            elif target == RETURN:
                self.give(
                    target,
                    self.read(inner.name, inner.span) if isinstance(inner, n.FunctionDeclaration) else const(None),
                )
        elif node.source is not None:
            call = self.helper("import_module", const(self.path), const(node.source), span=node.span)
            call = self.at(ast.Await(call), node.span) if self.frame.asynchronous else call
            names = (
                const(None)
                if node.names is None
                else ast.Tuple([ast.Tuple([const(s.name), const(s.alias)], ast.Load()) for s in node.names], ast.Load())
            )
            self.emit(ast.Expr(self.helper("export_all", const(self.path), call, names, span=node.span)))
            self.give(target, const(None))
        else:
            for each in node.names or ():
                self.export(each.alias, self.read(each.name, each.span or node.span), node.span)
            self.give(target, const(None))

    def export(self, name: str, value: ast.expr, span: Span | None) -> None:
        self.emit(ast.Expr(self.helper("export", const(self.path), const(name), value, span=span)))

    # --- functions ---

    def function(
        self, name: str, params: Sequence[n.Parameter], body: n.Node, kind: str, span: Span | None
    ) -> ast.expr:
        py_name = self.fresh("f")
        frame = Frame(py_name, self.may_wait([body, *params]), self.frame)
        outer_frame, self.frame = self.frame, frame
        outer_scope, placeholders = self.scope, self.placeholders
        plain = [param for param in params if not param.rest]
        with self.into(frame.body):
            self.scope = self.new_scope()
            entry = self.scope
            direct = not any(param.default for param in params)
            arguments = [
                self.declare(param.target.name).py
                if direct and isinstance(param.target, n.Identifier)
                else self.fresh("a")
                for param in params
            ]
            self.emit(ast.AugAssign(ast.Name("d", ast.Store()), ast.Add(), const(1)))
            deep = ast.Compare(load("d"), [ast.Gt()], [load("MAX_DEPTH")])
            self.emit(ast.If(deep, [ast.Expr(self.helper("too_deep", load("d"), span=span))], []))
            self.charge([body, *params])
            for param, argument in zip(params, arguments, strict=True):
                self.parameter(param, argument)
            self.scope = self.new_scope()
            if isinstance(body, n.Block):
                self.late_names(body.statements, body=True)
                self.statements(body.statements, RETURN)
            else:
                assert isinstance(body, n.Expr)
                self.emit(ast.Return(self.expr(body)))
            self.close_scope()
            self.scope = entry
            self.close_scope()
            self.finish_frame()
        self.frame, self.scope, self.placeholders = outer_frame, outer_scope, placeholders
        rest = arguments[-1] if params and params[-1].rest else None
        positional = ["d", *arguments[: len(plain)]]
        defaults = sum(param.default is not None for param in plain)
        self.emit_function(py_name, plain_arguments(positional, rest, defaults), frame)
        least, most = len(plain) - defaults, const(None if rest else len(plain))
        return self.helper("make_function", const(name), load(py_name), const(least), most, const(kind), span=span)

    def parameter(self, param: n.Parameter, argument: str) -> None:
        if param.rest:
            self.assign(argument, self.helper("array", load(argument), span=param.span))
        elif param.default is not None:
            default = param.default
            given = self.branch_of(lambda: self.assign(argument, self.expr(default)))
            self.emit(ast.If(ast.Compare(load(argument), [ast.Is()], [load("UNSET")]), given, []))

        def bind(name: str, value: ast.expr, _span: Span | None) -> None:
            self.assign(self.declare(name).py, value)

        if argument[0] == "v":
            return
        self.destructure(param.target, argument, bind)


def _function_of(statement: n.Statement) -> n.FunctionDeclaration | None:
    if isinstance(statement, n.Export):
        statement = statement.declaration or statement
    return statement if isinstance(statement, n.FunctionDeclaration) else None


def _exported(statement: n.Statement) -> list[str]:
    match statement:
        case n.VariableDeclaration(target=n.Identifier(name)):
            return [name]
        case n.FunctionDeclaration(name=name) | n.AssignmentStatement(name=name):
            return [name]
    return []


def _locate(module: ast.Module) -> None:
    """Nodes without a place take that of the node around them; without recursion, for the tree may be deep."""
    stack: list[tuple[ast.AST, int, int]] = [(module, 1, 0)]
    while stack:
        node, line, column = stack.pop()
        if "lineno" in node._attributes:
            line = getattr(node, "lineno", line)
            column = getattr(node, "col_offset", column)
            node.lineno, node.col_offset = line, column  # type: ignore[attr-defined]
            node.end_lineno, node.end_col_offset = line, column + 1  # type: ignore[attr-defined]
        stack.extend((child, line, column) for child in ast.iter_child_nodes(node))


def generate(tree: n.Program, path: str, *, hosted: bool, traced: bool, builtins: frozenset[str]) -> CodeType:
    """The code object of a module: it defines `main`."""
    generator = CodeGenerator(tree, path, hosted=hosted, traced=traced, builtins=builtins)
    return compile(generator.program(), f"<prism>{path}", "exec", dont_inherit=True, optimize=0)
