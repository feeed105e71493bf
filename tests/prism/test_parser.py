"""Every parse message of section 13.1, the lexical ones of section 1, and rules of disambiguation."""

from __future__ import annotations

import pytest

from parallax.prism import PrismError, PrismLexError, nodes, parse
from parallax.prism.lexer import Lexer

MESSAGES = """
1 +                                   | Expected expression
(1                                    | Expected ')' after expression
f(1                                   | Expected ')' after arguments
f(,)                                  | Expected expression
a[1                                   | Expected ']' after index
[1 2]                                 | Expected ']' after array elements
let o = {a: 1                         | Expected '}' after object properties
let o = {1: 2}                        | Expected property name
let o = {a: 1,,}                      | Expected property name
let o = {a = 1}                       | Unexpected '=' in object literal
a.1                                   | Expected property name after '.'
a?.1                                  | Expected property name after '?.'
a~.1                                  | Expected property name after '~.'
a ? 1                                 | Expected ':' after true branch of ternary operator
a ~? 1                                | Expected ':' after true branch of confident ternary operator
let {high} = o                        | Expected ':' after reserved word 'high'
let o = {high}                        | Expected ':' after reserved word 'high'
let 1                                 | Expected variable name
let [1] = x                           | Expected variable name
let [a]                               | Expected '=' after destructuring pattern
const a                               | const declarations must have an initializer
fn (a) { }                            | Expected function name
fn f { }                              | Expected '(' after function name
fn f(1) { }                           | Expected parameter name or pattern
fn f([1]) { }                         | Expected parameter pattern
fn f(...1) { }                        | Expected parameter name or pattern after '...'
fn f(a { }                            | Expected ')' after parameters
fn f(a) 1                             | Expected '{' before function body
fn f(...a, b) { }                     | Rest parameter must be last formal parameter
fn f(a = 1, b) { }                    | A parameter without a default cannot follow one with a default
async x                               | Expected 'function' after 'async'
if (a) { 1                            | Expected '}' after block
if a { }                              | Expected '(' after 'if'
if (a { }                             | Expected ')' after if condition
for let i = 0 { }                     | Expected ';' after for loop initializer
for let i = 0; i < 1 { }              | Expected ';' after for loop condition
do { }                                | Expected 'while' after do-while body
try 1                                 | Expected '{' after 'try'
try { } catch 1                       | Expected '{' after 'catch'
try { } finally 1                     | Expected '{' after 'finally'
try { } catch (1) { }                 | Expected error variable name in catch
try { } catch (e { }                  | Expected ')' after error variable
try { }                               | Expected 'catch' or 'finally' after 'try'
uncertain { }                         | Expected 'if', 'for', or 'while' after 'uncertain'
uncertain if a { }                    | Expected '(' after 'uncertain if'
uncertain if (a { }                   | Expected ')' after condition
uncertain if (a) 1                    | Expected '{' after condition
uncertain for ; ; high                | Expected expression
uncertain for let i = 0; i; i = 1 1   | Expected '{' after uncertain for loop header
uncertain while a 1                   | Expected '{' after uncertain while condition
uncertain if (a) { 1 }                | Expected 'high', 'medium', 'low', or 'default' branch
uncertain if (a) { high 1 }           | Expected '{' after 'high'
match a 1                             | Expected '{' after match expression
match a { + => 1 }                    | Expected match pattern
match a { 1 2 }                       | Expected '=>' after match pattern
match a { 1 => 2 3 => 4 }             | Expected ',' or '}' after match arm
in x { }                              | Expected 'context' after 'in'
in context 1 { }                      | Expected context name after 'context'
in context A 1                        | Expected '{' to start context body
in context A { } -> 1                 | Expected context name after '->'
agents.length                         | Expected '{' after 'agents'
agents { 1 }                          | Expected agent name
agents { a }                          | Expected ':' after agent name
agents { a: 1 }                       | Expected 'Agent' keyword
agents { a: Agent }                   | Expected '{' to start agent configuration
agents { a: Agent { 1 } }             | Expected configuration key
agents { a: Agent { k } }             | Expected ':' after configuration key
agents { a: Agent { k: 1              | Expected '}' after agent configuration
agents { a: Agent { k: 1 }            | Expected '}' after agents block
import 1 from "./m"                   | Expected import specifier
import * from "./m"                   | Expected 'as' after '*'
import * as 1 from "./m"              | Expected namespace name after 'as'
import {1} from "./m"                 | Expected import name
export {1}                            | Expected export name
import {a b} from "./m"               | Expected ',' or '}' after import specifier
export {a b}                          | Expected ',' or '}' after export specifier
import {a,                            | Expected '}' after import specifiers
import {a} "./m"                      | Expected 'from' after import specifiers
import {a} from m                     | Expected module path after 'from'
o.a = 1                               | Values are immutable: cannot assign to a member or an index
for o.a = 1; x; y = 1 { }             | Values are immutable: cannot assign to a member or an index
a ~> 0.5 ~~ b                         | Expected expression
if (a) { } ; else { }                 | Expected expression
uncertain while a { low { } low { } } | Duplicate 'low' branch in uncertain statement
while true { fn f() { break } }       | 'break' is not inside a loop
"${ }"                                | Empty interpolation expression
"abc                                  | Unterminated string at line 1, column 0
`abc                                  | Unterminated multiline string starting at line 1, column 0
```abc                                | Unterminated multiline string starting at line 1, column 0
"a ${ b                               | Unterminated string at line 1, column 0
"abc\\                                | Unterminated escape sequence at line 1
  @                                   | Unexpected character '@' at line 1, column 2
"""
PAIRS = [tuple(part.rstrip() for part in line.split(" | ", 1)) for line in MESSAGES.strip("\n").split("\n")]


@pytest.mark.parametrize(("source", "message"), PAIRS)
def test_message(source: str, message: str) -> None:
    source = source.replace("\\\\", "\\")
    with pytest.raises(PrismError) as caught:
        parse(source)
    assert caught.value.message.startswith(message.strip())


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("x => x |> f", "(x => x) |> f"),
        ("let a = 5\n[0]", "let a = 5[0]"),
        ("-2 ** 2", "(-2) ** 2"),
        ("2 ** 3 ** 2", "2 ** (3 ** 2)"),
        ("a || b && c ?? d", "a || ((b && c) ?? d)"),
        ("a ~> c.y", "a ~> (c.y)"),
        ("a ~~ b ~~ c", "(a ~~ b) ~~ c"),
        ("a<~b", "a;<~b"),
        ("a ? b : c ? d : e", "a ? b : (c ? d : e)"),
        ("[a, b] ~> 0.9\nx = 1", "([a, b] ~> 0.9)\nx = 1"),
        ("match n { x if ok => 1 }", "match n { x if (ok) => 1 }"),
        ("f(1, 2,)", "f(1, 2)"),
        ("if (a) ;", "if (a) { }"),
        ("function f() { }", "fn f() { }"),
        ("async fn f() { }", "fn f() { }"),
        ("undefined", "null"),
        ("1e", "1; e"),
        ("/* a */ 1 // b", "1"),
    ],
)
def test_two_ways_to_write_one_tree(one: str, other: str) -> None:
    assert parse(one) == parse(other)


def test_braces_at_the_start_of_a_statement() -> None:
    def kind(source: str) -> type:
        statement = parse(source).statements[0]
        return type(statement.value) if isinstance(statement, nodes.ExpressionStatement) else type(statement)

    assert [kind(s) for s in ("{}", "{a}", "{a, b}", "{if: 1}", '{"k": 1}', "{...o}")] == [nodes.Object] * 6
    assert [kind(s) for s in ("{ a + b }", "{ ; }", '{ "k" }', "{ f(a) }")] == [nodes.Block] * 4
    assert kind("{a = 1} = o") is nodes.DestructuringAssignment
    assert kind("{a = 1; a}") is nodes.Block


def test_positions_inside_a_template_are_those_of_the_source() -> None:
    tokens = Lexer("a\n  `x\n${ y }`").tokens()
    assert [(t.kind, t.line, t.column) for t in tokens] == [("id", 1, 0), ("template", 2, 2), ("eof", 3, 7)]
    statement = parse("`x\n${ y }`").statements[0]
    assert isinstance(statement, nodes.ExpressionStatement)
    assert isinstance(statement.value, nodes.Interpolated)
    hole = statement.value.parts[1]
    assert isinstance(hole, nodes.Identifier)
    assert hole.span is not None
    assert (hole.span.line, hole.span.column) == (2, 3)


def test_longest_operator_first() -> None:
    text = "~||> ~|| ~|> ~?> ~?? ~> ~~ ** *= => ?. ?? -> <~ <= ..."
    assert [t.text for t in Lexer(text).tokens()[:-1]] == text.split()


def test_lexing_errors_are_told_with_their_place() -> None:
    with pytest.raises(PrismLexError) as caught:
        parse('let a = 1\nlet b = "x')
    assert (caught.value.line, caught.value.column, caught.value.excerpt) == (2, 8, 'let b = "x\n        ^')
