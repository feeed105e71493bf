"""Random programs: from the grammar, and by cutting and pasting real ones. Everything follows from one seed."""

from __future__ import annotations

import json
import random
from pathlib import Path

SOURCES = [json.loads(line)["source"] for line in (Path(__file__).parent / "cases.jsonl").read_text().splitlines()]
NAMES = ["a", "b", "xs", "f", "o", "n", "print", "map", "input", "assign", "parallel"]
ATOMS = [
    "0",
    "1",
    "2.5",
    "1e3",
    '"s"',
    '"v ${a}"',
    "`t`",
    "true",
    "null",
    "[]",
    "{}",
    "[1, 2]",
    "{k: 1}",
    "'x'",
    "1e999",
]
BINARY = [
    "+",
    "-",
    "*",
    "/",
    "%",
    "**",
    "==",
    "!=",
    "===",
    "!==",
    "<",
    "<=",
    ">",
    ">=",
    "&&",
    "||",
    "??",
    "~??",
    "~@>",
    "~||>",
    "~+",
    "~-",
    "~*",
    "~/",
    "~==",
    "~!=",
    "~<",
    "~<=",
    "~>=",
    "~&&",
    "~||",
    "~~",
    "~?>",
    "instanceof",
]
METHODS = [
    "map",
    "filter",
    "push",
    "join",
    "slice",
    "length",
    "sort",
    "flat",
    "repeat",
    "padEnd",
    "split",
    "k",
    "at",
    "concat",
]
WORDS = [
    "voting",
    "merge",
    "best",
    "range",
    "max",
    "sortBy",
    "JSON.stringify",
    "Object.keys",
    "String",
    "Number",
    "consensus",
]
NOISE = [
    "(",
    ")",
    "{",
    "}",
    "[",
    "]",
    ";",
    ",",
    "=>",
    "~>",
    "=",
    "...",
    "`",
    '"',
    "${",
    "\0",
    "\ud800",
    "/*",
    "//",
    "\n",
    "é",
    "😀",
    "@",
]


class Generator:
    """Programs from the grammar."""

    def __init__(self, seed: int) -> None:
        self.r = random.Random(seed)

    def expr(self, depth: int = 3) -> str:
        r = self.r
        if depth <= 0 or r.random() < 0.2:
            return r.choice(ATOMS + NAMES)
        e = lambda: self.expr(depth - 1)  # noqa: E731
        return r.choice(
            [
                lambda: f"{r.choice(ATOMS)} {r.choice(BINARY)} {r.choice(NAMES)}",
                lambda: f"(({e()}) {r.choice(BINARY)} ({e()}))",
                lambda: f"(({e()}) {r.choice(['|>', '~|>'])} [_, {e()}])",
                lambda: f"(({e()}) |> f)",
                lambda: f"{r.choice(['!', '-', '~ ', '<~ ', 'typeof ', 'await '])}({e()})",
                lambda: f"(({e()}) {r.choice(['?', '~?'])} {e()} : {e()})",
                lambda: f"[{e()}, ...{e()}, {e()}]",
                lambda: f"{{k: {e()}, ...{e()}, 'l m': {e()}}}",
                lambda: f"({e()}){r.choice(['.', '?.', '~.'])}{r.choice(METHODS)}",
                lambda: f"({e()}).{r.choice(METHODS)}({e()})",
                lambda: f"({e()})[{e()}]",
                lambda: f"{r.choice(NAMES + WORDS)}({e()}, {e()})",
                lambda: f"{r.choice(WORDS)}({e()})",
                lambda: f"(({self.pattern()}, b = {e()}) => {e()})",
                lambda: f"(a => {{ {self.block(1)} }})({e()})",
                lambda: f'"x ${{{e()}}} y"' if '"' not in (inner := e()) else f"`p ${{{inner}}}`",
                lambda: f"match {e()} {{ {self.arm()}, [a, ...b] if ({e()}) => ({e()}), _ => ({e()}) }}",
                lambda: f"(({e()}) ~> 0.{r.randrange(10)})",
            ]
        )()

    def arm(self) -> str:
        return f"{self.r.choice(['1', '_', 'a', '[a, b]', '{k}', '{k: [a]}', 'null'])} ~> 0.5 => ({self.expr(1)})"

    def pattern(self) -> str:
        return self.r.choice(
            ["a", "[a, b]", "{k}", "{k: {a = 1}}", "[a ~> 0.5, ...xs]", "{k ~> 0.4 = 2, ...o}", "[, n]"]
        )

    def statement(self, depth: int = 2) -> str:
        r, e = self.r, self.expr
        if depth <= 0:
            return e(2)
        b = lambda: self.block(depth - 1)  # noqa: E731
        return r.choice(
            [
                lambda: e(3),
                lambda: f"let {r.choice(NAMES)} = {e()}",
                lambda: f"const {self.pattern()} = {e()}",
                lambda: f"{r.choice(NAMES)} {r.choice(['=', '+=', '~*='])} {e()}",
                lambda: f"[a, b] ~> 0.5 = {e()}",
                lambda: f"if ({e()}) {{ {b()} }} else {{ {b()} }}",
                lambda: f"for x, i in {e()} {{ {b()} }}",
                lambda: f"for let i = 0; i < {r.randrange(9)}; i = i + 1 {{ {b()} ; fs = () => i }}",
                lambda: f"while {e(1)} {{ {b()} break }}",
                lambda: f"do {{ {b()} }} while false",
                lambda: f"try {{ {b()} }} catch (e) {{ {b()} }} finally {{ {b()} }}",
                lambda: f"uncertain if ({e()}) {{ high {{ {b()} }} default {{ {b()} }} }}",
                lambda: f"uncertain while {e(1)} {{ high {{ {b()} break }} low {{ continue }} }}",
                lambda: f"fn f(a, b = 1, ...xs) ~> 0.5 {{ {b()} }}",
                lambda: f"in context C {{ {b()} }}",
                lambda: f"agents {{ ag: Agent {{ k: {e(1)} }} }}",
                lambda: f"return {e(1)}",
                lambda: f"throw {e(1)}",
                lambda: f"{{ {b()} }}",
            ]
        )()

    def block(self, depth: int = 2) -> str:
        separators = self.r.choice(["; ", ";\n"]) if depth > 1 else "; "
        return separators.join(self.statement(depth) for _ in range(self.r.randrange(1, 4)))

    def mutate(self, text: str) -> str:
        r = self.r
        for _ in range(r.randrange(1, 4)):
            i, j = sorted((r.randrange(len(text) + 1), r.randrange(len(text) + 1)))
            kind = r.randrange(5)
            if kind == 0:
                text = text[:i] + r.choice(NOISE) + text[i:]
            elif kind == 1:
                text = text[:i] + text[min(j, i + 5) :]
            elif kind == 2:
                text = text[:i] + text[i : i + 20] + text[i:]
            elif kind == 3:
                other = r.choice(SOURCES)
                text = text[:i] + other[r.randrange(len(other) + 1) :] + text[i:]
            else:
                text = text[:i] + r.choice(BINARY) + text[i:]
        return text

    def program(self) -> str:
        kind = self.r.randrange(5)
        if kind < 3:
            start = "let a = 1; let b = [1, 2] ~> 0.6; let xs = [3, 4]; let o = {k: 1}; let n = 2; let f = x => x;"
            return f"{start} {{ {self.block(2)} }}"
        return self.mutate(self.r.choice(SOURCES) if kind == 3 else self.block(2))
