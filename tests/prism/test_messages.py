"""Mistakes that people really make: message, line, caret and hint, word by word.

`messages.jsonl` holds them; a change of words there is meant to be seen in review.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from parallax.prism import Diagnostic, PrismError, check, evaluate

LINES = (Path(__file__).parent / "messages.jsonl").read_text(encoding="utf-8").splitlines()
MISTAKES = [json.loads(line) for line in LINES]


def test_there_are_enough_mistakes() -> None:
    assert len(MISTAKES) >= 100
    assert sum(m["hint"] is not None for m in MISTAKES) >= 100


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda m: m["source"][:40])
def test_mistake(mistake: dict[str, Any]) -> None:
    with pytest.raises(PrismError) as caught:
        evaluate(mistake["source"])
    error = caught.value
    assert type(error).__name__ in (mistake["error"], "PrismThrow")
    got = {"message": error.message, "line": error.line, "column": error.column, "hint": error.hint}
    assert got == {key: mistake[key] for key in got}
    assert error.excerpt == mistake["excerpt"]
    assert error.excerpt.split("\n")[1].index("^") == error.column


def test_a_parse_error_as_it_is_shown() -> None:
    with pytest.raises(PrismError) as caught:
        evaluate("let x = 1\n\n    break")
    assert caught.value.render() == (
        "ERROR: [PARSER_ERROR] 'break' is not inside a loop\n --> 3:4\n    break\n    ^\n"
        "hint: to leave a function or the program use return"
    )


def test_check_reports_several_mistakes_at_once() -> None:
    source = """let totl = 5
print(total)
let x = = 3
xs = [1 2]
let s = ```a```
max()
totl == 3
totl.push(2)
break
let y = 'open
let z = 1 & 2
"""
    found = [(d.severity, d.line, d.column, d.message) for d in check(source)]
    assert found == [
        ("warning", 2, 6, "Unknown name: total"),
        ("error", 3, 8, "Expected expression"),
        ("error", 4, 8, "Expected ']' after array elements"),
        ("warning", 5, 8, "Triple-backtick string: a Markdown fence inside ends it; use single backticks"),
        ("warning", 6, 0, "max() takes at least 1 argument, got 0"),
        ("warning", 7, 0, "The result of this comparison is not used"),
        ("warning", 8, 0, "The result of push() is not used"),
        ("error", 9, 0, "'break' is not inside a loop"),
        ("error", 10, 13, "Unexpected newline in string at line 10"),
        ("error", 11, 10, "Unexpected character '&' at line 11, column 10"),
    ]
    assert check(source)[0].hint == "did you mean 'totl'?"


def test_check_counts_the_arguments_of_own_functions_and_knows_what_was_declared() -> None:
    source = """\
fn both(a, b) { return a + b }
let some = (x, ...rest) => x
both(1)
some()
totl = both(1, 2, 3)
let total = 0
total = some(1, 2, 3)
"""
    assert [(d.line, d.message, d.hint) for d in check(source)] == [
        (3, "both() takes 2 arguments, got 1", None),
        (4, "some() takes at least 1 argument, got 0", None),
        (5, "Assignment to an undeclared name: totl", "did you mean 'total'?"),
        (5, "both() takes 2 arguments, got 3", None),
    ]
    several = "fn f(a) { a }\nif (1) { let f = () => 1\nf() }\nlet g = 1\ng = (x, y) => x\ng(1)"
    assert check(several) == []  # which function a name means is not known here


def test_check_is_silent_on_good_programs() -> None:
    assert check("let later = () => helper(1)\nfn helper(x) { x + input.n }\nlater()") == []
    assert isinstance(check("(")[0], Diagnostic)
