"""The org-chart document as pydantic models: what keys there are, of which type. `org_chart` gives them meaning.

The wrappers `structure:` and `workflow:` are optional: their keys may stand at the top.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

from parallax.models import Json


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", alias_generator=to_camel, populate_by_name=True)


class FieldModel(_Model):
    """One input of a pattern."""

    type: Literal["string", "number", "integer", "boolean", "array", "object"] = "string"
    required: bool = True
    default: Json = None
    description: str = ""
    enum: list[Json] | None = None

    def as_schema(self) -> dict[str, Json]:
        """As `PatternEngine` checks it."""
        return self.model_dump(exclude_none=True)


class RoleModel(_Model):
    """One role of the team."""

    name: str | None = None
    description: str = ""
    agent_type: list[str] | str | None = None
    capabilities: list[str] = []
    reports_to: str | None = None
    min_instances: int | None = Field(default=None, ge=1)
    max_instances: int | None = Field(default=None, ge=1)
    singleton: bool = False
    expertise: list[str] = []
    confidence: dict[Literal["accept", "retryBelow", "escalateBelow", "maxRounds"], float] | None = None
    verify: Json = None
    budget: Json = None
    preset: Literal["readonly", "standard", "permissive", "autonomous"] | None = None
    workspace: Literal["agent", "role", "step", "readonly", "none"] | None = None
    recovery: Literal["restart", "continue"] | None = None
    timeout: float | None = Field(default=None, gt=0, description="milliseconds for one turn")


class RoutingModel(_Model):
    """Questions from some roles, on some topics, of some kinds, go to a role."""

    from_: list[str] | str = Field(default="*", alias="from")
    to: str
    topics: list[str] = []
    message_types: list[Literal["permission", "question", "approval"]] = []
    priority: int = 0


class EscalationModel(_Model):
    """What happens to a question that nobody below has answered."""

    default_behavior: Literal["route_to_reports_to", "surface_to_user"] | None = None
    topic_routes: dict[str, str] | None = None
    timeout_ms: float | None = Field(default=None, gt=0)
    max_depth: int | None = Field(default=None, ge=1, le=20)
    on_max_depth: Literal["surface_to_user"] | None = None


class ReviewModel(_Model):
    """A review inside an assignment."""

    role: str
    max_rounds: int | None = Field(default=None, ge=1, le=20)
    id: str | None = None


_NEEDS: Final[dict[str, tuple[str, ...]]] = {
    "assign": ("role", "task"),
    "parallel": ("steps",),
    "sequential": ("steps",),
    "integrate": (),
    "review": ("subject",),
    "approve": ("subject",),
    "verify": ("verify",),
    "ask": ("question",),
    "select": ("role",),
    "aggregate": ("of", "method"),
    "condition": ("check", "then"),
    "confidence": ("of",),
    "return": ("value",),
}
StepType = Literal[
    "assign", "parallel", "sequential", "integrate", "review", "approve", "verify", "ask", "select", "aggregate",
    "condition", "confidence", "return",
]  # fmt: skip

# Which options of a word a step may set, by type; the rest of its keys are the step's own.
_OPTIONS: Final[dict[str, tuple[str, ...]]] = {
    "assign": ("input", "timeout", "retries", "verify", "schema", "review"),
    "parallel": ("limit", "on_error"),
    "integrate": ("verify", "on_conflict"),
    "review": ("timeout",),
    "approve": ("timeout",),
    "verify": ("input", "timeout"),
    "ask": ("input", "timeout"),
    "select": ("criteria",),
}


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, dict) else value


Steps = Annotated[list["StepModel"], BeforeValidator(_as_list)]


class StepModel(_Model):
    """One step of the workflow; `type` says which."""

    type: StepType
    id: str | None = None
    description: str | None = None
    role: str | None = None
    task: str | None = None
    input: Json = None
    timeout: float | None = Field(default=None, gt=0)
    retries: int | None = Field(default=None, ge=0)
    verify: Json = None
    schema_: Json = Field(default=None, alias="schema")
    review: ReviewModel | None = None
    steps: Steps = []
    each: str | list[Json] | None = None
    as_: str | None = Field(default=None, alias="as", pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    limit: int | None = Field(default=None, ge=1)
    on_error: Literal["fail", "collect"] | None = None
    results: Json = None
    on_conflict: Literal["owner", "fail"] | None = None
    reviewer: str | None = None
    approver: str | None = None
    subject: Json = None
    question: str | None = None
    criteria: Literal["availability"] | None = None
    of: Json = None
    method: Literal["consensus", "majority", "merge", "best", "all"] | None = None
    threshold: float | None = Field(default=None, ge=0, le=1)
    check: str | None = None
    then: Steps = []
    otherwise: Steps = Field(default=[], alias="else")
    bands: dict[Literal["high", "medium"], float] | None = None
    high: Steps = []
    medium: Steps = []
    low: Steps = []
    default: Steps = []
    value: Json = None

    @model_validator(mode="after")
    def _complete(self) -> StepModel:
        missing = [key for key in _NEEDS[self.type] if getattr(self, key) in (None, [])]
        if missing:
            raise ValueError(f"a step of type {self.type} needs '{missing[0]}'")
        if self.type in {"review", "approve"} and not (self.role or self.reviewer or self.approver):
            raise ValueError(f"a step of type {self.type} needs 'role'")
        return self

    @property
    def has_value(self) -> bool:
        """Whether the step is a call whose result has a name."""
        return self.type not in {"sequential", "condition", "confidence", "return"}

    def options(self) -> dict[str, Json]:
        """The options of the word that the step becomes, by their Prism names."""
        found: dict[str, Json] = {}
        for key in _OPTIONS.get(self.type, ()):
            name = "schema_" if key == "schema" else key
            value = getattr(self, name)
            if key == "verify" and self.type == "verify":
                continue
            if isinstance(value, ReviewModel):
                value = value.model_dump(by_alias=True, exclude_none=True)
            if value is not None:
                found[to_camel(key)] = value
        return found


class ChartModel(_Model):
    """A whole org-chart pattern."""

    name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    version: str = "1.0.0"
    description: str = ""
    metadata: dict[str, Json] = {}
    roles: dict[str, RoleModel]
    routing: list[RoutingModel] = []
    escalation: EscalationModel | None = None
    input: dict[str, FieldModel] = {}
    steps: Steps
    output: str | None = None


def unwrapped(value: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """The document with `structure:` and `workflow:` taken off, and which key came from which wrapper."""
    flat: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for key, entry in value.items():
        if key in {"structure", "workflow"} and isinstance(entry, dict):
            for inner, inner_value in entry.items():
                if inner in {"name", "description"}:
                    flat.setdefault(inner, inner_value)
                    continue
                flat[inner] = inner_value
                origin[inner] = key
        else:
            flat[key] = entry
    return flat, origin
