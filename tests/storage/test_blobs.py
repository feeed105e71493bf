"""Large results lie beside the database, whole or not at all; what is too large is refused without being copied."""

from __future__ import annotations

import os
import time
import tracemalloc
from pathlib import Path

import pytest

from parallax.errors import JournalError
from parallax.events import EventBus
from parallax.execution.journal import Journal
from parallax.models import Execution
from parallax.storage.blobs import UNNAMED_S, BlobFiles, json_size_within
from parallax.storage.statements import Change, execution_row, insert_row
from parallax.storage.store import INLINE_B, LARGEST_B, Store
from tests.storage.test_store import execution


async def begun(store: Store) -> tuple[Execution, Journal]:
    made = execution()
    bundle = insert_row("bundles", {"hash": "h", "path": "m.prism", "bundle": "{}"}, replace_row=True)
    await store.commit(Change([bundle, insert_row("executions", execution_row(made))]))
    return made, await Journal.load(store, EventBus(store), made.id, 0)


def files(tmp_path: Path) -> list[Path]:
    return sorted(path for path in (tmp_path / "blobs").glob("*/*"))


async def test_a_large_result_lies_in_one_file_that_is_named_by_what_it_holds(tmp_path: Path) -> None:
    large = {"text": "ä" * INLINE_B}
    async with Store(tmp_path / "parallax.db") as store:
        made, journal = await begun(store)
        await journal.write("result", "a", large)
        await journal.write("result", "b", large)
        await journal.write("result", "small", {"text": "x"})
    (blob,) = files(tmp_path)
    async with Store(tmp_path / "parallax.db") as store:
        entries = {entry.step_key: entry for entry in await store.journal(made.id)}
        assert entries["a"].body == entries["b"].body == large
        assert entries["a"].blob == entries["b"].blob == blob.name
        assert entries["small"].blob is None
    assert (tmp_path / "parallax.db").stat().st_size < INLINE_B


async def test_a_damaged_or_missing_blob_is_an_error_of_its_execution_alone(tmp_path: Path) -> None:
    async with Store(tmp_path / "parallax.db") as store:
        made, journal = await begun(store)
        other, others = await begun(store)
        await others.write("result", "a", 1)
        await journal.write("result", "a", "x" * (INLINE_B + 1))
        (blob,) = files(tmp_path)
        blob.write_bytes(b"y" + blob.read_bytes()[1:])
        with pytest.raises(JournalError, match=r"is damaged: restore it from a backup"):
            await store.journal(made.id)
        blob.unlink()
        with pytest.raises(JournalError, match=r"is missing"):
            await store.journal(made.id)
        assert [entry.body for entry in await store.journal(other.id)] == [1]


async def test_what_no_row_names_is_collected_once_it_is_old(tmp_path: Path) -> None:
    async with Store(tmp_path / "parallax.db") as store:
        _, journal = await begun(store)
        await journal.write("result", "a", "x" * (INLINE_B + 1))
        (named,) = files(tmp_path)
        loose = BlobFiles(tmp_path / "blobs")
        old, new = loose.put(b"old"), loose.put(b"new")
        for path in (named, named.parent.parent / old[:2] / old):
            os.utime(path, (time.time() - UNNAMED_S - 1,) * 2)
        assert await store.collect_blobs() == 1
        assert {path.name for path in files(tmp_path)} == {named.name, new}


async def test_a_gigabyte_is_refused_by_name_and_not_copied(tmp_path: Path) -> None:
    gigabyte = ["x" * 1_000_000] * 1000
    async with Store(tmp_path / "parallax.db") as store:
        made, journal = await begun(store)
        tracemalloc.start()
        try:
            with pytest.raises(JournalError, match="the result of step 'huge' is larger than 50 MB"):
                await journal.write("result", "huge", {"value": gigabyte})
            assert tracemalloc.get_traced_memory()[1] < 1_000_000
        finally:
            tracemalloc.stop()
        assert await store.journal(made.id) == []
        assert files(tmp_path) == []


async def test_a_journal_is_bounded_as_a_whole(tmp_path: Path) -> None:
    async with Store(tmp_path / "parallax.db") as store:
        made, journal = await begun(store)
        part = "x" * 20_000_000
        await journal.write("result", "a", part)
        await journal.write("result", "b", part)
        again = await Journal.load(store, EventBus(store), made.id, 0)
        for of in (journal, again):
            with pytest.raises(JournalError, match="would be larger than 50 MB with the result of step 'c'"):
                await of.write("result", "c", part)


@pytest.mark.parametrize(
    ("value", "limit", "fits"),
    [("x" * 10, 12, True), ("x" * 11, 12, False), ({"k": ["x"] * 5}, 40, True), ([[[["x" * 100]]]], 50, False)],
)
def test_sizes_are_told_without_encoding(value: object, limit: int, fits: bool) -> None:
    assert json_size_within(value, limit) is fits
    assert LARGEST_B > INLINE_B
