"""The one hardened door to the git command line: every git process of the server starts here.

The environment is made from nothing, system and global configuration are off, hooks and file-system monitors are off,
and protocols are refused unless the call says otherwise. That makes git safe on data that an agent wrote, on one
condition which the callers keep: the git directory is the server's own. Options alone do not make a foreign `.git`
safe (`diff.external` and filters still run), so no call of ours ever enters the one in an agent's tree.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Final, TypedDict, Unpack
from urllib.parse import unquote, urlsplit

from parallax.errors import ConfigurationError, GitError, RepositoryError, UsageError

MINIMUM: Final = (2, 38)  # `merge-tree --write-tree`, and `safe.directory` by `-c`
MAX_OUTPUT_B: Final = 64 * 1024 * 1024
MAX_STDERR_B: Final = 64 * 1024

_FLAGS: Final = (
    "--no-pager",
    *("-c", "core.hooksPath=/dev/null"),
    *("-c", "core.fsmonitor=false"),
    *("-c", "protocol.allow=never"),
    *("-c", "protocol.https.allow=always"),
    *("-c", "credential.helper="),
    *("-c", "submodule.recurse=false"),
    *("-c", "core.symlinks=false"),  # for the server's own reads; what is handed to an agent says otherwise
    *("-c", "http.followRedirects=false"),
    *("-c", "transfer.fsckObjects=true"),
    *("-c", "gc.auto=0"),
    *("-c", "maintenance.auto=false"),
    *("-c", "core.fsync=committed,reference"),  # what we name in a journal is on disk before we name it
    *("-c", "advice.detachedHead=false"),
    *("-c", "core.quotePath=false"),
    *("-c", "safe.directory=*"),  # who may be read is decided by which path the operator named
)
# Old commits of honest projects have these faults; they harm nobody, and refusing them would refuse the repository.
_TOLERATED: Final = ("badTimezone", "missingSpaceBeforeDate", "zeroPaddedFilemode", "missingTaggerEntry", "badEmail")
_COMMIT: Final = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:(//|:)")
_SCP: Final = re.compile(r"[^/\s]+@[^/\s:]+:")
_HOST: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")
_BAD_IN_REF: Final = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//")
_BAD_IN_URL: Final = re.compile(r"[^\x21-\x7e]|[\\<>\"'`^{|}#?]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Completed:
    """What a git process left: exit code, output, the end of its error output."""

    code: int
    out: bytes
    err: str


class Options(TypedDict, total=False):
    """What a call may say besides git's own arguments.

    `objects` is where new objects are written: the mirror's store, so that every commit is reachable there.
    `allow_file` is for the one call that reads a local path which the operator named.
    """

    git_dir: Path | None
    work_tree: Path | None
    index: Path | None
    objects: Path | None
    cwd: Path | None
    env: Mapping[str, str] | None
    input: bytes | None
    timeout_s: float
    allow_file: bool


class Git:
    """Runs git. One instance serves the whole process; it holds no state but the version it has checked."""

    def __init__(self, program: str = "git") -> None:
        self._program = program
        self._checked = False

    async def run(self, *args: str, **options: Unpack[Options]) -> str:
        """Run git and return its output without the last line's end; raises GitError with git's own words."""
        return text((await self.call(*args, **options)).out).rstrip("\n")

    async def run_bytes(self, *args: str, **options: Unpack[Options]) -> bytes:
        """The same with the output as it is: for lists with `-z`, whose names need not be text."""
        return (await self.call(*args, **options)).out

    async def call(
        self, *args: str, ok: tuple[int, ...] = (0,), max_output_b: int = MAX_OUTPUT_B, **options: Unpack[Options]
    ) -> Completed:
        """Run git with `ok` as the exit codes that are no failure.

        Cancelling the call, or its time running out, kills the whole process group.
        """
        await self._check_version()
        flags, environ = _prepare(args, options)
        cwd = options.get("cwd") or options.get("work_tree") or options.get("git_dir")
        timeout_s = options.get("timeout_s", 120.0)
        what = f"git {_verb(args)}"
        try:
            async with asyncio.timeout(timeout_s):
                done = await self._spawn([*flags, *args], environ, cwd, options.get("input"), max_output_b)
        except TimeoutError:
            raise GitError(f"{what} took longer than {timeout_s:g} s and was stopped") from None
        except OSError as error:
            raise GitError(f"{what} could not be started: {error}") from None
        if done.code not in ok:
            raise GitError(f"{what} failed: {_sentence(done)}", done.err)
        return done

    async def _check_version(self) -> None:
        if self._checked:
            return
        try:
            done = await self._spawn(["--version"], _environment(http=False, file=False), None, None, 4096)
        except OSError as error:
            raise ConfigurationError(
                f"git was not found ({error.strerror}): install git {MINIMUM[0]}.{MINIMUM[1]} or newer"
            ) from None
        words = text(done.out)
        found = re.search(r"(\d+)\.(\d+)", words)
        if found is None or (int(found[1]), int(found[2])) < MINIMUM:
            raise ConfigurationError(
                f"git {MINIMUM[0]}.{MINIMUM[1]} or newer is needed, this is {words.strip() or 'unknown'}: update git"
            )
        self._checked = True

    async def _spawn(
        self, args: list[str], env: dict[str, str], cwd: Path | None, data: bytes | None, max_output_b: int
    ) -> Completed:
        process = await asyncio.create_subprocess_exec(
            self._program,
            *args,
            cwd=cwd or "/",
            env=env,
            stdin=asyncio.subprocess.DEVNULL if data is None else asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            async with asyncio.TaskGroup() as group:
                out = group.create_task(_read(process.stdout, max_output_b, keep_end=False))
                err = group.create_task(_read(process.stderr, MAX_STDERR_B, keep_end=True))
                if process.stdin is not None:
                    group.create_task(_feed(process.stdin, data or b""))
            code = await process.wait()
        except BaseException as error:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            # wait() ends only when the pipes have ended, and a pipe that nobody reads does not.
            await asyncio.gather(_discard(process.stdout), _discard(process.stderr))
            await process.wait()
            if isinstance(error, BaseExceptionGroup):
                raise error.exceptions[0] from None
            raise
        return Completed(code=code, out=out.result(), err=text(err.result()).strip())


async def _read(stream: asyncio.StreamReader, limit: int, *, keep_end: bool) -> bytes:
    """All of a stream; beyond the limit its end (error output) or a refusal (output that we would act on)."""
    kept = bytearray()
    while chunk := await stream.read(65536):
        kept += chunk
        if len(kept) > limit:
            if not keep_end:
                raise GitError(f"git wrote more than {limit:,} bytes, which is more than is read")
            del kept[: len(kept) - limit]
    return bytes(kept)


async def _discard(stream: asyncio.StreamReader) -> None:
    while await stream.read(65536):
        pass


async def _feed(stream: asyncio.StreamWriter, data: bytes) -> None:
    with suppress(BrokenPipeError, ConnectionResetError):  # git stopped reading: its exit code tells why
        stream.write(data)
        await stream.drain()
        stream.close()
        await stream.wait_closed()


def _prepare(args: tuple[str, ...], options: Options) -> tuple[list[str], dict[str, str]]:
    """Flags and environment of a call."""
    flags = list(_FLAGS)
    for fault in _TOLERATED:
        flags += ["-c", f"fetch.fsck.{fault}=ignore"]
    file = options.get("allow_file", False)
    http = any(arg.startswith("http://") for arg in args)  # `check_url` lets it through to this machine only
    flags += ["-c", "protocol.http.allow=always"] * http + ["-c", "protocol.file.allow=always"] * file
    environ = _environment(http=http, file=file)
    if git_dir := options.get("git_dir"):
        flags.append(f"--git-dir={git_dir}")
    if work_tree := options.get("work_tree"):
        flags.append(f"--work-tree={work_tree}")
    if index := options.get("index"):
        environ["GIT_INDEX_FILE"] = str(index)
    if objects := options.get("objects"):
        environ["GIT_OBJECT_DIRECTORY"] = str(objects)
    environ |= options.get("env") or {}
    if not environ["GIT_CONFIG_GLOBAL"]:
        del environ["GIT_CONFIG_GLOBAL"]
    return flags, environ


def _environment(*, http: bool, file: bool) -> dict[str, str]:
    protocols = ["https"] + ["http"] * http + ["file"] * file
    return {
        "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
        "LC_ALL": "C.UTF-8",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ALLOW_PROTOCOL": ":".join(protocols),
        "GIT_ATTR_NOSYSTEM": "1",
        "GIT_LFS_SKIP_SMUDGE": "1",
        "GIT_OPTIONAL_LOCKS": "0",
        "GIT_EDITOR": "false",
        "GIT_ASKPASS": "",
        "SSH_ASKPASS": "",
    }


def users_environment() -> dict[str, str]:
    """What a call on the user's own checkout adds: their global configuration, with their identity and excludes.

    An empty GIT_CONFIG_GLOBAL stands for the usual places.
    """
    names = ("HOME", "XDG_CONFIG_HOME", "GIT_CONFIG_GLOBAL")
    return {"GIT_CONFIG_GLOBAL": "", "GIT_LFS_SKIP_SMUDGE": "0"} | {
        name: value for name in names if (value := os.environ.get(name))
    }


def _verb(args: tuple[str, ...]) -> str:
    words = iter(args)
    for word in words:
        if word == "-c":
            next(words, None)
        elif not word.startswith("-"):
            return word
    return "?"


def _sentence(done: Completed) -> str:
    """The line of git's error output that says what was wrong."""
    lines = [line.strip() for line in done.err.splitlines() if line.strip()]
    for line in lines:
        for prefix in ("fatal: ", "error: "):
            if line.startswith(prefix):
                return line.removeprefix(prefix)
    return lines[-1] if lines else f"exit code {done.code}"


def text(raw: bytes) -> str:
    """Bytes of git as text; names that are not UTF-8 show their bytes, so that the result is always valid JSON."""
    return raw.decode("utf-8", "backslashreplace")


def fields(raw: bytes) -> list[bytes]:
    """The entries of a list with `-z`."""
    return [entry for entry in raw.split(b"\0") if entry]


def is_url(location: str) -> bool:
    """Whether a repository's location means something else than a local path."""
    return bool(_SCHEME.match(location)) or (bool(_SCP.match(location)) and not os.path.lexists(location))


def check_url(url: str) -> str:
    """A URL that may be handed to git: https, or http to this machine, without credentials or tricks."""
    if not url.isascii() or not url.isprintable() or len(url) > 2048:
        raise RepositoryError("A repository's URL must be printable ASCII of at most 2,048 characters")
    if not url.startswith(("https://", "http://")):
        raise RepositoryError(f"'{url}' is neither a local path nor an https URL: give one of these")
    if _BAD_IN_URL.search(url) or _BAD_IN_URL.search(unquote(url, "latin-1").replace(" ", "")):
        raise RepositoryError(f"'{url}' has characters that do not belong into a repository's URL")
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError as error:
        raise RepositoryError(f"'{url}' is no URL: {error}") from None
    if "@" in parts.netloc:
        raise RepositoryError("A repository's URL must not hold a user name or password: leave them out")
    if not (_HOST.fullmatch(host) and ".." not in host) and not _is_address(host):
        raise RepositoryError(f"'{url}' names no valid host")
    if parts.netloc.endswith(":") or not parts.path.strip("/"):
        raise RepositoryError(f"'{url}' names no repository")
    if parts.scheme == "http" and not _is_loopback(host):
        raise RepositoryError(f"'{url}' is not encrypted: use https")
    return url


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _is_loopback(host: str) -> bool:
    return host == "localhost" or (_is_address(host) and ip_address(host).is_loopback)


def is_commit(name: str) -> bool:
    """Whether a name is a full commit id, as git writes it."""
    return bool(_COMMIT.fullmatch(name))


def check_commit(commit: str) -> str:
    """A full commit id."""
    if not is_commit(commit):
        raise UsageError(f"{commit[:80]!r} is no full commit id")
    return commit


def check_branch(name: str) -> str:
    """A branch name by git's own rules, without a leading dash."""
    parts = name.split("/")
    bad = (
        not name
        or len(name.encode("utf-8", "surrogatepass")) > 200
        or name in {"@", "HEAD"}
        or name.startswith(("-", "refs/"))
        or name.endswith(".")
        or _BAD_IN_REF.search(name)
        or any(not part or part.startswith((".", "-")) or part.endswith(".lock") for part in parts)
        or any(0xD800 <= ord(c) < 0xE000 for c in name)
    )
    if bad:
        raise UsageError(f"{name[:80]!r} is no valid branch name")
    return name


class Locks:
    """One lock per key, forgotten when nobody holds it or waits for it."""

    def __init__(self) -> None:
        self._locks: dict[str, tuple[asyncio.Lock, int]] = {}

    @asynccontextmanager
    async def hold(self, key: str) -> AsyncIterator[None]:
        """Alone with this key."""
        lock, users = self._locks.get(key, (None, 0))
        lock = lock or asyncio.Lock()
        self._locks[key] = (lock, users + 1)
        try:
            async with lock:
                yield
        finally:
            _, users = self._locks[key]
            if users == 1:
                del self._locks[key]
            else:
                self._locks[key] = (lock, users - 1)
