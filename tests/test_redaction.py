"""A secret does not print, pickle or leave in text."""

from __future__ import annotations

import pickle

import pytest

from parallax.failpoints import FailpointError, arm, fp
from parallax.models import EXECUTION_ID, child_id, hash12, new_id
from parallax.redaction import Redactor, Secret


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
    fp("here")
    arm("here=raise@2, there=stall")
    try:
        fp("here")
        with pytest.raises(FailpointError, match="here"):
            fp("here")
        fp("here")
        with pytest.raises(ValueError, match="expected kill, raise or stall"):
            arm("here=explode")
    finally:
        arm("")
