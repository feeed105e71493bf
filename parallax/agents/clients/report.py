"""Read an agent's report: what it says at the end of a turn, as a value, a confidence and a verdict.

The clients call `read_report` on the last message of a turn; whoever asked for a review calls it again on the result's
message for the verdict. Nothing here is believed: it is what the agent claims.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, Final, NamedTuple

from parallax.errors import ProtocolViolation
from parallax.models import Json

END_CHARS: Final = 2_000  # in which the marks of a report are looked for while its turn runs
_MARKER: Final = re.compile(r"^[ \t*_>`]*(CONFIDENCE|VERDICT)[*_`]*[ \t]*:[ \t*_`]*([^\n]*)$", re.MULTILINE)
_VERDICTS: Final = {"approve": "approve", "accept": "approve", "revise": "revise", "reject": "reject"}


class Report(NamedTuple):
    """What an agent claims at the end of a turn."""

    value: Json
    confidence: float | None
    verdict: str | None


def read_report(text: str, schema: Json = None) -> Report:
    """The last block fenced as json (or, with a schema, the whole text if it is JSON), else the text itself.

    Of several lines `CONFIDENCE: x` or `VERDICT: x` the last one counts. Raises ProtocolViolation for a confidence
    that is no number from 0 to 1, an unknown verdict, and, where a schema asks for JSON, a block that is none.
    """
    marks = {match[1]: match[2] for match in _MARKER.finditer(text)}
    confidence = _confidence(marks["CONFIDENCE"]) if "CONFIDENCE" in marks else None
    verdict = _verdict(marks["VERDICT"]) if "VERDICT" in marks else None
    plain = _MARKER.sub("", text).strip()
    return Report(_value(plain, schema), confidence, verdict)


def has_marks(text: str) -> bool:
    """Whether a text ends with a line that every report is asked to end with. Called often, so only the end counts."""
    return _MARKER.search(text[-END_CHARS:]) is not None


def _value(plain: str, schema: Json) -> Json:
    block = _last_block(plain)
    if block is None:
        if schema is None:
            return plain
        try:
            return _strict(plain)
        except ValueError:
            return plain
    try:
        return _strict(block)
    except ValueError as error:
        if schema is None:
            return plain
        raise ProtocolViolation(f"The agent's report is not JSON: {error}") from None


def _confidence(text: str) -> float:
    word = text.split()[0].rstrip("*_`.,;") if text.split() else ""
    try:
        number = float(word)
    except ValueError:
        number = math.nan
    if not 0.0 <= number <= 1.0:  # also false for NaN
        raise ProtocolViolation(f"The agent reported the confidence '{text.strip()[:40]}'; it must be from 0 to 1")
    return number


def _verdict(text: str) -> str:
    word = text.split()[0].strip("*_`.,;").lower() if text.split() else ""
    if word not in _VERDICTS:
        raise ProtocolViolation(
            f"The agent reported the verdict '{text.strip()[:40]}'; it must be approve, revise or reject"
        )
    return _VERDICTS[word]


def _last_block(text: str) -> str | None:
    """The last complete block between ```json and ```. By lines: no backtracking on hostile text."""
    block: list[str] | None = None
    last: str | None = None
    for line in text.split("\n"):
        mark = line.strip()
        if block is None:
            if mark.lower() == "```json":
                block = []
        elif mark == "```":
            last, block = "\n".join(block), None
        else:
            block.append(line)
    return last


def _strict(text: str) -> Any:
    """Strict JSON that can be stored: no NaN, no half of a surrogate pair, no nesting that breaks the reader."""
    try:
        value = json.loads(text, parse_constant=_no_constant)
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except UnicodeEncodeError:
        raise ValueError("it contains half of a surrogate pair") from None
    return value


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
