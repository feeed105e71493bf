"""Workspaces: look at them, read what lies in them, delete one."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response

from parallax.app import Parallax
from parallax.errors import ConflictError, NotFoundError
from parallax.models import Workspace
from parallax.server.parts import Part, json_response

router = APIRouter(prefix="/api/workspaces", tags=["workspaces"])


@router.get("")
async def index(parallax: Part, execution: str | None = None) -> Response:
    """Every workspace, oldest first, with its state; also those that are cleaned up."""
    only = {} if execution is None else {"execution": execution}
    rows = await parallax.workspaces.known(**only)
    return json_response({"workspaces": [await _shown(parallax, row) for row in rows]})


@router.get("/{workspace_id}")
async def show(workspace_id: str, parallax: Part) -> Response:
    """One workspace."""
    return json_response(await _shown(parallax, await _row(parallax, workspace_id)))


@router.get("/{workspace_id}/diff")
async def diff(workspace_id: str, parallax: Part, stat: bool = False) -> Response:
    """What lies in it now, committed or not, against the commit that it was made from."""
    workspace = await _there(parallax, workspace_id)
    mirror = await parallax.workspaces.mirror(workspace)
    state = await parallax.workspaces.snapshot(workspace, f"look-{workspace.role}.{workspace.number}")
    text = await parallax.workspaces.diff(mirror, workspace.base, state, stat=stat)
    return Response(text, media_type="text/x-diff; charset=utf-8")


@router.get("/{workspace_id}/files")
async def files(workspace_id: str, parallax: Part, path: str = "") -> Response:
    """The files of its last commit, or of one folder in it."""
    workspace = await _there(parallax, workspace_id)
    mirror = await parallax.workspaces.mirror(workspace)
    return json_response({"files": await parallax.workspaces.files(mirror, workspace.head, path)})


@router.delete("/{workspace_id}", status_code=204)
async def clean(workspace_id: str, parallax: Part) -> Response:
    """Delete it; its branches stay. Refused while its execution runs."""
    workspace = await _there(parallax, workspace_id)
    if not await parallax.store.ended(workspace.execution):
        raise ConflictError(f"workspace '{workspace_id}' is in use: its execution has not ended")
    await parallax.workspaces.clean(workspace)
    return Response(status_code=204)


async def _row(parallax: Parallax, workspace_id: str) -> dict[str, Any]:
    rows = await parallax.workspaces.known(id=workspace_id)
    if not rows:
        raise NotFoundError(f"there is no workspace '{workspace_id}' (`parallax workspace list` shows them)")
    return rows[0]


async def _there(parallax: Parallax, workspace_id: str) -> Workspace:
    row = await _row(parallax, workspace_id)
    found = await parallax.workspaces.find(row["execution"], row["role"], row["number"])
    if found is None:
        raise ConflictError(f"workspace '{workspace_id}' is {row['state']}: its files are gone")
    return found


async def _shown(parallax: Parallax, row: dict[str, Any]) -> dict[str, Any]:
    found = await parallax.workspaces.find(row["execution"], row["role"], row["number"])
    if found is None:
        return row | {"head": None, "path": None, "size_b": 0}
    return row | {"head": found.head, "path": str(found.path), "size_b": await parallax.workspaces.size_b(found)}
