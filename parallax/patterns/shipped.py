"""Where the shipped patterns are."""

from __future__ import annotations

from pathlib import Path


def shipped_patterns() -> Path:
    """Inside the installed package, or at the top of a source checkout."""
    inside = Path(__file__).parent.parent / "shipped"
    return inside if inside.is_dir() else Path(__file__).parent.parent.parent / "patterns"
