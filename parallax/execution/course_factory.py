"""CourseFactory: puts together what one execution runs with, from the parts that all executions of a server share.

`running` calls it for each execution that it owns.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

from parallax.agents.supervisor import AgentSupervisor
from parallax.execution.agent_proxy import AgentProxy, TypeProblem
from parallax.execution.budget import Budgets, options_budget
from parallax.execution.clocks import Waits
from parallax.execution.course import Course
from parallax.execution.journal import Journal
from parallax.execution.llm import ModelAgents
from parallax.execution.questions import QuestionDesk
from parallax.execution.resilience import RetryPolicy
from parallax.execution.team_tools import TeamTools
from parallax.models import Budget, Execution
from parallax.ports import Doors
from parallax.storage.store import Store
from parallax.workspaces.checks import CheckRunner
from parallax.workspaces.integration import Integration
from parallax.workspaces.profile import Profile
from parallax.workspaces.remotes import Errand
from parallax.workspaces.repository import Repository
from parallax.workspaces.service import WorkspaceService


class CourseFactory:
    """Makes courses. `places` is how many agents may be at work at once, in all executions together."""

    def __init__(
        self,
        *,
        store: Store,
        supervisor: AgentSupervisor,
        desk: QuestionDesk,
        tools: TeamTools,
        workspaces: WorkspaceService,
        integration: Integration,
        checks: CheckRunner,
        profile_of: Callable[[Repository], Awaitable[Profile]],
        type_problem: TypeProblem,
        default_types: tuple[str, ...],
        places: int,
        homes: Path,
        retry: RetryPolicy,
        budgets: Budgets,
        waits: Waits,
        doors: Doors,
    ) -> None:
        self._store = store
        self._supervisor = supervisor
        self._desk = desk
        self._tools = tools
        self._workspaces = workspaces
        self._integration = integration
        self._checks = checks
        self._profile_of = profile_of
        self._type_problem = type_problem
        self._default_types = default_types
        self._places = asyncio.Semaphore(places)
        self._homes = homes
        self._retry = retry
        self._budgets = budgets
        self._waits = waits
        self._doors = doors

    async def make(self, execution: Execution, journal: Journal) -> Course:
        """The course of an execution that begins or goes on; its meter counts what was spent before."""
        repo = None
        profile = Profile()
        if execution.repo is not None:
            errand = Errand(url=execution.repo, execution=execution.id)
            repo = await self._workspaces.open_repository(execution.repo, execution.base, errand=errand)
            repo = replace(repo, base_branch=execution.base_branch or repo.base_branch)
            profile = await self._profile_of(repo)
        limit = options_budget(execution.options or {})
        if profile.budget is not None:
            limit &= Budget(cost=round(profile.budget * 1e6))
        meter = await self._budgets.open(journal, self._store, limit, execution.parent)
        proxy = AgentProxy(
            execution=execution,
            journal=journal,
            supervisor=self._supervisor,
            type_problem=self._type_problem,
            default_types=self._default_types,
            places=self._places,
            homes=self._homes,
            objects=None if repo is None else repo.objects,
            retry=self._retry,
            meter=meter,
            limited_until=self._doors.limited_until,
        )
        return Course(
            execution=execution,
            journal=journal,
            proxy=proxy,
            desk=self._desk,
            tools=self._tools,
            meter=meter,
            waits=self._waits,
            llm=ModelAgents(execution, self._doors, meter, self._retry, self._homes),
            workspaces=self._workspaces,
            integration=self._integration,
            checks=self._checks,
            repo=repo,
            profile=profile,
        )
