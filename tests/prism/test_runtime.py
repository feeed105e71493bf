"""Runs: globals, results, places of errors, limits with their amounts, inspection, modules."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from parallax.prism import (
    Limits,
    PrismError,
    PrismLimitError,
    PrismRuntime,
    PrismRuntimeError,
    PrismThrow,
    TraceEvent,
    compile_file,
    evaluate,
)
from parallax.prism import compile as compile_prism

from .fakes import FakeHost, run


def test_globals_come_in_and_plain_data_goes_out() -> None:
    result = evaluate(
        "{n: input.n + 1, sure: input.xs[0] ~> 0.5} ~> 0.25", globals={"input": {"n": 1, "xs": ["a", None]}}
    )
    assert (result.value, result.confidence) == ({"n": 2, "sure": {"value": "a", "confidence": 0.5}}, 0.25)
    assert type(result.value["n"]) is int


def test_an_error_knows_its_place_in_callbacks_and_functions() -> None:
    source = "fn f(x) {\n  return x.a\n}\n[1].map(y => f(y))"
    with pytest.raises(PrismRuntimeError) as caught:
        evaluate(source, path="p.prism")
    error = caught.value
    assert (error.path, error.line, error.column, error.excerpt) == ("p.prism", 2, 10, "  return x.a\n          ^")
    assert not error.retryable


def test_an_uncaught_throw_carries_its_value() -> None:
    with pytest.raises(PrismThrow, match=r"Uncaught throw: \{ code: 7 \}") as caught:
        evaluate("print(1); throw {code: 7}")
    assert caught.value.value == {"code": 7}
    assert caught.value.output == ["1"]


@pytest.mark.parametrize(
    ("source", "limits", "name", "amount"),
    [
        ("for i in range(9) { i }", Limits(loop_iterations=5), "loop iterations", 6),
        ("fn f(n) { f(n + 1) } f(0)", Limits(call_depth=10), "call depth", 11),
        ('"ab" + "cd"', Limits(string_size=3), "string size", 4),
        ("[1, 2].concat([3])", Limits(array_size=2), "array size", 3),
        ("({a: 1, b: 2})", Limits(object_size=1), "object size", 2),
        ("[[[1]]]", Limits(value_nesting=2), "value nesting", 3),
        ("(1 ~> 0.1) ~> 0.2", Limits(confident_layers=1), "confident layers", 2),
        ("print(1); print(2)", Limits(printed_lines=1), "printed lines", 2),
        ('print("abc")', Limits(printed_bytes=3), "printed bytes", 4),
        ("1 + 1", Limits(tokens=2), "tokens", 3),
        ("((1))", Limits(parse_nesting=1), "parse nesting", 2),
        ('"é"', Limits(source_size=3), "source size", 4),
    ],
)
def test_each_limit_names_itself(source: str, limits: Limits, name: str, amount: int) -> None:
    for text in (
        source,
        f"try {{ {source} }} catch (e) {{ 1 }}" if name not in ("tokens", "parse nesting", "source size") else source,
    ):
        with pytest.raises(PrismLimitError) as caught:
            evaluate(text, limits=limits)
        error = caught.value
        assert (error.name, error.amount) == (name, amount)
        assert error.message == f"Limit exceeded: {name} ({error.limit})"
        assert error.line >= 1


def test_finally_runs_after_a_limit_and_cannot_replace_it() -> None:
    with pytest.raises(PrismLimitError, match="loop iterations") as caught:
        evaluate('fn f() { try { while true { 1 } } finally { print("bye"); return 1 } } f()')
    assert caught.value.output == ["bye"]
    with pytest.raises(PrismLimitError, match="loop iterations"):
        evaluate('try { while true { 1 } } finally { throw "x" }')


def test_closures_take_the_variables_of_their_round() -> None:
    source = "let fs = []; for i in range(3) { let j = i; fs = fs.push(() => j) }; fs.map(f => f())"
    assert evaluate(source).value == [0, 1, 2]
    skips = "if (j == 1) { continue }; if (j == 4) { break }"
    source = (
        f"let fs = []; let i = 0; while i < 9 {{ let j = i; i += 1; {skips}; fs = fs.push(() => j) }}; fs.map(f => f())"
    )
    assert evaluate(source).value == [0, 2, 3]


def test_a_run_can_explain_a_confidence() -> None:
    result = evaluate("let a = 5 ~> 0.9\nlet b = a + (1 ~> 0.4)\nb", explain=True)
    why = result.why
    assert why is not None
    assert (why.rule, why.confidence, why.span.line) == ("+ takes the least", 0.4, 2)
    assert [(o.confidence, o.why.rule if o.why else None) for o in why.operands] == [
        (0.9, "stated with ~>"),
        (0.4, "stated with ~>"),
    ]
    assert "0.4: + takes the least (line 2, column 10)" in why.text()
    assert evaluate("1 ~> 0.4").why is None


async def test_a_run_can_be_traced() -> None:
    events: list[TraceEvent] = []
    source = "let x = 1 ~> 0.6\nnow()\nuncertain if (x) { medium { 2 } }"
    await PrismRuntime(compile_prism(source), FakeHost(), trace=events.append).run()
    assert [(e.kind, e.detail, e.span.line) for e in events] == [
        ("statement", "VariableDeclaration", 1),
        ("statement", "ExpressionStatement", 2),
        ("effect", "now", 2),
        ("statement", "UncertainIf", 3),
        ("band", "medium", 3),
        ("statement", "ExpressionStatement", 3),
    ]


BUNDLE = {
    "lib/math.prism": "export const two = 2\nexport fn twice(x) { x * two }\nexport default 'd'\nprint('once')",
    "lib/index.prism": "export * from './math'\nexport {twice as double} from './math'",
    "cycle.prism": "import {back} from './cycle2'\nexport const here = 1\nexport const seen = back",
    "cycle2.prism": "import {here} from './cycle'\nexport const back = here ?? 'early'",
    "bad.prism": "let = 1",
}


@pytest.mark.parametrize(
    ("source", "value"),
    [
        ("import d, {two as t, twice} from './lib/math'\n[d, t, twice(4)]", ["d", 2, 8]),
        ("import * as m from './lib'\n[m.double(3), m.two]", [6, 2]),
        ("import {seen} from './cycle'\nseen", "early"),
        ("import {two} from './lib/math.prism'\nimport {double} from './lib'\ndouble(two)", 4),
    ],
)
async def test_imports(source: str, value: object) -> None:
    assert (await run(source, bundle=BUNDLE)).value == value


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import {x} from './lib/math'", "Module lib/math.prism has no export named 'x'"),
        ("import x from './lib'", "Module lib/index.prism has no default export"),
        ("import {x} from './bad'", "Failed to load module bad.prism: Expected variable name"),
        ("import {x} from '../up'", "Cannot resolve module '../up'"),
        ("import {x} from './lib/../../up'", "Cannot resolve module"),
        ("import {x} from 'bare'", "Cannot resolve module 'bare'"),
        ("import {x} from '/abs'", "Cannot resolve module '/abs'"),
    ],
)
async def test_imports_that_fail(source: str, message: str) -> None:
    with pytest.raises(PrismError) as caught:
        await run(source, bundle=BUNDLE)
    assert message in caught.value.message


def test_a_bundle_is_gathered_inside_the_root(tmp_path: Path) -> None:
    root = tmp_path / "patterns"
    (root / "lib").mkdir(parents=True)
    (tmp_path / "secret.prism").write_text("export const x = 1")
    (root / "main.prism").write_text("import {y} from './lib/a'\nimport {x} from './link'\ny")
    (root / "lib" / "a.prism").write_text("export const y = 2")
    (root / "link.prism").symlink_to(tmp_path / "secret.prism")
    program = compile_file(root / "main.prism", root)
    assert sorted(program.bundle) == ["lib/a.prism", "main.prism"]
    assert program.hash == compile_file("main.prism", root).hash
    (root / "lib" / "a.prism").write_text("export const y = 3")
    assert program.hash != compile_file("main.prism", root).hash
    with pytest.raises(PrismRuntimeError, match=r"Cannot resolve module './link'"):
        asyncio.run(PrismRuntime(program, FakeHost()).run())
    with pytest.raises(PrismRuntimeError, match="Cannot resolve module"):
        compile_file(tmp_path / "secret.prism", root)


def test_programs_reach_no_python_object() -> None:
    for source in (
        "print.__class__",
        "''.__class__",
        "[].__len__",
        "({}).__dict__",
        "x => x.call",
        "__builtins__",
        "m",
        "g_print",
        "UNSET",
    ):
        try:
            value = evaluate(source).value
        except PrismError:
            continue
        assert value == "[Function: lambda]"
