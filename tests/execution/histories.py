"""Makes programs of effects, and mutants of them whose first difference is known. For the replay corpus (R7)."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace

EFFECTS = ("emit", "now", "uuid", "random")


@dataclass(frozen=True)
class Statement:
    """One line of a program, or a block. `label` is unique among a program's statements."""

    kind: str
    label: int
    note: str = ""
    blocks: tuple[tuple[Statement, ...], ...] = ()


@dataclass
class Maker:
    """Draws a program. Everything comes from the seed."""

    seed: int
    count: int = 0
    rng: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)

    def program(self) -> tuple[Statement, ...]:
        return self.block(0, self.rng.randint(3, 6))

    def block(self, depth: int, length: int) -> tuple[Statement, ...]:
        return tuple(self.statement(depth) for _ in range(length))

    def statement(self, depth: int) -> Statement:
        self.count += 1
        label = self.count
        kinds = [*EFFECTS, "add", "emit"] + ([] if depth > 1 else ["if", "for", "parallel", "race", "try"])
        kind = self.rng.choice(kinds)
        blocks = {"if": 2, "for": 1, "parallel": 2, "race": 2, "try": 1}.get(kind, 0)
        return Statement(
            kind,
            label,
            note=str(label),
            blocks=tuple(self.block(depth + 1, self.rng.randint(1, 3)) for _ in range(blocks)),
        )


def rendered(program: tuple[Statement, ...], end: str = "total") -> tuple[str, dict[int, int]]:
    """The text, and the line on which each label stands."""
    lines, where = ["let total = 0"], {}

    def put(text: str, label: int | None = None) -> None:
        lines.append(text)
        if label is not None:
            where[label] = len(lines)

    def write(block: tuple[Statement, ...], total: str) -> None:
        for s in block:
            match s.kind:
                case "emit":
                    put(f'emit("note", {{at: "{s.note}"}})', s.label)
                case "given":
                    put(f'emit("note", {{at: "{s.note}"}}, {{id: "inserted"}})', s.label)
                case "now" | "uuid" | "random":
                    put(f"const v{s.label} = {s.kind}()", s.label)
                    put(f'{total} = {total} + (v{s.label} == "never" ? 1 : 2)')
                case "add":
                    put(f"{total} = {total} + {s.label}", s.label)
                case "if":
                    put("if (random() > 0.5) {", s.label)
                    write(s.blocks[0], total)
                    put("} else {")
                    write(s.blocks[1], total)
                    put("}")
                case "for":
                    put(f"for i{s.label} in [1, 2] {{", s.label)
                    write(s.blocks[0], total)
                    put("}")
                case "try":
                    put("try {")
                    write(s.blocks[0], total)
                    put(f'verify("there is none {s.note}")', s.label)
                    put("} catch (e) {")
                    put(f"{total} = {total} + 1")
                    put("}")
                case "parallel" | "race":
                    put(f"{s.kind}([", s.label)
                    for number, block in enumerate(s.blocks):
                        own = f"t{s.label}x{number}"
                        put(f"() => {{ let {own} = 0")
                        write(block, own)
                        put(f"return {own}")
                        put("},")
                    put("])")

    write(program, "total")
    put(f"return {end}")
    return "\n".join(lines) + "\n", where


def all_statements(program: tuple[Statement, ...]) -> list[Statement]:
    found = []
    for s in program:
        found.append(s)
        for block in s.blocks:
            found += all_statements(block)
    return found


def changed(program: tuple[Statement, ...], label: int, how: str) -> tuple[Statement, ...]:
    """The program with one statement changed, left out, replaced by another effect, or another effect before it."""
    made: list[Statement] = []
    for s in program:
        if s.label != label:
            made.append(replace(s, blocks=tuple(changed(block, label, how) for block in s.blocks)))
        elif how == "note":
            made.append(replace(s, note="another"))
        elif how == "kind":
            made.append(replace(s, kind=EFFECTS[1 + EFFECTS.index(s.kind) % 3]))
        elif how == "before":
            made += [Statement("given", 10_000 + label, note="inserted"), s]
        elif how != "out":
            raise AssertionError(how)
    return tuple(made)


def mutations(s: Statement) -> list[str]:
    """What can be done to a statement so that the first difference is at it."""
    return {
        "emit": ["note", "out", "kind", "before"], "now": ["kind", "before"], "uuid": ["kind", "before"],
        "random": ["kind", "before"], "try": ["note"],
    }.get(s.kind, [])  # fmt: skip
