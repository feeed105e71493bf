"""The examples of docs/prism.md give what they say."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from parallax.prism import Outcome, check, evaluate
from parallax.prism import format as format_prism

from .fakes import FakeHost, run

PAGE = (Path(__file__).parents[2] / "docs" / "prism.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```prism( host)?\n(.*?)// => (.*?)\n```", PAGE, re.DOTALL)


def test_the_page_has_examples() -> None:
    assert len(EXAMPLES) >= 8


@pytest.mark.parametrize(("host", "source", "value"), EXAMPLES)
async def test_example(host: str, source: str, value: str) -> None:
    if host:
        fake = FakeHost(
            lambda e: Outcome(value={"ok": True, "tasks": ["a", "b"]}, confidence=None if e.kind == "org" else 0.9)
        )
        result = await run(source, fake, input={"goal": "x"})
        assert result.value == json.loads(value)
    else:
        assert evaluate(source).value == json.loads(value)
    assert [d.message for d in check(source)] == []
    assert evaluate(format_prism(source)).value == json.loads(value) if not host else format_prism(source)
