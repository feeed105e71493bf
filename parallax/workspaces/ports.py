"""Ports: which workspace may listen where, so that two agents' servers never meet on one machine.

A lease is a file named by its port, made only if it is not there, so servers that share the directory agree, too. It
holds the workspace's place and is given back when the workspace goes; what a workspace has lies beside its git data.
`service` leases for agents, `checks` lends for the time of one check.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
from asyncio import to_thread
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from parallax.errors import UsageError

FIRST: Final = 20_000
LAST: Final = 32_000  # below what systems give to whoever asks for any port
_RECORD: Final = "ports.json"


class Ports:
    """The leases below one root of workspaces."""

    def __init__(self, root: Path) -> None:
        self._root = root

    async def of(self, workspace: Path, names: Sequence[str]) -> dict[str, str]:
        """The ports of a workspace by their variables; leased the first time, the same ever after."""
        return await to_thread(self._of, workspace, tuple(names)) if names else {}

    async def give_back(self, workspace: Path) -> None:
        """Before a workspace is deleted."""
        await to_thread(lambda: self._drop(_read(workspace / "git" / _RECORD).values()))

    @asynccontextmanager
    async def lent(self, names: Sequence[str]) -> AsyncIterator[dict[str, str]]:
        """Ports for a short while."""
        if not names:
            yield {}
            return
        got = await to_thread(self._lease, f"{os.getpid()}", tuple(names))
        try:
            yield got
        finally:
            await to_thread(self._drop, got.values())

    def _of(self, workspace: Path, names: tuple[str, ...]) -> dict[str, str]:
        record = workspace / "git" / _RECORD
        held = _read(record)
        missing = tuple(name for name in names if name not in held)
        if missing:
            held |= self._lease(str(workspace.relative_to(self._root)), missing)
            new = record.with_suffix(".new")
            new.write_text(json.dumps(held), encoding="ascii")
            new.replace(record)
        return {name: held[name] for name in names}

    def _lease(self, owner: str, names: tuple[str, ...]) -> dict[str, str]:
        folder = self._root / "ports"
        folder.mkdir(parents=True, exist_ok=True)
        got: dict[str, str] = {}
        begin = secrets.randbelow(LAST - FIRST)
        for step in range(LAST - FIRST):
            if len(got) == len(names):
                return got
            port = FIRST + (begin + step) % (LAST - FIRST)
            if not _is_free(port):
                continue
            try:
                with (folder / str(port)).open("x", encoding="utf-8") as file:
                    file.write(owner)
            except FileExistsError:
                continue
            got[names[len(got)]] = str(port)
        self._drop(got.values())
        raise UsageError(
            f"no port is free between {FIRST} and {LAST}, and the profile's `ports` wants {len(names)}: "
            "`parallax workspace clean` gives back those of workspaces that are done"
        )

    def sweep(self) -> None:
        """At start, alone: leases whose workspace is gone, and those that checks of a killed server had."""
        folder = self._root / "ports"
        for lease in folder.iterdir() if folder.is_dir() else ():
            owner = self._root / lease.read_text(encoding="utf-8")
            if lease.name not in _read(owner / "git" / _RECORD).values():
                lease.unlink(missing_ok=True)

    def _drop(self, ports: Iterable[str]) -> None:
        for port in ports:
            (self._root / "ports" / port).unlink(missing_ok=True)


def _read(record: Path) -> dict[str, str]:
    try:
        return dict(json.loads(record.read_bytes()))
    except (FileNotFoundError, NotADirectoryError):
        return {}


def _is_free(port: int) -> bool:
    """Whether nobody listens there now, whoever it may be."""
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
