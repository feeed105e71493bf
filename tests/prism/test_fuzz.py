"""Any text is a program or a typed error, within its limits. PARALLAX_FUZZ=N sets how many are tried."""

from __future__ import annotations

import os
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parallax.prism import Limits, PrismError, PrismLimitError, check, evaluate, parse, unparse

from .generator import Generator

COUNT = int(os.environ.get("PARALLAX_FUZZ", "2000"))
CHUNKS = 20
LIMITS = Limits(nodes=20_000)


def try_one(source: str, note: str) -> None:
    started = time.process_time()  # what the program costs, however busy the machine is
    try:
        tree = parse(source)
    except PrismError as error:
        assert error.line >= 1, note
    else:
        assert parse(unparse(tree)) == tree, f"{note}: printing changed the tree of {source!r}"
        try:
            evaluate(source, limits=LIMITS)
        except PrismLimitError as error:
            assert error.amount > error.limit, note
        except PrismError as error:
            assert error.message, note
    assert time.process_time() - started < 5, f"{note}: too slow: {source!r}"


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_generated_and_mutated_programs(chunk: int) -> None:
    for seed in range(chunk, COUNT, CHUNKS):
        source = Generator(seed).program()
        try:
            try_one(source, f"seed {seed}")
            if seed % 5 == 0:
                check(source)
        except Exception as error:
            raise AssertionError(f"seed {seed}: {source!r}") from error


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=st.characters(), max_size=60))
def test_any_text(source: str) -> None:
    try_one(source, "text")


DEEP = {
    "brackets": "[" * 100_000,
    "parentheses": "(" * 201 + "1" + ")" * 201,
    "prefixes": "!" * 50_000 + "1",
    "else if": "if (0) {1} " + "else if (0) {1} " * 3_000 + "else {2}",
    "ternaries": "1?1:" * 3_000 + "1",
    "lambdas": "x => " * 5_000 + "1",
    "templates": "`${" * 300 + "1" + "}`" * 300,
    "repeat": "'x'.repeat(1e9)",
    "pad": '"x".padStart(1e12)',
    "doubling": 'let s = "x"; for i in range(40) { s = s + s }',
    "interpolation": 'let s = "x"; for i in range(40) { s = "${s}${s}" }',
    "spread": "let a = [1]; for i in range(40) { a = [...a, ...a] }",
    "concat": "let a = [1]; for i in range(40) { a = a.concat(a) }",
    "nesting": "let a = []; for i in range(200) { a = [a] }",
    "layers": "let a = 1; for i in range(20) { a = a ~> 0.5 }",
    "mutual recursion": "fn a(n) { b(n) } fn b(n) { a(n) } a(1)",
    "recursion in callbacks": "let f = n => [n].map(x => f(n)); f(1)",
    "recursion in a comparator": "let f = n => [n, 1].sort((a, b) => f(n)); f(1)",
    "loop": "while true { 1 }",
    "nodes": "let f = () => { let n = 0; for i in range(100) { n += 1 } }; for i in range(90000) { f() }",
    "print": "for i in range(20000) { print(i) }",
    "json": 'JSON.parse("[".repeat(50000) + "]".repeat(50000))',
    "heap": 'let s = "x".repeat(1000000); let xs = []; for i in range(200) { xs = xs.push(s + i) }',
    "heap of arrays": "let xs = []; for i in range(200) { xs = xs.push(range(100000)) }",
    "tokens": "1;" * 60_000,
    "source": '"' + "x" * 300_000 + '"',
}


@pytest.mark.parametrize("name", DEEP)
def test_what_grows_without_end_is_a_limit_error(name: str) -> None:
    started = time.monotonic()
    with pytest.raises(PrismLimitError) as caught:
        evaluate(DEEP[name])
    assert caught.value.amount > caught.value.limit
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("source", "value"),
    [
        ("(" * 200 + "1" + ")" * 200, 1),
        ("+".join(["1"] * 3_000), 3_000),
        ("let f = x => x + 1; 1" + " |> f" * 500, 501),
        ("fn f(n) { if (n == 0) { return 0 } return f(n - 1) } f(199)", 0),
        ("".join("for x in [1] { " for _ in range(60)) + "1" + "}" * 60, 1),
        ("".join("try { " for _ in range(60)) + "1" + "} finally { 2 }" * 60, 1),
        ('let s = ""; for i in range(2000) { s = "x".repeat(100000) + i } s.length', 100_004),
    ],
)
def test_what_is_large_but_allowed_runs(source: str, value: int) -> None:
    assert evaluate(source).value == value
    assert parse(unparse(parse(source))) == parse(source)


AT_ONCE = {
    "brackets": "(" * 100_000,
    "braces": "{" * 100_000,
    "prefixes": "-" * 90_000 + "1",
    "mixed prefixes": "!~ " * 40_000 + "1",
    "templates": "`${" * 3_000 + "1" + "}`" * 3_000,
    "strings in strings": '"${' * 3_000 + "1" + '}"' * 3_000,
    "a giant literal": '"' + "a" * 300_000 + '"',
    "an unclosed string": '"' + "a" * 200_000,
    "a NUL byte": "let a = 1\0",
    "powers": "let x = 2; for i in range(100000) { x = String(x ** x).repeat(100000) }",
    "growth": 'let s = "x"; while true { s = s + s }',
    "mutual recursion": "fn f(n) { return g(n) } fn g(n) { return f(n) } f(1)",
    "repeat": "'x'.repeat(1e9)",
}


@pytest.mark.parametrize("name", AT_ONCE)
def test_a_hostile_text_is_refused_at_once(name: str) -> None:
    """Within 50 ms of processor time (three times as much is allowed here)."""
    taken = []
    for _ in range(3):
        started = time.process_time()
        with pytest.raises(PrismError):
            evaluate(AT_ONCE[name])
        taken.append(time.process_time() - started)
    print(f"{name}: {min(taken) * 1000:.1f} ms")
    assert min(taken) < 0.15


def test_nested_trials_stay_linear() -> None:
    source = "[a ~> (() => { " * 40 + "1" + " })]" * 40
    started = time.monotonic()
    assert parse(unparse(parse(source))) == parse(source)
    check(source)
    assert time.monotonic() - started < 5
