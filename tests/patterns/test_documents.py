"""YAML by the 1.2 core rules, bounded, with places; everything clever is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallax.documents import DocumentError, Place, did_you_mean, read


def test_values_follow_the_core_rules() -> None:
    text = "a: no\nb: 010\nc: 0x1f\nd: 0o17\ne: 1e3\nf: 2001-01-01\ng: ~\nh: 'null'\ni: true\nj: .5\n"
    assert read(text, "t").value == {
        "a": "no", "b": 10, "c": 31, "d": 15, "e": 1000.0, "f": "2001-01-01", "g": None, "h": "null", "i": True, "j": 0.5,
    }  # fmt: skip


def test_every_key_and_value_has_its_place() -> None:
    document = read("a:\n  - {b: c}\n", "t")
    assert document.place(("a",), key=True) == Place(1, 0)
    assert document.place(("a", 0, "b"), key=True) == Place(2, 5)
    assert document.place(("a", 0, "b")) == Place(2, 8)
    assert document.place(("a", 0, "nope")) == Place(2, 4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &x 1", "anchors are not allowed"), ("a: *x", "aliases are not allowed"), ("a: !!str 1", "tags are not allowed"),
        ("<<: {a: 1}", "merge keys"), ("a: 1\na: 2", "stands twice"), ("[1]: 2", "a key must be plain text"),
        ("a: 1\n---\nb: 2", "second document"), ("a: [1", "expected ',' or ']'"), ("\x00", "not allowed"),
        ("[" * 3000, "nested deeper than 64"), ("a: '" + "x" * 1024 * 1024 + "'", "larger than 1024 KiB"),
        ("[" + "1," * 100_001 + "1]", "more than 100000 values"),
    ],
)  # fmt: skip
def test_what_is_not_plain_is_refused_with_its_place(text: str, message: str) -> None:
    with pytest.raises(DocumentError) as raised:
        read(text, "t.yaml")
    assert message in str(raised.value)
    assert str(raised.value).startswith("t.yaml:")


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        read(text, "t")
    except DocumentError as error:
        assert error.mistakes


def test_a_near_word_is_suggested_and_a_far_one_is_not() -> None:
    assert did_you_mean("reportTo", ["reportsTo", "role"]) == "did you mean 'reportsTo'?"
    assert did_you_mean("zzz", ["reportsTo"]) is None
