"""What is awaited to its end ends whole, and a cancellation that came meanwhile is honoured whatever the end was."""

from __future__ import annotations

import asyncio

import pytest

from parallax.tasks import to_its_end


@pytest.mark.parametrize("fails", [False, True])
async def test_a_cancellation_waits_for_the_end_and_is_not_lost_to_a_failure(fails: bool) -> None:
    ended: list[str] = []
    may_end = asyncio.Event()

    async def work() -> str:
        await may_end.wait()
        ended.append("whole")
        if fails:
            raise RuntimeError("the books")
        return "kept"

    leaving = asyncio.create_task(to_its_end(work()))
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.wait([leaving], timeout=0.05)
    assert not leaving.done()
    may_end.set()
    await asyncio.wait([leaving])
    assert ended == ["whole"]
    assert leaving.cancelled()


async def test_who_stays_gets_the_outcome() -> None:
    async def work(value: int) -> int:
        return 6 // value

    assert await to_its_end(work(2)) == 3
    with pytest.raises(ZeroDivisionError):
        await to_its_end(work(0))
