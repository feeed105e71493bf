"""The parts of the gateway by themselves: resets as providers write them, pace, counts, sizes. No network."""

from __future__ import annotations

import time
from email.utils import formatdate
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parallax.agents.gateway.accounts import Accounts, AccountState, Bucket, reset_of
from parallax.agents.gateway.dialects import MOST_INPUT, MOST_OUTPUT
from parallax.agents.gateway.prices import Prices
from parallax.agents.gateway.providers import PROVIDERS, Account
from parallax.agents.gateway.reading import Reader, bounds_of
from parallax.agents.gateway.recording import Recorder, Replayed, place_of
from parallax.redaction import Secret

NOW = 1_800_000_000.0
DIALECTS = {
    (provider, route.path.pattern): route.dialect
    for provider, known in PROVIDERS.items()
    for route in known.routes
    if route.metered
}


@pytest.mark.parametrize(
    ("headers", "body", "after_s"),
    [
        ({"anthropic-ratelimit-unified-reset": str(int(NOW + 3600))}, b"", 3600),
        ({"retry-after": "30"}, b"", 30),
        ({"retry-after": "1.5"}, b"", 1.5),
        ({"retry-after": formatdate(NOW + 90, usegmt=True)}, b"", 90),
        ({"retry-after": "soon"}, b"", None),
        ({}, b'{"error": {"type": "usage_limit_reached", "resets_at": 1800000600}}', 600),
        ({}, b'{"error": {"resets_in_seconds": 42}}', 42),
        ({}, b'{"error": {"details": [{"@type": "x"}, {"retryDelay": "34.5s"}]}}', 34.5),
        ({}, b'{"error": {"details": "none"}}', None),
        ({}, b'[{"error": 1}]', None),
        ({}, b"<html>", None),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "6m0s"}, b"", 360),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "20ms"}, b"", 0.02),
        ({"x-ratelimit-remaining-tokens": "5", "x-ratelimit-reset-tokens": "9s"}, b"", None),
        (
            {"anthropic-ratelimit-tokens-remaining": "0", "anthropic-ratelimit-tokens-reset": "2027-01-15T08:01:00Z"},
            b"", 60,
        ),
    ],
)  # fmt: skip
def test_a_reset_is_read_wherever_a_provider_writes_it(
    headers: dict[str, str], body: bytes, after_s: float | None
) -> None:
    found = reset_of(headers, body, NOW)
    assert found == (None if after_s is None else pytest.approx(NOW + after_s, abs=0.01))


def test_limits_without_a_time_grow_and_end_with_success() -> None:
    state = AccountState("anthropic", Account(base_url="http://x", key=Secret("k")))
    waits = [(state.note(529, {}, b"", NOW + n * 1000) or 0) - (NOW + n * 1000) for n in range(6)]
    assert waits == [5.0, 10.0, 20.0, 40.0, 60.0, 60.0]
    assert state.note(200, {}, b"", NOW) is None
    assert (state.until, state.backoffs) == (0.0, 0)
    state.note(429, {"retry-after": str(10**9)}, b"", NOW)
    assert state.until - NOW == 8 * 86_400  # nobody waits for years on a word
    assert state.note(500, {}, b"", NOW) == state.until  # another error says nothing of the limit


def test_a_bucket_lets_through_what_it_holds_and_then_its_rate() -> None:
    now = 0.0
    bucket = Bucket(60, clock=lambda: now)
    assert [bucket.take(1) for _ in range(60)] == [0.0] * 60
    assert [bucket.take(1) for _ in range(3)] == pytest.approx([1.0, 2.0, 3.0])
    now = 3.0
    assert bucket.take(1) == pytest.approx(1.0)
    now = 1000.0
    assert bucket.take(10_000) == 0.0  # more than a minute's worth waits for a full bucket, not for ever
    assert bucket.take(1) == pytest.approx(1.0)


def test_an_agent_stays_with_its_account_while_that_is_open() -> None:
    accounts = Accounts({"anthropic": [Account(base_url="http://x", key=Secret("k"), name=n) for n in "ab"]})
    first = accounts.choose("anthropic", "agent")
    assert first is not None
    assert first.account.name == "a"
    first.until = time.time() + 60
    second = accounts.choose("anthropic", "agent")
    assert second is not None
    assert second.account.name == "b"
    first.until = 0.0
    assert accounts.choose("anthropic", "agent") is second
    assert accounts.choose("anthropic", "another") is first
    second.until = first.until = time.time() + 60
    assert accounts.limited_until("anthropic") == first.until
    assert accounts.choose("anthropic", "agent", [first, second]) is None


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from([
            "usage", "message", "response", "usageMetadata", "type", "input_tokens", "output_tokens", "prompt_tokens",
            "completion_tokens", "cached_tokens", "promptTokenCount", "candidatesTokenCount", "candidates", "error",
            "input_tokens_details", "prompt_tokens_details", "cache_read_input_tokens",
        ]), inner, max_size=5),
    max_leaves=20,
)  # fmt: skip


@pytest.mark.parametrize("dialect", DIALECTS.values(), ids=[f"{name}" for name, _ in DIALECTS])
@settings(deadline=None)  # the first call reads the list of prices
@given(value=json_values, streamed=st.booleans(), body=json_values)
def test_no_answer_breaks_the_reader_and_what_it_counts_is_plausible(
    dialect: Any, value: Any, streamed: bool, body: Any
) -> None:
    asked = dialect.asked("v1beta/models/m:generateContent", body if isinstance(body, dict) else {"model": "m"})
    if asked is None:
        return
    bounds = bounds_of("openai", asked, b"x" * 400, 0, Prices())
    reader = Reader(dialect, streamed)
    data = orjson.dumps(value)
    for piece in (b"data: ", data[: len(data) // 2], data[len(data) // 2 :], b"\n\n") if streamed else (data,):
        reader.feed(piece)
    used = reader.used(bounds)
    assert 0 <= used.input_tokens <= MOST_INPUT
    assert 0 <= used.output_tokens <= MOST_OUTPUT
    assert min(used.cached_tokens, used.cache_write_tokens) >= 0
    assert used.priced in {"table", "estimated"}


def test_a_conversation_that_the_provider_keeps_counts_as_input() -> None:
    responses = DIALECTS["openai", r"responses(/compact)?"]
    alone = responses.asked("responses", {"model": "gpt-5", "max_output_tokens": 10})
    goes_on = responses.asked("responses", {"model": "gpt-5", "previous_response_id": "r", "max_output_tokens": 10})
    assert alone is not None
    assert goes_on is not None
    sizes = [bounds_of("openai", asked, b"x" * 100, 5000, Prices()).most.input_tokens for asked in (alone, goes_on)]
    assert sizes == [51, 5051]


def test_no_request_is_set_aside_for_more_than_its_models_window() -> None:
    messages = DIALECTS["anthropic", "v1/messages"]
    asked = messages.asked("v1/messages", {"model": "claude-sonnet-4-5", "max_tokens": 10})
    assert asked is not None
    assert bounds_of("anthropic", asked, b"x" * 10_000_000, 0, Prices()).most.input_tokens == 200_000


def test_records_stop_at_their_limit_and_keep_no_secret(tmp_path: Any) -> None:
    facts = {"provider": "anthropic", "path": "v1/messages", "status": 200, "content_type": "application/json"}
    for number in range(10):
        if number in {0, 2}:  # the server was started again
            recorder = Recorder(tmp_path, lambda text: text.replace("s3cret", "[redacted]"), 1000)
        recorder.write(f"e1/par[0]/assign#1/{number}", facts, b'{"k": "s3cret"}', b'{"a": "' + b"x" * 200 + b'"}')
    files = list(tmp_path.rglob("*.json"))
    assert 1 <= len(files) <= 3
    assert sum(path.stat().st_size for path in files) <= 1000
    assert all(b"s3cret" not in path.read_bytes() for path in files)
    assert place_of("e1/par[0]/assign#1/7") == ("e1", "par[0]/assign#1", "7")
    replayed = Replayed(tmp_path / "e1")
    assert replayed.answer("another/par[0]/assign#1/0", "anthropic") is not None
    assert replayed.answer("another/par[0]/assign#1/0", "openai") is None
    assert replayed.answer("another/par[0]/assign#1/99", "anthropic") is None
