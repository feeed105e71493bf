"""Printing and formatting: the tree survives, the house style holds, comments stay."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from parallax.prism import PrismError, nodes, parse, unparse
from parallax.prism import format as format_prism

SOURCES = [json.loads(line)["source"] for line in (Path(__file__).parent / "cases.jsonl").read_text().splitlines()]

MODEL = """\
org({
  lead: {},
  engineer: {max: 4, reportsTo: "lead"},
  reviewer: {reportsTo: "lead"}
})

const plan = assign("lead", "Split into at most 4 independent tasks: ${input.goal}", {
  id: "plan",
  schema: {type: "object", required: ["tasks"], properties: {tasks: {type: "array", maxItems: 4}}}
})

const built = parallel(plan.tasks, (task, i) => assign("engineer", task, {
  id: "build ${i}",
  verify: "quick",
  review: {role: "reviewer", maxRounds: 2}
}), {limit: 4, onError: "collect"})

const whole = integrate(built, {id: "integrate", verify: "full"})

uncertain if (whole, {high: 0.8, medium: 0.5}) {
  high { return whole }
  medium { return approve("lead", whole, {id: "sign-off"}) }
  default { return askHuman("Land a result at ${<~ whole}?", {id: "decide", input: whole}) }
}
"""


def test_every_case_survives_printing() -> None:
    for source in SOURCES:
        try:
            tree = parse(source)
        except PrismError:
            continue
        assert parse(unparse(tree)) == tree, source


def test_the_model_is_in_house_style() -> None:
    assert format_prism(MODEL) == MODEL


@pytest.mark.parametrize(
    ("source", "printed"),
    [
        ("1;(2)", "1\n2\n"),
        ("a;(-b)", "a;\n-b\n"),
        ("a;[b]", "a;\n[b]\n"),
        ("fn f() { return; 1 }", "fn f() {\n  return;\n  1\n}\n"),
        ("{ ; }", "{ ; }\n"),
        ("{ ; a }", "{ ;\n  a\n}\n"),
        ("~ -x", "~ -x\n"),
        ("x => ({})", "x => ({})\n"),
        ("(a ? b : c) |> f", "(a ? b : c) |> f\n"),
        ("-2 ** 2; -(2 ** 2); 2 ** 3 ** 2; (2 ** 3) ** 2", "-2 ** 2;\n-(2 ** 2)\n2 ** 3 ** 2;\n(2 ** 3) ** 2\n"),
        ("1 - (2 - 3) - 4", "1 - (2 - 3) - 4\n"),
        ('"\\${a} ${1} $\\n"', '"\\${a} ${1} $\\n"\n'),
        ("`a\nb ${'x'}`", '`a\nb ${"x"}`\n'),
        ("if (a) { b } else if (c) return; else { d }", "if (a) {\n  b\n} else if (c) return; else {\n  d\n}\n"),
        ("match x { n if (y => y) => 1, [a, , ] => ({}) }", "match x {\n  n if (y => y) => 1,\n  [a, ,] => ({})\n}\n"),
        ("let {a = 1, if: b, ...r} = o", "let {a = 1, if: b, ...r} = o\n"),
        ("1e21; 1e-7; 1e999; 0.1", "1e+21\n1e-7\n1e999\n0.1\n"),
        ("({'l m', k, 'k'})", '({"l m", k, k})\n'),
        ("[{'fn'}, {k, 'fn'}, {'fn': 1}]", '[{"fn"}, {k, "fn"}, {fn: 1}]\n'),
    ],
)
def test_corners(source: str, printed: str) -> None:
    tree = parse(source)
    assert unparse(tree) == printed
    assert parse(printed) == tree


def test_format_keeps_comments() -> None:
    source = "// one\n/* two\n   three */ let x = 1 // four\nfn f() { // five\n  x\n  // six\n}\n// seven\n"
    text = format_prism(source)
    assert [line.strip(" /") for line in text.splitlines() if "//" in line] == [
        "one",
        "two",
        "three",
        "four",
        "five",
        "six",
        "seven",
    ]
    assert format_prism(text) == text
    assert parse(text) == parse(source)


def test_trees_built_by_hand_print_with_their_comments() -> None:
    tree = nodes.Program(
        (
            nodes.const(
                "plan",
                nodes.call("assign", nodes.string("lead"), nodes.template("do ", nodes.name("goal"))),
                comment="Plan.",
            ),
            nodes.ret(nodes.from_json({"a": [1, -2, None, True], "b c": "x"})),
        )
    )
    text = '// Plan.\nconst plan = assign("lead", "do ${goal}")\nreturn {a: [1, -2, null, true], "b c": "x"}\n'
    assert unparse(tree) == text
    assert parse(text) == tree
    assert hash(tree) == hash(parse(text))
