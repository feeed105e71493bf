"""Reading what passes: a request's body, whole and bounded; an answer's token counts, without holding it up."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

import orjson
from aiohttp import web

from parallax.agents.clients.wire import Lines
from parallax.agents.gateway.dialects import Asked, Counted, Dialect, Refusal
from parallax.agents.gateway.prices import Prices
from parallax.models import Usage

BODY: Final = 32 * 1024 * 1024  # the largest that a provider takes
USAGE_LINE: Final = 4 * 1024 * 1024
DEFAULT_OUTPUT: Final = 32_000  # tokens set aside for an answer whose length the CLI leaves open
DENSEST: Final = 2  # bytes of a token, at the least, when its size is only known as bytes
USUAL: Final = 4  # bytes of a token, as they usually are


class Unreadable(Exception):
    """A request that is not passed on; `refusal` says why."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


async def body_of(request: web.BaseRequest) -> bytes:
    """The whole body as it came. Raises Unreadable when it is too large; half a body raises what aiohttp has for it."""
    too_large = Unreadable(Refusal(413, "size", f"The request is larger than {BODY >> 20} MB."))
    if (request.content_length or 0) > BODY:
        raise too_large
    if request.headers.get("Expect", "").lower() == "100-continue" and request.transport is not None:
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    body = bytearray()
    async for chunk in request.content.iter_any():
        body += chunk
        if len(body) > BODY:
            raise too_large
    return bytes(body)


def document_of(body: bytes, encoding: str) -> Mapping[str, Any]:
    """The JSON object of a request. Raises Unreadable."""
    if encoding in {"gzip", "deflate"}:
        unpacker = zlib.decompressobj(zlib.MAX_WBITS | 32)
        try:
            body = unpacker.decompress(body, BODY)
        except zlib.error:
            raise Unreadable(Refusal(400, "request", f"The request's body is not {encoding}.")) from None
        if unpacker.unconsumed_tail:
            raise Unreadable(Refusal(413, "size", f"The request is larger than {BODY >> 20} MB."))
    elif encoding not in {"", "identity"}:
        raise Unreadable(Refusal(415, "request", "The gateway reads requests that are plain or packed with gzip."))
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        document = None
    if not isinstance(document, dict):
        raise Unreadable(Refusal(400, "request", "The request's body is not a JSON object."))
    return document


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """The size of a request, and the most that the call may use."""

    asked: Asked
    body_b: int
    most: Usage

    def estimate(self, answer_b: int) -> Usage:
        """What a call probably used that does not say: by the bytes that went and came, never above the most."""
        sent = min(self.body_b // USUAL + 1, self.most.input_tokens + self.most.cache_write_tokens)
        return Usage(input_tokens=sent, output_tokens=min(-(-answer_b // USUAL), self.most.output_tokens))


def bounds_of(provider: str, asked: Asked, body: bytes, before: int, prices: Prices) -> Bounds:
    """No more input than the bytes could be, nor than the model's window takes; no more output than was asked for.

    `before` are the tokens of the session's call before: they are input again where the provider kept them.
    """
    window = prices.model(provider, asked.model).window
    sent = len(body) // DENSEST + 1 + (before if asked.goes_on else 0)
    sent = sent if window is None else min(sent, window)
    most = Usage(input_tokens=sent, output_tokens=asked.max_output or DEFAULT_OUTPUT)
    if b'"cache_control"' in body:  # all of it may be written into the cache, which costs more
        most = replace(most, input_tokens=0, cache_write_tokens=sent)
    return Bounds(asked=asked, body_b=len(body), most=prices.priced(provider, asked.model, most))


@dataclass(slots=True)
class Reader:
    """Reads the token counts of one answer while it passes: server-sent events, or one JSON document."""

    dialect: Dialect
    streamed: bool
    answer_b: int = 0
    error: str | None = None
    _counted: Counted | None = None
    _absurd: bool = False
    _lines: Lines = field(default_factory=lambda: Lines(USAGE_LINE))
    _document: bytearray = field(default_factory=bytearray)

    def feed(self, chunk: bytes) -> None:
        """Look at a piece."""
        self.answer_b += len(chunk)
        if self.streamed:
            for line in self._lines.feed(chunk):
                if line.startswith(b"data:") and (b'"usage' in line or b'"error"' in line):
                    self._read(line[5:])
        elif len(self._document) <= USAGE_LINE:
            self._document += chunk

    def used(self, bounds: Bounds) -> Usage:
        """What the call used: counted where the provider said so to the end, else estimated and marked so."""
        if self.streamed:
            if (rest := self._lines.rest()).startswith(b"data:"):
                self._read(rest[5:])
        else:
            self._read(bytes(self._document))
        if self._counted is None or self._absurd:
            return bounds.estimate(self.answer_b)
        usage = self._counted.usage
        if not self._counted.final:
            said = max(usage.output_tokens, bounds.estimate(self.answer_b).output_tokens)
            return replace(usage, output_tokens=said)
        return replace(usage, priced="table")

    def _read(self, data: bytes) -> None:
        try:
            found = orjson.loads(data)
        except orjson.JSONDecodeError:
            return
        for event in found if isinstance(found, list) else [found]:  # Gemini streams an array if it is not told SSE
            if not isinstance(event, dict):
                continue
            self.error = _error_of(event) or self.error
            try:
                counted = self.dialect.counted(event)
            except ValueError:
                self._absurd = True
                continue
            if counted is not None:
                self._counted = _raised(self._counted, counted)


def _raised(before: Counted | None, now: Counted) -> Counted:
    """Streams repeat and raise their counts: the highest of each kind is the sum of the answer."""
    if before is None:
        return now
    kinds = ("input_tokens", "output_tokens", "cached_tokens", "cache_write_tokens")
    highest = {kind: max(getattr(before.usage, kind), getattr(now.usage, kind)) for kind in kinds}
    return Counted(usage=Usage(**highest), final=before.final or now.final)


def _error_of(event: Mapping[str, Any]) -> str | None:
    response = event.get("response")
    for holder in (event, response if isinstance(response, dict) else {}):
        error = holder.get("error")
        if isinstance(error, dict):
            return str(error.get("type") or error.get("code") or error.get("status") or "error")[:80]
    return None
