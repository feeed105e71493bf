"""One sentence of help for the mistakes that people really make.

A message says what is wrong in the words of the specification; the hint says what to write instead. The parser asks
with the tokens around the place, the runtime with the message alone, when an error leaves the run.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

from .lexer import Token

COMPARE = "'=' assigns and is a statement: compare with === or =="
FOR = "a for loop takes no parentheses: for x in xs { … } or for let i = 0; i < n; i = i + 1 { … }"
NO_LOOP = "to leave a function or the program use return"

_FOREIGN = {
    "+": "there is no unary +: use Number(x)",
    ".": "a number starts with a digit: 0.5",
    "->": "a function is x => …",
    "=>": "a function is x => … or (a, b) => …",
    "function": "a function value is a lambda: x => …",
    "fn": "a function value is a lambda: x => …",
    "else": "an else belongs right after the block of its if, without a semicolon",
    "return": "return is a statement: it cannot stand inside an expression",
    "throw": "throw is a statement: it cannot stand inside an expression",
    "}": "something is missing before this '}'",
    ")": "something is missing before this ')'",
    "]": "something is missing before this ']'",
}
NAMES = {
    "var": "declare with let or const",
    "def": "a function is declared with fn: fn f(a) { … }",
    "func": "a function is declared with fn: fn f(a) { … }",
    "elif": "write else if",
    "new": "there are no classes: write an object, {…}",
    "class": "there are no classes: write an object, {…}",
    "switch": "use match x { 1 => …, _ => … }",
    "not": "'not' is !",
    "and": "'and' is &&",
    "or": "'or' is ||",
    "this": "there are no methods of objects: pass the value as an argument",
    "setTimeout": "wait with sleep(ms)",
    "require": 'write import {name} from "./file"',
    "None": "write null",
    "nil": "write null",
    "True": "write true",
    "False": "write false",
    "len": "write xs.length",
    "str": "write String(x)",
    "int": "write Number(x)",
    "parseInt": "write Number(x)",
    "log": "write print(x)",
    "Date": "the time is now()",
    "Error": 'throw any value: throw "what went wrong"',
}
_UNCLOSED = {"'}'": "a '{' is not closed", "')'": "a '(' is not closed", "']'": "a '[' is not closed"}

_PARSE = (
    ("Expected ')' after arguments", "arguments are separated by commas"),
    ("Expected ']' after array", "elements are separated by commas"),
    ("Expected '}' after object", "properties are separated by commas: {a: 1, b: 2}"),
    ("Expected '(' after 'if'", "the condition of an if stands in parentheses"),
    ("Expected '(' after 'uncertain if'", "the value stands in parentheses: uncertain if (x) { high { … } }"),
    ("Expected 'if', 'for', or 'while'", "write uncertain if (x) { high { … } default { … } }"),
    ("Expected 'high'", "a branch is high { … }, medium { … }, low { … } or default { … }"),
    ("Expected ':' after true branch", "a conditional has both branches: c ? x : y"),
    ("Expected ':' after reserved word", "a reserved word as a key needs a value: {high: 1}"),
    ("Unexpected '=' in object literal", "a key and its value are joined by ':'"),
    ("const declarations", "use let for a value that comes later"),
    ("Expected function name", "a declared function has a name; a function value is x => …"),
    ("A parameter without a default", "put the parameters with defaults last"),
    ("Rest parameter", "…rest takes all arguments that are left, so nothing can follow it"),
    ("Expected 'catch'", "write try { … } catch (e) { … }"),
    ("Expected '{' after 'try'", "write try { … } catch (e) { … }"),
    ("Expected '{' before function body", "a function body stands in braces: fn f(a) { … }"),
    ("Expected '=>'", "an arm is pattern => value"),
    ("Expected ',' or '}' after match arm", "arms are separated by commas"),
    ("Expected match pattern", "a pattern is a literal, a name, _, [a, b] or {k}; else use a guard: n if (n < 0) => …"),
    ("Expected ';' after for loop", "a counting loop is for let i = 0; i < n; i = i + 1 { … }"),
    ("Expected module path", 'the path is a string: from "./file"'),
    ("Expected import specifier", 'write import {name} from "./file"'),
    ("Expected 'function' after 'async'", "async stands before fn only, and changes nothing"),
    ("Expected '=' after destructuring", "only an assignment takes a threshold for all: [a] ~> 0.5 = e"),
    ("Expected property name", "a key is a name or a string"),
    ("Empty interpolation", "write an expression between ${ and }"),
    ("Expected 'while' after do", "write do { … } while c"),
    ("Values are immutable", None),
)  # fmt: skip

_RUN = (
    ("Cannot apply unary -", "convert first: Number(x)"),
    (r"Cannot apply [-+*/%]+ to (null|\w+ and null)", "a value is null here: give it a default with x ?? 0"),
    (r"Cannot apply \+", "join as text in a string: \"${a}${b}\""),
    ("Cannot apply", "convert first: Number(x)"),
    ("Cannot compare", "convert first: Number(x) or String(x)"),
    (r"Cannot access property '.*' on null", "x?.name gives null where nothing is"),
    ("Cannot access property", "only objects have properties"),
    ("Property '.*' does not exist", "x?.name gives null where nothing is"),
    ("(Array|String) index .* out of bounds", "indexes start at 0; xs.at(i) gives null outside"),
    ("Object index must be a string", 'write o["key"] or o.key'),
    ("(Lambda|Function) expects", "give a parameter a default to make it optional: (a, b = null) => …"),
    ("Cannot call non-function", "only functions can be called"),
    ("Cannot spread non-array", "spread needs an array: \"ab\".split(\"\")"),
    ("Argument to |Second argument to", "pass a function: x => …"),
    ("for...in loop requires", 'walk the characters of a string with "ab".split("")'),
    ("Cannot destructure", "the right side has another shape than the pattern"),
    ("Confidence must be between", "a confidence is a number from 0 to 1"),
    ("Confidence value must be a number", "a confidence is a number from 0 to 1"),
    ("Uncertain if requires", "give the value a confidence: x ~> 0.8"),
    (".* requires confident values", "give one side a confidence: x ~> 0.8"),
    ("Pipeline right side", "write x |> f or x |> f(_, 2)"),
    ("Cannot assign to const", "declare it with let"),
    ("Variable '.*' already declared", "assign without let, or choose another name"),
    ("Division by zero|Modulo by zero", "test the divisor first: n === 0 ? 0 : x / n"),
    (r"max\(\) requires numeric|min\(\) requires numeric", "convert first: xs.map(x => Number(x))"),
    (r"Array.sort\(\) needs", "pass a comparator: xs.sort((a, b) => a.n - b.n)"),
    (r"JSON.parse\(\) failed", "catch it: try { JSON.parse(t) } catch (e) { … }"),
    ("Uncaught throw", "catch it: try { … } catch (e) { … }"),
    ("Import statements|Export statements", "run the file as a pattern"),
    ("No host", "run it as a pattern: parallax run"),
    ("Right-hand side of instanceof", 'the right side is a type name: x instanceof "array"'),
    (r"\w+\(\) id '.*' must match", "an id is 1 to 63 letters, digits, spaces, dots, _ or -; first a letter or digit"),
    ("Step id '.*' is used twice", "build ids from the element: \"build ${i}\""),
    (r"range\(\)", "range(end), range(start, end) or range(start, end, step), all integers"),
)  # fmt: skip


def for_parse(message: str, token: Token, before: Token | None, first: Token) -> str | None:
    """`before` is the token before the place, `first` the first one of its line."""
    text = token.text if token.kind in ("op", "word") else ""
    last = before.text if before is not None and before.kind in ("op", "word") else ""
    if last == "for" and text == "(":
        return FOR
    if first.kind == "id" and first.text in NAMES and first is not token:
        return NAMES[first.text]
    if token.kind == "eof":
        for mark, hint in _UNCLOSED.items():
            if mark in message and "match arm" not in message:
                return hint
        return "the text ends too early" if message == "Expected expression" else _by_message(message)
    if message == "Expected expression":
        if text == last and text in ("+", "-"):
            return f"there is no {text}{text}: use x {text}= 1"
        if text == "=":
            if first.kind == "id" and last != "=":
                return "assignments do not chain: write two statements"
            return COMPARE if last != "=" else "one '=' is enough"
        if text in _FOREIGN:
            return _FOREIGN[text]
        return f"'{text}' is a reserved word" if token.kind == "word" else None
    if message == "Expected variable name":
        return f"'{text}' is a reserved word" if token.kind == "word" else "a name starts with a letter"
    if text == "=" and message.startswith(("Expected ')'", "Expected ']'", "Expected ':'", "Expected '{'")):
        return COMPARE
    return _by_message(message)


def _by_message(message: str) -> str | None:
    return next((hint for start, hint in _PARSE if message.startswith(start)), None)


def for_run(message: str, names: Iterable[str]) -> str | None:
    """For an error of a running program; `names` are those an unknown name may have meant."""
    unknown = re.search(r"Undefined variable: (\w+)", message)
    if unknown:
        name = unknown.group(1)
        close = difflib.get_close_matches(name, sorted(names), n=1, cutoff=0.7)
        return NAMES.get(name) or (f"did you mean '{close[0]}'?" if close else f"declare it first: let {name} = …")
    return next((hint for pattern, hint in _RUN if re.match(pattern, message)), None)
