"""Reads `KEY=VALUE` inputs of the command line, and a token from the environment."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence

from parallax.errors import UsageError
from parallax.models import Json


def read_inputs(goal: str | None, pairs: Sequence[str]) -> dict[str, Json]:
    """Values that are JSON are read as such, everything else is text; `goal` is an input of that name."""
    found: dict[str, Json] = {} if goal is None else {"goal": goal}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise UsageError(f"--input needs KEY=VALUE, got '{pair}'")
        if key in found:
            raise UsageError(f"the input '{key}' is given twice")
        try:
            found[key] = json.loads(value)
        except ValueError:
            found[key] = value
    return found


def read_token(variable: str | None) -> str | None:
    """A token from the environment: on the command line everybody on this machine could read it."""
    if variable is None:
        return None
    if not (token := os.environ.get(variable, "").strip()):
        raise UsageError(f"--token-env: the variable {variable} is not set, or empty")
    return token
