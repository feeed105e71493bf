"""Course: everything that the steps of one execution share. Made by `course_factory`, read by `host` and `steps`."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from parallax.execution.agent_proxy import AgentProxy
from parallax.execution.budget import Meter
from parallax.execution.clocks import Clock, Waits
from parallax.execution.journal import Journal
from parallax.execution.llm import ModelAgents
from parallax.execution.questions import QuestionDesk
from parallax.models import Execution, Json, OrgChart, Role, StepResult
from parallax.workspaces.checks import CheckRunner
from parallax.workspaces.integration import Integration
from parallax.workspaces.profile import Profile
from parallax.workspaces.repository import Repository
from parallax.workspaces.service import WorkspaceService, branch_name

if TYPE_CHECKING:
    from parallax.execution.team_tools import TeamTools

STEP_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,62}")


@dataclass(slots=True, kw_only=True)
class Course:
    """One execution under way."""

    execution: Execution
    journal: Journal
    proxy: AgentProxy
    desk: QuestionDesk
    tools: TeamTools
    meter: Meter
    waits: Waits
    llm: ModelAgents
    workspaces: WorkspaceService
    integration: Integration
    checks: CheckRunner
    repo: Repository | None
    profile: Profile
    clock: Clock | None = None  # of the run, once its program runs
    chart: OrgChart = field(default_factory=OrgChart)
    steps: dict[str, StepResult] = field(default_factory=dict)
    tasks: dict[str, str] = field(default_factory=dict)
    waiting: set[str] = field(default_factory=set)  # keys of accepted work that is merged at a join to come
    merged: dict[str, str] = field(default_factory=dict)  # step key -> commit, in the order of merging
    result_head: str | None = None  # where the last merge has brought the result

    def branch(self, role: Role, key: str) -> str:
        """The branch that a step's work is kept on."""
        return branch_name(self.execution.id, role.name, key, has_id=STEP_ID.fullmatch(key) is not None)

    async def head(self) -> str:
        """The head of the result branch; the base where nothing was merged yet."""
        assert self.repo is not None
        return await self.integration.head(self.repo, self.execution.id)

    def step_behind(self, ref: Json) -> StepResult | None:
        """The step that made a value, if one did."""
        key = ref.get("step") if isinstance(ref, dict) else None
        return self.steps.get(key) if key else None
