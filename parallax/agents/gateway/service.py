"""The gateway: every agent's only road out, so that no agent ever holds a provider's key and no call goes uncounted.

A session gets a token that opens, on loopback and on a unix socket of its own: `/model/<provider>/…` for models,
`/mcp` for the team tools, and CONNECT for named hosts. What passes is watched, not judged: bytes, requests in flight,
status, limits and tokens tell the supervisor what an agent would not. Started by `app`; it is the supervisor's `Doors`.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import os
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

import aiohttp
from aiohttp import web

from parallax.agents.gateway.accounts import Accounts
from parallax.agents.gateway.dialects import Refusal
from parallax.agents.gateway.egress import REGISTRIES, Allowed, Egress, NotAllowed, Tunnel
from parallax.agents.gateway.passing import SILENT_S, Limited, Passing, Refused
from parallax.agents.gateway.prices import Prices
from parallax.agents.gateway.providers import PROVIDERS, Account
from parallax.agents.gateway.recording import Recorder, Replayed
from parallax.agents.gateway.session import Session, log, refused, token_hash, token_of
from parallax.errors import ConfigurationError, ParallaxError
from parallax.events import Event
from parallax.ports import SETUP, AgentSession, Meter, ModelDoor, Traffic
from parallax.redaction import Redactor, Secret

CONNECT_S: Final = 15.0
SOCKET_PATH: Final = 100  # bytes of a unix socket's path; Linux takes 107, others less
INSIDE: Final = "127.0.0.1:8899"  # where a sandbox's relay listens: the gateway's own address in there

Tools: TypeAlias = Callable[[str, web.BaseRequest], Awaitable[web.StreamResponse]]
Tell: TypeAlias = Callable[[Event], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewaySettings:
    """What an installation decides: see `.env.example`."""

    accounts: Mapping[str, Sequence[Account]]
    rule: str = "order"
    egress: Sequence[Allowed] = ()
    sockets: Path | None = None


class Gateway:
    """One small server on loopback, on a port of the system's choosing, and one unix socket for each session.

    `providers_of` gives the providers that an agent type speaks to. Set after building, by those who have them:
    `tools(agent_id, request)` answers `/mcp`, `limits(agent_id, until, cause)` hears that an agent's account is limited
    until a unix time, and `tell` takes events.
    """

    def __init__(
        self,
        settings: GatewaySettings,
        *,
        providers_of: Callable[[str], tuple[str, ...]],
        redactor: Redactor | None = None,
        prices: Prices | None = None,
        meter: Meter | None = None,
        recorder: Recorder | None = None,
        replayed: Replayed | None = None,
    ) -> None:
        self._settings = settings
        self._redactor = redactor
        self._providers_of = providers_of
        self._accounts = Accounts(settings.accounts, settings.rule)
        self._prices = prices or Prices()
        self._egress = Egress(settings.egress)
        self._passing = Passing(
            self._accounts, self._prices, meter=meter, recorder=recorder, replayed=replayed,
            limited=self._limited, tell=self._tell,
        )  # fmt: skip
        self._sessions: dict[str, Session] = {}  # sha256 of the token -> its session
        self._doors: dict[str, str] = {}  # agent -> hash
        self._runner: web.ServerRunner | None = None
        self._client: aiohttp.ClientSession | None = None
        self._telling: set[asyncio.Task[None]] = set()
        self._url = ""
        self.tools: Tools | None = None
        self.limits: Limited | None = None
        self.tell: Tell | None = None

    # -- its own life --------------------------------------------------------------------------------------------------

    async def start(self) -> str:
        """Listen; returns the base URL. Raises ConfigurationError when no port can be had."""
        self._client = aiohttp.ClientSession(
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=SILENT_S),
            connector=aiohttp.TCPConnector(limit=0),
        )
        self._passing.open(self._client)
        server = web.Server(self._handle, access_log=None, handler_cancellation=True, auto_decompress=False)
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
        if self._telling:
            await asyncio.wait(self._telling)

    @property
    def url(self) -> str:
        """Where it listens."""
        return self._url

    # -- sessions ------------------------------------------------------------------------------------------------------

    async def open_session(self, session: AgentSession) -> ModelDoor:
        """A door for one agent; an older one of the same agent is shut. Raises ConfigurationError."""
        await self.close_session(session.agent_id)
        keyed = {name: self._accounts.has_key(name) for name in self._providers_of(session.type)}
        if any(has is not None for has in keyed.values()):
            await asyncio.to_thread(self._prices.load)
        socket, site = await self._listen()
        token = Secret(f"plx_{secrets.token_urlsafe(32)}")
        door = ModelDoor(
            url=self._url,
            token=token,
            socket=socket,
            providers=frozenset(name for name, has in keyed.items() if has),
            logins=frozenset(name for name, has in keyed.items() if has is False),
            has_tools=self.tools is not None,
            has_way_out=bool(self._settings.egress) or session.type == SETUP,
        )
        if self._redactor is not None:
            self._redactor.learn(token)
        hashed = token_hash(token.reveal())
        traffic = Traffic(agent_id=session.agent_id, last_byte_at=time.monotonic())
        self._sessions[hashed] = Session(session=session, door=door, traffic=traffic, site=site)
        self._doors[session.agent_id] = hashed
        return door

    async def _listen(self) -> tuple[Path, web.UnixSite] | tuple[None, None]:
        """A socket of one session, in a directory of its own that nobody else may enter."""
        if self._settings.sockets is None:
            return None, None
        assert self._runner is not None
        directory = self._settings.sockets / secrets.token_hex(4)
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
        self._accounts.forget(agent_id)
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

    def limited_until(self, type_: str) -> float | None:
        """The unix time until which every account that an agent type could use is limited; None while one is open."""
        untils = [self._accounts.limited_until(name) for name in self._providers_of(type_)]
        known = [until for until in untils if until is not None]
        return min(known) if known and len(known) == len(untils) else None

    # -- requests ------------------------------------------------------------------------------------------------------

    def _session_of(self, request: web.BaseRequest, token: str) -> Session | None:
        """Whose token it is. Through a session's socket only its own token opens."""
        found = self._sessions.get(token_hash(token))
        if found is None or request.transport is None:
            return None
        came_by = request.transport.get_extra_info("sockname")
        return found if not isinstance(came_by, str) or came_by == str(found.door.socket) else None

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.method == "CONNECT":
            return await self._connect(request)
        session = self._session_of(request, token_of(request))
        head, _, rest = request.raw_path.partition("?")[0].removeprefix("/").partition("/")
        if head == "mcp":
            return await self._tool(session, request)
        name, _, path = rest.partition("/")
        provider = PROVIDERS.get(name) if head == "model" else None
        dialect = provider.routes[0].dialect if provider else None
        if session is None:
            return refused(Refusal(401, "auth", "This session has ended, or its token is none."), dialect)
        try:
            if provider is None:
                raise Refused(Refusal(404, "path", "There is no such door."))
            return await self._model(session, request, name, path)
        except Refused as error:
            refusal = error.refusal
            session.traffic.last_error = refusal.message
            self._tell(session, head if provider is None else name, path, refusal.status, refusal.message)
            route = provider.route(request.method, path.removeprefix(provider.prefix)) if provider else None
            return refused(refusal, route.dialect if route else dialect, retry_after_s=error.retry_after_s)

    async def _model(self, session: Session, request: web.BaseRequest, name: str, path: str) -> web.StreamResponse:
        provider, traffic = PROVIDERS[name], session.traffic
        by_login = name in session.door.logins and "x-parallax-session" in request.headers
        if name not in session.door.providers and not by_login:
            raise Refused(Refusal(401, "auth", "This session's token is not for this provider."))
        route = provider.route(request.method, path.removeprefix(provider.prefix))
        if route is None or not path.startswith(provider.prefix):
            raise Refused(Refusal(404, "path", f"{request.method} of this path is not passed on."))
        traffic.requests += 1
        traffic.in_flight += 1
        traffic.last_byte_at = time.monotonic()
        try:
            return await self._passing.call(session, request, provider, route, path.removeprefix(provider.prefix))
        except (aiohttp.ClientError, TimeoutError) as error:
            traffic.last_status = 502
            text = f"The provider cannot be reached: {type(error).__name__}."
            raise Refused(Refusal(502, "unreachable", text)) from None
        finally:
            traffic.in_flight -= 1

    async def _tool(self, session: Session | None, request: web.BaseRequest) -> web.StreamResponse:
        if session is None:
            return refused(Refusal(401, "auth", "This session has ended, or its token is none."), None)
        if self.tools is None:
            return refused(Refusal(404, "path", "There are no team tools here."), None)
        return await self.tools(session.agent_id, request)

    async def _connect(self, request: web.BaseRequest) -> web.StreamResponse:
        session = self._session_of(request, _proxy_token(request))
        if session is None:
            answer = refused(Refusal(407, "auth", "This session has ended, or its token is none."), None)
            answer.headers["Proxy-Authenticate"] = 'Basic realm="parallax"'
            return _closing(answer)
        try:
            if request.raw_path in (self._url.removeprefix("http://"), INSIDE):
                # Some programs ask their proxy for everything, also for the gateway itself.
                outside = await asyncio.open_connection(*self._url.removeprefix("http://").split(":"))
                await Tunnel().run(request, outside)
                return web.Response()
            more = [Allowed(host, 443) for host in REGISTRIES] if session.session.type == SETUP else ()
            outside = await self._egress.open(request.raw_path, more)
        except NotAllowed as error:
            self._tell(session, "connect", request.raw_path, error.refusal.status, error.refusal.message)
            return _closing(refused(error.refusal, None))
        tunnel = Tunnel()
        try:
            await tunnel.run(request, outside)
        finally:
            host, _, port = request.raw_path.rpartition(":")
            data = {"host": host, "port": int(port), "sent_b": tunnel.sent_b, "received_b": tunnel.received_b}
            self._say(session, "gateway.connected", data)
        return web.Response()  # goes nowhere: the connection was the tunnel's

    # -- telling -------------------------------------------------------------------------------------------------------

    async def _limited(self, agent_id: str, until: float | None, cause: str) -> None:
        if self.limits is not None:
            await self.limits(agent_id, until, cause)

    def _tell(self, session: Session, door: str, target: str, status: int, cause: str) -> None:
        if session.news(door, cause):
            shown = target.encode("ascii", "backslashreplace").decode()[:200]
            self._say(
                session, "gateway.refused", {"door": door, "target": shown, "status": status, "cause": cause[:500]}
            )

    def _say(self, session: Session, type_: str, data: Mapping[str, object]) -> None:
        """An event, without holding the agent up. A store that refuses is named in the log."""
        if self.tell is None or not session.session.execution:  # a set-up belongs to a commit, not to an execution
            return
        event = Event(execution=session.session.execution, type=type_, agent_id=session.agent_id, data=dict(data))

        async def say(tell: Tell) -> None:
            try:
                await tell(event)
            except ParallaxError as error:
                log.warning("an event could not be told", type=type_, cause=str(error))

        task = asyncio.ensure_future(say(self.tell))
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)


def _closing(answer: web.Response) -> web.Response:
    """A refused CONNECT ends its connection: what comes behind it was meant for a tunnel."""
    answer.force_close()
    return answer


def _proxy_token(request: web.BaseRequest) -> str:
    """The token as proxies get it: as the password of Basic, or as a bearer."""
    scheme, _, given = request.headers.get("Proxy-Authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return given.strip()
    try:
        return base64.b64decode(given.strip(), validate=True).decode().partition(":")[2]
    except (binascii.Error, UnicodeDecodeError):
        return ""
