"""Whether the sandbox holds on this host: not whether its program is there, but what a process in it can do.

`app` asks once at start and `parallax doctor` on demand. A process is started as every agent is, and tries what a
hijacked one would: read the user's home and the server's environment, write where it may not, reach the network. It
must fail at all of it, and reach the gateway's socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import platform
import secrets
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from parallax.agents.runtimes import bubblewrap
from parallax.agents.runtimes.bubblewrap import Bubblewrap
from parallax.agents.runtimes.local import LocalRuntime
from parallax.errors import AgentError
from parallax.models import LaunchSpec

PROBE_S: Final = 30.0
GREETING: Final = b"the gateway"
# Runs inside, on the standard library: prints what it could do.
_INSIDE: Final = """
import glob, json, os, socket, sys
home, data, port, door = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
names = os.listdir(home) if os.path.exists(home) else []
done = {"environ": [], "wrote": [], "data": os.path.exists(os.path.join(data, "key"))}
done["files"] = [name for name in names if os.path.isfile(os.path.join(home, name))]
for name in glob.glob("/proc/[0-9]*/environ"):
    try:
        found = open(name, "rb").read().decode("latin-1").split(chr(0))
        done["environ"] += [variable.partition("=")[0] for variable in found if variable]
    except OSError:
        pass
for place in ("/", "/usr", "/etc", "/run", "/home", home):
    try:
        open(os.path.join(place, "parallax-probe"), "w").close()
        done["wrote"].append(place)
    except OSError:
        pass
def call(port):
    try:
        with socket.create_connection(("127.0.0.1", port), 5) as there:
            return there.makefile("rb").read().decode()
    except OSError:
        return None
done["net"], done["door"] = call(port), call(door)
print(json.dumps(done))
"""
_OWN_VARIABLES: Final = frozenset({"PARALLAX_PROBE", "PARALLAX_OWNER", "HOME", "PWD", "LC_CTYPE"})
_ADVICE: Final = {
    "uid map": "this system lets only some programs make user namespaces (on Ubuntu: install its bubblewrap package "
    "with the AppArmor profile bwrap-userns-restrict, or sysctl kernel.apparmor_restrict_unprivileged_userns=0)",
    "namespace": "user namespaces are closed here (sysctl user.max_user_namespaces; in a container they need another "
    "seccomp and AppArmor profile)",
    "mount proc": "a container that hides parts of /proc cannot hold a sandbox (Docker: --security-opt "
    "systempaths=unconfined)",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Probed:
    """What was found. `shut` builds sandboxes that hold; where it is None, `problem` says why and what to do."""

    shut: Bubblewrap | None
    problem: str = ""


async def probe(wish: str | None, data: Path, etc: Path | None = None) -> Probed:
    """Look once, unless the user wishes none. `data` is the server's directory, which must stay hidden; `etc` is where
    the few files lie that are the sandbox's own, in `data` by default.
    """
    if wish == "off":
        return Probed(shut=None, problem="PARALLAX_SANDBOX is off")
    shut = await asyncio.to_thread(bubblewrap.prepare, etc or data / "sandbox", (Path.home(), data))
    if shut is None:
        if platform.system() != "Linux":
            return Probed(shut=None, problem=f"this version has none for {platform.system()}")
        return Probed(shut=None, problem="bubblewrap is not installed (apt-get install bubblewrap)")
    try:
        async with asyncio.timeout(PROBE_S):
            problem = await _try_out(LocalRuntime(f"probe-{secrets.token_hex(4)}", shut=shut), data)
    except (AgentError, OSError) as error:
        problem = _advised(str(error))
    except TimeoutError:
        problem = f"a process in it did not end within {PROBE_S:.0f} s"
    return Probed(shut=None if problem else shut, problem=problem)


async def _try_out(runtime: LocalRuntime, data: Path) -> str:
    """What a process in the sandbox could do that it must not, in words; nothing when the sandbox holds."""
    async with _places() as (place, door, port):
        python = bubblewrap.interpreter()
        arguments = [str(Path.home()), str(data), str(port), str(bubblewrap.PORT)]
        spec = LaunchSpec(
            argv=(python, "-I", "-S", "-c", _INSIDE, *arguments),
            cwd=place / "tree",
            home=place / "home",
            env={"PARALLAX_PROBE": "1"},
            gateway=door,
        )
        process = await runtime.start(spec)
        try:
            await process.close_input()
            words = b""
            while chunk := await process.read_out(65_536):
                words += chunk
            errors = await process.read_err(4_000)
        finally:
            await process.stop(1.0)
    try:
        return _judged(json.loads(words))
    except ValueError:
        return _advised(errors.decode("utf-8", "replace").strip() or "the probe inside said nothing")


def _judged(done: dict[str, Any]) -> str:
    if leaked := set(done["environ"]) - _OWN_VARIABLES:
        return f"it shows an environment that is not the agent's own ({', '.join(sorted(leaked)[:3])})"
    if done["wrote"]:
        return f"it lets an agent write to {', '.join(done['wrote'])}"
    if done["net"] is not None:
        return "it does not close the network"
    if done["door"] != GREETING.decode():
        return "the gateway cannot be reached from it"
    if done["data"] or done["files"]:
        return f"it shows the server's or the user's files ({', '.join(done['files'][:3] or ['key'])})"
    return ""


@asynccontextmanager
async def _places() -> AsyncIterator[tuple[Path, Path, int]]:
    """A tree and a home, a unix socket that greets as the gateway does, a port of the host that is out of reach."""

    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            writer.write(GREETING)
            await writer.drain()
        writer.close()

    place = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="parallax-probe-"))
    try:
        for name in ("tree", "home"):
            (place / name).mkdir()
        door = place / secrets.token_hex(4)
        closed = await asyncio.start_server(greet, "127.0.0.1", 0, family=socket.AF_INET)
        async with closed, await asyncio.start_unix_server(greet, door):
            yield place, door, closed.sockets[0].getsockname()[1]
    finally:
        await asyncio.to_thread(shutil.rmtree, place, ignore_errors=True)


def _advised(words: str) -> str:
    """bubblewrap's own words with what can be done about them."""
    advice = next((advice for sign, advice in _ADVICE.items() if sign in words), "")
    return f"{words}; {advice}" if advice else words
