"""`python -m parallax.prism run|check|fmt FILE` and `cases FILE.jsonl`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import check, evaluate
from . import format as format_source
from .errors import PrismError
from .values import number_text


def say(text: str) -> None:
    sys.stdout.write(text + "\n")


def run(path: Path) -> int:
    """Evaluate a file without a host: its printed lines, then its value."""
    try:
        result = evaluate(path.read_text(encoding="utf-8"), path=str(path))
    except PrismError as error:
        for line in error.output:
            say(line)
        sys.stderr.write(error.render() + "\n")
        return 1
    for line in result.output:
        say(line)
    confidence = "" if result.confidence is None else f" ~> {number_text(result.confidence)}"
    say(json.dumps(result.value, ensure_ascii=False) + confidence)
    return 0


def show_check(path: Path) -> int:
    found = check(path.read_text(encoding="utf-8"), path=str(path))
    for diagnostic in found:
        say(diagnostic.render())
    return 1 if any(diagnostic.severity == "error" for diagnostic in found) else 0


def fmt(path: Path) -> int:
    source = path.read_text(encoding="utf-8")
    try:
        tidy = format_source(source, path=str(path))
    except PrismError as error:
        sys.stderr.write(error.render() + "\n")
        return 1
    if tidy != source:
        path.write_text(tidy, encoding="utf-8")
    return 0


def equal(got: Any, wanted: Any) -> bool:
    """Numbers within 1e-12, key order counts, a boolean is no number."""
    if isinstance(got, bool) or isinstance(wanted, bool):
        return got is wanted
    if isinstance(got, int | float) and isinstance(wanted, int | float):
        return abs(got - wanted) <= 1e-12
    if isinstance(wanted, list):
        return isinstance(got, list) and len(got) == len(wanted) and all(map(equal, got, wanted))
    if isinstance(wanted, dict):
        return isinstance(got, dict) and list(got) == list(wanted) and all(equal(got[k], wanted[k]) for k in wanted)
    return type(got) is type(wanted) and bool(got == wanted)


def case_problem(case: dict[str, Any]) -> str | None:
    """Why a conformance case fails, or None."""
    try:
        result = evaluate(case["source"])
    except PrismError as error:
        if case["error"] is None or case["error"] not in error.message:
            return f"error {error.message!r}"
        return None if error.output == (case["output"] or []) else f"output {error.output!r}"
    if case["error"] is not None:
        return f"no error, value {result.value!r}"
    if result.output != (case["output"] or []):
        return f"output {result.output!r}"
    if not equal(result.value, case["value"]) or not equal(result.confidence, case["confidence"]):
        return f"value {result.value!r}, confidence {result.confidence!r}"
    return None


def cases(path: Path) -> int:
    passed = failed = 0
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.strip():
            continue
        case = json.loads(line)
        problem = case_problem(case)
        if problem is None:
            passed += 1
        else:
            failed += 1
            say(f"{case['id']}: {problem}")
    say(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


COMMANDS: dict[str, Callable[[Path], int]] = {"run": run, "check": show_check, "fmt": fmt, "cases": cases}


def main(argv: list[str]) -> int:
    if len(argv) != 2 or argv[0] not in COMMANDS:
        sys.stderr.write("usage: python -m parallax.prism run|check|fmt|cases FILE\n")
        return 2
    path = Path(argv[1])
    if not path.is_file():
        sys.stderr.write(f"no such file: {path}\n")
        return 2
    return COMMANDS[argv[0]](path)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
