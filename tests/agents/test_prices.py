"""Prices: list prices without a network, the user's own before them, and a dear guess for what no list knows."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path

import genai_prices
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parallax.agents.gateway.prices import UNKNOWN, Prices
from parallax.errors import ConfigurationError
from parallax.models import Usage

PRICES = Prices()
MODELS = [
    ("anthropic", "claude-sonnet-4-5"), ("anthropic", "claude-opus-4-1"), ("openai", "gpt-5"),
    ("openai", "gpt-5.2-codex"), ("gemini", "gemini-2.5-pro"), ("gemini", "gemini-2.5-flash"),
]  # fmt: skip
count = st.integers(0, 400_000)


@pytest.mark.parametrize(("provider", "model"), MODELS)
@settings(deadline=None)  # the first call reads the package's data
@given(fresh=count, output=count, read=count, written=count)
def test_a_price_is_the_lists_rounded_up_to_the_micro_dollar(
    provider: str, model: str, fresh: int, output: int, read: int, written: int
) -> None:
    usage = Usage(input_tokens=fresh, output_tokens=output, cached_tokens=read, cache_write_tokens=written)
    counted = genai_prices.Usage(
        input_tokens=fresh + read + written, output_tokens=output, cache_read_tokens=read, cache_write_tokens=written
    )
    listed = genai_prices.calc_price(counted, model, provider_id="google" if provider == "gemini" else provider)
    priced = PRICES.priced(provider, model, usage)
    assert priced.priced == "table"
    assert 0 <= Decimal(priced.cost) - listed.total_price * 1_000_000 < 1


def test_what_no_list_knows_is_dear_and_marked_estimated() -> None:
    priced = PRICES.priced("anthropic", "not-out-yet", Usage(input_tokens=1_000_000, output_tokens=1_000_000))
    assert (priced.cost, priced.priced) == (90_000_000, "estimated")
    usual = [PRICES.priced(p, m, Usage(output_tokens=1_000_000)).cost for p, m in MODELS]
    assert UNKNOWN.output * 1_000_000 >= max(usual)


def test_the_users_own_prices_go_first(tmp_path: Path) -> None:
    path = tmp_path / "prices.json"
    path.write_text(json.dumps({"gpt-5": {"input": 1, "output": 2}, "ours": {"input": 0, "output": 0, "window": 9}}))
    prices = Prices.read(path)
    usage = Usage(input_tokens=1_000_000, cached_tokens=1_000_000, output_tokens=1_000_000)
    assert (prices.priced("openai", "gpt-5", usage).cost, prices.priced("openai", "gpt-5", usage).priced) == (
        4_000_000, "table",
    )  # fmt: skip
    assert (prices.priced("openai", "ours", usage).cost, prices.model("openai", "ours").window) == (0, 9)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nonsense", "the file: Invalid JSON"),
        ('{"m": {"input": 1}}', r"m\.output: Field required; such as"),
        ('{"m": {"input": -1, "output": 2}}', r"m\.input: Input should be greater than or equal to 0"),
        ('{"m": {"input": 1, "output": 2, "cash": 3}}', r"m\.cash: Extra inputs are not permitted"),
    ],
)
def test_a_bad_price_file_is_named_with_its_place(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "prices.json"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=f"PARALLAX_PRICES: .*prices.json: {words}"):
        Prices.read(path)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        Prices.read(tmp_path / "missing.json")
