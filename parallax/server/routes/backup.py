"""A backup: the whole store as one archive, taken while the server works."""

from __future__ import annotations

import shutil
import tarfile
import tempfile
from asyncio import to_thread
from pathlib import Path

from fastapi import APIRouter, Response
from starlette.background import BackgroundTask
from starlette.responses import FileResponse

from parallax.server.parts import Part

router = APIRouter(tags=["system"])


@router.get("/api/backup")
async def backup(parallax: Part) -> Response:
    """A tar archive of the database and the large results: unpacked, it is a data directory. Nothing waits for it."""
    parallax.space.check()
    place = Path(await to_thread(tempfile.mkdtemp, prefix="backup-", dir=parallax.settings.data_dir))
    try:
        data = place / "data"
        data.mkdir()
        await parallax.store.backup(data)
        archive = place / "backup.tar"
        await to_thread(_pack, data, archive)
    except BaseException:
        await to_thread(shutil.rmtree, place, ignore_errors=True)
        raise
    gone = BackgroundTask(shutil.rmtree, place, ignore_errors=True)
    return FileResponse(archive, media_type="application/x-tar", background=gone)


def _pack(data: Path, archive: Path) -> None:
    with tarfile.open(archive, "w") as tar:
        for path in sorted(data.iterdir()):
            tar.add(path, arcname=path.name)
