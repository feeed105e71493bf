"""An org chart becomes Prism that a person would have written; every mistake is shown where it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from parallax import prism
from parallax.errors import NotFoundError, PatternError, UsageError
from parallax.models import Policy
from parallax.patterns.engine import PatternEngine, check_input, load
from parallax.patterns.org_chart import chart_of
from parallax.patterns.plan import plan_of
from parallax.patterns.shipped import shipped_patterns

SMALL = """
name: small
description: A small team.
roles:
  lead: {}
  engineer: {reportsTo: lead, maxInstances: 2, verify: quick}
input:
  goal: string
steps:
  - {id: work, type: assign, role: engineer, task: "Do ${input.goal} now"}
output: work
"""


@pytest.fixture
def write(tmp_path: Path):
    def make(text: str, name: str = "chart.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return make


def compiled(path: Path) -> str:
    return load(path).prism


def test_a_chart_compiles_to_tidy_prism(write) -> None:
    assert compiled(write(SMALL)) == (
        "// A small team.\n"
        'org({lead: {}, engineer: {reportsTo: "lead", max: 2, verify: "quick"}})\n'
        'const work = assign("engineer", "Do ${input.goal} now", {id: "work"})\n'
        "return work\n"
    )


def test_the_wrappers_structure_and_workflow_change_nothing(write) -> None:
    wrapped = """
name: small
structure:
  description: A small team.
  roles:
    lead: {}
    engineer: {reportsTo: lead, maxInstances: 2, verify: quick}
workflow:
  input:
    goal: string
  steps:
    - {id: work, type: assign, role: engineer, task: "Do ${input.goal} now"}
  output: work
"""
    assert compiled(write(wrapped)) == compiled(write(SMALL, "other.yaml"))


def test_json_is_read_as_well(write) -> None:
    text = '{"roles": {"a": {}}, "steps": [{"type": "assign", "role": "a", "task": "x"}]}'
    assert compiled(write(text, "team.json")) == 'org({a: {}})\nreturn assign("a", "x")\n'


def steps(text: str) -> str:
    return f"roles:\n  lead: {{}}\n  engineer: {{reportsTo: lead}}\nsteps:\n{text}"


@pytest.mark.parametrize(
    ("yaml", "expected"),
    [
        ("  - {type: ask, question: 'Go?'}\n", 'return askHuman("Go?")'),
        (
            "  - {type: select, role: engineer, criteria: availability}\n",
            'return select("engineer", {criteria: "availability"})',
        ),
        ("  - {type: verify, verify: [make, test]}\n", 'return verify(["make", "test"])'),
        ("  - {type: integrate, verify: full}\n", 'return integrate(null, {verify: "full"})'),
        (
            "  - {id: a, type: assign, role: lead, task: x}\n  - {type: approve, role: human, subject: '${a}'}\n",
            'const a = assign("lead", "x", {id: "a"})\nreturn approve("human", a)',
        ),
        (
            "  - {id: a, type: assign, role: lead, task: x}\n"
            "  - type: condition\n    check: a.ok == true\n    then: [{type: return, value: '${a}'}]\n"
            "    else: [{type: return, value: 'no ${a.why}'}]\n",
            'if (a.ok == true) { return a } else { return "no ${a.why}" }',
        ),
        (
            "  - type: parallel\n    limit: 2\n    steps:\n"
            "      - {type: assign, role: lead, task: x}\n      - {type: assign, role: engineer, task: y}\n",
            'parallel([() => assign("lead", "x"), () => assign("engineer", "y")], {limit: 2})',
        ),
        (
            "  - type: parallel\n    each: [1, 2]\n    as: part\n    steps:\n"
            "      - {id: one, type: assign, role: lead, task: '${part}'}\n",
            '(part, index) => assign("lead", part, {id: "one ${index}"})',
        ),
        (
            "  - {id: a, type: assign, role: lead, task: x}\n"
            "  - {type: aggregate, of: ['${a}', '${a}'], method: majority}\n",
            "return voting([a, a])",
        ),
        ("  - {type: assign, role: lead, task: x}\n  - {type: return, value: '${step_0_result}'}\n", "step_0_result"),
    ],
)
def test_each_step_becomes_its_word(write, yaml: str, expected: str) -> None:
    text = compiled(write(steps(yaml)))
    assert " ".join(expected.split()) in " ".join(text.split())
    assert not [d for d in prism.check(text) if d.severity == "error"]


@pytest.mark.parametrize(
    ("text", "place", "message", "hint"),
    [
        ("roles: {a: {reportTo: b}}\nsteps: [{type: assign, role: a, task: x}]", "1:13",
         "unknown key 'reportTo'", "did you mean 'reportsTo'?"),
        ("roles: {a: {}}\nsteps:\n  - {type: assign, role: b, task: x}", "3:26", "'b' is not a role", "roles: a"),
        ("roles: {a: {reportsTo: boss}}\nsteps: [{type: assign, role: a, task: x}]", "1:24",
         "'boss' is not a role", "roles: a"),
        ("roles: {a: {}}\nsteps:\n  - {type: asign, role: a, task: x}", "3:12", "input should be 'assign'", None),
        ("roles: {a: {}}\nsteps:\n  - {type: assign, role: a}", "3:5", "a step of type assign needs 'task'", None),
        ("roles: {a: {}}\nsteps:\n  - {type: assign, role: a, task: '${gaol}'}", "3:35",
         "unknown name 'gaol' in 'gaol'", "known here: context, input"),
        ("roles: {a: {}}\nsteps:\n  - {type: assign, role: a, task: '${input.x'}", "3:35", "'${' is never closed", None),
        ("roles: {a: {}}\nsteps:\n  - {type: assign, role: a, task: '${1 +}'}", "3:35",
         "in '1 +': Expected expression", None),
        ("roles: {a: {}}\nroles: {b: {}}\nsteps: []", "2:1", "the key 'roles' stands twice (first in line 1)", None),
        ("roles: {a: &x {}}\nsteps: [*x]", "1:12", "anchors are not allowed (&x)", None),
        ("roles: {a: {}}\n", "1:1", "'steps' is missing", None),
        ("steps: []\n", "1:1", "no 'roles': an org chart needs roles and steps", None),
        ("roles: {result: {}}\nsteps: [{type: assign, role: result, task: x}]", "1:9",
         "'result' is no name for a role", None),
        ("roles: {a: {reportsTo: b}, b: {reportsTo: a}}\nsteps: [{type: assign, role: a, task: x}]", "1:1",
         "the reporting line has a cycle: a -> b -> a", None),
        ("roles: {a: {minInstances: 0}}\nsteps: [{type: assign, role: a, task: x}]", "1:27",
         "input should be greater than or equal to 1, got 0", None),
        ("roles: {a: {budget: {dollars: 3}}}\nsteps: [{type: assign, role: a, task: x}]", "1:9",
         "role 'a': a budget is a number of dollars, or an object of money, tokens, turns, time, got 'dollars'", None),
        ("roles: {a: {budget: -1}}\nsteps: [{type: assign, role: a, task: x}]", "1:9",
         "role 'a': budget money must be a number above 0, got -1", None),
        ("roles: {a: {recovery: continue}}\nsteps: [{type: assign, role: a, task: x}]", "1:9",
         "recovery 'continue' is not served", None),
        ("roles: {a: {}}\nsteps: [{type: select, role: a, criteria: best}]", "2:43",
         "input should be 'availability'", None),
        ("- a\n- b\n", "1:1", "expected keys and values", None),
    ],
)  # fmt: skip
def test_a_mistake_is_shown_where_it_is_with_what_was_expected(
    write, text: str, place: str, message: str, hint: str | None
) -> None:
    with pytest.raises(PatternError) as raised:
        load(write(text))
    shown = str(raised.value)
    assert f"chart.yaml:{place}: " in shown, shown
    assert message in shown
    if hint:
        assert hint in shown


def test_all_mistakes_of_a_file_are_told_at_once(write) -> None:
    text = "roles: {a: {}}\nsteps:\n  - {type: assign, role: b, task: '${x}'}\n  - {type: assign, role: c, task: y}\n"
    with pytest.raises(PatternError) as raised:
        load(write(text))
    assert len(raised.value.mistakes) == 3


def test_a_name_of_a_branch_is_not_known_after_it(write) -> None:
    text = steps(
        "  - type: condition\n    check: 'true'\n    then: [{id: inner, type: assign, role: lead, task: x}]\n"
        "  - {type: return, value: '${inner}'}\n"
    )
    with pytest.raises(PatternError, match="unknown name 'inner'"):
        load(write(text))


def test_a_role_that_nobody_uses_is_a_warning(write) -> None:
    text = "roles: {a: {}, idle: {}}\nsteps: [{type: assign, role: a, task: x}]"
    assert [w.message for w in load(write(text)).warnings] == ["no step uses the role 'idle'"]


def test_untrusted_text_of_a_task_stays_text(write) -> None:
    text = steps('  - {type: assign, role: lead, task: "say \\"`${input.a}` \\\\ $\\"); org({})"}\n')
    pattern = load(write(text))
    (call,) = [s for s in pattern.program.tree.statements if isinstance(s, prism.nodes.Return)]
    assert isinstance(call.value, prism.nodes.Call)
    assert call.value.callee == prism.nodes.Identifier("assign")


# -- the team --------------------------------------------------------------------------------------------------------


def test_the_team_is_read_with_its_policies() -> None:
    chart = chart_of({
        "roles": {"a": {"confidence": {"accept": 0.9}, "timeout": 1500, "agentType": "claude"}, "b": {"min": 2, "max": 4}},
        "routing": [{"from": "*", "to": "a", "topics": ["x"], "priority": 3}],
        "escalation": {"timeoutMs": 2000, "maxDepth": 2},
    })  # fmt: skip
    assert chart.roles["a"].policy == Policy(accept=0.9)
    assert (chart.roles["a"].timeout_s, chart.roles["a"].agent_types) == (1.5, ("claude",))
    assert chart.roles["b"].instances == (2, 4)
    assert (chart.escalation.timeout_s, chart.escalation.max_depth) == (2.0, 2)


@pytest.mark.parametrize(
    ("roles", "message"),
    [
        ({"a": {"reportsTo": "b"}}, "role 'a' reports to 'b', which is not a role"),
        ({"a": {"presets": "x"}}, "role 'a' has the unknown key 'presets' (did you mean 'preset'?)"),
        ({"a": {"preset": "wild"}}, "preset must be one of readonly, standard, permissive, autonomous, got 'wild'"),
        ({"a": {"min": 3, "max": 2}}, "max not below min"),
        ({"a": {"confidence": {"accept": 0.1}}}, "0 <= escalateBelow <= retryBelow <= accept <= 1"),
        ({"a b": {}}, "'a b' is no name for a role"),
    ],
)
def test_a_team_that_makes_no_sense_is_refused_by_name(roles: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError) as raised:
        chart_of({"roles": roles})
    assert message in str(raised.value)


# -- finding, input, plan --------------------------------------------------------------------------------------------


def test_patterns_are_found_by_name_and_by_path_and_the_users_own_come_first(tmp_path: Path) -> None:
    (tmp_path / "fix.yaml").write_text(SMALL)
    engine = PatternEngine([("yours", tmp_path), ("shipped", shipped_patterns())])
    assert engine.get("fix").origin == "yours"
    assert engine.get("startup-team").origin == "shipped"
    assert engine.get(str(tmp_path / "fix.yaml")).origin == "file"
    with pytest.raises(NotFoundError, match="did you mean 'startup-team'"):
        engine.get("startup-taem")
    with pytest.raises(NotFoundError, match="no pattern file"):
        engine.get("./nope.yaml")


def test_a_changed_file_is_read_anew_and_a_broken_one_spares_the_others(tmp_path: Path) -> None:
    path = tmp_path / "one.yaml"
    path.write_text(SMALL)
    (tmp_path / "bad.yaml").write_text("roles: [")
    engine = PatternEngine([("yours", tmp_path)])
    first = engine.get("one").hash
    good, bad = engine.all()
    assert ([p.name for p in good], len(bad)) == (["small"], 1)
    path.write_text(SMALL.replace("now", "then"))
    assert engine.get("one").hash != first


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "missing input 'goal'"),
        ({"gaol": "x"}, "unknown input 'gaol' (did you mean 'goal'?)"),
        ({"goal": 7}, "input 'goal' must be of type string, got 7"),
        ({"goal": "x", "size": True}, "input 'size' must be of type integer, got true"),
        ({"goal": "x", "speed": "warp"}, "input 'speed' must be one of slow, fast, got 'warp'"),
    ],
)
def test_input_is_held_to_the_pattern(write, given: dict[str, object], message: str) -> None:
    text = SMALL.replace(
        "  goal: string\n",
        "  goal: {type: string, description: what}\n  size: {type: integer, default: 3}\n"
        "  speed: {type: string, required: false, enum: [slow, fast]}\n",
    )
    with pytest.raises(UsageError) as raised:
        check_input(load(write(text)), given)
    assert message in str(raised.value)


def test_defaults_fill_what_is_not_given(write) -> None:
    pattern = load(write(SMALL.replace("  goal: string\n", "  goal: string\n  size: {type: integer, default: 3}\n")))
    assert check_input(pattern, {"goal": "x"}) == {"goal": "x", "size": 3}


def test_a_plan_tells_team_steps_and_bounds_without_running() -> None:
    plan = plan_of(load(shipped_patterns() / "startup-team.yaml"), {"goal": "x"})
    assert plan.agents_at_most == 6
    assert [(s.word, s.id, s.beside, s.when) for s in plan.steps] == [
        ("assign", "plan", False, None),
        ("parallel", "built", True, None),
        ("integrate", "whole", False, None),
        ("approve", "sign-off", False, "confidence medium"),
        ("askHuman", "decide", False, "confidence default"),
    ]
    (build,) = plan.steps[1].children
    assert (build.role, build.text, build.children[0].role) == ("engineer", "task [check: quick]", "reviewer")


def test_a_script_has_its_metadata_in_its_first_comment(write) -> None:
    text = '/*\n * @name tool\n * @version 2.1.0\n * @description Does it.\n * @input {"n": "integer"}\n */\nreturn input.n\n'
    pattern = load(write(text, "tool.prism"))
    assert (pattern.name, pattern.version, pattern.description) == ("tool", "2.1.0", "Does it.")
    assert pattern.input_schema["n"]["type"] == "integer"


def test_a_script_with_a_mistake_says_where(write) -> None:
    with pytest.raises(PatternError, match=r"bad\.prism:2:"):
        load(write("let a = 1\nlet = 2\n", "bad.prism"))


def test_imports_of_a_script_are_pinned_with_it(tmp_path: Path) -> None:
    (tmp_path / "part.prism").write_text("export const n = 4\n")
    (tmp_path / "main.prism").write_text('import {n} from "./part"\nreturn n\n')
    pattern = load(tmp_path / "main.prism")
    assert set(pattern.program.bundle) == {"main.prism", "part.prism"}
    (tmp_path / "part.prism").write_text("export const n = 5\n")
    assert load(tmp_path / "main.prism").hash != pattern.hash
