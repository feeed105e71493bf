"""CONNECT: only to named hosts, at addresses that were checked at the moment of connecting; everything is an event."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from gateway_helpers import session_of, started
from hypothesis import given
from hypothesis import strategies as st

from parallax.agents.clients.common import launch
from parallax.agents.clis.claude import ClaudeHeadless
from parallax.agents.gateway.egress import REGISTRIES, Allowed, Egress, NotAllowed, is_public, parse
from parallax.agents.gateway.service import Gateway
from parallax.errors import ConfigurationError
from parallax.events import Event
from parallax.ports import AgentSession, ModelDoor
from parallax.redaction import Secret
from tests.conftest import on_loopback

PRIVATE = [
    "127.0.0.1", "127.255.255.254", "0.0.0.0", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1",
    "169.254.169.254", "100.64.0.1", "192.0.2.1", "198.18.0.1", "203.0.113.5", "224.0.0.1", "240.0.0.1",
    "255.255.255.255", "::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd12::3", "ff02::1", "::ffff:127.0.0.1",
    "::ffff:10.0.0.1", "64:ff9b::10.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "2002:a00:1::", "2001:db8::1",
]  # fmt: skip


@pytest.mark.parametrize("address", PRIVATE)
def test_addresses_of_ours_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize(
    "address", ["1.1.1.1", "151.101.0.223", "2a04:4e42::223", "::ffff:1.1.1.1", "64:ff9b::1.1.1.1"]
)
def test_addresses_of_the_internet_are_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "target",
    ["pypi.org", "pypi.org:", ":443", "pypi.org:0", "pypi.org:65536", "pypi.org:443:443", "pypi.org.:443",
     "127.0.0.1:443", "2130706433:443", "0x7f000001:443", "0177.0.0.1:443", "127.1:443", "[::1]:443", "::1:443",
     "pypi.org\x00.evil.example:443", "pypi.org%00:443", "pypi.org/x:443", "user@pypi.org:443", "pypi.org:443\r\nX: y",
     "pуpi.org:443", "pypi。org:443", " pypi.org:443", "*.pypi.org:443", "pypi..org:443", "-:", "pypi.org:4٤3"],
)  # fmt: skip
def test_what_is_not_plainly_a_name_and_a_port_is_refused(target: str) -> None:
    with pytest.raises(NotAllowed, match="CONNECT takes a host's name and a port"):
        parse(target)


@given(st.text(max_size=60))
def test_no_text_gets_past_the_parser_but_plain_ascii_names(text: str) -> None:
    try:
        host, port = parse(text)
    except NotAllowed:
        return
    assert host.isascii()
    assert set(host) <= set("abcdefghijklmnopqrstuvwxyz0123456789-.")
    assert any(c.isalpha() or c == "-" for c in host)
    assert 0 < port < 65_536


def test_the_list_is_read_and_its_mistakes_are_named() -> None:
    assert Allowed.read(" PyPI.org ") == Allowed("pypi.org", 443)
    assert Allowed.read("+registry.corp:8443") == Allowed("registry.corp", 8443, private=True)
    below = Allowed.read("*.example.com")
    assert [below.fits(host, 443) for host in ("a.example.com", "a.b.example.com", "example.com", "xexample.com")] == [
        True, True, False, False,
    ]  # fmt: skip
    assert not Allowed.read("pypi.org").fits("pypi.org", 80)
    for bad in ("https://pypi.org", "pypi.org:x", "*", "a b", "pypi.org:0", "**.x"):
        with pytest.raises(ConfigurationError, match=r"PARALLAX_EGRESS: .* is no host: expected names such as"):
            Allowed.read(bad)


class Names:
    """A resolver that changes its mind."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self.answers = list(answers)
        self.asked = 0

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked += 1
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


async def test_every_address_of_a_name_must_be_public() -> None:
    for addresses in (["127.0.0.1"], ["1.1.1.1", "10.0.0.7"], ["1.1.1.1", "::1"]):
        egress = Egress([Allowed("pypi.org", 443)], Names(addresses))
        with pytest.raises(NotAllowed, match=r"pypi\.org has the address .*, which is not a public one"):
            await egress.open("pypi.org:443")


async def test_a_name_that_changes_its_mind_gains_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """DNS rebinding: the address that was checked is the one that is connected to, and names are looked up once."""
    connected: list[object] = []

    async def connect(host: object, *_: object, **__: object) -> tuple[object, object]:
        connected.append(host)
        return object(), object()

    monkeypatch.setattr(asyncio, "open_connection", connect)
    names = Names(["1.1.1.1"], ["127.0.0.1"])
    await Egress([Allowed("pypi.org", 443)], names).open("pypi.org:443")
    assert (connected, names.asked) == (["1.1.1.1"], 1)


@pytest.fixture
async def host() -> AsyncIterator[int]:
    """A host inside: it says hello and echoes."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello ")
        while chunk := await reader.read(65_536):
            writer.write(chunk)
            await writer.drain()
        writer.write(b" bye")
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()


@pytest.fixture
def told() -> list[Event]:
    return []


@pytest.fixture
async def gateway(place: Path, host: int, told: list[Event]) -> AsyncIterator[Gateway]:
    async def tell(event: Event) -> None:
        told.append(event)

    egress = [Allowed("inside.corp", host, private=True), Allowed("pypi.org", 443)]
    async with started({}, place, settings={"egress": egress}) as gateway:
        gateway._egress._resolve = Names(["127.0.0.1"])
        gateway.tell = tell
        yield gateway


async def connect(
    door: ModelDoor, target: str, auth: str | None = None
) -> tuple[bytes, asyncio.StreamReader, asyncio.StreamWriter]:
    """CONNECT as pip and npm do, through the session's socket."""
    assert door.socket is not None
    reader, writer = await asyncio.open_unix_connection(str(door.socket))
    token = base64.b64encode(f"agent:{door.token.reveal()}".encode()).decode()
    given = f"Basic {token}" if auth is None else auth
    writer.write(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\nProxy-Authorization: {given}\r\n\r\n".encode())
    return (await reader.readuntil(b"\r\n\r\n")), reader, writer


async def test_a_tunnel_carries_bytes_both_ways_and_is_told(gateway: Gateway, host: int, told: list[Event]) -> None:
    door = await gateway.open_session(session_of("scripted"))
    head, reader, writer = await connect(door, f"inside.corp:{host}")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert await reader.readexactly(6) == b"hello "
    sent = bytes(range(256)) * 4000
    writer.write(sent)
    got = asyncio.create_task(reader.readexactly(len(sent)))
    await writer.drain()
    assert await got == sent
    writer.write_eof()
    assert await reader.read() == b" bye"
    writer.close()
    async with asyncio.timeout(3):
        while not told:
            await asyncio.sleep(0.01)
    [event] = told
    assert event.type == "gateway.connected"
    assert event.data == {"host": "inside.corp", "port": host, "sent_b": len(sent), "received_b": len(sent) + 10}


@pytest.mark.parametrize(
    ("target", "status", "words"),
    [
        ("evil.example:443", 403, "evil.example:443 is not on the list of hosts"),
        ("inside.corp:22", 403, "is not on the list"),
        ("pypi.org:443", 403, "pypi.org has the address 127.0.0.1, which is not a public one"),
        ("169.254.169.254:80", 400, "takes a host's name"),
        ("github.com:443", 403, "is not on the list"),
    ],
)
async def test_another_host_is_refused_and_told(
    gateway: Gateway, told: list[Event], target: str, status: int, words: str
) -> None:
    door = await gateway.open_session(session_of("scripted"))
    head, _, writer = await connect(door, target)
    writer.close()
    assert head.split()[1] == str(status).encode()
    await asyncio.sleep(0)
    [event] = told
    assert (event.type, event.data["door"], event.data["target"], event.data["status"]) == (
        "gateway.refused", "connect", target, status,
    )  # fmt: skip
    assert words in event.data["cause"]


async def test_without_the_sessions_token_there_is_no_way_out(gateway: Gateway, host: int) -> None:
    door = await gateway.open_session(session_of("scripted"))
    other = await gateway.open_session(session_of("scripted", "b"))
    for auth in ("", "Basic !!!", "Bearer wrong", f"Bearer {other.token.reveal()}"):
        head, _, writer = await connect(door, f"inside.corp:{host}", auth)
        writer.close()
        assert head.startswith(b"HTTP/1.1 407 ")


async def test_a_program_that_asks_its_proxy_for_the_gateway_itself_gets_there(gateway: Gateway) -> None:
    door = await gateway.open_session(session_of("scripted"))
    assert door.has_way_out
    head, reader, writer = await connect(door, "127.0.0.1:8899")
    assert head.startswith(b"HTTP/1.1 200 ")
    writer.write(
        f"POST /mcp HTTP/1.1\r\nHost: x\r\nx-api-key: {door.token.reveal()}\r\nConnection: close\r\n\r\n".encode()
    )
    assert b"There are no team tools here" in await reader.read()
    writer.close()


async def test_only_a_setup_reaches_the_registries(gateway: Gateway) -> None:
    setup = await gateway.open_session(session_of("setup"))
    gateway._egress._resolve = Names(["127.0.0.1"])
    for name in ("registry.npmjs.org", "files.pythonhosted.org"):
        assert name in REGISTRIES
        head, reader, writer = await connect(setup, f"{name}:443")
        body = await reader.read()
        writer.close()
        assert (head.split()[1], b"not a public one" in body) == (b"403", True)  # past the list, stopped at the address
    agent = await gateway.open_session(session_of("scripted", "b"))
    head, reader, writer = await connect(agent, "registry.npmjs.org:443")
    assert b"not on the list" in await reader.read()
    writer.close()


async def test_a_program_finds_its_way_out_by_the_usual_variable(gateway: Gateway, place: Path) -> None:
    """What HTTPS_PROXY says works with an ordinary HTTP client, through TCP as well."""

    async def page(_: web.Request) -> web.Response:
        return web.Response(text="a package")

    app = web.Application()
    app.router.add_get("/simple", page)
    async with on_loopback(app) as url:
        port = int(url.rpartition(":")[2])
        gateway._egress._allowed = (Allowed("inside.corp", port, private=True),)
        door = await gateway.open_session(session_of("scripted"))
        reader, writer = await asyncio.open_connection("127.0.0.1", int(gateway.url.rpartition(":")[2]))
        auth = base64.b64encode(f"agent:{door.token.reveal()}".encode()).decode()
        writer.write(
            f"CONNECT inside.corp:{port} HTTP/1.1\r\nHost: x\r\nProxy-Authorization: Basic {auth}\r\n\r\n".encode()
        )
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"GET /simple HTTP/1.1\r\nHost: inside.corp\r\nConnection: close\r\n\r\n")
        assert (await reader.read()).endswith(b"a package")
        writer.close()
        assert door.proxy.reveal() == f"http://agent:{door.token.reveal()}@{gateway.url.removeprefix('http://')}"


class ShutIn:
    """A runtime's side: it shuts agents in."""

    def inside(self, session: AgentSession) -> AgentSession:
        return replace(session, shut_in=True)


@pytest.mark.parametrize("way_out", [True, False])
def test_programs_in_a_sandbox_are_told_of_the_way_out_where_there_is_one(tmp_path: Path, way_out: bool) -> None:
    door = ModelDoor(
        url="http://127.0.0.1:8899", token=Secret("plx_token"), providers=frozenset({"anthropic"}), has_way_out=way_out
    )
    session = replace(session_of("claude"), home=tmp_path, tree=tmp_path, door=door)
    runtime: Any = ShutIn()
    spec = launch(runtime, ClaudeHeadless(), session, "claude")
    proxy = spec.secrets.get("HTTPS_PROXY")
    assert (proxy and proxy.reveal()) == ("http://agent:plx_token@127.0.0.1:8899" if way_out else None)
    assert spec.env.get("NO_PROXY") == ("127.0.0.1,localhost" if way_out else None)
    assert "plx_token" not in str(spec.env) + str(spec.argv)
