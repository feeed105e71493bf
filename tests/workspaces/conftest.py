"""Real git repositories and a real process runtime: nothing here is a stand-in for git."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from parallax.errors import AgentUnavailable
from parallax.models import LaunchSpec, Workspace
from parallax.workspaces.git import Git
from parallax.workspaces.integration import Integration
from parallax.workspaces.repository import Repository
from parallax.workspaces.service import WorkspaceService

IDENTITY = {
    "GIT_AUTHOR_NAME": "Ada",
    "GIT_AUTHOR_EMAIL": "ada@example.org",
    "GIT_COMMITTER_NAME": "Ada",
    "GIT_COMMITTER_EMAIL": "ada@example.org",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_NOSYSTEM": "1",
}


def git(where: Path, *args: str, **env: str) -> str:
    """The user's own git, for arranging and for looking."""
    done = subprocess.run(
        ["git", *args], cwd=where, env={**os.environ, **IDENTITY, **env}, capture_output=True, check=False
    )
    if done.returncode:
        raise AssertionError(f"git {args}: {done.stderr.decode()}")
    return done.stdout.decode("utf-8", "backslashreplace").strip()


def write(root: Path, files: Mapping[str, str | bytes]) -> None:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)


def listing(root: Path, *, but: tuple[str, ...] = ()) -> dict[str, object]:
    """Everything under a directory: content, mode, link target."""
    found: dict[str, object] = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if any(name == b or name.startswith(f"{b}/") for b in but):
            continue
        if path.is_symlink():
            found[name] = ("link", os.readlink(path))
        elif path.is_file():
            found[name] = (path.stat().st_mode & 0o777, path.read_bytes())
        else:
            found[name] = "dir"
    return found


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "users-home"
    home.mkdir()
    (home / ".gitconfig").write_text("[user]\n\tname = Ada\n\temail = ada@example.org\n")
    monkeypatch.setenv("HOME", str(home))
    for name in ("XDG_CONFIG_HOME", "GIT_CONFIG_GLOBAL", "GIT_DIR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def user(tmp_path: Path) -> Path:
    """A repository of the user's, with one commit."""
    path = tmp_path / "project"
    path.mkdir()
    git(path, "init", "-q", "-b", "main")
    write(path, {"README.md": "hello\n", "src/a.py": "A = 1\n", "src/b.py": "B = 1\n", ".gitignore": "*.log\nbuild/\n"})
    git(path, "add", "-A")
    git(path, "commit", "-q", "-m", "first")
    return path


class _Backend(BaseHTTPRequestHandler):
    """git's own server program behind a few lines of HTTP."""

    root: Path

    def do_GET(self) -> None:
        if self.path.startswith("/redirect/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/redirect"))
            self.end_headers()
            return
        path, _, query = self.path.partition("?")
        length = int(self.headers.get("Content-Length") or 0)
        env = {
            "PATH": os.environ["PATH"],
            "GIT_PROJECT_ROOT": str(self.root),
            "GIT_HTTP_EXPORT_ALL": "1",
            "REQUEST_METHOD": self.command,
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "CONTENT_LENGTH": str(length),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
            "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
        }
        done = subprocess.run(
            ["git", "http-backend"], env=env, input=self.rfile.read(length), capture_output=True, check=False
        )
        head, _, body = done.stdout.partition(b"\r\n\r\n")
        fields = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
        self.send_response(int(fields.pop("Status", "200 OK").split()[0]))
        for name, value in fields.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, *args: object) -> None:
        return None


@pytest.fixture
def served(user: Path) -> Iterator[str]:
    """The folder of the user's repository, over HTTP on this machine."""
    handler = type("Backend", (_Backend,), {"root": user.parent})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def events() -> list[tuple[str, str, object]]:
    return []


@pytest.fixture
def runtime() -> PlainRuntime:
    return PlainRuntime()


@pytest.fixture
def service(tmp_path: Path, events: list[tuple[str, str, object]], runtime: PlainRuntime) -> WorkspaceService:
    async def emit(execution: str, kind: str, data: object) -> None:
        events.append((execution, kind, data))

    return WorkspaceService(tmp_path / "data" / "workspaces", Git(), runtime, emit)


@pytest.fixture
def integration(service: WorkspaceService) -> Integration:
    return Integration(service)


@pytest.fixture
async def repo(service: WorkspaceService, user: Path) -> Repository:
    return await service.open_repository(str(user))


@pytest.fixture
async def workspace(service: WorkspaceService, repo: Repository) -> Workspace:
    return await service.create("exec1", "engineer", 1, repo, base_commit=repo.base_commit)


@pytest.fixture
def commit(service: WorkspaceService) -> Callable[..., object]:
    """Write files into a workspace and commit them."""

    async def change(ws: Workspace, files: Mapping[str, str | bytes], step: str = "step") -> str:
        write(ws.tree, files)
        made = await service.commit(
            ws, message=f"work of {step}", author=ws.role, branch=f"parallax/{ws.execution}/{ws.role}/{step}"
        )
        assert made is not None
        return made.sha

    return change


class PlainProcess:
    """The smallest real process: its own session, killed as a group."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.handle = {"pid": str(process.pid)}

    async def write(self, data: bytes) -> None:
        raise NotImplementedError

    async def close_input(self) -> None:
        return None

    async def read_out(self, n: int) -> bytes:
        assert self._process.stdout
        return await self._process.stdout.read(n)

    async def read_err(self, n: int) -> bytes:
        assert self._process.stderr
        return await self._process.stderr.read(n)

    async def wait(self) -> int:
        # asyncio's own wait() also waits for the pipes, which a grandchild may hold open.
        while self._process.returncode is None:
            await asyncio.sleep(0.005)
        return self._process.returncode

    async def stop(self, grace_s: float) -> int:
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self._process.pid, number)
            except ProcessLookupError:
                break
            try:
                await asyncio.wait_for(self._process.wait(), grace_s)
            except TimeoutError:
                continue
        return await self.wait()


class PlainRuntime:
    """Runs a LaunchSpec as a plain process, and remembers what it was asked."""

    name = "plain"
    shuts_in = False

    def __init__(self) -> None:
        self.specs: list[LaunchSpec] = []
        self.running = 0
        self.most = 0

    async def start(self, spec: LaunchSpec) -> PlainProcess:
        self.specs.append(spec)
        try:
            process = await asyncio.create_subprocess_exec(
                *spec.argv,
                cwd=spec.cwd,
                env=dict(spec.env),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                start_new_session=True,
            )
        except OSError as error:
            raise AgentUnavailable(f"{spec.argv[0]} is not installed") from error
        return PlainProcess(process)

    async def sweep(self) -> int:
        return 0
