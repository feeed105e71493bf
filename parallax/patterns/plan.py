"""Plan: what a pattern would do, read from its program without running it.

`parallax plan`, `parallax run` (before it asks) and the API show it: the team, the steps as a tree, what runs beside
what, and the bounds that follow.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from parallax import prism
from parallax.errors import UsageError
from parallax.models import Json, OrgChart
from parallax.patterns.engine import Pattern
from parallax.patterns.org_chart import chart_of
from parallax.prism import nodes as n

WORDS = frozenset({
    "assign", "fanout", "parallel", "race", "integrate", "review", "approve", "askHuman", "escalate", "verify",
    "pattern", "llm", "sleep",
})  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanStep:
    """One word of the program: who does what; `beside` when its children run beside one another."""

    word: str
    role: str | None = None
    text: str = ""
    id: str | None = None
    beside: bool = False
    each: bool = False
    when: str | None = None
    children: tuple[PlanStep, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The team and the steps. `agents_at_most` counts the instances of the roles that the steps use."""

    pattern: str
    version: str
    chart: OrgChart
    steps: tuple[PlanStep, ...]
    agents_at_most: int
    warnings: tuple[str, ...] = field(default_factory=tuple)


def plan_of(pattern: Pattern, given: Mapping[str, Json] | None = None) -> Plan:
    """Read the plan of a compiled pattern."""
    tree = pattern.program.tree
    chart = static_chart(tree, given or {})
    steps = tuple(_steps(tree))
    used = {step.role for step in _all(steps) if step.role}
    count = sum(chart.roles[name].instances[1] for name in used if name in chart.roles) or len(used)
    return Plan(
        pattern=pattern.name,
        version=pattern.version,
        chart=chart,
        steps=steps,
        agents_at_most=count,
        warnings=tuple(str(warning) for warning in pattern.warnings),
    )


def static_chart(tree: n.Program, given: Mapping[str, Json]) -> OrgChart:
    """The team that `org(...)` declares: its arguments are literals and reads of `input`, so they have a value now."""
    for statement in tree.statements:
        call = statement.value if isinstance(statement, n.ExpressionStatement) else None
        if isinstance(call, n.Call) and isinstance(call.callee, n.Identifier) and call.callee.name == "org":
            listed = n.Program((n.ExpressionStatement(n.Array(call.args)),))
            try:
                value = prism.evaluate(prism.unparse(listed), globals={"input": dict(given)}).value
            except prism.PrismError as error:
                raise UsageError(f"org() must be of literals and reads of input: {error.message}") from None
            more = value[1] if len(value) > 1 and value[1] else {}
            return chart_of({"roles": value[0], **more})
    return OrgChart()


def plan_json(p: Plan) -> dict[str, Any]:
    """A plan as the API and `--json` show it."""
    return {
        "pattern": p.pattern,
        "version": p.version,
        "roles": {
            name: {
                "reports_to": role.reports_to, "min": role.instances[0], "max": role.instances[1],
                "verify": role.verify, "types": list(role.agent_types), "description": role.description,
            }
            for name, role in p.chart.roles.items()
        },
        "steps": [_step_json(step) for step in p.steps],
        "agents_at_most": p.agents_at_most,
        "warnings": list(p.warnings),
    }  # fmt: skip


def _step_json(step: PlanStep) -> dict[str, Any]:
    return {
        "word": step.word, "role": step.role, "text": step.text, "id": step.id, "beside": step.beside,
        "each": step.each, "when": step.when, "children": [_step_json(child) for child in step.children],
    }  # fmt: skip


def _all(steps: tuple[PlanStep, ...]) -> Iterator[PlanStep]:
    for step in steps:
        yield step
        yield from _all(step.children)


def _steps(node: n.Node) -> Iterator[PlanStep]:
    """Words in source order; what stands in a branch is a child of its `parallel`, what is conditional says when."""
    if isinstance(node, n.Call) and isinstance(node.callee, n.Identifier) and node.callee.name in WORDS:
        yield _word(node.callee.name, node)
        return
    if isinstance(node, n.UncertainIf):
        yield from _steps(node.value)
        for branch in node.branches:
            yield from (_conditional(step, f"confidence {branch.band}") for step in _steps(branch.body))
        return
    if isinstance(node, n.If):
        yield from _steps(node.test)
        test = prism.unparse(n.Program((n.ExpressionStatement(node.test),))).strip().rstrip(";")
        yield from (_conditional(step, f"if {test}") for step in _steps(node.then))
        if node.otherwise is not None:
            yield from (_conditional(step, f"else of {test}") for step in _steps(node.otherwise))
        return
    for child in n.children(node):
        yield from _steps(child)


def _conditional(step: PlanStep, when: str) -> PlanStep:
    return PlanStep(
        word=step.word, role=step.role, text=step.text, id=step.id, beside=step.beside, each=step.each,
        when=step.when or when, children=step.children,
    )  # fmt: skip


def _word(word: str, call: n.Call) -> PlanStep:
    args = list(call.args)
    options = next((arg for arg in reversed(args[1:]) if isinstance(arg, n.Object)), None)
    step_id = _option(options, "id")
    if word in {"parallel", "race"}:
        children = tuple(step for arg in args for step in _steps(arg))
        each = len(args) > 1 and isinstance(args[1], n.Lambda | n.Identifier)
        return PlanStep(word=word, id=step_id, beside=True, each=each, children=children)
    role = _role(args[0]) if word in {"assign", "fanout", "review", "approve"} and args else None
    tells = word in {"assign", "fanout"}
    told = args[1] if tells and len(args) > 1 else args[0] if args and word != "integrate" else None
    review = _property(options, "review")
    children = ()
    if isinstance(review, n.Object):
        children = (PlanStep(word="review", role=_option(review, "role"), text="reviews it"),)
    checks = _property(options, "verify")
    text = _text(told) if told is not None else ""
    if checks is not None:
        text = f"{text} [check: {_text(checks)}]".strip()
    return PlanStep(word=word, role=role, text=text, id=step_id, children=children)


def _role(target: n.Node) -> str | None:
    """The role that a target or a selector names."""
    if isinstance(target, n.Object):
        return _option(target, "role")
    return _text(target)


def _property(options: n.Object | None, key: str) -> n.Expr | None:
    for entry in options.props if options else ():
        if isinstance(entry, n.Property) and entry.key == key:
            return entry.value
    return None


def _option(options: n.Object | None, key: str) -> str | None:
    value = _property(options, key)
    return None if value is None else _text(value)


def _text(node: n.Node) -> str:
    if isinstance(node, n.String):
        return node.value
    if isinstance(node, n.Interpolated):
        return "".join(part if isinstance(part, str) else f"${{{_text(part)}}}" for part in node.parts)
    if isinstance(node, n.Expr):
        return prism.unparse(n.Program((n.ExpressionStatement(node),))).strip().rstrip(";")
    return ""
