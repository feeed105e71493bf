"""What was spent: one route, summed up as asked."""

from __future__ import annotations

import time
from typing import Annotated, Final, Literal

from fastapi import APIRouter, Query, Response

from parallax.server.parts import Part, json_response

router = APIRouter(prefix="/api/usage", tags=["usage"])

Group = Literal["day", "account", "provider", "model", "execution", "role", "step", "agent", "turn"]
_COLUMNS: Final = {"step": "step_key", "agent": "agent_id", "turn": "task"}
_NAMES: Final = {column: group for group, column in _COLUMNS.items()}


@router.get("")
async def usage(
    parallax: Part,
    by: Annotated[list[Group] | None, Query()] = None,
    execution: str | None = None,
    days: Annotated[int, Query(ge=1, le=3660)] = 30,
) -> Response:
    """Tokens by kind and money in micro-dollars, the dearest group first.

    Of an execution (its children included) all that it spent, else what was spent in the last `days`.
    `cost_estimated` and `cost_reported` are the parts of `cost` that no provider's count and list price stand behind.
    """
    columns = [_COLUMNS.get(group, group) for group in dict.fromkeys(by or ["execution"])]
    if execution is not None:
        await parallax.store.execution(execution)
        rows = await parallax.store.spent(executions=await parallax.store.family(execution), by=columns)
    else:
        rows = await parallax.store.spent(by=columns, since=time.time() - days * 86_400)
    return json_response({"usage": [{_NAMES.get(name, name): value for name, value in row.items()} for row in rows]})
