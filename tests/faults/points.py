"""Which failpoints are struck, and where. The numbers are those of `parallax.failpoints`.

A chain is one execution of the duo: the server is started with the first point, dies there, is started with the next.
At most four in a row before a step is finished, because five recoveries without a result park the execution.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from parallax.failpoints import POINTS

DUO: Final = [
    ["FP01", "FP02", "FP03", "FP04"],
    ["FP05", "FP34", "FP07", "FP08"],
    ["FP09", "FP10", "FP11", "FP12"],
    ["FP15", "FP19", "FP20", "FP16"],
    ["FP17@2", "FP18", "FP18@2", "FP13@3"],
    ["FP17@4", "FP33", "FP30", "FP31", "FP36"],
]
CANCEL: Final = ["FP28", "FP29"]
WAITS: Final = ["FP21", "FP22", "FP14@2"]
KILLED: Final = {point.partition("@")[0] for chain in [*DUO, CANCEL, WAITS] for point in chain}
# Struck by the tests of the rooms where they lie.
ELSEWHERE: Final = {
    "FP06": "execution/test_finalising.py", "FP23": "execution/test_finalising.py",
    "FP24": "execution/test_finalising.py", "FP25": "execution/test_finalising.py",
    "FP32": "execution/test_housekeeping.py", "FP35": "storage/test_migrating.py",
}  # fmt: skip


def placed() -> set[str]:
    """The failpoints that the program has a place for; a place of a name that is not in the table stands for itself."""
    root = Path(__file__).parents[2] / "parallax"
    names = {name for path in root.rglob("*.py") for name in re.findall(r'\bfp\("([a-z_.]+)"\)', path.read_text())}
    numbers = {name: number for number, name in POINTS.items()}
    return {numbers.get(name, name) for name in names}
