"""Why a value has its confidence: kept on the value while a run explains, absent otherwise.

`explained` wraps a rule of the language so that each confident result remembers the rule, its operands and the place.
A run without explanation never calls this module.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .errors import Span
from .values import Confident, Value, tag

RULES = {
    "attach": "stated with ~>",
    "add": "+ takes the least",
    "sub": "- takes the least",
    "mul": "* takes the least",
    "div": "/ takes the least",
    "c_or": "~|| takes the greatest",
    "c_best": "~||> takes the more confident side",
    "confident_choice": "~? multiplies condition and branch",
    "get": "a member has its object's confidence, times its own",
    "get_sure": "a member has its object's confidence, times its own",
    "index": "an element has its container's confidence",
    "item_array": "destructuring passes the container's confidence on",
    "item_object": "destructuring passes the container's confidence on",
    "default_object": "destructuring passes the container's confidence on",
    "piped": "~|> keeps the left side's confidence",
    "gate": "~?> keeps what passes",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Operand:
    """One side of a rule: the kind of value, its confidence, and its own reason."""

    type: str
    confidence: float | None
    why: Why | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Why:
    """The rule that gave a value its confidence."""

    rule: str
    confidence: float
    operands: tuple[Operand, ...]
    span: Span

    def text(self, indent: int = 0) -> str:
        """The reasons as an indented list."""
        lines = [f"{'  ' * indent}{self.confidence:g}: {self.rule} (line {self.span.line}, column {self.span.column})"]
        lines += [operand.why.text(indent + 1) for operand in self.operands if operand.why is not None]
        return "\n".join(lines)


def explained(name: str, rule: Callable[..., Value], place: Callable[[], Span]) -> Callable[..., Value]:
    """The rule, telling its reason on each confident result that has none yet."""
    words = RULES.get(name, f"{name} takes the least")

    def apply(*args: Value) -> Value:
        result = rule(*args)
        if type(result) is Confident and result.why is None:
            operands = tuple(
                Operand(
                    type=tag(arg),
                    confidence=arg.confidence if type(arg) is Confident else None,
                    why=arg.why if type(arg) is Confident else None,
                )
                for arg in args
                if not isinstance(arg, tuple)
            )
            result.why = Why(rule=words, confidence=result.confidence, operands=operands, span=place())
        return result

    return apply
