"""CONNECT: the one other way out of a sandbox, to hosts that a person has named, and to nobody else.

A name is looked up at the moment of connecting, every address of it is checked, and the connection goes to the address
that was checked: a name that changes its mind in between (DNS rebinding) gains nothing. What passes is the agent's own
TLS: the gateway sees no content and adds no credential.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final, Self, TypeAlias

from aiohttp import web

from parallax.agents.gateway.dialects import Refusal
from parallax.errors import ConfigurationError

# What a repository's setup may reach: where packages come from.
REGISTRIES: Final = (
    "pypi.org", "files.pythonhosted.org", "registry.npmjs.org", "registry.yarnpkg.com", "crates.io",
    "index.crates.io", "static.crates.io", "proxy.golang.org", "sum.golang.org", "rubygems.org", "index.rubygems.org",
    "repo.maven.apache.org",
)  # fmt: skip
CONNECT_S: Final = 15.0
IDLE_S: Final = 600.0
CHUNK: Final = 65_536
_TARGET: Final = re.compile(r"([a-z0-9-]+(?:\.[a-z0-9-]+)*):([0-9]{1,5})", re.ASCII)
_NUMERIC: Final = re.compile(r"[0-9.]+|0x[0-9a-f.x]+")
_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")

Resolve: TypeAlias = Callable[[str, int], Awaitable[Sequence[str]]]


@dataclass(frozen=True, slots=True)
class Allowed:
    """A host that may be reached: itself, or `*.` and all below it. `private`: also at an address of our networks."""

    host: str
    port: int
    private: bool = False

    @classmethod
    def read(cls, text: str) -> Self:
        """`pypi.org`, `*.example.com:8443`, `+registry.corp` (with private addresses). Raises ConfigurationError."""
        host, _, port = text.strip().lower().removeprefix("+").partition(":")
        port = port or "443"
        if not _TARGET.fullmatch(f"{host.removeprefix('*.')}:{port}") or not 0 < int(port) < 65_536:
            raise ConfigurationError(
                f"PARALLAX_EGRESS: '{text.strip()}' is no host: expected names such as pypi.org, *.example.com:8443, "
                "or +registry.corp for one with a private address, separated by commas"
            )
        return cls(host, int(port), text.strip().startswith("+"))

    def fits(self, host: str, port: int) -> bool:
        """Whether the target is this one."""
        named = host.endswith(self.host[1:]) if self.host.startswith("*.") else host == self.host
        return named and port == self.port


class NotAllowed(Exception):
    """The target is not connected to; `refusal` says why."""

    def __init__(self, message: str, status: int = 403) -> None:
        super().__init__(message)
        self.refusal = Refusal(status, "egress", message)


async def look_up(host: str, port: int) -> list[str]:
    """Every address that the system has for a name."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(entry[4][0]) for entry in found]


class Egress:
    """Connects sessions with what the list allows."""

    def __init__(self, allowed: Sequence[Allowed], resolve: Resolve = look_up) -> None:
        self._allowed = tuple(allowed)
        self._resolve = resolve

    async def open(
        self, target: str, more: Sequence[Allowed] = ()
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection to `host:port`. Raises NotAllowed."""
        host, port = parse(target)
        rule = next((rule for rule in (*self._allowed, *more) if rule.fits(host, port)), None)
        if rule is None:
            raise NotAllowed(f"{host}:{port} is not on the list of hosts (PARALLAX_EGRESS).")
        try:
            async with asyncio.timeout(CONNECT_S):
                addresses = await self._resolve(host, port)
                if not addresses:
                    raise NotAllowed(f"{host} has no address.", 502)
                if not rule.private and (bad := next((a for a in addresses if not is_public(a)), None)):
                    raise NotAllowed(f"{host} has the address {bad}, which is not a public one.")
                return await self._connect(addresses, port)
        except (OSError, TimeoutError) as error:
            raise NotAllowed(f"{host}:{port} cannot be reached: {type(error).__name__}.", 502) from None

    async def _connect(self, addresses: Sequence[str], port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        failed: OSError = OSError("no address")
        for address in dict.fromkeys(addresses):
            try:
                return await asyncio.open_connection(address, port, limit=CHUNK)
            except OSError as error:
                failed = error
        raise failed


def parse(target: str) -> tuple[str, int]:
    """Host and port of a CONNECT; raises NotAllowed for whatever is not plainly a name and a port."""
    found = _TARGET.fullmatch(target.lower())
    if found is None or _NUMERIC.fullmatch(found[1]) or not 0 < int(found[2]) < 65_536:
        raise NotAllowed("CONNECT takes a host's name and a port, such as pypi.org:443; no address.", 400)
    return found[1], int(found[2])


def is_public(text: str) -> bool:
    """Whether an address is out on the internet: none of this host, its networks, or reserved for anything."""
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
    return address.is_global and not address.is_multicast


@dataclass(slots=True)
class Tunnel:
    """Bytes between an agent and a host, both ways, with back-pressure, until one side ends."""

    sent_b: int = 0
    received_b: int = 0

    async def run(self, request: web.BaseRequest, outside: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> None:
        """Take the connection over from HTTP, and close it at the end."""
        transport, http = request.transport, request.protocol
        if transport is None or http is None:
            outside[1].transport.abort()
            return
        reader = asyncio.StreamReader(limit=CHUNK)
        protocol = asyncio.StreamReaderProtocol(reader)
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        writer = asyncio.StreamWriter(transport, protocol, reader, asyncio.get_running_loop())
        for way in (transport, outside[1].transport):
            way.set_write_buffer_limits(0)  # to drain is to hand over all of it: nothing is lost when both sides end
        try:
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            async with asyncio.TaskGroup() as group:
                group.create_task(self._copy(reader, outside[1], sending=True))
                group.create_task(self._copy(outside[0], writer, sending=False))
        except* (OSError, TimeoutError):
            pass  # a side that breaks off ends the tunnel: what it carried is the agent's to judge
        finally:
            outside[1].transport.abort()
            transport.set_protocol(http)  # it is told of the end, and tidies up
            transport.abort()

    async def _copy(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, sending: bool) -> None:
        while True:
            async with asyncio.timeout(IDLE_S):
                chunk = await source.read(CHUNK)
            if not chunk:
                if sink.can_write_eof():
                    sink.write_eof()
                return
            if sending:
                self.sent_b += len(chunk)
            else:
                self.received_b += len(chunk)
            sink.write(chunk)
            await sink.drain()
