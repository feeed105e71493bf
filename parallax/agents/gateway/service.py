"""The model gateway: every agent's only road to a model, so that no agent ever holds a provider's key.

A session gets a token that opens one door, `/model/anthropic/…` or `/model/openai/v1/…` on loopback. Requests go to the
configured base URL alone, byte for byte and without buffering; the token is taken off, the key is put on. What passes
is watched, not judged: bytes, requests in flight, HTTP status, rate limits and token counts tell the supervisor what
an agent would not. Started by `app`; it is the supervisor's `Doors`.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import secrets
import time
import urllib.request
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Final, TypeAlias

import aiohttp
import orjson
from aiohttp import web
from yarl import URL

from parallax.agents.clients.wire import Lines
from parallax.errors import ConfigurationError
from parallax.ports import AgentSession, ModelDoor, Traffic
from parallax.redaction import Redactor, Secret

# RFC 9110 hop-by-hop, and what is the gateway's own to set.
DROPPED: Final = frozenset(
    {"connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te", "trailer"}
    | {"transfer-encoding", "upgrade", "host", "authorization", "x-api-key", "x-goog-api-key", "x-parallax-session"}
    | {"cookie", "accept-encoding", "expect"}
)
DROPPED_BACK: Final = frozenset({"connection", "keep-alive", "transfer-encoding", "upgrade", "trailer", "set-cookie"})
CONNECT_S: Final = 15.0
SILENT_S: Final = 600.0
USAGE_LINE: Final = 4 * 1024 * 1024
SOCKET_PATH: Final = 100  # bytes of a unix socket's path; Linux takes 107, others less
LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "::1"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """A provider's base URL (for OpenAI with its /v1) and the key that is added; without a key there is no door."""

    base_url: str
    key: Secret | None = None


@dataclass(frozen=True, slots=True)
class _Session:
    """One agent's door."""

    session: AgentSession
    door: ModelDoor
    traffic: Traffic
    site: web.UnixSite | None


Tools: TypeAlias = Callable[[str, web.BaseRequest], Awaitable[web.StreamResponse]]
Limits: TypeAlias = Callable[[str, float | None, str], Awaitable[None]]


class Gateway:
    """One small server on loopback, on a port of the system's choosing, and one unix socket for each session.

    `providers_of` gives the providers that an agent type speaks to; `sockets` is a directory for the unix sockets, on
    a short path, None for none. Set after building, by those who have them: `tools(agent_id, request)` answers `/mcp`,
    `limits(agent_id, until, cause)` hears that an agent's account is limited until a unix time (None: not known).
    """

    def __init__(
        self,
        accounts: Mapping[str, Account],
        redactor: Redactor | None = None,
        *,
        providers_of: Callable[[str], tuple[str, ...]],
        sockets: Path | None = None,
    ) -> None:
        self._accounts = dict(accounts)
        self._redactor = redactor
        self._providers_of = providers_of
        self._sockets = sockets
        self._sessions: dict[str, _Session] = {}  # sha256 of the token -> its session
        self._doors: dict[str, str] = {}  # agent -> hash
        self._runner: web.ServerRunner | None = None
        self._client: aiohttp.ClientSession | None = None
        self._url = ""
        self.tools: Tools | None = None
        self.limits: Limits | None = None

    async def start(self) -> str:
        """Listen; returns the base URL. Raises ConfigurationError when no port can be had."""
        self._client = aiohttp.ClientSession(
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=SILENT_S),
            connector=aiohttp.TCPConnector(limit=0),
        )
        server = web.Server(self._handle, access_log=None)
        self._runner = web.ServerRunner(server, handle_signals=False, shutdown_timeout=1.0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        try:
            await site.start()
        except OSError as error:
            await self.close()
            raise ConfigurationError(f"The model gateway cannot listen on 127.0.0.1: {error}") from None
        self._url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self._url

    async def close(self) -> None:
        """Shut every door."""
        for agent_id in list(self._doors):
            await self.close_session(agent_id)
        if self._runner is not None:
            await self._runner.cleanup()
        if self._client is not None:
            await self._client.close()

    @property
    def url(self) -> str:
        """Where it listens."""
        return self._url

    # -- sessions ------------------------------------------------------------------------------------------------------

    async def open_session(self, session: AgentSession) -> ModelDoor:
        """A door for one agent; an older one of the same agent is shut. Raises ConfigurationError."""
        await self.close_session(session.agent_id)
        token = Secret(f"plx_{secrets.token_urlsafe(32)}")
        socket, site = await self._listen()
        known = {name: self._accounts[name] for name in self._providers_of(session.type) if name in self._accounts}
        door = ModelDoor(
            url=self._url,
            token=token,
            socket=socket,
            providers=frozenset(name for name, account in known.items() if account.key is not None),
            logins=frozenset(name for name, account in known.items() if account.key is None),
            has_tools=self.tools is not None,
        )
        if self._redactor is not None:
            self._redactor.learn(token)
        hashed = _hash(token.reveal())
        traffic = Traffic(agent_id=session.agent_id, last_byte_at=time.monotonic())
        self._sessions[hashed] = _Session(session, door, traffic, site)
        self._doors[session.agent_id] = hashed
        return door

    async def _listen(self) -> tuple[Path, web.UnixSite] | tuple[None, None]:
        """A socket of one session, in a directory of its own that nobody else may enter."""
        if self._sockets is None:
            return None, None
        assert self._runner is not None
        directory = self._sockets / secrets.token_hex(4)
        path = directory / "gateway.sock"
        if len(os.fsencode(path)) > SOCKET_PATH:
            raise ConfigurationError(f"The path of a gateway socket is too long for this system: {path}")
        try:
            directory.mkdir(mode=0o700, parents=True)
            site = web.UnixSite(self._runner, path)
            await site.start()
        except OSError as error:
            raise ConfigurationError(f"The gateway cannot listen on {path}: {error}") from None
        return path, site

    async def close_session(self, agent_id: str) -> None:
        """The agent's token opens nothing any more, its socket is gone. Unknown agents are no error."""
        hashed = self._doors.pop(agent_id, None)
        if hashed is None:
            return
        closed = self._sessions.pop(hashed)
        if self._redactor is not None:
            self._redactor.forget(closed.door.token)
        if closed.site is not None and closed.door.socket is not None:
            await closed.site.stop()
            closed.door.socket.unlink(missing_ok=True)
            closed.door.socket.parent.rmdir()

    def traffic(self, agent_id: str) -> Traffic | None:
        """What the agent's door has seen; None without a door."""
        hashed = self._doors.get(agent_id)
        return self._sessions[hashed].traffic if hashed else None

    # -- requests ------------------------------------------------------------------------------------------------------

    def _session_of(self, request: web.BaseRequest) -> _Session | None:
        """Whose token it is. Through a session's socket only its own token opens."""
        found = self._sessions.get(_hash(_token_of(request)))
        if found is None or request.transport is None:
            return None
        came_by = request.transport.get_extra_info("sockname")
        return found if not isinstance(came_by, str) or came_by == str(found.door.socket) else None

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        session = self._session_of(request)
        head, _, rest = request.path.removeprefix("/").partition("/")
        if head == "mcp":
            return await self._tool(session, request)
        provider = rest.partition("/")[0] if head == "model" else ""
        account = self._accounts.get(provider)
        if account is None or account.key is None or session is None or provider not in session.door.providers:
            return _refusal(provider, 401, "This session has ended, or the token is not for this provider.")
        target = _target(account, provider, request)
        if target is None:
            return _refusal(provider, 404, "No such path.")
        traffic = session.traffic
        traffic.requests += 1
        traffic.in_flight += 1
        traffic.last_byte_at = time.monotonic()
        try:
            return await self._pass(request, provider, account.key, target, traffic)
        except (aiohttp.ClientError, TimeoutError) as error:
            traffic.last_status, traffic.last_error = 502, type(error).__name__
            return _refusal(provider, 502, f"The provider cannot be reached: {type(error).__name__}.")
        finally:
            traffic.in_flight -= 1

    async def _tool(self, session: _Session | None, request: web.BaseRequest) -> web.StreamResponse:
        if session is None:
            return _refusal("", 401, "This session has ended, or the token is not for this door.")
        if self.tools is None:
            return _refusal("", 404, "There are no team tools here.")
        return await self.tools(session.session.agent_id, request)

    async def _pass(
        self, request: web.BaseRequest, provider: str, key: Secret, target: URL, traffic: Traffic
    ) -> web.StreamResponse:
        assert self._client is not None
        headers = [(name, value) for name, value in request.headers.items() if name.lower() not in DROPPED]
        # Unpacked, so that token counts can be read while it passes.
        headers += [("Accept-Encoding", "identity"), _key_header(provider, key)]
        async with self._client.request(
            request.method,
            target,
            headers=headers,
            data=request.content if request.body_exists else None,
            allow_redirects=False,
            proxy=_proxy_for(target),
        ) as upstream:
            traffic.last_status = upstream.status
            _note_limit(traffic, upstream)
            if traffic.limited and self.limits is not None:
                cause = f"{provider} answered {upstream.status}"
                await self.limits(traffic.agent_id, traffic.resets_at, cause)
            if 300 <= upstream.status < 400:
                return _refusal(provider, 502, "The provider answered with a redirect; the gateway follows none.")
            kept = [(name, value) for name, value in upstream.headers.items() if name.lower() not in DROPPED_BACK]
            response = web.StreamResponse(status=upstream.status, reason=upstream.reason)
            response.headers.extend(kept)
            meter = _Meter(traffic, streamed="event-stream" in upstream.headers.get("Content-Type", ""))
            try:
                await response.prepare(request)
                async for chunk in upstream.content.iter_any():
                    traffic.last_byte_at = time.monotonic()
                    meter.feed(chunk)
                    await response.write(chunk)
                await response.write_eof()
            except (ConnectionResetError, asyncio.CancelledError):
                upstream.close()  # the agent has gone: the provider need not go on
                raise
            except (aiohttp.ClientError, TimeoutError):
                # Too late for a status: cutting the connection is the only honest end of a half answer.
                if request.transport is not None:
                    request.transport.abort()
            finally:
                meter.end()
            return response


class _Meter:
    """Reads token counts from what passes: server-sent events, or one JSON document."""

    def __init__(self, traffic: Traffic, *, streamed: bool) -> None:
        self._traffic = traffic
        self._streamed = streamed
        self._lines = Lines(USAGE_LINE)
        self._document = bytearray()
        self._seen = [0, 0, 0]

    def feed(self, chunk: bytes) -> None:
        """Look at a piece."""
        if self._streamed:
            for line in self._lines.feed(chunk):
                if line.startswith(b"data:") and b'"usage"' in line:
                    self._read(line[5:])
        elif len(self._document) <= USAGE_LINE:
            self._document += chunk

    def end(self) -> None:
        """Add what this answer used to the session's count."""
        if b'"usage"' in self._document:
            self._read(bytes(self._document))
        self._traffic.input_tokens += self._seen[0]
        self._traffic.output_tokens += self._seen[1]
        self._traffic.cached_tokens += self._seen[2]

    def _read(self, data: bytes) -> None:
        try:
            event = orjson.loads(data)
        except orjson.JSONDecodeError:
            return
        holders = [event, *(event.get(key) for key in ("message", "response"))] if isinstance(event, dict) else []
        usage: dict[str, Any] = next(
            (h["usage"] for h in holders if isinstance(h, dict) and isinstance(h.get("usage"), dict)), {}
        )
        details = usage.get("input_tokens_details")
        cached = details.get("cached_tokens") if isinstance(details, dict) else usage.get("cache_read_input_tokens")
        # Both dialects repeat and raise the counts while they stream: the highest is the sum of the answer.
        for at, value in enumerate((usage.get("input_tokens"), usage.get("output_tokens"), cached)):
            if isinstance(value, int) and value > self._seen[at]:
                self._seen[at] = value


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _token_of(request: web.BaseRequest) -> str:
    for name in ("x-parallax-session", "x-api-key", "x-goog-api-key"):
        if key := request.headers.get(name):
            return key
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def _key_header(provider: str, key: Secret) -> tuple[str, str]:
    return ("x-api-key", key.reveal()) if provider == "anthropic" else ("Authorization", f"Bearer {key.reveal()}")


def _target(account: Account, provider: str, request: web.BaseRequest) -> URL | None:
    """Below the configured base URL, with path and query as the agent wrote them; None for what would leave it."""
    path = request.raw_path.partition("?")[0].removeprefix(f"/model/{provider}/")
    if provider == "openai":  # the base URL has the version, as OPENAI_BASE_URL always had
        if not path.startswith("v1/"):
            return None
        path = path.removeprefix("v1/")
    if any(part.replace("%2e", ".").replace("%2E", ".") in {".", ".."} for part in path.split("/")):
        return None
    query = request.rel_url.raw_query_string
    return URL(f"{account.base_url.rstrip('/')}/{path}" + (f"?{query}" if query else ""), encoded=True)


def _proxy_for(target: URL) -> str | None:
    """The user's own way out, as every other program takes it; never for a provider on this host."""
    host = target.host or ""
    if host in LOOPBACK or urllib.request.proxy_bypass(host):
        return None
    return urllib.request.getproxies().get(target.scheme)


def _note_limit(traffic: Traffic, upstream: aiohttp.ClientResponse) -> None:
    traffic.limited = upstream.status in {429, 529}
    if not traffic.limited:
        traffic.resets_at = None
        return
    headers = upstream.headers
    unified = headers.get("anthropic-ratelimit-unified-reset", "")
    after = headers.get("retry-after", "")
    if unified.isdigit():
        traffic.resets_at = float(unified)
    elif after.replace(".", "", 1).isdigit():
        traffic.resets_at = time.time() + float(after)
    else:
        try:
            traffic.resets_at = parsedate_to_datetime(after).timestamp() if after else None
        except ValueError:
            traffic.resets_at = None


def _refusal(provider: str, status: int, message: str) -> web.Response:
    """An error of ours in the shape that the CLI knows."""
    kinds = {401: "authentication_error", 404: "not_found_error"}
    kind = kinds.get(status, "api_error")
    error: dict[str, Any] = {"type": kind, "message": f"Parallax gateway: {message}"}
    if provider == "anthropic":
        body: dict[str, Any] = {"type": "error", "error": error}
    else:
        body = {"error": {**error, "code": "invalid_api_key" if status == 401 else None, "param": None}}
    return web.Response(status=status, body=json.dumps(body).encode(), content_type="application/json")
