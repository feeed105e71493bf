"""Setting up: init a repository, and doctor."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from parallax.cli.options import JsonFlag

if TYPE_CHECKING:
    from parallax.agents.gateway.service import Gateway
    from parallax.config import Settings


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(init)
    app.command()(doctor)
    app.command()(backup)


def init(
    repo: Annotated[Path | None, typer.Option(help="The repository; the current directory by default.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over a profile that is there.")] = False,
    skip_checks: Annotated[bool, typer.Option("--no-try", help="Do not try set-up and checks.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Look at a repository and write its .parallax.yaml.

    Tries its set-up and its checks once, on a clean copy.
    """
    asyncio.run(_init((repo or Path.cwd()).absolute(), force=force, tries=not skip_checks, as_json=as_json))


async def _init(start: Path, *, force: bool, tries: bool, as_json: bool) -> None:
    import tempfile

    from parallax.agents.runtimes.local import LocalRuntime
    from parallax.agents.runtimes.probe import probe
    from parallax.cli.output import err, out, print_json
    from parallax.config import load
    from parallax.errors import UsageError
    from parallax.workspaces.checks import CheckRunner
    from parallax.workspaces.detection import detect, dump, monorepo_hints
    from parallax.workspaces.git import Git
    from parallax.workspaces.profile import FILE
    from parallax.workspaces.service import WorkspaceService

    with tempfile.TemporaryDirectory(prefix="parallax-init-") as scratch:
        settings = load()
        probed = await probe(settings.sandbox, settings.data_dir, Path(scratch) / "sandbox")
        runtime = LocalRuntime(
            f"init-{Path(scratch).name}", shut=probed.shut, wish=settings.sandbox, problem=probed.problem
        )
        service = WorkspaceService(Path(scratch), Git(), runtime)
        repo = await service.open_repository(str(start))
        root = repo.local or start
        target = root / FILE
        if target.exists() and not force:
            raise UsageError(f"{target} is there already: edit it, or write it anew with --force")
        profile = await asyncio.to_thread(detect, root)
        several = await asyncio.to_thread(monorepo_hints, root)
        evidence = []
        if tries:
            if not as_json:
                err().print("trying set-up and checks once, on a clean copy of HEAD ...")
            async with _registries(settings, Path(scratch)) as doors:
                evidence = await CheckRunner(service, runtime, doors=doors).try_out(root, profile)
        target.write_text(dump(profile), encoding="utf-8")
    if as_json:
        tried = [{"check": e.oracle, "passed": e.passed, "detail": e.detail} for e in evidence]
        print_json(
            {
                "profile": str(target),
                "language": profile.language,
                "several_projects": several,
                "checks": list(profile.checks),
                "tried": tried,
            }
        )
        return
    for line in _findings(profile, evidence, several):
        out().print(line)
    out().print(f'wrote {target}: read it, commit it, then `parallax run fix "..."`')


@asynccontextmanager
async def _registries(settings: Settings, scratch: Path) -> AsyncIterator[Gateway]:
    """A gateway without accounts: the way to the package registries for a set-up that is shut in."""
    from parallax.agents.gateway.egress import Allowed
    from parallax.agents.gateway.service import Gateway, GatewaySettings
    from parallax.datadir import socket_directory

    egress = [Allowed.read(text) for text in settings.egress.split(",") if text.strip()]
    with socket_directory(scratch) as sockets:
        gateway = Gateway(GatewaySettings(accounts={}, egress=egress, sockets=sockets), providers_of=lambda _: ())
        await gateway.start()
        try:
            yield gateway
        finally:
            await gateway.close()


def _findings(profile: Any, evidence: list[Any], several: list[str]) -> list[str]:
    """What was found, in four lines."""
    what = profile.language or "unknown"
    manager = f" with {profile.package_manager}" if profile.package_manager else ""
    lines = [f"language  {what}{manager}" + (f"; {'; '.join(several)}" if several else "")]
    setup = "; ".join(c if isinstance(c, str) else " ".join(c) for c in profile.setup)
    lines.append(f"set-up    {setup or 'nothing to set up'}")
    verdicts = {e.oracle: e for e in evidence}
    words = {True: "passes", False: "FAILS", None: "could not run"}
    checks = []
    for name, check in profile.checks.items():
        run = check.run if isinstance(check.run, str) else " ".join(check.run)
        tried = f" -> {words[verdicts[name].passed]} ({verdicts[name].detail})" if name in verdicts else ""
        checks.append(f"{name}: {run}{tried}")
    lines.append(
        "checks    " + ("; ".join(checks) or "none found: add one under `checks`, or results cannot be proven")
    )
    judged = [f"{words}: {', '.join(names)}" for words, names in (
        ("every attempt by", profile.default_checks("quick")), ("the merged result by", profile.default_checks("full"))
    ) if names]  # fmt: skip
    lines.append(f"judged    {'; '.join(judged) or 'by reviews alone'}")
    return lines


def doctor(as_json: JsonFlag = False) -> None:
    """Say what this machine has, and which agents are ready."""
    from parallax.cli.doctor import report

    raise typer.Exit(report(as_json=as_json))


def backup(
    file: Annotated[Path, typer.Argument(help="The archive to write; one that is there is not written over.")],
) -> None:
    """Save what Parallax keeps, while it works.

    Restore it with the server stopped: unpack the archive (`tar -xf`) into an empty PARALLAX_DATA_DIR. Branches are in
    your repositories, not in it.
    """
    from parallax.cli.look import with_client
    from parallax.cli.output import err
    from parallax.errors import UsageError

    async def work(client: Any) -> None:
        unfinished = file.with_name(file.name + ".part")
        try:
            descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        except OSError as error:
            raise UsageError(f"{file} cannot be written: {error.strerror}") from None
        try:
            with os.fdopen(descriptor, "wb") as target:
                await client.backup(target)
                target.flush()
                os.fsync(target.fileno())
            unfinished.rename(file)
        finally:
            unfinished.unlink(missing_ok=True)
        err().print(f"saved to {file} ({file.stat().st_size / 1024**2:.1f} MB)")

    if file.exists():
        raise UsageError(f"{file} is there already: give another name")
    with_client(work)
