"""Named checks of the profile, run by Parallax itself on a clean checkout: the evidence that outranks every claim.

`passed` is True or False only where the check really ran. A program that is missing, a set-up that failed: None, which
is no pass. Verdicts are kept by tree, command and environment, so the same files are not tested twice. The processes
run in the same kind of runtime as the agents, without network; called by verification and by `parallax init`.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
from asyncio import to_thread
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, TypeAlias

from parallax import documents
from parallax.errors import AgentUnavailable, NotFoundError
from parallax.models import Evidence, LaunchSpec
from parallax.ports import SETUP, AgentProcess, AgentRuntime, AgentSession, Doors, ModelDoor
from parallax.workspaces import layout
from parallax.workspaces import profile as profiles
from parallax.workspaces.detection import detect
from parallax.workspaces.git import Locks
from parallax.workspaces.outputs import counts_in, failed_in, is_named, own_counts
from parallax.workspaces.profile import Check, Command, Profile
from parallax.workspaces.repository import Repository
from parallax.workspaces.service import WorkspaceService
from parallax.workspaces.setups import Setup, Setups, Shared

_Read: TypeAlias = Callable[[int], Awaitable[bytes]]

CHECK_TIMEOUT_S: Final = 120.0
SETUP_TIMEOUT_S: Final = 1800.0
LOG_B: Final = 8 * 1024
FLAKY_SCORE: Final = 0.7  # good enough to go on to the merge, not to be believed by itself
KNOWN_RED_SCORE: Final = 0.7  # so is a check that is known to be red as a whole
_TAIL_B: Final = 64 * 1024
_GRACE_S: Final = 2.0
_KEPT: Final = 1000
_COULD_NOT_RUN: Final = frozenset({126, 127})  # the shell's words for: not executable, not found


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ran:
    """How a command ended. `code` None: its time ran out; `missing` says why it could not start."""

    code: int | None
    output: bytes
    duration_s: float
    missing: str | None = None


class CheckRunner:
    """Runs checks, at most `limit` at once."""

    def __init__(
        self, service: WorkspaceService, runtime: AgentRuntime, *, doors: Doors | None = None, limit: int = 2
    ) -> None:
        self._doors = doors
        self._service = service
        self._runtime = runtime
        self._limit = asyncio.Semaphore(limit)
        self._locks = Locks()
        self._setups = Setups(service, self._run_setup)
        self._verdicts: OrderedDict[str, Evidence] = OrderedDict()
        self._profiles: dict[tuple[Path, str], tuple[Profile, bool]] = {}

    async def profile(self, repo: Repository) -> tuple[Profile, bool]:
        """The profile in the base commit, and whether it is written there; else a guess from what lies there."""
        key = (repo.mirror, repo.base_commit)
        if key not in self._profiles:
            text = await self._service.read_file(repo.mirror, repo.base_commit, profiles.FILE)
            if text is not None:
                found = (profiles.load(text), True)
            else:
                async with self._service.checkout(repo, repo.base_commit) as tree:
                    found = (await to_thread(detect, tree), False)
            self._profiles[key] = found
        return self._profiles[key]

    async def run(
        self,
        repo: Repository,
        commit: str,
        check: str | Sequence[str],
        *,
        profile: Profile,
        timeout_s: float | None = None,
    ) -> Evidence:
        """Run a named check, or an argument list as it is, on a clean checkout of the commit."""
        name, wanted = _wanted(check, profile)
        environment = _environment(profile)
        tree = await self._service.git.run("rev-parse", f"{commit}^{{tree}}", git_dir=repo.mirror)
        key = json.dumps([tree, wanted.model_dump(mode="json"), environment, profile.setup, profile.copy_files])
        key += json.dumps([profile.flaky, profile.known_red])
        async with self._locks.hold(key):
            if key in self._verdicts:
                self._verdicts.move_to_end(key)
                return replace(self._verdicts[key], oracle=name)
            async with self._limit, self._service.checkout(repo, commit) as path:
                limit_s = timeout_s or wanted.timeout or CHECK_TIMEOUT_S
                evidence, final = await self._check(repo, path, commit, name, wanted, profile, limit_s)
            if final:
                self._verdicts[key] = evidence
                if len(self._verdicts) > _KEPT:
                    self._verdicts.popitem(last=False)
        return evidence

    async def run_all(
        self, repo: Repository, commit: str, checks: Sequence[str], *, profile: Profile, timeout_s: float | None = None
    ) -> list[Evidence]:
        """Several checks one after another on one checkout, which is set up once."""
        async with self._service.checkout(repo, commit):
            return [await self.run(repo, commit, name, profile=profile, timeout_s=timeout_s) for name in checks]

    async def try_out(self, root: Path, profile: Profile) -> list[Evidence]:
        """For `parallax init`: the set-up commands and all checks, once, on a clean checkout of HEAD."""
        repo = await self._service.open_repository(str(root))
        done = (await self._setups.of(repo, repo.base_commit, profile)).evidence if profile.setup else ()
        return [*done, *await self.run_all(repo, repo.base_commit, list(profile.checks), profile=profile)]

    async def _check(
        self, repo: Repository, path: Path, commit: str, name: str, check: Check, profile: Profile, timeout_s: float
    ) -> tuple[Evidence, bool]:
        """The evidence, and whether it will be the same the next time."""
        await self._copy(repo, path, profile)
        shared: Shared = ()
        failed = None
        if profile.setup:
            setup, shared = await self.equip(repo, path, path.parent / "home", commit, profile)
            failed = setup.failed
        if failed is not None:
            detail = f"could not run: {failed.oracle} failed ({failed.detail})"
            return Evidence(oracle=name, passed=None, score=None, detail=detail, log=failed.log), False
        evidence, ran = await self._judged(repo, path, name, check, profile, timeout_s, shared)
        if evidence.passed is False and ran.code is not None:
            again, _ = await self._judged(repo, path, name, check, profile, timeout_s, shared)
            if again.passed:
                evidence = _flaky(evidence, again, allowed=name in profile.flaky)
        return evidence, evidence.passed is not None and ran.code is not None

    async def _judged(
        self, repo: Repository, path: Path, name: str, check: Check, profile: Profile, timeout_s: float, shared: Shared
    ) -> tuple[Evidence, _Ran]:
        """One run of a check. It has ports of its own: an agent's server may still listen on the workspace's."""
        async with self._service.ports.lent(profile.ports) as ports:
            ran = await self._execute(repo, path, check.run, profile, "none", timeout_s, env=ports, shared=shared)
        return _known_red(_judge(name, check, ran, timeout_s), ran, profile.known_red), ran

    async def equip(
        self, repo: Repository, tree: Path, home: Path, commit: str, profile: Profile
    ) -> tuple[Setup, Shared]:
        """Bring what the set-up of a commit built to an agent's tree and home; the latter are to be mounted."""
        setup = await self._setups.of(repo, commit, profile)
        return setup, await to_thread(setup.lay, tree, home, mounted=self._runtime.shuts_in)

    async def _run_setup(self, repo: Repository, path: Path, profile: Profile) -> list[Evidence]:
        """Copy the listed files and run the set-up commands, with the network that the profile allows them."""
        await self._copy(repo, path, profile)
        done: list[Evidence] = []
        async with self._way_out(path, profile.network) as door:
            for command in profile.setup:
                name = f"setup: {_shown(command)}"
                ran = await self._execute(repo, path, command, profile, profile.network, SETUP_TIMEOUT_S, door)
                done.append(_judge(name, Check(run=command), ran, SETUP_TIMEOUT_S))
                if not done[-1].passed:
                    break
        return done

    async def _copy(self, repo: Repository, path: Path, profile: Profile) -> None:
        for source, target in profile.copies():
            await to_thread(layout.copy_into, path, [path, repo.local], source, target)

    @asynccontextmanager
    async def _way_out(self, path: Path, network: str) -> AsyncIterator[ModelDoor | None]:
        """For set-up in a sandbox: a door of the gateway to the package registries; None where it needs none."""
        name = f"setup.{path.parent.name}"
        session = AgentSession(
            agent_id=name, execution="", role=SETUP, type=SETUP, home=path.parent / "home", tree=path
        )
        if self._doors is None or network != "gateway" or not self._runtime.shuts_in:
            yield None
            return
        try:
            session = replace(session, door=await self._doors.open_session(session))
            yield self._runtime.inside(session).door
        finally:
            await self._doors.close_session(name)

    async def _execute(
        self, repo: Repository, path: Path, command: Command, profile: Profile, network: str, timeout_s: float,
        door: ModelDoor | None = None, env: Mapping[str, str] | None = None, shared: Shared = (),
    ) -> _Ran:  # fmt: skip
        home = path.parent / "home"
        spec = LaunchSpec(
            argv=("sh", "-c", command) if isinstance(command, str) else command,
            cwd=path,
            env={**_environment(profile), **(env or {}), "HOME": str(home)},
            secrets={} if door is None else {"HTTPS_PROXY": door.proxy, "https_proxy": door.proxy},
            gateway=None if door is None else door.socket,
            home=home,
            objects=repo.objects,
            shared=shared,
            sandbox="auto",  # where the agents may run, their work may be checked
            network=network,
            labels={"kind": "check"},
        )
        begun = time.monotonic()
        try:
            process = await self._runtime.start(spec)
        except AgentUnavailable as error:
            return _Ran(code=None, output=b"", duration_s=0.0, missing=str(error))
        code, output = await _watch(process, timeout_s)
        return _Ran(code=code, output=output, duration_s=round(time.monotonic() - begun, 3))


async def _watch(process: AgentProcess, timeout_s: float) -> tuple[int | None, bytes]:
    """Read to the end or to the time limit; either way nothing of it is alive afterwards."""
    tail = bytearray()
    code: int | None = None
    async with asyncio.TaskGroup() as group:
        readers = [group.create_task(_drain(process.read_out, tail)), group.create_task(_drain(process.read_err, tail))]
        try:
            async with asyncio.timeout(timeout_s):
                await process.close_input()
                code = await process.wait()
            # A child it left behind may hold the pipes open: its words are not waited for.
            await asyncio.wait(readers, timeout=_GRACE_S)
        except TimeoutError:
            pass
        finally:
            await process.stop(_GRACE_S)
            for reader in readers:
                reader.cancel()
    return code, bytes(tail)


async def _drain(read: _Read, tail: bytearray) -> None:
    while chunk := await read(65536):
        tail += chunk
        if len(tail) > _TAIL_B:
            del tail[: len(tail) - _TAIL_B]


def _wanted(check: str | Sequence[str], profile: Profile) -> tuple[str, Check]:
    if not isinstance(check, str):
        return " ".join(check), Check(run=tuple(check))
    if check not in profile.checks:
        hint = documents.did_you_mean(check, profile.checks) or f"it has {', '.join(profile.checks) or 'none'}"
        raise NotFoundError(f"The profile has no check '{check}': {hint}")
    return check, profile.checks[check]


def _environment(profile: Profile) -> dict[str, str]:
    base = {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "LANG": "C.UTF-8", "CI": "1"}
    return dict(profile.env) | base


def _plain(output: bytes) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output.decode("utf-8", "replace"))


def _judge(name: str, check: Check, ran: _Ran, timeout_s: float) -> Evidence:
    text = _plain(ran.output)
    log = text.encode()[-LOG_B:].decode("utf-8", "ignore") or None
    shell = isinstance(check.run, str)
    passed: bool | None = ran.code == 0
    score: float | None = 1.0 if passed else 0.0
    counts: tuple[int, int] | None = None
    if ran.missing is not None or (shell and ran.code in _COULD_NOT_RUN):
        last = next((line for line in reversed(text.splitlines()) if line.strip()), "")
        passed, score, detail = None, None, f"could not run: {ran.missing or last.strip()[:200]}"
    elif ran.code is None:
        detail = f"timed out after {timeout_s:g} s"
    else:
        own = own_counts(check.score_pattern, text)
        if own and sum(own):
            score = own[0] / sum(own)
        counts = own or counts_in(text)
        detail = _words(counts, ran.code)
    return Evidence(
        oracle=name,
        passed=passed,
        score=score,
        detail=detail,
        exit_code=ran.code,
        duration_s=ran.duration_s,
        log=log,
        command=_shown(check.run),
        tests_passed=counts[0] if counts else None,
        tests_failed=counts[1] if counts else None,
        verdict={True: "pass", False: "fail", None: None}[passed],
    )


def _known_red(found: Evidence, ran: _Ran, known: Sequence[str]) -> Evidence:
    """A red check of which the owner says that it is red, or whose failed tests are all said to be, blames nobody.

    Every failed test must be named in the output: what cannot be told apart from a new failure counts as one.
    """
    if found.passed is not False or ran.code is None or not known:
        return found
    if found.oracle in known:
        detail = f"{found.detail}; known to be red (known_red)"
        return replace(found, passed=True, score=KNOWN_RED_SCORE, detail=detail, verdict="red-before")
    failed = failed_in(_plain(ran.output))
    told = len(failed) == found.tests_failed and bool(found.tests_passed)
    if not told or not all(is_named(test, known) for test in failed):
        return found
    detail = f"{found.detail}; what failed is known to be red: {', '.join(sorted(failed)[:5])}"
    return replace(found, passed=True, score=1.0, detail=detail, verdict="red-before")


def _flaky(first: Evidence, again: Evidence, *, allowed: bool) -> Evidence:
    """Red, then green, on the same files: it says nothing for sure. A pass only of a check that is known to be so."""
    detail = f"flaky: {first.detail}, then {again.detail} on the same files"
    if not allowed:
        detail += " (name it under `flaky` in .parallax.yaml if that is known)"
    score = FLAKY_SCORE if allowed else 0.0
    return replace(again, passed=allowed, score=score, detail=detail, log=first.log, verdict="flaky")


def _shown(command: Command) -> str:
    return command if isinstance(command, str) else " ".join(command)


def _words(counts: tuple[int, int] | None, code: int) -> str:
    if counts is None:
        return "passed" if code == 0 else f"ended by signal {-code}" if code < 0 else f"failed with exit code {code}"
    passed, failed = counts
    words = f"{passed} passed, {failed} failed" if failed else f"{passed} passed"
    return words if (code == 0) == (failed == 0) else f"{words}, exit code {code}"
