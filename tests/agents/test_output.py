"""What is kept of a flood: its head, its end, and how much is missing between."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from parallax.agents.output import BATCH, LIMIT, Ring, cut


@given(st.lists(st.text(alphabet="abc", max_size=40), max_size=30), st.integers(2, 60))
def test_head_and_tail_are_the_streams_own_and_the_mark_says_what_is_missing(pieces: list[str], limit: int) -> None:
    ring, whole = Ring(limit), "".join(pieces)
    head = "".join(ring.take(piece) for piece in pieces)
    rest = "".join(ring.rest())
    if len(whole) <= limit:
        assert head + rest == whole
        return
    assert head == whole[: limit // 2]
    assert rest == f"\n[... {len(whole) - limit} characters left out ...]\n{whole[len(whole) - (limit - limit // 2) :]}"
    assert ring.rest() == []


def test_a_gigabyte_is_held_in_ten_megabytes_and_told_in_events_of_a_size() -> None:
    ring, piece = Ring(), "x" * BATCH
    told = sum(len(ring.take(piece)) for _ in range(16 * 1024))
    rest = ring.rest()
    assert max(map(len, rest)) <= BATCH
    assert told + sum(map(len, rest)) < LIMIT + 100
    assert "characters left out" in rest[0]


def test_one_piece_is_cut_in_its_middle() -> None:
    assert cut("short") == "short"
    assert cut("a" * 10 + "b" * 10, 8) == "aaaa\n[... 12 characters left out ...]\nbbbb"
