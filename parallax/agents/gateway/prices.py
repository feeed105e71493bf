"""Prices: what a call costs, in micro-dollars, from the list prices that come with `genai-prices`.

No network: the data is the package's, and a file of the user's own (PARALLAX_PRICES) goes before it. The gateway asks
for the price of what was used and, before a call, of the most that it may use.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from decimal import ROUND_CEILING, Decimal
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from parallax.errors import ConfigurationError
from parallax.models import Usage

# The names that genai-prices has for our providers.
LISTED: Final[Mapping[str, str]] = {"anthropic": "anthropic", "openai": "openai", "gemini": "google"}


class Price(BaseModel):
    """Dollars for a million tokens of a kind. Without `cached` or `cache_write` these cost as input does."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    input: Decimal = Field(ge=0)
    output: Decimal = Field(ge=0)
    cached: Decimal | None = Field(default=None, ge=0)
    cache_write: Decimal | None = Field(default=None, ge=0)
    window: int | None = Field(default=None, ge=1)

    def of(self, usage: Usage) -> Decimal:
        """Dollars."""
        parts = (
            (usage.input_tokens, self.input),
            (usage.output_tokens, self.output),
            (usage.cached_tokens, self.input if self.cached is None else self.cached),
            (usage.cache_write_tokens, self.input if self.cache_write is None else self.cache_write),
        )
        return sum((count * price for count, price in parts), Decimal()) / 1_000_000


# A model that no list knows counts as one of the dearest in common use: a budget must hold on the day it comes out.
UNKNOWN: Final = Price(input=Decimal(15), output=Decimal(75), cached=Decimal("1.5"), cache_write=Decimal("18.75"))
_OVERRIDES: Final = TypeAdapter(dict[str, Price])


FLAT: Final = 100_000  # tokens of input up to which every list has one price; above, some have steps


@dataclass(frozen=True, slots=True)
class Listed:
    """What is known of a model: its price for short inputs, whether long ones may cost otherwise, its window."""

    price: Price
    known: bool
    steps: bool
    window: int | None


class Prices:
    """The price list of this server."""

    def __init__(self, overrides: Mapping[str, Price] | None = None) -> None:
        self._overrides = dict(overrides or {})
        self.model = lru_cache(maxsize=1024)(self._model)

    @classmethod
    def read(cls, path: Path | None) -> Prices:
        """With the user's own prices: JSON, model -> {input, output, cached, cache_write, window}."""
        if path is None:
            return cls()
        try:
            return cls(_OVERRIDES.validate_json(path.read_bytes()))
        except OSError as error:
            raise ConfigurationError(f"PARALLAX_PRICES: {path} cannot be read ({error.strerror})") from None
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"])) or "the file"
            example = json.dumps({"my-model": {"input": 3, "output": 15}})
            raise ConfigurationError(f"PARALLAX_PRICES: {path}: {place}: {first['msg']}; such as {example}") from None

    def load(self) -> None:
        """Read the package's data now (half a second, once): off the loop, before the first call needs it."""
        self.model("anthropic", "claude-sonnet-4-5")

    def priced(self, provider: str, model: str, usage: Usage) -> Usage:
        """The usage with its cost, rounded up, and `table`, or `estimated` where no list knows the model."""
        listed = self.model(provider, model)
        if listed.steps and usage.tokens - usage.output_tokens > FLAT:
            dollars = _list_price(provider, model, usage)
        else:
            dollars = listed.price.of(usage)
        cost = int((dollars * 1_000_000).to_integral_value(ROUND_CEILING))
        return replace(usage, cost=cost, priced="table" if listed.known else "estimated")

    def _model(self, provider: str, model: str) -> Listed:
        if (own := self._overrides.get(model)) is not None:
            return Listed(own, known=True, steps=False, window=own.window)
        try:
            found = _calc(provider, model, Usage(input_tokens=1))
        except LookupError:
            return Listed(UNKNOWN, known=False, steps=False, window=None)

        def each(kind: str) -> Decimal:
            thousand = _list_price(provider, model, Usage(**{kind: 1000}))  # type: ignore[arg-type]
            return thousand * 1000

        price = Price(
            input=each("input_tokens"),
            output=each("output_tokens"),
            cached=each("cached_tokens"),
            cache_write=each("cache_write_tokens"),
        )
        return Listed(price, known=True, steps=True, window=found.model.context_window)


def _calc(provider: str, model: str, usage: Usage) -> Any:
    import genai_prices  # half a second: only a server whose agents call models pays for it

    read, written = usage.cached_tokens, usage.cache_write_tokens
    counted = genai_prices.Usage(
        input_tokens=usage.input_tokens + read + written,
        output_tokens=usage.output_tokens,
        cache_read_tokens=read or None,
        cache_write_tokens=written or None,
    )
    return genai_prices.calc_price(counted, model, provider_id=LISTED.get(provider, provider))


def _list_price(provider: str, model: str, usage: Usage) -> Decimal:
    return Decimal(_calc(provider, model, usage).total_price)
