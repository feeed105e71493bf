"""Who may come in. Before any body is read: the Host header, the Origin, the key, the content type, the length.

Even on loopback a key is needed: any web page in the user's browser can reach a port there, and only a process that may
read the data directory knows the key. The command line reads it from the 0600 file.
"""

from __future__ import annotations

import hmac
import re
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from parallax.redaction import Secret
from parallax.server.problems import problem

OPEN_PATHS: Final = frozenset({"/healthz", "/readyz"})
LOOPBACK_HOSTS: Final = frozenset({"127.0.0.1", "localhost", "[::1]"})
# A signed link stands for the key at this one address; the route looks at the signature before anything else.
ANSWER_LINK: Final = re.compile(r"/api/questions/[^/]+/answer")
FORM: Final = "application/x-www-form-urlencoded"
MAX_BODY: Final = 1024 * 1024
_TOO_LARGE: Final = (413, "Too large", f"a body may have at most {MAX_BODY} bytes")


class Gate:
    """ASGI middleware in front of everything."""

    def __init__(self, app: ASGIApp, *, key: Secret, hosts: frozenset[str]) -> None:
        self._app = app
        self._key = key.reveal().encode()
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        refused = self._refused(scope, headers)
        if refused is not None:
            status, title, detail = refused
            await problem(status, title, detail)(scope, receive, send)
            return
        bounded = _Bounded(receive)
        await self._app(scope, bounded, _Judged(bounded, scope, send))

    def _refused(self, scope: Scope, headers: dict[bytes, bytes]) -> tuple[int, str, str] | None:
        host = headers.get(b"host", b"").decode("latin-1").rsplit(":", 1)[0] if b"host" in headers else ""
        if host not in self._hosts:
            return 421, "Wrong host", f"this server does not answer for the host '{host[:80]}'"
        origin = headers.get(b"origin")
        if origin is not None and origin.decode("latin-1").partition("//")[2].rsplit(":", 1)[0] not in self._hosts:
            return 403, "Foreign origin", "requests from other web pages are refused"
        if scope["path"] in OPEN_PATHS:
            return None
        by_link = ANSWER_LINK.fullmatch(scope["path"]) is not None and b"token=" in scope["query_string"]
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        has_key = scheme.lower() == b"bearer" and hmac.compare_digest(given.strip(), self._key)
        if not has_key and not by_link:
            return (
                401,
                "Key needed",
                "send 'Authorization: Bearer <key>'; the key is in the file 'key' of the data directory",
            )
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > MAX_BODY:
            return _TOO_LARGE
        has_body = length not in {b"", b"0"} or b"transfer-encoding" in headers
        media = headers.get(b"content-type", b"").partition(b";")[0].strip()
        if has_body and media != b"application/json" and not (by_link and media == FORM.encode()):
            return 415, "Wrong content type", "send JSON with 'Content-Type: application/json'"
        return None


class _Bounded:
    """A body whose length was not named, or was a lie, is cut at the limit."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._seen = 0

    @property
    def exceeded(self) -> bool:
        """Whether it was cut."""
        return self._seen > MAX_BODY

    async def __call__(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            self._seen += len(message.get("body", b""))
            if self.exceeded:
                return {"type": "http.disconnect"}
        return message


class _Judged:
    """Whatever the application makes of a body that was cut, the answer is that it was too large."""

    def __init__(self, body: _Bounded, scope: Scope, send: Send) -> None:
        self._body = body
        self._scope = scope
        self._send = send
        self._replaced = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start" and self._body.exceeded:
            self._replaced = True
            await problem(*_TOO_LARGE)(self._scope, self._body, self._send)
        elif not self._replaced:
            await self._send(message)
