"""Reading an agent's report."""

from __future__ import annotations

import pytest

from parallax.agents.clients.report import read_report
from parallax.errors import ProtocolViolation


@pytest.mark.parametrize(
    ("text", "schema", "value", "confidence", "verdict"),
    [
        ("done", None, "done", None, None),
        ("done\n\nCONFIDENCE: 0.9", None, "done", 0.9, None),
        ("done\n**CONFIDENCE: 1**\n**VERDICT:** accept", None, "done", 1.0, "approve"),
        ("CONFIDENCE: 0.1\nbetter now\nCONFIDENCE: 0.7.", None, "better now", 0.7, None),
        ('{"a": 1}', None, '{"a": 1}', None, None),
        ('{"a": 1}\nCONFIDENCE: 0', {"type": "object"}, {"a": 1}, 0.0, None),
        ('see:\n```json\n{"a": 1}\n```\nor\n```JSON\n[2]\n```\nVERDICT: Revise', None, [2], None, "revise"),
        ("```json\nnot json\n```", None, "```json\nnot json\n```", None, None),
        ("```json\n{} unfinished", None, "```json\n{} unfinished", None, None),
        ("plain", {"type": "object"}, "plain", None, None),
        ("My Confidence: very high", None, "My Confidence: very high", None, None),
        ("", None, "", None, None),
    ],
)
def test_reports(text: str, schema: object, value: object, confidence: float | None, verdict: str | None) -> None:
    assert read_report(text, schema) == (value, confidence, verdict)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("CONFIDENCE: high", "'high'; it must be from 0 to 1"),
        ("CONFIDENCE: 1.01", "from 0 to 1"),
        ("CONFIDENCE: nan", "from 0 to 1"),
        ("CONFIDENCE: 90%", "from 0 to 1"),
        ("CONFIDENCE:", "from 0 to 1"),
        ("VERDICT: lgtm", "approve, revise or reject"),
        ("```json\n{\n```", "not JSON"),
        ("```json\n[NaN]\n```", "NaN is not JSON"),
        ('```json\n["\\ud800"]\n```', "surrogate"),
        ("```json\n" + "[" * 100_000 + "\n```", "nested too deeply"),
    ],
)
def test_what_cannot_be_read_is_named(text: str, words: str) -> None:
    with pytest.raises(ProtocolViolation, match=words):
        read_report(text, {"type": "object"})


def test_hostile_text_takes_no_time() -> None:
    read_report("```json\n" * 200_000)
    read_report("*" * 1_000_000 + "\n" + "CONFIDENCE" * 100_000)
