"""What an agent can do in its sandbox, and what it cannot: tried by processes that mean harm."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from agent_helpers import marked, play, sandbox, task

from parallax.agents.clients.acp import AcpClient
from parallax.agents.clients.common import launch
from parallax.agents.clis.scripted import ScriptedCLI
from parallax.agents.runtimes.bubblewrap import interpreter
from parallax.agents.runtimes.cgroups import ProcessGroups
from parallax.agents.runtimes.local import LocalProcess, LocalRuntime
from parallax.agents.runtimes.probe import probe
from parallax.errors import AgentUnavailable
from parallax.models import LaunchSpec, Limits
from parallax.ports import AgentSession, ModelDoor
from parallax.redaction import Secret

SLEEP = "import time; time.sleep(60)"


@pytest.fixture
def spec(tmp_path: Path) -> Callable[..., LaunchSpec]:
    """A Python that runs some code in a tree and a home of its own."""
    for name in ("tree", "home"):
        (tmp_path / name).mkdir()

    def make(code: str, **fields: Any) -> LaunchSpec:
        env = {"PATH": os.environ["PATH"]} | fields.pop("env", {})
        argv = (interpreter(), "-I", "-S", "-c", code)
        return LaunchSpec(argv=argv, cwd=tmp_path / "tree", home=tmp_path / "home", env=env, **fields)

    return make


async def said(process: LocalProcess) -> str:
    """All of its output; the process is gone afterwards, and complained of nothing."""
    out, err = await drained(process)
    assert not err, err
    return out


async def drained(process: LocalProcess) -> tuple[str, str]:
    """What it wrote to both streams."""
    out, err = bytearray(), bytearray()

    async def drain(read: Any, into: bytearray) -> None:
        while chunk := await read(65536):
            into += chunk

    await asyncio.gather(drain(process.read_out, out), drain(process.read_err, err))
    await process.stop(1)
    return out.decode(), err.decode()


async def test_it_holds_on_this_host(tmp_path: Path) -> None:
    sandbox(tmp_path / "etc")
    assert (await probe(None, tmp_path / "data")).problem == ""


async def test_a_machine_without_bubblewrap_is_told_what_to_install(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    probed = await probe(None, tmp_path / "data")
    assert (probed.shut, probed.problem) == (None, "bubblewrap is not installed (apt-get install bubblewrap)")
    spec = LaunchSpec(argv=("x",), cwd=tmp_path)
    with pytest.raises(AgentUnavailable, match=r"^Agents run in a sandbox only.*apt-get install.*PARALLAX_SANDBOX=off"):
        await LocalRuntime("x", problem=probed.problem).start(spec)


async def test_the_environment_is_the_specs_and_no_process_in_there_shows_another(
    shut_runtime: LocalRuntime, spec: Callable[..., LaunchSpec], owner: str, monkeypatch: Any
) -> None:
    monkeypatch.setenv("CANARY", "c4nary")
    code = (
        "import glob, json, os\n"
        "shown = {p: open(p, 'rb').read().decode() for p in glob.glob('/proc/[0-9]*/environ')}\n"
        "shown |= {p: open(p, 'rb').read().decode() for p in glob.glob('/proc/[0-9]*/cmdline')}\n"
        "print(json.dumps([dict(os.environ), shown]))\n"
    )
    begun = await shut_runtime.start(spec(code, env={"A": "1"}, secrets={"KEY": Secret("s3cret-value")}))
    outside = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in marked(owner)]
    assert outside
    assert not any(b"s3cret-value" in line for line in outside)
    env, shown = json.loads(await said(begun))
    assert env.pop("PARALLAX_OWNER").startswith(f"{owner}:")
    env.pop("LC_CTYPE", None)  # Python's own
    assert env == {"PATH": os.environ["PATH"], "HOME": "/home/agent", "A": "1", "KEY": "s3cret-value"}
    assert "c4nary" not in repr(shown)
    holders = [name for name, content in shown.items() if "s3cret-value" in content]
    assert len(holders) == 1  # the agent itself, and neither the sandbox's first process nor the relay


async def test_a_variable_that_changes_programs_does_not_reach_the_one_that_builds_the_sandbox(
    shut_runtime: LocalRuntime, spec: Callable[..., LaunchSpec], tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    evil = {"BASH_ENV": str(outside), "LD_PRELOAD": "/workspace/evil.so", "PYTHONPATH": "/workspace", "LD_DEBUG": "all"}
    process = await shut_runtime.start(spec("print(1)", env=evil | {"LD_DEBUG_OUTPUT": str(outside)}))
    out, _ = await drained(process)
    assert "evil.so" in out  # it did reach the agent
    assert not list(tmp_path.glob("outside*"))


async def test_only_tree_and_home_can_be_written_and_no_file_of_the_user_is_there(
    shut_runtime: LocalRuntime, spec: Callable[..., LaunchSpec], tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s3cret")
    places = [
        "/",
        "/usr",
        "/usr/bin",
        "/etc",
        "/run",
        "/home",
        "/var",
        "/mirror",
        "/sys",
        "/proc/sys/kernel",
        "/workspace",
        "/home/agent",
        "/tmp",
    ]
    looked = [
        str(secret), str(Path.home() / ".ssh"), "/root/.bashrc", "/var/run/docker.sock", "/run/docker.sock",
        "/etc/shadow", "/etc/ssl/private", "/var/lib", "/etc/gitconfig", "/run/gateway.sock",
    ]  # fmt: skip
    code = (
        "import json, os, sys\n"
        "def writes(place):\n"
        "    try: open(place + '/x', 'w').close(); return True\n"
        "    except OSError: return False\n"
        f"print(json.dumps([[p for p in {places!r} if writes(p)], [p for p in {looked!r} if os.path.exists(p)], os.getuid(), os.getcwd(), "
        "open('/proc/self/status').read()]))\n"
    )
    wrote, found, uid, cwd, status = json.loads(await said(await shut_runtime.start(spec(code))))
    assert wrote == ["/workspace", "/home/agent", "/tmp"]
    assert found == []
    assert (uid, cwd) == (1000, "/workspace")
    assert "CapEff:\t0000000000000000" in status
    assert "NoNewPrivs:\t1" in status
    for name in ("tree", "home"):
        made = (tmp_path / name / "x").stat()
        assert (made.st_uid, made.st_gid) == (os.getuid(), os.getgid())


@pytest.mark.parametrize("network", ["none", "gateway"])
async def test_there_is_no_way_out(shut_runtime: LocalRuntime, spec: Callable[..., LaunchSpec], network: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        code = (
            "import socket\n"
            f"for place in [('127.0.0.1', {listening.getsockname()[1]}), ('192.0.2.1', 80), ('169.254.169.254', 80), ('127.0.0.1', 8899)]:\n"
            "    try: socket.create_connection(place, 2); print(place)\n"
            "    except OSError: pass\n"
            "print(sorted(name for _, name in socket.if_nameindex()))\n"
        )
        assert await said(await shut_runtime.start(spec(code, network=network))) == "['lo']\n"


async def test_open_is_open(shut_runtime: LocalRuntime, spec: Callable[..., LaunchSpec]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        code = f"import socket; socket.create_connection(('127.0.0.1', {listening.getsockname()[1]}), 5); print('in')"
        assert await said(await shut_runtime.start(spec(code, network="open"))) == "in\n"


@asynccontextmanager
async def echo(tmp_path: Path) -> AsyncIterator[Path]:
    """A unix socket that sends everything back, and ends when its reader does."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while chunk := await reader.read(65536):
                writer.write(chunk)
                await writer.drain()
            writer.write_eof()
        except ConnectionError:
            pass
        writer.close()

    path = tmp_path / "gateway.sock"
    async with await asyncio.start_unix_server(answer, path):
        yield path


async def test_the_relay_joins_many_connections_and_passes_their_ends_on(
    shut_runtime: LocalRuntime, spec: Callable[..., LaunchSpec], tmp_path: Path
) -> None:
    code = (
        "import hashlib, socket, threading\n"
        "def one(n):\n"
        "    data = bytes([n]) * (3_000_000 + n)\n"
        "    s = socket.create_connection(('127.0.0.1', 8899))\n"
        "    def send():\n"
        "        s.sendall(data); s.shutdown(socket.SHUT_WR)\n"
        "    t = threading.Thread(target=send); t.start()\n"
        "    back = b''.join(iter(lambda: s.recv(65536), b''))\n"
        "    t.join(); results[n] = back == data\n"
        "results = {}\n"
        "threads = [threading.Thread(target=one, args=(n,)) for n in range(8)]\n"
        "[t.start() for t in threads]; [t.join() for t in threads]\n"
        "s = socket.create_connection(('127.0.0.1', 8899)); s.close()\n"
        "print(all(results.values()), len(results))\n"
    )
    async with echo(tmp_path) as path:
        assert await said(await shut_runtime.start(spec(code, gateway=path))) == "True 8\n"


async def test_the_mirror_is_there_to_read_and_a_program_in_the_home_runs(
    shut_runtime: LocalRuntime, spec: Callable[..., LaunchSpec], tmp_path: Path
) -> None:
    objects, tool = tmp_path / "mirror" / "objects", tmp_path / "tools" / "bin" / "tool"
    objects.mkdir(parents=True)
    (objects / "pack").write_text("p")
    real = tmp_path / "store" / "lib" / "node_modules" / "tool" / "run.py"
    real.parent.mkdir(parents=True)
    tool.parent.mkdir(parents=True)
    (real.parent / "beside.txt").write_text("beside")
    real.write_text(
        f"#!{interpreter()} -IS\nimport os\nhere = os.path.dirname(os.path.realpath(__file__))\n"
        f"print(open(here + '/beside.txt').read(), os.listdir('/mirror/objects'), os.listdir({str(objects)!r}))\n"
    )
    real.chmod(0o755)
    tool.symlink_to(os.path.relpath(real, tool.parent))
    made = spec("", objects=objects)
    launched = LaunchSpec(argv=("tool",), cwd=made.cwd, home=made.home, objects=objects, env={"PATH": str(tool.parent)})
    assert await said(await shut_runtime.start(launched)) == "beside ['pack'] ['pack']\n"


async def test_what_cannot_be_executed_in_there_is_one_sentence(shut_runtime: LocalRuntime, tmp_path: Path) -> None:
    (tmp_path / "broken").write_text("#!/no/such/interpreter\n")
    (tmp_path / "broken").chmod(0o755)
    with pytest.raises(AgentUnavailable, match=r"broken' would not start in the sandbox: No such file"):
        await shut_runtime.start(LaunchSpec(argv=(str(tmp_path / "broken"),), cwd=tmp_path))
    with pytest.raises(AgentUnavailable, match=r"its directory .*gone is not there"):
        await shut_runtime.start(LaunchSpec(argv=("sh",), cwd=tmp_path / "gone"))


@pytest.mark.parametrize(
    ("code", "status"), [("sys.exit(3)", 3), ("os.kill(os.getpid(), 9)", -9), ("sys.exit(143)", 143)]
)
async def test_the_exit_code_is_the_agents(
    shut_runtime: LocalRuntime, spec: Callable[..., LaunchSpec], code: str, status: int
) -> None:
    process = await shut_runtime.start(spec(f"import os, sys; {code}"))
    assert await process.wait() == status
    assert await process.stop(1) == status


ESCAPES = {
    "setsid": "subprocess.Popen(sleep, start_new_session=True)",
    "double fork": "os.fork() == 0 and (os.setsid(), os.fork() == 0 and (time.sleep(60), os._exit(0)), os._exit(0))",
    "wiped": "subprocess.Popen(sleep, env={}, start_new_session=True, close_fds=True)",
    "deaf": "subprocess.Popen([*sleep[:-1], 'import signal, time; signal.signal(15, 1); time.sleep(60)'])",
}


def hostile(*escapes: str) -> str:
    """A process that leaves others behind, in every way."""
    lines = "\n".join(ESCAPES[name] for name in escapes)
    return (
        "import os, signal, subprocess, sys, time\n"
        f"sleep = [{interpreter()!r}, '-I', '-S', '-c', {SLEEP!r}]\n"
        f"{lines}\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('up', flush=True)\ntime.sleep(60)\n"
    )


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those that live: one that ended waits for whoever collects it."""
    found = []
    for process in processes:
        try:
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def inside(process: LocalProcess) -> list[psutil.Process]:
    """Everything that lives in a process's tree, seen from the host."""
    return psutil.Process(int(process.handle["pid"])).children(recursive=True)


async def test_a_deaf_agent_is_gone_in_time_with_all_that_fled_from_it(
    shut_runtime: LocalRuntime, spec: Callable[..., LaunchSpec]
) -> None:
    process = await shut_runtime.start(spec(hostile(*ESCAPES)))
    assert await process.read_out(10) == b"up\n"
    lives = inside(process)
    assert len(lives) >= 6  # the relay, the agent, and those that fled
    begun = time.monotonic()
    assert await process.stop(0.4) == -9
    assert time.monotonic() - begun < 3
    assert not alive(lives)


async def test_the_end_of_an_agent_is_the_end_of_what_it_left_behind(
    shut_runtime: LocalRuntime, spec: Callable[..., LaunchSpec]
) -> None:
    process = await shut_runtime.start(spec(hostile("setsid", "double fork", "wiped").replace("time.sleep(60)\n", "")))
    assert await process.read_out(10) == b"up\n"
    lives = inside(process)
    assert await process.wait() == 0
    await process.stop(1)
    assert not alive(lives)


async def test_sigterm_reaches_everything_in_there_and_a_polite_agent_says_goodbye(
    shut_runtime: LocalRuntime, spec: Callable[..., LaunchSpec]
) -> None:
    code = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (print('bye', flush=True), sys.exit(7)))\n"
        "print('up', flush=True)\nwhile True: time.sleep(60)\n"
    )
    process = await shut_runtime.start(spec(code))
    assert await process.read_out(10) == b"up\n"
    assert await process.stop(2) == 7
    assert await process.read_out(10) == b"bye\n"


SERVER = """
import asyncio, sys
from pathlib import Path
from parallax.agents.runtimes.bubblewrap import prepare
from parallax.agents.runtimes.local import LocalRuntime
from parallax.models import LaunchSpec

async def main():
    place, owner, code = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    runtime = LocalRuntime(owner, shut=prepare(place / "etc", (Path.home(),)), wish="require")
    processes = []
    for number in range(3):
        spec = LaunchSpec(argv=(sys.argv[4], "-I", "-S", "-c", code), cwd=place / "tree", home=place / "home")
        processes.append(await runtime.start(spec))
        await processes[-1].read_out(10)
    print(*[process.handle["pid"] for process in processes], flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


async def test_a_killed_server_leaves_no_agent(
    shut_runtime: LocalRuntime, spec: Callable[..., LaunchSpec], tmp_path: Path, owner: str
) -> None:
    argv = [sys.executable, "-c", SERVER, str(tmp_path), owner, hostile(*ESCAPES), interpreter()]
    server = subprocess.Popen(argv, stdout=subprocess.PIPE)
    assert server.stdout is not None
    agents = [psutil.Process(int(pid)) for pid in (await asyncio.to_thread(server.stdout.readline)).split()]
    lives = [child for agent in agents for child in [agent, *agent.children(recursive=True)]]
    assert len(lives) >= 3 * 7
    server.send_signal(signal.SIGKILL)
    begun = time.monotonic()
    while left := alive(lives):
        assert time.monotonic() - begun < 6, left  # three times what is promised
        await asyncio.sleep(0.01)
    server.communicate()
    assert await shut_runtime.sweep() == 0  # the next start finds nobody, and removes their control groups
    assert not list(Path("/sys/fs/cgroup").glob(f"**/parallax-{owner}*"))


async def test_a_start_that_is_cancelled_leaves_nothing(
    shut_runtime: LocalRuntime, spec: Callable[..., LaunchSpec], owner: str
) -> None:
    before = set(os.listdir("/proc/self/fd"))
    for delay in (0, 0.005, 0.01, 0.02, 0.04, 0.08):
        starting = asyncio.create_task(shut_runtime.start(spec(SLEEP)))
        await asyncio.sleep(delay)
        starting.cancel()
        (result,) = await asyncio.gather(starting, return_exceptions=True)
        if isinstance(result, LocalProcess):
            await result.stop(0)
    await asyncio.sleep(0.05)
    assert marked(owner) == []
    assert set(os.listdir("/proc/self/fd")) == before


async def test_many_cycles_leave_nothing(
    shut_runtime: LocalRuntime, spec: Callable[..., LaunchSpec], tmp_path: Path, owner: str, monkeypatch: Any
) -> None:
    """40 in the suite; PARALLAX_CYCLES=500 is what is promised."""
    (scratch := tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    before = len(os.listdir("/proc/self/fd"))
    async with echo(tmp_path) as gateway:
        for number in range(int(os.environ.get("PARALLAX_CYCLES", "40"))):
            process = await shut_runtime.start(spec("import sys; sys.stdin.read()", gateway=gateway))
            await process.stop(2 if number % 2 else 0)
    assert len(os.listdir("/proc/self/fd")) <= before
    assert marked(owner) == []
    assert os.listdir(scratch) == []
    assert sorted(os.listdir(tmp_path)) == ["etc", "gateway.sock", "home", "tmp", "tree"]


async def test_a_bomb_meets_its_limits(shut_runtime: LocalRuntime, spec: Callable[..., LaunchSpec]) -> None:
    code = (
        "import os, resource\n"
        "def count(make):\n"
        "    made = []\n"
        "    try:\n"
        "        while len(made) < 20_000: made.append(make())\n"
        "    except (OSError, MemoryError) as error: pass\n"
        "    return len(made), [os.close(fd) for fd in made if type(fd) is int][:0]\n"
        "files = count(lambda: os.open('/dev/null', 0))\n"
        "memory = count(lambda: bytearray(20_000_000))\n"
        "try:\n"
        "    with open('/tmp/big', 'wb') as big: big.seek(2_000_000); big.write(b'x')\n"
        "    size = 'unlimited'\n"
        "except OSError: size = 'limited'\n"
        "print(files[0], memory[0], size, open('/proc/self/oom_score_adj').read().strip(), resource.getrlimit(resource.RLIMIT_CORE))\n"
    )
    limits = Limits(memory_b=300_000_000, files=100, file_b=1_000_000)
    files, memory, size, oom, core = (await said(await shut_runtime.start(spec(code, limits=limits)))).split(maxsplit=4)
    assert int(files) < 100
    assert int(memory) < 15
    assert (size, oom, core.strip()) == ("limited", "500", "(0, 0)")


HOSTILE = """
for f in /proc/[0-9]*/environ /proc/[0-9]*/cmdline; do tr '\\0' '\\n' <$f; done 2>/dev/null
ls -la / /root $HOME/.. /var/run 2>/dev/null
cat ~/.ssh/id_rsa /etc/shadow /root/.bash_history 2>/dev/null
touch /canary /usr/canary /etc/canary 2>/dev/null
setsid sleep 300 >/dev/null 2>&1 &
ps -e 2>/dev/null | wc -l
echo done >/workspace/result
"""


async def test_a_hostile_script_of_a_real_agent_reaches_nothing(
    shut_runtime: LocalRuntime, tmp_path: Path, owner: str, monkeypatch: Any
) -> None:
    monkeypatch.setenv("CANARY", "c4nary-of-the-server")
    script = tmp_path / "script.json"
    script.write_text(
        json.dumps(
            {"rules": [{"when": "harm in /workspace", "do": [{"run": ["sh", "-c", HOSTILE]}, {"say": "so be it"}]}]}
        )
    )
    tree, home, other = tmp_path / "tree", tmp_path / "homes" / "one", tmp_path / "homes" / "other"
    for path in (tree, home, other):
        path.mkdir(parents=True)
    (other / "login").write_text("another agents login")
    session = AgentSession(
        agent_id="e1.engineer.1", execution="e1", role="engineer", type="scripted", home=home, tree=tree
    )
    cli = ScriptedCLI(script, tmp_path / "ledger")
    client = AcpClient(runtime=shut_runtime, cli=cli, session=session, program=sys.executable, grace_s=2)
    await client.open()
    shown, result = await play(client, task("do harm in {{workspace.path}}"))
    await client.close()
    assert result.message == "so be it"
    text = json.dumps([item.data for item in shown if item.kind == "tool"])
    for canary in ("c4nary", "another agents login", str(tmp_path / "homes"), "PRIVATE KEY"):
        assert canary not in text
    assert (tree / "result").read_text() == "done\n"
    assert marked(owner) == []


def test_an_agent_that_asks_for_nothing_is_held_or_not_started(
    runtime: LocalRuntime, shut_runtime: LocalRuntime, session: AgentSession, tmp_path: Path
) -> None:
    free, cli = replace(session, preset="autonomous"), ScriptedCLI(tmp_path / "script")
    with pytest.raises(AgentUnavailable, match=r"'engineer' has the preset 'autonomous'.*take 'permissive'"):
        launch(runtime, cli, free, sys.executable)
    assert launch(shut_runtime, cli, free, sys.executable).cwd == session.tree
    assert launch(runtime, cli, session, sys.executable).cwd == session.tree


def test_a_session_is_told_the_names_inside(shut_runtime: LocalRuntime, tmp_path: Path) -> None:
    door = ModelDoor(
        url="http://127.0.0.1:1", token=Secret("plx_t"), socket=tmp_path / "s", providers=frozenset({"openai"})
    )
    session = AgentSession(
        agent_id="e.r.1", execution="e", role="r", type="codex", home=tmp_path / "h", tree=tmp_path / "t", door=door,
        objects=tmp_path / "o",
    )  # fmt: skip
    seen = shut_runtime.inside(session)
    assert (seen.tree, seen.home, seen.objects) == (Path("/workspace"), Path("/home/agent"), Path("/mirror/objects"))
    assert seen.shut_in
    assert seen.door is not None
    assert seen.door.url == "http://127.0.0.1:8899"


async def test_a_fork_bomb_stays_small_and_is_gone_at_once(
    shut_runtime: LocalRuntime, spec: Callable[..., LaunchSpec], owner: str
) -> None:
    if os.geteuid() == 0 and not ProcessGroups(owner).work:
        pytest.skip("the kernel counts none of root's processes, and this machine has no control groups to write")
    code = (
        "import os, signal, time\n"
        "count = 0\n"
        "try:\n"
        "    while count < 2000:\n"
        "        if os.fork() == 0: signal.signal(15, 1); time.sleep(60); os._exit(0)\n"
        "        count += 1\n"
        "except OSError: pass\n"
        "print(count, flush=True); time.sleep(60)\n"
    )
    process = await shut_runtime.start(spec(code, limits=Limits(processes=100)))
    assert 50 <= int(await process.read_out(100)) < 100
    lives = inside(process)
    begun = time.monotonic()
    await process.stop(0.2)
    assert time.monotonic() - begun < 3
    assert not alive(lives)
    assert not list(Path("/sys/fs/cgroup").glob(f"**/parallax-{owner}*"))
