"""Talking: to agents (tell, stop), to executions (cancel), and answering what is asked."""

from __future__ import annotations

from contextlib import aclosing
from typing import Annotated, Any

import typer

from parallax.cli.look import with_client
from parallax.cli.options import ExecutionArg, JsonFlag

AgentArg = Annotated[str, typer.Argument(help="An agent, such as engineer.1.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(tell)
    app.command()(stop)
    app.command()(cancel)
    app.command()(pause)
    app.command()(questions)
    app.command()(answer)


def tell(
    agent: AgentArg, text: Annotated[str, typer.Argument(help="What it should know.")], as_json: JsonFlag = False
) -> None:
    """Say something to a running agent, for its next turn."""

    async def work(client: Any) -> None:
        _done(await client.tell(agent, text), as_json, f"{agent} hears it at its next turn")

    with_client(work)


def stop(agent: AgentArg, as_json: JsonFlag = False) -> None:
    """End a running agent's process.

    Its step is tried again or fails, by policy.
    """

    async def work(client: Any) -> None:
        _done(await client.stop(agent), as_json, f"{agent} is stopped")

    with_client(work)


def cancel(
    execution: ExecutionArg = None,
    step: Annotated[
        str | None, typer.Option(help="Only this running step, or what runs in this join; the rest goes on.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Cancel an execution, or a step of it; branches stay."""
    from parallax.cli.run import interruptible

    if step is not None:

        async def work(client: Any) -> None:
            cancelled = await client.cancel_step(await resolve(client, execution), step)
            _done({"cancelled": cancelled}, as_json, f"{', '.join(cancelled)} is cancelled; the execution goes on")

        from parallax.cli.connection import resolve

        with_client(work)
        return
    raise typer.Exit(interruptible(_cancel(execution, as_json=as_json)))


def pause(execution: ExecutionArg = None, as_json: JsonFlag = False) -> None:
    """Let nothing new begin in an execution, until `resume`."""

    async def work(client: Any) -> None:
        from parallax.cli.connection import resolve

        paused = await client.pause(await resolve(client, execution))
        _done(paused, as_json, f"{paused['id']} is paused: what has begun comes to its end; `parallax resume` goes on")

    with_client(work)


async def _cancel(given: str | None, *, as_json: bool) -> int:
    from parallax.cli.connection import connect, resolve
    from parallax.config import load

    async with connect(load(), run=True) as connection:
        client = connection.client
        execution_id = await resolve(client, given)
        cancelled = await client.cancel(execution_id)
        if connection.embedded:  # the server goes with this command: what is cancelled has to end before
            async with aclosing(client.events(execution_id)) as events:
                async for _ in events:
                    pass
            cancelled = await client.execution(execution_id)
        told = "is cancelled" if cancelled["state"] == "cancelled" else "is being cancelled"
        _done(cancelled, as_json, f"{execution_id} {told}; its finished branches stay")
    return 0


def questions(as_json: JsonFlag = False) -> None:
    """List the questions that wait for you."""

    async def work(client: Any) -> None:
        from parallax.cli.live import agent_name
        from parallax.cli.output import cut, out, print_json, styled

        found = await client.questions()
        if as_json:
            print_json({"questions": found})
            return
        console = out()
        if not found:
            console.print("nothing waits for you")
        for question in found:
            who = "the program" if question["asker"] == "program" else agent_name(question["asker"])
            options = " | ".join(option["id"] for option in question["options"]) or '"..."'
            console.print(styled((question["id"], "bold"), f"  {who} asks: {cut(question['text'], 300)}"))
            console.print(styled((f"         parallax answer {question['id']} {options}", "dim")))

    with_client(work)


def answer(
    question: Annotated[str, typer.Argument(help="The question's id, such as q3f9a2c.")],
    text: Annotated[str, typer.Argument(metavar="ANSWER", help="One of its options, or words.")],
    as_json: JsonFlag = False,
) -> None:
    """Answer a question; whoever asked goes on."""

    async def work(client: Any) -> None:
        _done(await client.answer(question, text), as_json, f"{question} is answered")

    with_client(work)


def _done(value: dict[str, Any], as_json: bool, told: str) -> None:
    from parallax.cli.output import err, print_json

    if as_json:
        print_json(value)
    else:
        err().print(told)
