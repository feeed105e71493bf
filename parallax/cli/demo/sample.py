"""The sample repository of the demo, and what its scripted agents do.

A package with a failing test (the median of an even count is wrong) and a feature to add (`mode`). The scripts hold no
answer of Parallax's: whether a claim is believed is decided by the check that really runs.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any, Final

GOAL: Final = "Fix the failing test and add mode(), the most common value"

_STATS: Final = '''"""Small statistics."""


def mean(values):
    return sum(values) / len(values)


def median(values):
    ordered = sorted(values)
    return ordered[len(ordered) // 2]
'''
_FILES: Final[dict[str, str]] = {
    "README.md": "# tally\n\nSmall statistics without dependencies.\n",
    ".gitignore": "__pycache__/\n",
    "tally/__init__.py": '"""Small statistics without dependencies."""\n',
    "tally/stats.py": _STATS,
    "tests/__init__.py": "",
    "tests/test_stats.py": """import unittest

from tally.stats import mean, median


class StatsTest(unittest.TestCase):
    def test_mean(self):
        self.assertEqual(mean([1, 2, 3]), 2)

    def test_median_odd(self):
        self.assertEqual(median([3, 1, 2]), 2)

    def test_median_even(self):
        self.assertEqual(median([4, 1, 3, 2]), 2.5)


if __name__ == "__main__":
    unittest.main()
""",
    ".parallax.yaml": """version: 1
language: python
checks:
  tests: python3 -m unittest
defaults:
  quick: [tests]
  full: [tests]
network: none
""",
}

_MODE: Final = '''"""The most common value."""

from collections import Counter


def mode(values):
    """The most common value, the first of them on a tie; an empty list has none."""
    if not values:
        raise ValueError("mode() of an empty list")
    return Counter(values).most_common(1)[0][0]
'''
_MODE_TEST: Final = """import unittest

from tally.mode import mode


class ModeTest(unittest.TestCase):
    def test_most_common(self):
        self.assertEqual(mode([1, 2, 2, 3]), 2)

    def test_first_on_a_tie(self):
        self.assertEqual(mode(["b", "a", "a", "b"]), "b")

    def test_empty(self):
        with self.assertRaises(ValueError):
            mode([])
"""

_TASKS: Final = [
    "Fix median(): tests/test_stats.py fails for an even count of values",
    "Add mode() in tally/mode.py, with tests",
]

SCRIPT: Final[dict[str, Any]] = {
    "roles": {
        "lead": [
            {
                "when": "Split this goal",
                "do": [
                    {"say": "Two independent pieces: the bug, and the new function.\n"},
                    {"run": ["python3", "-m", "unittest", "-q"]},
                    {"usage": {"input": 2400, "output": 310}},
                    {"answer": {"value": {"tasks": _TASKS}, "confidence": 0.9}},
                ],
            },
            {
                "when": "A question from",
                "do": [
                    {"wait": 0.4},
                    {"usage": {"input": 900, "output": 60}},
                    {"answer": {"value": "Raise ValueError: an empty list has no most common value."}},
                ],
            },
        ],
        "engineer": [
            {
                # The second turn of the bug: it reads what the check found, and does it right.
                "when": ["sent back", "median"],
                "do": [
                    {"think": "The check is right: for an even count the middle is between two values."},
                    {
                        "edit": {
                            "path": "tally/stats.py",
                            "replace": "    return ordered[len(ordered) // 2]\n",
                            "with": (
                                "    middle = len(ordered) // 2\n"
                                "    if len(ordered) % 2:\n"
                                "        return ordered[middle]\n"
                                "    return (ordered[middle - 1] + ordered[middle]) / 2\n"
                            ),
                        }
                    },
                    {"run": ["python3", "-m", "unittest", "-q"]},
                    {"usage": {"input": 3100, "output": 420}},
                    {"answer": {"value": "median() averages the two middle values now.", "confidence": 0.95}},
                ],
            },
            {
                # The first turn: a comment is changed, nothing is run, and success is claimed.
                "when": "Fix median()",
                "do": [
                    {"say": "Looking at tally/stats.py ...\n"},
                    {"wait": 0.5},
                    {
                        "edit": {
                            "path": "tally/stats.py",
                            "replace": "    ordered = sorted(values)\n",
                            "with": "    ordered = sorted(values)  # works for every count of values\n",
                        }
                    },
                    {"usage": {"input": 2800, "output": 240}},
                    {"answer": {"value": "Fixed. All tests pass.", "confidence": 0.97}},
                ],
            },
            {
                "when": "Add mode()",
                "do": [
                    {"say": "Reading the package ...\n"},
                    {"wait": 0.3},
                    {
                        "ask": {
                            "text": "What should mode() do for an empty list: raise ValueError or return None?",
                            "topic": "design",
                            "save": "decision",
                        }
                    },
                    {"say": "The lead says: {decision}\n"},
                    {"edit": {"path": "tally/mode.py", "content": _MODE}},
                    {"wait": 2.5},
                    {"edit": {"path": "tests/test_mode.py", "content": _MODE_TEST}},
                    {"run": ["python3", "-m", "unittest", "-q"]},
                    {"usage": {"input": 4200, "output": 690}},
                    {
                        "answer": {
                            "value": "mode() with three tests; an empty list raises ValueError.",
                            "confidence": 0.9,
                        }
                    },
                ],
            },
        ],
        "reviewer": [
            {
                "when": "median",
                "do": [
                    {"wait": 0.3},
                    {"usage": {"input": 1500, "output": 90}},
                    {
                        "answer": {
                            "value": "Both cases are handled and tested.",
                            "confidence": 0.95,
                            "verdict": "approve",
                        }
                    },
                ],
            },
            {
                "when": "mode",
                "do": [
                    {"wait": 0.3},
                    {"usage": {"input": 1700, "output": 80}},
                    {"answer": {"value": "Small, tested, documented.", "confidence": 0.92, "verdict": "approve"}},
                ],
            },
        ],
    }
}


def make_sample(directory: Path) -> Path:
    """Make the repository with one commit on `main`; returns its path."""
    repository = directory / "tally"
    for name, text in _FILES.items():
        path = repository / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    identity = ["-c", "user.name=You", "-c", "user.email=you@example.invalid", "-c", "commit.gpgsign=false"]
    for command in (
        ["init", "-q", "-b", "main"],
        ["add", "-A"],
        [*identity, "commit", "-q", "-m", "A small statistics package"],
    ):
        subprocess.run(["git", *command], cwd=repository, check=True, capture_output=True)
    return repository


def make_script(directory: Path) -> Path:
    """Write the agents' script; returns its path."""
    path = directory / "agents.json"
    path.write_text(json.dumps(SCRIPT, indent=2))
    return path


def run_tests(repository: Path) -> tuple[bool, str]:
    """Run the sample's tests where they lie: whether they pass, and unittest's last line."""
    done = subprocess.run(
        ["python3", "-m", "unittest"], cwd=repository, capture_output=True, text=True, check=False, timeout=60
    )
    return done.returncode == 0, done.stderr.strip().splitlines()[-1]
