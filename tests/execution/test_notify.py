"""The command that calls a person: whatever it does, the execution hears one event and nothing else."""

from __future__ import annotations

import asyncio
import os
import shlex
from pathlib import Path
from typing import Any

import psutil
import pytest

from parallax.config import load
from parallax.errors import ConfigurationError, StorageError
from parallax.events import Event
from parallax.execution.notify import OUTPUT_B, AnswerLinks, Notifier
from parallax.models import Question
from parallax.redaction import Secret

QUESTION = Question(
    id="q1", execution="e1", step_key="s", asker="e1.engineer.1", kind="question", text="$(touch pwned) ; Which?"
)


async def causes(command: str, *, times: int = 1, limit_s: float = 5.0) -> list[Any]:
    """Ring, wait until each call is told; what went wrong, by the events."""
    told: list[Event] = []
    heard = asyncio.Event()

    async def tell(event: Event) -> None:
        told.append(event)
        if len(told) == times:
            heard.set()

    async def address() -> str:
        return "http://127.0.0.1:1"

    links = AnswerLinks(Secret("k"))
    notifier = Notifier(tuple(shlex.split(command)), links, address=address, tell=tell, limit_s=limit_s)
    async with asyncio.timeout(30), notifier:
        for _ in range(times):
            notifier.ring(QUESTION)
        await heard.wait()
    assert {event.type for event in told} == {"question.notified"}
    return [event.data["cause"] for event in told]


async def test_it_gets_the_question_on_its_input_and_no_shell_sees_it(tmp_path: Path) -> None:
    assert await causes(f"tee {tmp_path / 'told'}") == [None]
    assert '"text":"$(touch pwned) ; Which?"' in (tmp_path / "told").read_text()
    assert await causes("echo $(false) ; exit 1") == [None], "these are arguments of echo"


async def test_the_example_of_the_documents_sends_a_mail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parents[2] / "docs" / "questions.md").read_text()
    script = tmp_path / "mail-me"
    script.write_text(text.partition("```python\n")[2].partition("```")[0])
    sendmail = tmp_path / "sendmail"
    sendmail.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/mail\ncat >> {tmp_path}/mail\n')
    for path in (script, sendmail):
        path.chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert await causes(str(script)) == [None]
    mail = (tmp_path / "mail").read_text()
    assert mail.startswith("me@example.org\nSubject: e1.engineer.1 asks\n\n$(touch pwned) ; Which?\n\nhttp://")


@pytest.mark.parametrize(
    ("command", "cause"),
    [
        ("/nowhere/notify", "it cannot be started: No such file or directory"),
        ("sh -c 'echo no network >&2; exit 3'", "it ended with exit code 3: no network"),
        ("sh -c 'exec <&-; exit 4'", "it ended with exit code 4"),
    ],
)
async def test_its_failure_is_an_event(command: str, cause: str) -> None:
    assert await causes(command) == [cause]


async def test_of_what_it_prints_only_a_beginning_is_kept() -> None:
    (cause,) = await causes("sh -c 'yes | head -c 20000000; exit 1'", limit_s=20.0)
    assert len(cause) < OUTPUT_B + 100


async def test_one_that_hangs_is_ended_with_all_that_it_began() -> None:
    (cause,) = await causes("sh -c 'sleep 4321 & sleep 4321'", limit_s=0.5)
    assert cause == "it did not end within 0.5 s and was ended"
    async with asyncio.timeout(5):
        while any(process.info["cmdline"] == ["sleep", "4321"] for process in psutil.process_iter(["cmdline"])):
            await asyncio.sleep(0.05)


async def test_many_questions_are_called_for_a_few_at_a_time() -> None:
    assert await causes("sleep 0.05", times=20) == [None] * 20


async def test_a_store_that_refuses_the_event_hurts_nobody() -> None:
    asked = asyncio.Event()

    async def tell(event: Event) -> None:
        asked.set()
        raise StorageError("the disk is full")

    async def address() -> str:
        return ""

    async with asyncio.timeout(20), Notifier(("true",), AnswerLinks(Secret("k")), address=address, tell=tell) as bell:
        bell.ring(QUESTION)
        await asked.wait()


def test_a_command_that_cannot_be_read_is_named_at_the_start() -> None:
    with pytest.raises(ConfigurationError, match=r"PARALLAX_NOTIFY_COMMAND: .*No closing quotation"):
        load(notify_command="notify 'me")


def test_a_token_is_of_one_question_and_one_key() -> None:
    links, others = AnswerLinks(Secret("k")), AnswerLinks(Secret("other"))
    token = links.token("q1")
    assert links.opens("q1", token)
    assert not links.opens("q2", token)
    assert not others.opens("q1", token)
    assert not links.opens("q1", "")
    assert not links.opens("q1", "\ud800é")
