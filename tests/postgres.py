"""A PostgreSQL of the tests' own: started from Debian's programs, on a loopback port, gone afterwards."""

from __future__ import annotations

import asyncio
import os
import pwd
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import pytest


def programs() -> Path | None:
    """Where `initdb` and `pg_ctl` are; None where PostgreSQL is not installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"), key=lambda path: int(path.parts[-3]))
    if found:
        return found[-1].parent
    on_path = shutil.which("pg_ctl")
    return Path(on_path).resolve().parent if on_path else None


@dataclass(frozen=True)
class Cluster:
    """A running database server."""

    programs: Path
    place: Path
    port: int

    @property
    def url(self) -> str:
        """Of the database for administration."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    async def database(self) -> str:
        """A new, empty database; returns its URL."""
        name = f"t{secrets.token_hex(4)}"
        connection = await asyncpg.connect(self.url)
        await connection.execute(f"CREATE DATABASE {name}")
        await connection.close()
        return self.url.removesuffix("postgres") + name

    async def query(self, url: str, sql: str) -> list[tuple[object, ...]]:
        """What a statement of a test's own answers."""
        connection = await asyncpg.connect(url)
        try:
            return [tuple(row) for row in await connection.fetch(sql)]
        finally:
            await connection.close()

    def control(self, *args: str) -> None:
        """`pg_ctl`, as the user that owns the data."""
        run([str(self.programs / "pg_ctl"), "-D", str(self.place / "data"), "-s", *args])

    def start(self, *, durable: bool = False) -> None:
        """Start and wait until it answers."""
        quick = "" if durable else "-c fsync=off -c full_page_writes=off"
        options = f"-p {self.port} -h 127.0.0.1 -k {self.place} -c max_connections=200 {quick}"
        self.control("-w", "-l", str(self.place / "log"), "-o", options, "start")

    def stop(self) -> None:
        """Stop at once, as a crash does."""
        self.control("-m", "immediate", "-w", "stop")

    async def restart(self, down_s: float = 0.0) -> None:
        """Crash it, and start it again."""
        await asyncio.to_thread(self.stop)
        await asyncio.sleep(down_s)
        await asyncio.to_thread(self.start)


def run(command: list[str]) -> None:
    """PostgreSQL does not run as root."""
    if os.geteuid() == 0:
        command = ["runuser", "-u", "postgres", "--", *command]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, cwd="/")


@contextmanager
def cluster(*, durable: bool = False) -> Iterator[Cluster]:
    """A server of its own. Skips where PostgreSQL is not installed, unless PARALLAX_REQUIRE_POSTGRES is set."""
    found = programs()
    if found is None:
        if os.environ.get("PARALLAX_REQUIRE_POSTGRES"):
            pytest.fail("PostgreSQL is not installed, and PARALLAX_REQUIRE_POSTGRES is set")
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    place = Path(tempfile.mkdtemp(prefix="px-pg-", dir="/tmp"))
    made = Cluster(found, place, port)
    try:
        if os.geteuid() == 0:
            owner = pwd.getpwnam("postgres")
            os.chown(place, owner.pw_uid, owner.pw_gid)
        as_owner = ["-A", "trust", "-U", "postgres", "--no-sync", "-E", "UTF8", "--locale=C.UTF-8"]
        run([str(found / "initdb"), "-D", str(place / "data"), *as_owner])
        made.start(durable=durable)
        try:
            yield made
        finally:
            made.stop()
    finally:
        shutil.rmtree(place, ignore_errors=True)
