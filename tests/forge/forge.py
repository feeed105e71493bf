"""A forge of the tests' own: a real git remote over HTTP behind a token check, and as much of GitHub's API as we speak.

It keeps state as GitHub does: installation tokens have a life, permissions and one repository, they can be revoked,
pull requests have labels and reviewers and are there when one looks again. `Forge.start()` runs it in a thread, so that
blocking tests and other processes can use it. What a test may do to it are attributes: `expire_in_mid_push`,
`cut_next_fetch`, `down`, `moved`, `unanswered_pulls`.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import secrets
import subprocess
import threading
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote

import jwt
from aiohttp import web
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

APP_ID = "4711"


@dataclass(slots=True)
class Token:
    """An installation token, or one of a person (`app` False, which is never revoked by us)."""

    repos: tuple[str, ...]
    permissions: dict[str, str]
    expires_at: float
    app: bool = True
    revoked: bool = False

    @property
    def alive(self) -> bool:
        return not self.revoked and self.expires_at > time.time()


@dataclass(slots=True)
class Pull:
    number: int
    title: str
    body: str
    head: str
    base: str
    draft: bool
    state: str = "open"
    labels: list[str] = field(default_factory=list)
    reviewers: list[str] = field(default_factory=list)


class Forge:
    """One forge with one owner, `acme`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "acme").mkdir(parents=True)
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self.key = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
        ).decode()
        self._public = key.public_key()
        self.tokens: dict[str, Token] = {}
        self.pulls: dict[str, list[Pull]] = {}
        self.requests: list[tuple[str, str]] = []
        self.public: set[str] = set()
        self.token_life_s = 3600.0
        self.installed = True
        self.granted = {"contents": "write", "pull_requests": "write", "metadata": "read", "workflows": "write"}
        self.expire_in_mid_push = False
        self.cut_next_fetch = 0
        self.down = False
        self.moved: dict[str, str] = {}
        self.unanswered_pulls = 0  # so many pull requests are opened, but the answer is lost
        self.unknown_reviewers: set[str] = set()

    # -- arranging -----------------------------------------------------------------------------------------------------

    def repository(self, name: str, source: Path | None = None, *, public: bool = False) -> str:
        """A bare repository, with the branches of `source`; returns its URL."""
        path = self.root / "acme" / f"{name}.git"
        if source is None:
            _git("init", "-q", "--bare", "-b", "main", str(path))
        else:
            _git("clone", "-q", "--bare", str(source), str(path))
        _git("-C", str(path), "config", "http.receivepack", "true")
        if public:
            self.public.add(name)
        return f"{self.url}/acme/{name}"

    def git(self, name: str, *args: str) -> str:
        """git's answer, in a repository of the forge."""
        return _git("-C", str(self.root / "acme" / f"{name}.git"), *args)

    def branches(self, name: str) -> dict[str, str]:
        """Branch -> commit."""
        lines = self.git(name, "for-each-ref", "--format=%(refname:short) %(objectname)", "refs/heads/").splitlines()
        return dict(line.split(" ") for line in lines)

    def protect(self, name: str, branch: str) -> None:
        """The branch takes no push, as with a rule of the forge's."""
        hook = self.root / "acme" / f"{name}.git" / "hooks" / "pre-receive"
        hook.parent.mkdir(exist_ok=True)
        hook.write_text(
            f"#!/bin/sh\nwhile read old new ref; do\n[ $ref = refs/heads/{branch} ] && "
            f"{{ echo 'GH006: Protected branch update failed for {branch}' >&2; exit 1; }}\ndone\nexit 0\n"
        )
        hook.chmod(0o755)

    def person(self, *repos: str, access: str = "write", life_s: float = 3600.0) -> str:
        """A personal access token."""
        token = f"ghp_{secrets.token_hex(20)}"
        permissions = {"contents": access, "pull_requests": access, "metadata": "read"}
        self.tokens[token] = Token(repos, permissions, time.time() + life_s, app=False)
        return token

    @property
    def alive(self) -> list[str]:
        """Installation tokens that still open something."""
        return [name for name, token in self.tokens.items() if token.app and token.alive]

    # -- life ----------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Serve from a thread; `url` says where."""
        ready = threading.Event()
        self._loop = asyncio.new_event_loop()

        async def serve() -> None:
            app = web.Application(client_max_size=1 << 30)
            app.router.add_route("*", "/api/v3/{path:.*}", self._api)
            app.router.add_route("*", "/{path:.*}", self._remote)
            runner = web.AppRunner(app, access_log=None)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            port = runner.addresses[0][1]
            self.url = f"http://127.0.0.1:{port}"
            self._stop = asyncio.Event()
            ready.set()
            await self._stop.wait()
            await runner.cleanup()

        self._thread = threading.Thread(target=lambda: self._loop.run_until_complete(serve()), daemon=True)
        self._thread.start()
        assert ready.wait(10)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        self._loop.close()

    @property
    def api_url(self) -> str:
        return f"{self.url}/api/v3"

    # -- the git remote ------------------------------------------------------------------------------------------------

    async def _remote(self, request: web.Request) -> web.StreamResponse:
        path = request.path
        self.requests.append((request.method, path))
        if self.down:
            return web.Response(status=503, text="down")
        name = path.split("/")[2].removesuffix(".git") if path.count("/") > 2 else ""
        if name in self.moved:
            return web.Response(status=301, headers={"Location": path.replace(name, self.moved[name])})
        if not (self.root / "acme" / f"{name}.git").is_dir():
            return web.Response(status=404, text="Repository not found")
        write = "git-receive-pack" in path or request.query.get("service") == "git-receive-pack"
        if refusal := self._refusal(request, name, write=write):
            return refusal
        if write and self.expire_in_mid_push and path.endswith("git-receive-pack"):
            self.expire_in_mid_push = False
            self._token_of(request).expires_at = 0.0
            return web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="forge"'})
        rest = "/".join(path.split("/")[3:])
        return await self._backend(request, f"/acme/{name}.git/{rest}")

    def _token_of(self, request: web.Request) -> Token | None:
        kind, _, value = request.headers.get("Authorization", "").partition(" ")
        if kind == "Basic":
            value = base64.b64decode(value).decode().partition(":")[2]
        return self.tokens.get(value)

    def _refusal(self, request: web.Request, name: str, *, write: bool) -> web.Response | None:
        token = self._token_of(request)
        if token is None and not write and name in self.public and "Authorization" not in request.headers:
            return None
        if token is None or not token.alive:
            return web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="forge"'})
        if name not in token.repos:
            return web.Response(status=404, text="Repository not found")
        if write and token.permissions.get("contents") != "write":
            return web.Response(status=403, text="Write access to repository not granted.")
        return None

    async def _backend(self, request: web.Request, path: str) -> web.StreamResponse:
        env = {
            "PATH": os.environ["PATH"], "GIT_PROJECT_ROOT": str(self.root), "GIT_HTTP_EXPORT_ALL": "1",
            "REQUEST_METHOD": request.method, "PATH_INFO": path, "QUERY_STRING": request.query_string,
            "CONTENT_TYPE": request.headers.get("Content-Type", ""), "REMOTE_USER": "someone",
            "HTTP_CONTENT_ENCODING": request.headers.get("Content-Encoding", ""),
            "GIT_PROTOCOL": request.headers.get("Git-Protocol", ""), "GIT_CONFIG_GLOBAL": "/dev/null",
        }  # fmt: skip
        body = await request.read()
        if request.headers.get("Content-Encoding") == "gzip":
            env["HTTP_CONTENT_ENCODING"] = ""  # aiohttp has unpacked it
        env["CONTENT_LENGTH"] = str(len(body))
        process = await asyncio.create_subprocess_exec(
            "git", "http-backend", env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        out, _ = await process.communicate(body)
        head, _, content = out.partition(b"\r\n\r\n")
        fields = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
        status = int(fields.pop("Status", "200 OK").split()[0])
        if self.cut_next_fetch and path.endswith("git-upload-pack") and b"packfile" in content:
            self.cut_next_fetch -= 1
            answer = web.StreamResponse(status=status, headers=fields | {"Content-Length": str(len(content))})
            await answer.prepare(request)
            await answer.write(content[: len(content) // 2])
            request.transport.abort()
            return answer
        return web.Response(status=status, headers=fields, body=content)

    # -- the API -------------------------------------------------------------------------------------------------------

    async def _api(self, request: web.Request) -> web.Response:
        path = "/" + request.match_info["path"]
        self.requests.append((request.method, f"/api{path}"))
        if self.down:
            return _said(503, "down")
        parts = [unquote(part) for part in path.strip("/").split("/")]
        body = json.loads(await request.read() or "null")
        if parts[0] == "repos" and parts[2] in self.moved:
            return web.Response(status=301, headers={"Location": path.replace(parts[2], self.moved[parts[2]])})
        match (request.method, *parts):
            case ("GET", "repos", _, name, "installation"):
                return self._installation(request, name)
            case ("POST", "app", "installations", "1", "access_tokens"):
                return self._mint(request, body)
            case ("DELETE", "installation", "token"):
                return self._revoke(request)
            case ("GET", "repos", _, name, "pulls"):
                return self._asked(request, name, "read") or self._listed(request, name)
            case ("POST", "repos", _, name, "pulls"):
                return self._asked(request, name, "write") or self._open(request, name, body)
            case ("GET", "repos", _, name, "branches", *branch):
                there = "/".join(branch) in self.branches(name)
                return self._asked(request, name, "read") or (_said(200, "") if there else _said(404, "Not Found"))
            case ("POST", "repos", _, name, "issues", number, "labels"):
                return self._asked(request, name, "write") or self._label(name, int(number), body)
            case ("POST", "repos", _, name, "pulls", number, "requested_reviewers"):
                return self._asked(request, name, "write") or self._review(name, int(number), body)
        return _said(404, "Not Found")

    def _app_problem(self, request: web.Request) -> web.Response | None:
        kind, _, assertion = request.headers.get("Authorization", "").partition(" ")
        try:
            claims = jwt.decode(
                assertion, self._public, algorithms=["RS256"], options={"require": ["iat", "exp", "iss"]}
            )
        except jwt.PyJWTError as error:
            return _said(401, f"A JSON web token could not be decoded: {error}")
        if kind != "Bearer" or claims["iss"] != APP_ID or claims["exp"] - claims["iat"] > 660:
            return _said(401, "Bad credentials")
        return None

    def _installation(self, request: web.Request, name: str) -> web.Response:
        if problem := self._app_problem(request):
            return problem
        there = self.installed and (self.root / "acme" / f"{name}.git").is_dir()
        return web.json_response({"id": 1}) if there else _said(404, "Not Found")

    def _mint(self, request: web.Request, body: Any) -> web.Response:
        if problem := self._app_problem(request):
            return problem
        ranks = {None: 0, "read": 1, "write": 2}
        for name, wanted in body["permissions"].items():
            if ranks[wanted] > ranks[self.granted.get(name)]:
                return _said(422, f"The permissions requested are not granted to this installation: {name}")
        token = f"ghs_{APP_ID}_{secrets.token_urlsafe(330).replace('-', '.')}"  # the long form of 2026
        expires_at = time.time() + self.token_life_s
        self.tokens[token] = Token(tuple(body["repositories"]), dict(body["permissions"]), expires_at)
        told = datetime.fromtimestamp(expires_at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return web.json_response({"token": token, "expires_at": told}, status=201)

    def _revoke(self, request: web.Request) -> web.Response:
        token = self._token_of(request)
        if token is None or not token.alive:
            return _said(401, "Bad credentials")
        token.revoked = True
        return web.Response(status=204)

    def _asked(self, request: web.Request, name: str, access: str) -> web.Response | None:
        token = self._token_of(request)
        if token is None or not token.alive:
            return _said(401, "Bad credentials")
        if name not in token.repos:
            return _said(404, "Not Found")
        given = token.permissions.get("pull_requests")
        if given is None or (access == "write" and given != "write"):
            return _said(403, "Resource not accessible by integration")
        return None

    def _listed(self, request: web.Request, name: str) -> web.Response:
        query = parse_qs(request.query_string)
        head = query.get("head", [":"])[0].partition(":")[2]
        found = [pull for pull in self.pulls.get(name, []) if pull.head == head]
        return web.json_response([self._shown(name, pull) for pull in reversed(found)])

    def _open(self, request: web.Request, name: str, body: Any) -> web.Response:
        there = self.pulls.setdefault(name, [])
        branches = self.branches(name)
        if body["base"] not in branches:
            return _said(422, "Validation Failed", [{"field": "base", "code": "invalid"}])
        if body["head"] not in branches:
            return _said(422, "Validation Failed", [{"field": "head", "code": "invalid"}])
        if any(pull.head == body["head"] and pull.state == "open" for pull in there):
            return _said(422, "Validation Failed", [{"message": "A pull request already exists"}])
        number = len(there) + 1
        there.append(Pull(number, body["title"], body["body"], body["head"], body["base"], body["draft"]))
        if self.unanswered_pulls:
            self.unanswered_pulls -= 1
            return _said(502, "lost")
        return web.json_response(self._shown(name, there[-1]), status=201)

    def _label(self, name: str, number: int, body: Any) -> web.Response:
        pull = self.pulls[name][number - 1]
        pull.labels += [label for label in body["labels"] if label not in pull.labels]
        return web.json_response([])

    def _review(self, name: str, number: int, body: Any) -> web.Response:
        if set(body["reviewers"]) & self.unknown_reviewers:
            return _said(422, "Reviews may only be requested from collaborators.")
        pull = self.pulls[name][number - 1]
        pull.reviewers += [who for who in body["reviewers"] if who not in pull.reviewers]
        return web.json_response({}, status=201)

    def _shown(self, name: str, pull: Pull) -> dict[str, Any]:
        return {
            "number": pull.number, "state": pull.state, "body": pull.body, "title": pull.title, "draft": pull.draft,
            "html_url": f"{self.url}/acme/{name}/pull/{pull.number}", "head": {"ref": pull.head},
        }  # fmt: skip


def _said(status: int, message: str, errors: list[dict[str, str]] | None = None) -> web.Response:
    return web.json_response({"message": message, "errors": errors or []}, status=status)


def _git(*args: str) -> str:
    return subprocess.run(["git", *args], check=True, capture_output=True, text=True).stdout.strip()
