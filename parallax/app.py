"""Parallax: builds every part from Settings and owns their life. The only module that names adapters.

`async with Parallax(settings) as parallax:` enters every part into one exit stack and leaves in reverse. The command
line embeds it, `server` puts doors in front of it. One process owns a data directory: a lock, not a pid file, says who.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections import defaultdict
from contextlib import AsyncExitStack, suppress
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import psutil

from parallax import failpoints, telemetry
from parallax.agents.clients.factory import make_client
from parallax.agents.clis.catalogue import Catalogue
from parallax.agents.gateway.egress import Allowed
from parallax.agents.gateway.prices import Prices
from parallax.agents.gateway.providers import PROVIDERS, Account
from parallax.agents.gateway.recording import Recorder, Replayed
from parallax.agents.gateway.service import Gateway, GatewaySettings
from parallax.agents.gateway.tools import ToolsEndpoint
from parallax.agents.registries.memory import MemoryAgentRegistry
from parallax.agents.runtimes.local import LocalRuntime
from parallax.agents.runtimes.probe import probe
from parallax.agents.supervisor import AgentSupervisor
from parallax.agents.turn import Silence
from parallax.config import Settings
from parallax.datadir import (
    LockFile,
    data_directory,
    key_of,
    living_in,
    owner_of,
    private_file,
    refuse_foreign,
    socket_directory,
)
from parallax.errors import ConfigurationError, FencedError, NotFoundError
from parallax.events import Event, EventBus
from parallax.execution.budget import Budgets
from parallax.execution.claiming import Claims
from parallax.execution.clocks import Waits
from parallax.execution.course_factory import CourseFactory
from parallax.execution.ending import Ending
from parallax.execution.engine import ExecutionEngine
from parallax.execution.finalising import Finalised, finalise_ended, steps_of
from parallax.execution.history import History
from parallax.execution.housekeeping import Housekeeping, Keep
from parallax.execution.intake import Intake
from parallax.execution.llm import ROLE
from parallax.execution.notify import AnswerLinks, Notifier
from parallax.execution.questions import QuestionDesk
from parallax.execution.recovery import Recovery
from parallax.execution.resilience import RetryPolicy
from parallax.execution.running import Collaborators
from parallax.execution.runtime_manager import RuntimeManager
from parallax.execution.team_tools import TeamTools
from parallax.models import Execution, Json
from parallax.patterns.engine import PatternEngine
from parallax.patterns.shipped import shipped_patterns
from parallax.ports import AgentClient, AgentSession
from parallax.redaction import Redactor, Secret
from parallax.storage.space import MIB, Space
from parallax.storage.statements import Change
from parallax.storage.store import Store
from parallax.workspaces.checks import CheckRunner
from parallax.workspaces.credentials import CredentialService
from parallax.workspaces.finalising import Finaliser, Wish
from parallax.workspaces.git import Git
from parallax.workspaces.github import GitHub, PlainGit
from parallax.workspaces.integration import Integration
from parallax.workspaces.profile import Profile
from parallax.workspaces.repository import Repository
from parallax.workspaces.sealing import Sealer
from parallax.workspaces.service import WorkspaceService

DEFAULT_TYPES: Final = ("claude", "codex", "gemini", "opencode", "qwen", "copilot", "aider")


class Parallax:
    """Every part of one server."""

    def __init__(self, settings: Settings, *, test_hooks: bool = False) -> None:
        self.settings = settings
        self._stack = AsyncExitStack()
        self._test_hooks = test_hooks
        self._lock: LockFile
        self._url = ""
        self._announced = asyncio.Event()
        self.redact = Redactor()
        self.key: Secret
        self.space: Space
        self.store: Store
        self.bus: EventBus
        self.patterns = pattern_engine(settings)
        self.credentials: CredentialService
        self.catalogue = Catalogue.of(settings)
        self.workspaces: WorkspaceService
        self.integration: Integration
        self.finaliser: Finaliser
        self.checks: CheckRunner
        self.runtime: LocalRuntime
        self.supervisor: AgentSupervisor
        self.waits = Waits()
        self.budgets = Budgets(self.waits)
        self.links: AnswerLinks
        self.gateway: Gateway
        self.desk: QuestionDesk
        self.tools: TeamTools
        self.engine: ExecutionEngine
        self.intake: Intake
        self.history: History

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            await self._build(stack)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.__aexit__(kind, error, trace)

    async def _build(self, stack: AsyncExitStack) -> None:
        settings = self.settings
        if settings.failpoints and not self._test_hooks:
            raise ConfigurationError("PARALLAX_FAILPOINTS is for tests: start the server with --test-hooks or unset it")
        try:
            failpoints.arm(settings.failpoints)
        except ValueError as error:
            raise ConfigurationError(f"PARALLAX_FAILPOINTS: {error}") from None
        telemetry.configure(settings.log_level, self.redact)
        data = data_directory(settings.data_dir)
        refuse_foreign(data)
        self._lock = stack.enter_context(LockFile(data / "lock"))
        self.runtime = await self._open_runtime(data)
        if settings.database_url is None:
            private_file(settings.database)
        for left in data.glob("backup-*"):  # by a server that was killed while it sent one
            shutil.rmtree(left, ignore_errors=True)
        self.key = key_of(data)
        self.redact.learn(self.key)
        self.space = Space(data, settings.min_free_mb * MIB)
        self.store = await stack.enter_async_context(self._open_store(data))
        self.bus = EventBus(self.store)
        self.credentials = self._credential_service(data)
        await self.credentials.start()
        stack.push_async_callback(self.credentials.close)
        self.workspaces = WorkspaceService(
            settings.workspaces, Git(), self.runtime, self._tell_workspace, self.credentials, self.store
        )
        self.workspaces.max_b = settings.workspace_max_gb * 1e9
        residence = stack.enter_context(living_in(settings.workspaces))
        if residence.alone:
            await self.workspaces.sweep()
            residence.share()
        self.integration = Integration(self.workspaces)
        self.finaliser = Finaliser(self.workspaces, self.credentials, self.redact)
        self.gateway = gateway = self._gateway(stack.enter_context(socket_directory(data)))
        stack.push_async_callback(gateway.close)
        await gateway.start()
        self.checks = CheckRunner(self.workspaces, self.runtime, doors=gateway)
        registry = MemoryAgentRegistry()
        self.supervisor = AgentSupervisor(
            open_client=self._open_client,
            registry=registry,
            doors=gateway,
            redact=self.redact,
            tell=self.tell,
            silence=Silence(stall_s=settings.agent_timeout_ms / 1000, end_s=settings.agent_silence_ms / 1000),
            sandbox=self.runtime.sandbox,
            free_memory=lambda: psutil.virtual_memory().available,
        )
        stack.push_async_callback(self.supervisor.close)
        gateway.limits = self.supervisor.park
        self.links = AnswerLinks(self.key)
        bell = None
        if settings.notify_argv:
            notifier = Notifier(settings.notify_argv, self.links, address=self._address, tell=self.tell)
            bell = await stack.enter_async_context(notifier)
        self.desk = QuestionDesk(self.store, self.bus, self.waits, bell)
        self.tools = TeamTools(pause=self.supervisor.asking, redact=self.redact)
        gateway.tools = ToolsEndpoint(self.tools).handle
        runtimes = RuntimeManager(settings.max_executions)
        self.engine = await stack.enter_async_context(self._engine(runtimes))
        self.intake = self._intake()
        self.history = History(
            store=self.store,
            patterns=self.patterns,
            runtimes=runtimes,
            workspaces=self.workspaces,
            integration=self.integration,
            intake=self.intake,
        )
        await stack.enter_async_context(self._housekeeping())

    def _providers_of(self, type_: str) -> tuple[str, ...]:
        """The providers that an agent type speaks to; the word `llm` may ask all."""
        return tuple(PROVIDERS) if type_ == ROLE else self.catalogue.providers(type_)

    def _gateway(self, sockets: Path) -> Gateway:
        settings = self.settings
        recorder = None
        if settings.record:
            recorder = Recorder(settings.data_dir / "records", self.redact, settings.record_mb * 1024 * 1024)
        gateway = Gateway(
            GatewaySettings(
                accounts=_accounts(settings, self.redact),
                rule=settings.account_rule,
                egress=[Allowed.read(text) for text in settings.egress.split(",") if text.strip()],
                sockets=sockets,
            ),
            providers_of=self._providers_of,
            redactor=self.redact,
            prices=Prices.read(settings.prices),
            meter=self.budgets,
            recorder=recorder,
            replayed=None if settings.replay is None else Replayed(settings.replay),
        )
        gateway.tell = self.tell
        return gateway

    def _credential_service(self, data: Path) -> CredentialService:
        """Who gives tokens for git remotes: GitHub where it keeps the repository, the settings, or nobody."""
        settings, given = self.settings, self.settings.github_key()
        key = None if given is None else Secret(given)
        if key is not None:
            self.redact.learn(key)
        own = None if settings.encryption_key is None else settings.encryption_key.get_secret_value()
        return CredentialService(
            store=self.store,
            sealer=Sealer.load(own, settings.encryption_key_path, data),
            providers=[GitHub(settings.github_api_url, app_id=settings.github_app_id, key=key), PlainGit()],
            fixed={host: Secret(token.get_secret_value()) for host, token in settings.git_tokens.items()},
            redact=self.redact,
            tell=self._tell_workspace,
        )

    async def _open_runtime(self, data: Path) -> LocalRuntime:
        """Processes of this host, in a sandbox that was seen to hold; what a killed server left behind is ended."""
        wish = self.settings.sandbox
        probed = await probe(wish, data)
        if wish == "require" and probed.shut is None:
            raise ConfigurationError(
                f"PARALLAX_SANDBOX=require, but no sandbox works here: {probed.problem}; "
                "`auto` would run agents without one, with all rights of your own"
            )
        runtime = LocalRuntime(owner_of(data), shut=probed.shut, wish=wish, problem=probed.problem)
        await runtime.sweep()
        return runtime

    def _open_store(self, data: Path) -> Store:
        """The SQLite file of the data directory, or the database that several servers share."""
        url = self.settings.database_url
        if url is None:
            return Store(self.settings.database, self.space.release)
        self.redact.learn(Secret(url.get_secret_value()))
        return Store.shared_by(url.get_secret_value(), owner_of(data))

    def _engine(self, runtimes: RuntimeManager) -> ExecutionEngine:
        settings = self.settings
        courses = CourseFactory(
            store=self.store,
            supervisor=self.supervisor,
            desk=self.desk,
            tools=self.tools,
            workspaces=self.workspaces,
            integration=self.integration,
            checks=self.checks,
            profile_of=self.profile_of,
            type_problem=self.type_problem,
            default_types=DEFAULT_TYPES,
            places=settings.max_agents or self.runtime.capacity(),
            homes=settings.homes,
            retry=RetryPolicy(retries=settings.agent_retries),
            budgets=self.budgets,
            waits=self.waits,
            doors=self.gateway,
        )
        ending = Ending(
            store=self.store,
            bus=self.bus,
            supervisor=self.supervisor,
            desk=self.desk,
            credentials=self.credentials,
            workspaces=self.workspaces,
            finaliser=self.finaliser,
        )
        collaborators = Collaborators(
            store=self.store,
            runtimes=runtimes,
            supervisor=self.supervisor,
            budgets=self.budgets,
            waits=self.waits,
            recovery=Recovery(settings.max_recoveries),
            claims=Claims(self.store, self.bus),
            courses=courses,
            ending=ending,
        )
        return ExecutionEngine(
            collaborators, bus=self.bus, desk=self.desk, space=self.space, runs=settings.execution_engine
        )

    def _intake(self) -> Intake:
        return Intake(
            store=self.store,
            bus=self.bus,
            patterns=self.patterns,
            workspaces=self.workspaces,
            credentials=self.credentials,
            finaliser=self.finaliser,
            type_problem=self.type_problem,
            default_types=DEFAULT_TYPES,
            space=self.space,
            begin=self.engine.begin,
        )

    def _housekeeping(self) -> Housekeeping:
        settings = self.settings
        keep = Keep(
            days=settings.retention_days, count=settings.retention_count, workspace_days=settings.workspace_days
        )
        return Housekeeping(
            store=self.store, workspaces=self.workspaces, homes=settings.homes, space=self.space, keep=keep
        )

    # -- what the parts are given --------------------------------------------------------------------------------------

    async def tell(self, event: Event) -> None:
        """An event that belongs to no change of a row. Of an execution that another server has by now, none is told."""
        with suppress(FencedError):
            self.bus.publish(await self.store.commit(Change(events=[event])))

    async def _tell_workspace(self, execution: str, type_: str, data: Json) -> None:
        if type_ != "workspace.merged":  # merges into the result are told by the execution, with their step
            await self.tell(Event(execution=execution, type=type_, data=data))

    async def profile_of(self, repo: Repository) -> Profile:
        """The profile at the base commit; where there is none, what looking at the tree says."""
        return (await self.checks.profile(repo))[0]

    def type_problem(self, type_: str) -> str | None:
        """Why an agent type cannot be used now, or None."""
        settings = self.settings
        if refused := self.runtime.refusal("auto" if type_ == "scripted" else None):
            return refused
        if type_ == "scripted" and settings.agent_script is not None and not settings.agent_script.is_file():
            return f"the agent script {settings.agent_script} (PARALLAX_AGENT_SCRIPT) is not there"
        return self.catalogue.probe(type_).problem

    def _open_client(self, session: AgentSession) -> AgentClient:
        found = self.catalogue.find(session.type, session.capabilities)
        return make_client(found, runtime=self.runtime, session=session)

    async def push(
        self, execution: Execution, repo: Repository, wish: Wish, *, approved: bool, dry_run: bool
    ) -> Finalised:
        """Push the result of an execution that has ended, as a person asks; a second time finds what is there."""
        async with self.workspaces.locks.hold(f"finalise {execution.id}"):
            steps = steps_of(await self.store.journal(execution.id))
            repo = replace(repo, base_branch=execution.base_branch or repo.base_branch)
            done = await finalise_ended(
                self.finaliser, execution, repo, await self.profile_of(repo), wish, steps,
                approved=approved, dry_run=dry_run,
            )  # fmt: skip
            if not dry_run and done.pushed.new:
                data = {"branch": done.pushed.branch, "commit": done.pushed.sha, "url": done.pushed.url}
                await self.tell(Event(execution=execution.id, type="branch.pushed", data=data))
            if done.opened is not None and done.opened.new:
                await self.tell(Event(execution=execution.id, type="pull_request.opened", data=asdict(done.opened)))
        return done

    # -- for the doors -------------------------------------------------------------------------------------------------

    def readiness(self) -> tuple[bool, str | None]:
        """Whether work is taken in and run, and why not."""
        if not self.engine.ready.is_set():
            return False, "the engine is starting"
        return True, None if self.settings.execution_engine else "this process only accepts executions"

    def agent_id(self, name: str) -> str:
        """The id of a running agent from its id, or from its end (`engineer.1`) where that is unique."""
        ids = [agent.id for agent in self.supervisor.agents()]
        fitting = [id_ for id_ in ids if id_ == name or id_.endswith(f".{name}")]
        if len(fitting) == 1:
            return fitting[0]
        if fitting:
            raise NotFoundError(f"'{name}' is several agents: {', '.join(fitting)}")
        raise NotFoundError(f"no agent '{name}' is running (running: {', '.join(ids) or 'none'})")

    def announce(self, url: str) -> None:
        """Write into the lock file where this server is reached."""
        self._lock.write({"pid": os.getpid(), "url": url})
        self._url = url
        self._announced.set()

    async def _address(self) -> str:
        """Where people reach this server: by its own address, unless the operator names another."""
        await self._announced.wait()
        return (self.settings.api_url or self._url).rstrip("/")


def _accounts(settings: Settings, redact: Redactor) -> dict[str, list[Account]]:
    """The accounts of this server, the provider's own variables first; only the gateway gets their keys."""
    own = {
        "anthropic": (settings.anthropic_base_url, settings.anthropic_api_key),
        "openai": (settings.openai_base_url, settings.openai_api_key),
        "gemini": (settings.gemini_base_url, settings.gemini_api_key),
    }
    accounts: dict[str, list[Account]] = defaultdict(list)
    for provider, (base_url, key) in own.items():
        accounts[provider].append(
            Account(base_url=base_url, key=None if key is None else Secret(key.get_secret_value()))
        )
    for more in settings.accounts:
        accounts[more.provider].append(
            Account(
                name=more.name,
                base_url=more.base_url or own[more.provider][0],
                key=Secret(more.key.get_secret_value()),
                requests_per_minute=more.requests_per_minute,
                tokens_per_minute=more.tokens_per_minute,
            )
        )
    for account in (account for given in accounts.values() for account in given):
        if account.key is not None:
            redact.learn(account.key)
    return accounts


def pattern_engine(settings: Settings) -> PatternEngine:
    """The user's patterns before the shipped ones."""
    return PatternEngine([("yours", settings.patterns_dir), ("shipped", shipped_patterns())])
