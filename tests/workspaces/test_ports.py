"""Ports: leases that last as long as a workspace and never meet."""

from __future__ import annotations

import asyncio
import socket

import pytest

from parallax.errors import ProfileError, UsageError
from parallax.workspaces import ports as module
from parallax.workspaces.ports import Ports
from parallax.workspaces.profile import load


async def test_a_workspace_keeps_its_ports_until_it_goes(service, repo):
    one, two = [await service.create("e1", "engineer", number, repo) for number in (1, 2)]
    first, second = await asyncio.gather(*(service.ports.of(w.path, ["PORT", "DB_PORT"]) for w in (one, two)))
    assert len({*first.values(), *second.values()}) == 4
    again = Ports(service.root)  # another life of the server
    again.sweep()
    assert await again.of(one.path, ["PORT", "DB_PORT"]) == first
    leases = service.root / "ports"
    await service.clean(one)
    assert {p.name for p in leases.iterdir()} == set(second.values())
    await service.cleanup("e1")
    assert not list(leases.iterdir())


async def test_what_is_taken_on_the_machine_is_not_leased(service, repo, monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        monkeypatch.setattr(module, "FIRST", port)
        monkeypatch.setattr(module, "LAST", port + 1)
        workspace = await service.create("e1", "engineer", 1, repo)
        with pytest.raises(UsageError, match="no port is free"):
            await service.ports.of(workspace.path, ["PORT"])
    assert not list((service.root / "ports").iterdir())


async def test_leases_of_a_killed_server_are_swept(service, repo):
    async with service.ports.lent(["PORT"]) as lent:
        assert (service.root / "ports" / lent["PORT"]).exists()
        await service.sweep()
        assert not list((service.root / "ports").iterdir())


def test_a_variable_with_a_value_gets_no_port():
    with pytest.raises(ProfileError, match="'PATH' cannot be given a port") as refused:
        load("env: {TZ: UTC}\nports: [PORT, PATH, TZ, PORT]")
    assert str(refused.value).count("cannot be given a port") == 3
