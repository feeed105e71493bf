"""A secret does not print, pickle or leave in text."""

from __future__ import annotations

import base64
import json
import pickle
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallax.failpoints import FailpointError, arm, fp
from parallax.models import EXECUTION_ID, child_id, hash12, new_id
from parallax.redaction import MASK, Redactor, Secret


def test_a_secret_shows_nothing_of_itself() -> None:
    secret = Secret("hunter2-hunter2")
    assert "hunter2" not in f"{secret} {secret!r} {[secret]}"
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(secret)


@pytest.mark.parametrize(
    "token",
    ["ghs_" + "a1." * 170, "ghp_" + "A" * 36, "github_pat_" + "b" * 40, "sk-ant-api03-" + "x" * 30, "AKIA" + "Z" * 16,
     "plx_" + "k" * 40, "-----BEGIN RSA PRIVATE KEY-----"],
)  # fmt: skip
def test_token_formats_are_masked_without_knowing_them(token: str) -> None:
    assert token not in Redactor()(f"before {token} after")


def test_known_values_are_masked_until_they_are_forgotten() -> None:
    redact, secret = Redactor(), Secret("correct horse battery")
    redact.learn(secret)
    redact.learn(Secret("short"))
    assert redact("a correct horse battery, in short") == "a [redacted], in short"
    redact.forget(secret)
    assert redact("correct horse battery") == "correct horse battery"


def test_ids_sort_by_time_and_children_are_found_again() -> None:
    ids = [new_id() for _ in range(50)]
    assert all(EXECUTION_ID.fullmatch(made) for made in ids)
    assert len(set(ids)) == 50
    assert child_id(ids[0], "a") == child_id(ids[0], "a") != child_id(ids[0], "b")
    assert EXECUTION_ID.fullmatch(child_id(ids[0], "a"))
    assert len(hash12("x")) == 12


def test_failpoints_do_nothing_until_armed_and_then_exactly_once() -> None:
    fp("push.before")
    arm("push.before=raise@2, clone.mid=stall")
    try:
        fp("push.before")
        with pytest.raises(FailpointError, match=r"push\.before"):
            fp("push.before")
        fp("push.before")
        with pytest.raises(ValueError, match="expected kill, raise or stall"):
            arm("push.before=explode")
    finally:
        arm("")


def test_a_known_value_is_found_in_every_writing() -> None:
    value = 'p/ss+w"rd é 0123456789'
    redact = Redactor()
    redact.learn(Secret(value))
    for before in ("", "x", "xy", "x-access-token:"):
        raw = (before + value + "tail").encode()
        for text in (base64.b64encode(raw).decode(), base64.urlsafe_b64encode(raw).decode(), raw.hex()):
            shown = redact(text)
            assert MASK in shown
            assert value.encode() not in _decoded(shown.replace(MASK, ""))
    for text in (quote(value, safe=""), json.dumps({"a": value}), value):
        assert MASK in redact(text)
    key = "-----BEGIN RSA PRIVATE KEY-----\n" + "\n".join("abcd" * 16 for _ in range(3)) + "\n-----END-----"
    redact.learn(Secret(key))
    assert "abcdabcd" not in redact(f"one line of it: {'abcd' * 16}")


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4))
    except ValueError:
        return b""


@given(st.lists(st.integers(1, 40), max_size=30), st.sampled_from(["ghs_4711_" + "a1." * 170, "horse battery staple"]))
def test_a_secret_that_is_cut_into_pieces_is_masked(sizes: list[int], value: str) -> None:
    redact = Redactor()
    redact.learn(Secret("horse battery staple"))
    text = f"it is {value} and more, {value}\nend"
    masking, shown, rest = redact.stream(), "", text
    for size in sizes:
        shown += masking.feed(rest[:size])
        rest = rest[size:]
    shown += masking.feed(rest) + masking.close()
    assert shown == redact(text)
    assert value not in shown
