"""What the output of a test runner tells: how many tests passed and failed, and the names of those that failed.

`checks` asks; everything here is a pure function of text. An output of a runner that we do not know tells nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Final

# How runners name a test that failed, one on a line: pytest, unittest, cargo, go, TAP, jest.
_FAILED: Final = tuple(
    re.compile(pattern)
    for pattern in (
        r"(?:FAILED|ERROR) (\S+::\S.*?)(?: - .*)?",
        r"(?:FAIL|ERROR): (\S+ \(\S+\))(?: .*)?",
        r"test (\S+) \.\.\. FAILED",
        r"--- FAIL: (\S+) \(.*\)",
        r"not ok \d+ (?:- )?(.+)",
        r"● (.+ › .+)",
    )
)


def failed_in(text: str) -> frozenset[str]:
    """The names of the tests that failed, as their runner writes them."""
    lines = [line.strip() for line in text.splitlines() if len(line) < 1000]
    return frozenset(found[1] for line in lines for pattern in _FAILED if (found := pattern.fullmatch(line)))


def is_named(test: str, names: Iterable[str]) -> bool:
    """Whether a list names a test: in full (`*` stands for anything), or by its last part, as people write it."""
    parts = {test, test.rpartition("::")[2], test.partition(" (")[0], test.rpartition(" › ")[2]}
    return any(part == name or fnmatchcase(part, name) for name in names for part in parts)


def own_counts(pattern: str | None, text: str) -> tuple[int, int] | None:
    """What the profile's own pattern finds, in the last line that matches. Long lines are no summary."""
    if pattern is None:
        return None
    expression = re.compile(pattern)
    for line in reversed(text.splitlines()):
        if len(line) < 1000 and (match := expression.search(line)):
            numbers = [match["passed"] or "0", match["failed"] or "0"]
            if all(number.isdigit() for number in numbers):
                return int(numbers[0]), int(numbers[1])
    return None


def counts_in(text: str) -> tuple[int, int] | None:
    """How many tests passed and failed, where the output is that of a runner we know."""
    lines = [line.strip() for line in text.splitlines() if len(line) < 1000]
    for read in (_pytest, _unittest, _jest, _cargo, _tap, _go):
        if counts := read(lines):
            return counts
    return None


def _number(pattern: str, line: str) -> int:
    return sum(int(found) for found in re.findall(pattern, line))


def _pytest(lines: list[str]) -> tuple[int, int] | None:
    for line in reversed(lines):
        if re.search(r"\d+ (passed|failed|errors?)\b.* in \d+[.\d]*s", line):
            return _number(r"(\d+) passed", line), _number(r"(\d+) (?:failed|errors?)\b", line)
    return None


def _unittest(lines: list[str]) -> tuple[int, int] | None:
    ran = next((match for line in reversed(lines) if (match := re.fullmatch(r"Ran (\d+) tests? in .*", line))), None)
    if ran is None:
        return None
    last = next((line for line in reversed(lines) if line.startswith(("FAILED", "OK"))), "")
    failed = _number(r"(?:failures|errors|unexpected successes)=(\d+)", last)
    skipped = _number(r"skipped=(\d+)", last)
    return max(0, int(ran[1]) - failed - skipped), failed


def _jest(lines: list[str]) -> tuple[int, int] | None:
    for line in reversed(lines):
        if re.match(r"Tests:? .*\d+ (passed|failed)", line):
            return _number(r"(\d+) passed", line), _number(r"(\d+) failed", line)
    return None


def _cargo(lines: list[str]) -> tuple[int, int] | None:
    found = [line for line in lines if line.startswith("test result:")]
    return (_number(r"(\d+) passed", "\n".join(found)), _number(r"(\d+) failed", "\n".join(found))) if found else None


def _tap(lines: list[str]) -> tuple[int, int] | None:
    """Node's own test runner, and mocha."""
    found = [line for line in lines if re.match(r"(# |ℹ )(pass|fail) \d+|\d+ (passing|failing)\b", line)]
    both = "\n".join(found)
    return (_tap_sum(both, "pass"), _tap_sum(both, "fail")) if found else None


def _tap_sum(text: str, word: str) -> int:
    return _number(rf"{word} (\d+)", text) + _number(rf"(\d+) {word}ing", text)


def _go(lines: list[str]) -> tuple[int, int] | None:
    """`go test`: single tests where it was verbose, else packages."""
    single = [sum(line.startswith(f"--- {word}:") for line in lines) for word in ("PASS", "FAIL")]
    packages = [sum(bool(re.match(rf"{word}\s+\S+\s+[\d.(]", line)) for line in lines) for word in ("ok", "FAIL")]
    passed, failed = single if single[0] else packages
    return (passed, failed) if passed or failed else None
