"""Org charts in YAML -> a Prism tree; and the only reader of the team's shape, `chart_of`.

`engine` calls `compile_chart` with a document that it has read; the run and the plan call `chart_of` with what the
`org` effect holds, whatever the format was. The compiled program is in the house dialect of the specification: `org`,
then one statement per step, as a person would have written it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from parallax import prism
from parallax.documents import Document, Path, did_you_mean
from parallax.errors import Mistake, UsageError
from parallax.models import Budget, Escalation, Json, OrgChart, Policy, Role, Route
from parallax.patterns.chart_model import ChartModel, EscalationModel, RoleModel, RoutingModel, StepModel
from parallax.prism import nodes as n

SIMPLE_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# Keys that the shape of a team has and this version does not act on, with the values that need no action.
NOT_SERVED: Final[dict[str, tuple[str, ...]]] = {
    "expertise": (), "recovery": ("restart",), "workspace": ("agent", "none"),
}  # fmt: skip
PRESETS: Final = ("readonly", "standard", "permissive", "autonomous")
BUILTINS: Final = frozenset(
    {
        "map",
        "filter",
        "reduce",
        "range",
        "max",
        "min",
        "confidence",
        "threshold",
        "aggregate",
        "sortBy",
        "groupBy",
        "Object",
        "JSON",
        "Math",
        "Number",
        "String",
        "Boolean",
        "Array",
        "Promise",
        "voting",
        "consensus",
        "merge",
        "best",
        "first",
        "average",
        "majorityVote",
    }
)  # what an expression in a chart may call: pure functions alone, the words are steps
MESSAGE_TYPES: Final = ("permission", "question", "approval")
WORKSPACES: Final = ("agent", "role", "step", "readonly", "none")


# -- the shape of the team ---------------------------------------------------------------------------------------------


def chart_of(value: Json) -> OrgChart:
    """Read what `org` declares: `{roles, routing, escalation}`. Raises UsageError that names the role and the key."""
    roles = {}
    for name, given in (value.get("roles") or {}).items():
        if name == "result" or not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]{0,30}", name):
            raise UsageError(f"'{name}' is no name for a role: letters, digits, - and _, not 'result'")
        roles[name] = _role(name, given or {})
    for role in roles.values():
        if role.reports_to is not None and role.reports_to not in roles:
            hint = did_you_mean(role.reports_to, roles) or f"roles: {', '.join(roles)}"
            raise UsageError(f"role '{role.name}' reports to '{role.reports_to}', which is not a role ({hint})")
    if (cycle := reporting_cycle(roles)) is not None:
        raise UsageError(f"the reporting line has a cycle: {' -> '.join(cycle)}")
    routing = tuple(_route(entry) for entry in value.get("routing") or ())
    escalation = _escalation(value.get("escalation") or {})
    _check_ways(roles, routing, escalation)
    return OrgChart(roles=roles, routing=routing, escalation=escalation)


def _check_ways(roles: Mapping[str, Role], routing: Sequence[Route], escalation: Escalation) -> None:
    """Every question's way ends at somebody."""
    named = [("routing", name) for route in routing for name in (*route.sources, route.target) if name != "*"]
    for place, name in [*named, *(("escalation", name) for name in escalation.topic_routes.values())]:
        if name not in roles:
            hint = did_you_mean(name, roles) or f"roles: {', '.join(roles) or 'none'}"
            raise UsageError(f"{place}: '{name}' is not a role ({hint})")
    for kind in (kind for route in routing for kind in route.message_types):
        if kind not in MESSAGE_TYPES:
            raise UsageError(f"routing: '{kind}' is no message type ({', '.join(MESSAGE_TYPES)})")


def reporting_cycle(roles: Mapping[str, Role]) -> list[str] | None:
    """The roles of a circle in the reporting line, or None."""
    for start in roles:
        seen, at = [start], roles[start].reports_to
        while at is not None and at in roles:
            if at == start:
                return [*seen, start]
            if at in seen:
                break
            seen.append(at)
            at = roles[at].reports_to
    return None


def _role(name: str, given: Mapping[str, Any]) -> Role:
    known = {
        "agentType", "capabilities", "reportsTo", "min", "max", "expertise", "description", "confidence", "verify",
        "budget", "preset", "workspace", "recovery", "timeout",
    }  # fmt: skip
    for key in given:
        if key not in known:
            raise UsageError(
                f"role '{name}' has the unknown key '{key}' ({did_you_mean(key, known) or ', '.join(sorted(known))})"
            )
    for key, served in NOT_SERVED.items():
        if given.get(key) not in (None, [], *served):
            raise UsageError(f"role '{name}': {key} {given[key]!r} is not served in this version; leave it out")
    low, high = int(given.get("min") or 1), int(given.get("max") or given.get("min") or 1)
    if low < 1 or high < low:
        raise UsageError(f"role '{name}': min and max must be at least 1, and max not below min (got {low}, {high})")
    types = given.get("agentType") or ()
    policy = given.get("confidence")
    timeout = given.get("timeout")
    return Role(
        name=name,
        agent_types=(types,) if isinstance(types, str) else tuple(types),
        capabilities=tuple(given.get("capabilities") or ()),
        reports_to=given.get("reportsTo"),
        instances=(low, high),
        expertise=tuple(given.get("expertise") or ()),
        description=given.get("description") or "",
        policy=None if policy is None else _policy(name, policy),
        verify=given.get("verify"),
        budget=_budget(name, given.get("budget")),
        preset=_one_of(name, "preset", given.get("preset") or "standard", PRESETS),
        workspace=_one_of(name, "workspace", given.get("workspace") or "agent", WORKSPACES),
        recovery=_one_of(name, "recovery", given.get("recovery") or "restart", ("restart", "continue")),
        timeout_s=None if timeout is None else float(timeout) / 1000,
    )


def _budget(name: str, value: Json) -> Budget:
    try:
        return Budget.read(value)
    except ValueError as error:
        raise UsageError(f"role '{name}': {error}") from None


def _policy(name: str, given: Mapping[str, Any]) -> Policy:
    default = Policy()
    policy = Policy(
        accept=float(given.get("accept", default.accept)),
        retry_below=float(given.get("retryBelow", default.retry_below)),
        escalate_below=float(given.get("escalateBelow", default.escalate_below)),
        max_rounds=int(given.get("maxRounds", default.max_rounds)),
    )
    if not 0 <= policy.escalate_below <= policy.retry_below <= policy.accept <= 1:
        raise UsageError(f"role '{name}': confidence needs 0 <= escalateBelow <= retryBelow <= accept <= 1")
    return policy


def _one_of(role: str, key: str, value: str, known: Sequence[str]) -> str:
    if value not in known:
        raise UsageError(f"role '{role}': {key} must be one of {', '.join(known)}, got '{value}'")
    return value


def _route(given: Mapping[str, Any]) -> Route:
    sources = given.get("from") or "*"
    return Route(
        sources=(sources,) if isinstance(sources, str) else tuple(sources),
        target=given["to"],
        topics=tuple(given.get("topics") or ()),
        message_types=tuple(given.get("messageTypes") or ()),
        priority=int(given.get("priority") or 0),
    )


def _escalation(given: Mapping[str, Any]) -> Escalation:
    default = Escalation()
    timeout = given.get("timeoutMs")
    return Escalation(
        default_behavior=given.get("defaultBehavior") or default.default_behavior,
        topic_routes=dict(given.get("topicRoutes") or {}),
        timeout_s=default.timeout_s if timeout is None else float(timeout) / 1000,
        max_depth=int(given.get("maxDepth") or default.max_depth),
        on_max_depth=given.get("onMaxDepth") or default.on_max_depth,
    )


# -- YAML to Prism -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class CompiledChart:
    """What a document came to."""

    tree: n.Program
    input_schema: Mapping[str, Json]
    warnings: tuple[Mistake, ...]


def compile_chart(document: Document, model: ChartModel) -> tuple[CompiledChart | None, list[Mistake]]:
    """Compile a checked document; returns what it came to, and every mistake."""
    compiler = _Compiler(document, model)
    compiled = compiler.compile()
    return (None if compiler.mistakes else compiled), compiler.mistakes


class _Compiler:
    def __init__(self, document: Document, model: ChartModel) -> None:
        self._document = document
        self._model = model
        self._wrapped = "structure" in document.value
        self._flow_wrapped = "workflow" in document.value
        self.mistakes: list[Mistake] = []
        self.warnings: list[Mistake] = []
        self._names = {"input", "context"}
        self._used_roles: set[str] = set()

    def compile(self) -> CompiledChart:
        roles = self._model.roles
        self._check_roles()
        statements: list[n.Statement] = [self._org()]
        steps_path: Path = ("workflow", "steps") if self._flow_wrapped else ("steps",)
        ends = self._model.output is None  # then the last step's value is the program's
        statements += self._steps(self._model.steps, steps_path, numbered=True, ends=ends)
        if self._model.output is not None:
            path: Path = ("workflow", "output") if self._flow_wrapped else ("output",)
            statements.append(n.ret(self._guarded(self._output(), path)))
        for role in roles:
            leads = any(other.reports_to == role for other in roles.values())
            if role not in self._used_roles and not leads:
                self.warnings.append(
                    self._at(self._role_path(role), f"no step uses the role '{role}'", key=True, severity="warning")
                )
        return CompiledChart(
            tree=n.Program(tuple(statements)),
            input_schema={name: field.as_schema() for name, field in self._model.input.items()},
            warnings=tuple(self.warnings),
        )

    # places

    def _at(self, path: Path, message: str, **more: Any) -> Mistake:
        return self._document.mistake(path, message, **more)

    def _role_path(self, role: str) -> Path:
        return ("structure", "roles", role) if self._wrapped else ("roles", role)

    # the team

    def _check_roles(self) -> None:
        roles = self._model.roles
        for name, role in roles.items():
            if role.reports_to is not None and role.reports_to not in roles:
                self.mistakes.append(
                    self._at(
                        (*self._role_path(name), "reportsTo"),
                        f"'{role.reports_to}' is not a role",
                        hint=did_you_mean(role.reports_to, roles) or f"roles: {', '.join(roles)}",
                    )
                )
        if self.mistakes:
            return
        try:
            chart_of(self._org_json())
        except UsageError as error:
            ways = str(error).partition(":")[0]
            if ways in {"routing", "escalation"}:
                place: Path = ("structure", ways) if self._wrapped else (ways,)
            else:
                place = next((p for name in roles if f"'{name}'" in str(error) and (p := self._role_path(name))), ())
            self.mistakes.append(self._at(place, str(error), key=True))

    def _org_json(self) -> dict[str, Any]:
        return {
            "roles": {name: _role_json(role) for name, role in self._model.roles.items()},
            "routing": [_routing_json(entry) for entry in self._model.routing],
            "escalation": _escalation_json(self._model.escalation),
        }

    def _org(self) -> n.Statement:
        value = self._org_json()
        more = {key: n.from_json(value[key]) for key in ("routing", "escalation") if value[key]}
        roles = n.from_json(value["roles"])
        call = n.call("org", roles, n.obj(more)) if more else n.call("org", roles)
        about = self._model.description.strip().splitlines()
        return n.do(call, comment=about[0] if about else None)

    # steps

    def _steps(
        self, steps: Sequence[StepModel], path: Path, *, ends: bool, numbered: bool = False
    ) -> list[n.Statement]:
        """Statements of a list of steps; with `ends`, the program ends with the value of the last one."""
        statements: list[n.Statement] = []
        for index, step in enumerate(steps):
            here = (*path, index)
            name = _variable(step.id) if step.id and "${" not in step.id else None
            if name is None and numbered and step.has_value:
                name = f"step_{index}_result"
            statements.append(self._statement(step, here, name, ends=ends and index == len(steps) - 1))
            if name is not None:
                self._names.add(name)
        return statements

    def _block(self, steps: Sequence[StepModel], path: Path, *, ends: bool) -> n.Block:
        """Steps in a scope of their own: their names are not known after it."""
        known = set(self._names)
        block = n.Block(tuple(self._steps(steps, path, ends=ends)))
        self._names = known
        return block

    def _statement(self, step: StepModel, path: Path, name: str | None, *, ends: bool = False) -> n.Statement:
        comment = step.description
        match step.type:
            case "return":
                return n.ret(self._value(step.value, (*path, "value")), comment=comment)
            case "condition":
                return self._condition(step, path, comment, ends=ends)
            case "confidence":
                return self._confidence(step, path, comment, ends=ends)
            case "sequential":
                return n.Block(tuple(self._steps(step.steps, (*path, "steps"), ends=ends)), comment=comment)
            case _:
                call = self._call(step, path, each=None)
                if ends:
                    return n.ret(call, comment=comment)
                return n.const(name, call, comment=comment) if name else n.do(call, comment=comment)

    def _condition(self, step: StepModel, path: Path, comment: str | None, *, ends: bool) -> n.Statement:
        test = self._guarded(step.check or "", (*path, "check"))
        then = self._block(step.then, (*path, "then"), ends=ends)
        otherwise = self._block(step.otherwise, (*path, "else"), ends=ends) if step.otherwise else None
        return n.If(test, then, otherwise, comment=comment)

    def _confidence(self, step: StepModel, path: Path, comment: str | None, *, ends: bool) -> n.Statement:
        value = self._value(step.of, (*path, "of"))
        branches = tuple(
            n.Branch(band, self._block(steps, (*path, band), ends=ends))
            for band in ("high", "medium", "low", "default")
            if (steps := getattr(step, band))
        )
        bands = n.from_json(step.bands) if step.bands else None
        return n.UncertainIf(value, branches, bands, comment=comment)

    def _call(self, step: StepModel, path: Path, *, each: str | None) -> n.Expr:
        options = self._options(step, path, each)
        match step.type:
            case "assign":
                self._role(step.role, (*path, "role"))
                return _call("assign", options, n.string(step.role or ""), self._value(step.task, (*path, "task")))
            case "review" | "approve":
                key = "role" if step.role else "reviewer" if step.reviewer else "approver"
                role = step.role or step.reviewer or step.approver or ""
                if role != "human" or step.type == "review":
                    self._role(role, (*path, key))
                subject = self._value(step.subject, (*path, "subject"))
                return _call(step.type, options, n.string(role), subject)
            case "integrate":
                results = n.Null() if step.results is None else self._value(step.results, (*path, "results"))
                return n.call("integrate", *([results, options] if options.props else [results]))
            case "verify":
                return _call("verify", options, n.from_json(step.verify))
            case "ask":
                return _call("askHuman", options, self._value(step.question, (*path, "question")))
            case "select":
                self._role(step.role, (*path, "role"))
                return _call("select", options, n.string(step.role or ""))
            case "aggregate":
                return self._aggregate(step, path)
            case "parallel":
                return self._parallel(step, path, options)
            case _:
                raise AssertionError(step.type)

    def _aggregate(self, step: StepModel, path: Path) -> n.Expr:
        of = self._value(step.of, (*path, "of"))
        match step.method:
            case "majority":
                return n.call("voting", of)
            case "consensus":
                return n.call("consensus", of, n.obj(threshold=n.number(step.threshold or 0.7)))
            case "merge" | "best":
                return n.call(step.method, of)
            case _:
                return of

    def _parallel(self, step: StepModel, path: Path, options: n.Object) -> n.Expr:
        inner = (*path, "steps")
        if step.each is None:
            branches = n.array(
                [n.lambda_([], self._body([entry], (*inner, i), each=None)) for i, entry in enumerate(step.steps)]
            )
            return _call("parallel", options, branches)
        items = self._value(step.each, (*path, "each"))
        element = step.as_ or "item"
        hidden = {element, "index"} - self._names
        self._names |= hidden
        body = self._body(step.steps, inner, each="index")
        self._names -= hidden
        return _call("parallel", options, items, n.lambda_([element, "index"], body))

    def _body(self, steps: Sequence[StepModel], path: Path, *, each: str | None) -> n.Block | n.Expr:
        if len(steps) == 1 and steps[0].has_value and steps[0].type != "return":
            here = path if each is None else (*path, 0)
            return self._call(steps[0], here, each=each)
        known = set(self._names)
        statements = [
            self._branch_statement(step, (*path, i), each, last=i == len(steps) - 1) for i, step in enumerate(steps)
        ]
        self._names = known
        return n.Block(tuple(statements))

    def _branch_statement(self, step: StepModel, path: Path, each: str | None, *, last: bool) -> n.Statement:
        if not step.has_value or step.type == "return":
            return self._statement(step, path, None)
        call = self._call(step, path, each=each)
        if last:
            return n.ret(call)
        if step.id and "${" not in step.id:
            self._names.add(_variable(step.id))
            return n.const(_variable(step.id), call)
        return n.do(call)

    def _options(self, step: StepModel, path: Path, each: str | None) -> n.Object:
        entries: dict[str, n.Expr] = {}
        if step.id:
            text = step.id if each is None or "${" in step.id else f"{step.id} ${{{each}}}"
            entries["id"] = self._value(text, (*path, "id"))
        for key, value in step.options().items():
            if key == "input":
                entries[key] = self._value(value, (*path, key))
            elif key == "review":
                self._role(value.get("role"), (*path, "review", "role"))
                entries[key] = n.from_json(value)
            else:
                entries[key] = n.from_json(value)
        return n.obj(entries)

    def _role(self, role: str | None, path: Path) -> None:
        roles = self._model.roles
        if role not in roles:
            self.mistakes.append(
                self._at(
                    path,
                    f"'{role}' is not a role",
                    hint=did_you_mean(role or "", roles) or f"roles: {', '.join(roles) or 'none'}",
                )
            )
        else:
            self._used_roles.add(role)

    # values and expressions

    def _output(self) -> str:
        text = self._model.output or ""
        return text[2:-1] if text.startswith("${") and text.endswith("}") else text

    def _value(self, value: Json, path: Path) -> n.Expr:
        """A value whose strings may hold `${...}`: a string that is one expression keeps its type."""
        match value:
            case str():
                return self._text(value, path)
            case list():
                return n.array([self._value(entry, (*path, i)) for i, entry in enumerate(value)])
            case dict():
                return n.obj({key: self._value(entry, (*path, key)) for key, entry in value.items()})
            case _:
                return n.from_json(value)

    def _text(self, text: str, path: Path) -> n.Expr:
        parts: list[str | n.Expr] = []
        rest = text.strip() if text.strip().startswith("${") and _closes_at_end(text.strip()) else text
        while (start := rest.find("${")) >= 0:
            end = _closing(rest, start + 2)
            if end is None:
                self.mistakes.append(self._at(path, "'${' is never closed"))
                return n.string(text)
            parts.append(rest[:start])
            parts.append(self._guarded(rest[start + 2 : end], path))
            rest = rest[end + 1 :]
        parts.append(rest)
        spoken = [part for part in parts if part != ""]
        if len(spoken) == 1 and not isinstance(spoken[0], str):
            return spoken[0]
        return n.template(*spoken) if spoken else n.string("")

    def _guarded(self, source: str, path: Path) -> n.Expr:
        """An expression in Prism; its mistakes are told at its place in the document."""
        try:
            tree = prism.parse(f"({source}\n)")
        except prism.PrismError as error:
            self.mistakes.append(self._at(path, f"in '{source}': {error.message}"))
            return n.Null()
        if len(tree.statements) != 1 or not isinstance(tree.statements[0], n.ExpressionStatement):
            self.mistakes.append(self._at(path, f"'{source}' is not one expression"))
            return n.Null()
        value = tree.statements[0].value
        for node in n.walk(value):
            if isinstance(node, n.Identifier) and node.name not in self._names and not _declared(value, node.name):
                if node.name in BUILTINS:
                    continue
                known = sorted(self._names)
                self.mistakes.append(
                    self._at(
                        path,
                        f"unknown name '{node.name}' in '{source}'",
                        hint=did_you_mean(node.name, known) or f"known here: {', '.join(known)}",
                    )
                )
        return value


def _call(word: str, options: n.Object, *args: n.Expr) -> n.Expr:
    return n.call(word, *args, *([options] if options.props else []))


def _declared(value: n.Expr, name: str) -> bool:
    """Whether the expression itself declares the name, as a parameter or in a pattern."""
    return any(
        isinstance(node, n.Parameter) and isinstance(node.target, n.Identifier) and node.target.name == name
        for node in n.walk(value)
    )


def _variable(step_id: str) -> str:
    name = re.sub(r"[^A-Za-z0-9_]", "_", step_id)
    return name if SIMPLE_NAME.fullmatch(name) else f"_{name}"


def _closing(text: str, start: int) -> int | None:
    depth = 0
    for index in range(start, len(text)):
        if text[index] == "{":
            depth += 1
        elif text[index] == "}":
            if depth == 0:
                return index
            depth -= 1
    return None


def _closes_at_end(text: str) -> bool:
    return _closing(text, 2) == len(text) - 1


def _role_json(role: RoleModel) -> dict[str, Any]:
    high = 1 if role.singleton else role.max_instances or role.min_instances
    given = {
        "description": role.description or None,
        "agentType": role.agent_type,
        "capabilities": role.capabilities or None,
        "expertise": role.expertise or None,
        "reportsTo": role.reports_to,
        "min": role.min_instances if role.min_instances and role.min_instances > 1 else None,
        "max": high if high and high > 1 else None,
        "confidence": role.confidence,
        "verify": role.verify,
        "budget": role.budget,
        "preset": role.preset,
        "workspace": role.workspace,
        "recovery": role.recovery,
        "timeout": role.timeout,
    }
    return {key: value for key, value in given.items() if value is not None}


def _routing_json(entry: RoutingModel) -> dict[str, Any]:
    return entry.model_dump(by_alias=True, exclude_none=True, exclude_defaults=True)


def _escalation_json(entry: EscalationModel | None) -> dict[str, Any]:
    return {} if entry is None else entry.model_dump(by_alias=True, exclude_none=True, exclude_defaults=True)
