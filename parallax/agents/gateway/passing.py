"""Passing one call on: the account, its pace, the budget, the way there and back, and what it used.

The bytes are the agent's and the provider's; only the key, the hop's own headers and the packing are the gateway's.
Whatever happens to the call, what it used is settled: counted, or estimated and marked so.
"""

from __future__ import annotations

import asyncio
import io
import time
import urllib.request
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

import aiohttp
from aiohttp import web
from yarl import URL

from parallax.agents.gateway.accounts import LIMITED, Accounts, AccountState
from parallax.agents.gateway.dialects import Refusal
from parallax.agents.gateway.prices import Prices
from parallax.agents.gateway.providers import Provider, Route, target
from parallax.agents.gateway.reading import Bounds, Reader, Unreadable, body_of, bounds_of, document_of
from parallax.agents.gateway.recording import Recorder, Recording, Replayed
from parallax.agents.gateway.session import Session, log
from parallax.errors import BudgetExhausted, ParallaxError
from parallax.models import Usage
from parallax.ports import Meter, ModelCall
from parallax.tasks import to_its_end

# RFC 9110 hop-by-hop, and what is the gateway's own to set.
DROPPED: Final = frozenset(
    {"connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te", "trailer"}
    | {"transfer-encoding", "upgrade", "host", "cookie", "accept-encoding", "expect", "content-length"}
    | {"x-api-key", "x-goog-api-key", "x-parallax-session"}
)
DROPPED_BACK: Final = frozenset({"connection", "keep-alive", "transfer-encoding", "upgrade", "trailer", "set-cookie"})
SILENT_S: Final = 600.0
HELD_S: Final = 20.0  # a limit that ends this soon is waited out at the gateway; a longer one parks the agent
ERROR_B: Final = 256 * 1024
LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "::1"})

NOTHING: Final = Usage(priced="table")

Limited: TypeAlias = Callable[[str, float | None, str], Awaitable[None]]
Tell: TypeAlias = Callable[[Session, str, str, int, str], None]


@dataclass(slots=True)
class Call:
    """One call under way."""

    session: Session
    request: web.BaseRequest
    provider: Provider
    route: Route
    path: str
    body: bytes
    bounds: Bounds | None
    id: str | None = None
    account: str = ""
    status: int | None = None
    used: Usage = NOTHING
    recording: Recording | None = None


class Refused(Exception):
    """The call is not passed on."""

    def __init__(self, refusal: Refusal, retry_after_s: float | None = None) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal
        self.retry_after_s = retry_after_s


class Passing:
    """Passes calls of sessions on to providers."""

    def __init__(
        self,
        accounts: Accounts,
        prices: Prices,
        *,
        meter: Meter | None,
        recorder: Recorder | None,
        replayed: Replayed | None,
        limited: Limited,
        tell: Tell,
    ) -> None:
        self._accounts = accounts
        self._prices = prices
        self._meter = meter
        self._recorder = recorder
        self._replayed = replayed
        self._limited = limited
        self._tell = tell
        self._client: aiohttp.ClientSession

    def open(self, client: aiohttp.ClientSession) -> None:
        """The client that asks the providers."""
        self._client = client

    async def call(
        self, session: Session, request: web.BaseRequest, provider: Provider, route: Route, path: str
    ) -> web.StreamResponse:
        """Pass it on. Raises Refused."""
        body = await _whole(request)
        try:
            bounds = self._bounds(session, provider, route, path, body, request) if route.metered else None
        except Unreadable as error:
            raise Refused(error.refusal) from None
        call = Call(session, request, provider, route, path, body, bounds)
        if bounds is not None:
            await self._reserve(call, bounds)
            if self._recorder is not None and call.id is not None:
                call.recording = self._recorder.begin(call.id, provider.name, path, body)
        return await (self._through(call) if self._replayed is None else self._again(call, self._replayed))

    async def _again(self, call: Call, replayed: Replayed) -> web.StreamResponse:
        """What the same call of the recorded run was answered; nothing goes to the network."""
        record = None if call.id is None else replayed.answer(call.id, call.provider.name)
        try:
            if record is None:
                text = (
                    f"There is no record of this call ({call.id}): the run takes another course than the recorded one."
                )
                raise Refused(Refusal(404, "path", text))
            reader = Reader(call.route.dialect, record.content_type == "text/event-stream")
            reader.feed(record.answer)
            call.status = record.status
            if record.status < 400:
                self._count(call, reader)
            return web.Response(status=record.status, body=record.answer, headers={"Content-Type": record.content_type})
        finally:
            await to_its_end(self._settle(call))

    def _bounds(
        self, session: Session, provider: Provider, route: Route, path: str, body: bytes, request: web.BaseRequest
    ) -> Bounds:
        document = document_of(body, request.headers.get("Content-Encoding", "").lower())
        asked = route.dialect.asked(path, document)
        if asked is None:
            raise Unreadable(Refusal(400, "request", "The request names no model."))
        return bounds_of(provider.name, asked, body, session.traffic.context_tokens, self._prices)

    async def _reserve(self, call: Call, bounds: Bounds) -> None:
        if self._meter is None:
            return
        wanted = ModelCall(
            agent_id=call.session.agent_id, provider=call.provider.name, model=bounds.asked.model, most=bounds.most
        )
        try:
            call.id = await self._meter.reserve(wanted)
        except BudgetExhausted as error:
            raise Refused(Refusal(400, "budget", str(error))) from None
        except ParallaxError as error:  # the books cannot be written: nothing is spent that they would not know of
            raise Refused(Refusal(503, "unreachable", f"The call cannot be booked: {error}")) from None

    async def _through(self, call: Call) -> web.StreamResponse:
        """To an account that is open, and on to another one when it turns out not to be."""
        tried: list[AccountState] = []
        try:
            while True:
                state = self._accounts.choose(call.provider.name, call.session.agent_id, tried)
                assert state is not None
                call.account = state.account.name
                await self._open(call, state)
                state.in_flight += 1
                try:
                    response = await self._ask(call, state, tried)
                except aiohttp.ClientConnectorError:
                    call.used = NOTHING  # it was not sent
                    raise
                finally:
                    state.in_flight -= 1
                state.tokens += call.used.tokens
                if response is not None:
                    return response
                tried.append(state)
        finally:
            await to_its_end(self._settle(call))

    async def _open(self, call: Call, state: AccountState) -> None:
        """Wait until the account is open and it is this call's turn; raises Refused when that is too long."""
        wait_s = state.until - time.time()
        if wait_s > HELD_S:
            cause, traffic = f"{state.name} is limited until {_clock(state.until)}", call.session.traffic
            traffic.last_status, traffic.limited, traffic.resets_at = 429, True, state.until
            await self._limited(call.session.agent_id, state.until, cause)
            raise Refused(Refusal(429, "limited", f"{cause}."), wait_s)
        paced_s = state.pace(_expected(call))
        if (wait_s := max(wait_s, paced_s)) > 0:
            await asyncio.sleep(wait_s)

    async def _ask(self, call: Call, state: AccountState, tried: list[AccountState]) -> web.StreamResponse | None:
        """Ask one account. None: it is limited, and another one takes the call."""
        if call.bounds is not None:
            call.used = call.bounds.estimate(0)  # until the answer says what it used
        url = target(state.account, call.path, call.request.rel_url.raw_query_string)
        request = self._client.request(
            call.request.method,
            url,
            headers=_headers(call, state),
            data=io.BytesIO(call.body) if call.body else None,  # sent in pieces, however large
            allow_redirects=False,
            proxy=_proxy_for(url),
        )
        async with request as upstream:
            traffic, kind = call.session.traffic, upstream.content_type
            traffic.last_byte_at = time.monotonic()
            call.status = traffic.last_status = upstream.status
            traffic.limited, traffic.resets_at = False, None
            if upstream.status >= 300:
                call.used = NOTHING  # what failed is not charged
            if upstream.status >= 400:
                return await self._failed(call, state, upstream, tried)
            if upstream.status >= 300:
                text = "The provider answered with a redirect; the gateway follows none."
                raise Refused(Refusal(502, "unreachable", text))
            if call.bounds is not None and kind not in {"application/json", "text/event-stream"}:
                raise Refused(Refusal(502, "unreachable", f"The provider answered {kind} instead of JSON."))
            state.note(upstream.status, upstream.headers, b"", time.time())
            return await self._answered(call, upstream)

    async def _failed(
        self, call: Call, state: AccountState, upstream: aiohttp.ClientResponse, tried: list[AccountState]
    ) -> web.StreamResponse | None:
        """An error passes as it came; a limit closes the account, and another one takes the call if there is one."""
        body = await _beginning(upstream)
        status, traffic, agent_id = upstream.status, call.session.traffic, call.session.agent_id
        cause = traffic.last_error = f"{call.provider.name} answered {status}"
        if status in LIMITED:
            until = state.note(status, upstream.headers, body, time.time())
            other = self._accounts.choose(call.provider.name, agent_id, [*tried, state])
            if other is not None and other.until <= time.time():
                return None
            traffic.limited, traffic.resets_at = True, until
            if until is None or until - time.time() > HELD_S:
                await self._limited(agent_id, until, cause)
        if upstream.content_type == "text/html":
            raise Refused(Refusal(status, "unreachable", f"The provider answered {status} and a page of HTML."))
        self._tell(call.session, call.provider.name, call.path, status, cause)
        response = web.Response(status=status, reason=upstream.reason, body=body)
        response.headers.clear()
        response.headers.extend(_headers_back(upstream))
        response.headers.popall("Content-Length", None)  # what there is of it may be less
        if call.recording is not None:
            call.recording.feed(body)
            call.recording.end(status, upstream.content_type)
        return response

    async def _answered(self, call: Call, upstream: aiohttp.ClientResponse) -> web.StreamResponse:
        """The answer passes byte for byte, as fast as the agent takes it."""
        traffic, recording = call.session.traffic, call.recording
        response = web.StreamResponse(status=upstream.status, reason=upstream.reason)
        response.headers.extend(_headers_back(upstream))
        reader = Reader(call.route.dialect, upstream.content_type == "text/event-stream")
        try:
            await response.prepare(call.request)
            async for chunk in upstream.content.iter_any():
                traffic.last_byte_at = time.monotonic()
                reader.feed(chunk)
                if recording is not None:
                    recording.feed(chunk)
                await response.write(chunk)
        except asyncio.CancelledError:
            upstream.close()  # the agent has gone: the provider need not go on
            raise
        except ConnectionResetError:  # the same, seen while writing: the provider is not to blame
            upstream.close()
            return response
        except (aiohttp.ClientError, TimeoutError):
            cause = traffic.last_error = f"{call.provider.name} broke off its answer"
            self._tell(call.session, call.provider.name, call.path, upstream.status, cause)
            # Too late for a status: cutting the connection is the only honest end of a half answer.
            if call.request.transport is not None:
                call.request.transport.abort()
            return response
        finally:
            self._count(call, reader)
        if recording is not None:
            recording.end(upstream.status, upstream.content_type)
        with suppress(ConnectionResetError):  # it took all, and went
            await response.write_eof()
        return response

    def _count(self, call: Call, reader: Reader) -> None:
        if call.bounds is None:
            return
        call.used, traffic = reader.used(call.bounds), call.session.traffic
        traffic.input_tokens += call.used.input_tokens
        traffic.output_tokens += call.used.output_tokens
        traffic.cached_tokens += call.used.cached_tokens
        traffic.context_tokens = call.used.tokens
        window = self._prices.model(call.provider.name, call.bounds.asked.model).window
        traffic.context_fill = None if window is None else round(traffic.context_tokens / window, 6)
        if reader.error is not None:
            traffic.last_error = f"{call.provider.name}: {reader.error}"

    async def _settle(self, call: Call) -> None:
        if call.recording is not None:
            await call.recording.keep()
        if self._meter is None or call.id is None or call.bounds is None:
            return
        priced = self._prices.priced(call.provider.name, call.bounds.asked.model, call.used)
        if call.used.priced != "table":
            priced = replace(priced, priced="estimated")
        try:
            await self._meter.settle(call.id, priced, account=call.account, status=call.status)
        except ParallaxError as error:  # on disk it stays at its most, so that nothing is forgotten
            log.warning("a call could not be settled", call=call.id, cause=str(error))


async def _beginning(upstream: aiohttp.ClientResponse) -> bytes:
    """An error's body, in however many pieces it comes. What breaks off is an error all the same."""
    body = bytearray()
    with suppress(aiohttp.ClientError, TimeoutError):
        async for chunk in upstream.content.iter_any():
            body += chunk
            if len(body) > ERROR_B:
                break
    return bytes(body[:ERROR_B])


async def _whole(request: web.BaseRequest) -> bytes:
    try:
        return await body_of(request)
    except Unreadable as error:
        raise Refused(error.refusal) from None


def _expected(call: Call) -> int:
    return 0 if call.bounds is None else call.bounds.estimate(0).tokens


def _headers(call: Call, state: AccountState) -> list[tuple[str, str]]:
    """The agent's own, without the hop's and the token; with the key, or with the agent's own login."""
    key = state.account.key
    headers = [(name, value) for name, value in call.request.headers.items() if name.lower() not in DROPPED]
    if key is not None:
        headers = [(name, value) for name, value in headers if name.lower() != "authorization"]
        headers.append(call.provider.key(key))
    return [*headers, ("Accept-Encoding", "identity")]  # unpacked, so that counts can be read while it passes


def _headers_back(upstream: aiohttp.ClientResponse) -> list[tuple[str, str]]:
    return [(name, value) for name, value in upstream.headers.items() if name.lower() not in DROPPED_BACK]


def _proxy_for(url: URL) -> str | None:
    """The user's own way out, as every other program takes it; never for a provider on this host."""
    host = url.host or ""
    if host in LOOPBACK or urllib.request.proxy_bypass(host):
        return None
    return urllib.request.getproxies().get(url.scheme)


def _clock(at: float) -> str:
    return time.strftime("%H:%M", time.localtime(at))
