"""Looking: executions, show, logs, diff; and landing what was looked at."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Annotated, Any

import typer

from parallax.cli.options import ExecutionArg, JsonFlag


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(executions)
    app.command()(show)
    app.command()(agents)
    app.command()(logs)
    app.command()(diff)


def executions(
    limit: Annotated[int, typer.Option(min=1, max=500, help="At most so many.")] = 20, as_json: JsonFlag = False
) -> None:
    """List executions, newest first."""

    async def work(client: Any) -> None:
        from parallax.cli.closing import COLUMNS, line_of
        from parallax.cli.output import out, print_json, print_table

        found = await client.executions(limit=limit)
        if as_json:
            print_json({"executions": found})
            return
        if not found:
            out().print("no execution yet: start one with `parallax run PATTERN`")
            return
        console = out()
        print_table(console, COLUMNS, [line_of(execution, brief=console.is_terminal) for execution in found])

    with_client(work)


def show(
    execution: ExecutionArg = None,
    why: Annotated[bool, typer.Option("--why", help="Each step with the evidence behind its confidence.")] = False,
    journal: Annotated[
        bool, typer.Option("--journal", help="The journal: what was asked where, and what came of it.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Show an execution: how it stands, its steps, its branches."""

    async def work(client: Any) -> None:
        from parallax.cli.connection import resolve
        from parallax.cli.history import print_journal
        from parallax.cli.output import out, print_json

        execution_id = await resolve(client, execution)
        if journal:
            entries = await client.journal(execution_id)
            if as_json:
                print_json({"journal": entries})
            else:
                print_journal(out(), entries)
            return
        shown = await client.execution(execution_id)
        if as_json:
            print_json(shown)
        else:
            _print_execution(out(), shown, why=why)

    with_client(work)


def _print_execution(console: Any, execution: dict[str, Any], *, why: bool) -> None:
    from parallax.cli.closing import print_closing
    from parallax.cli.output import cut, styled

    for step in execution["steps"]:
        if "/" in step["step"] or (step["word"] is None and not step.get("why")):
            continue
        marks = {"succeeded": ("✓ ", "green"), "failed": ("✗ ", "red"), "running": ("▸ ", "cyan")}
        confidence = "" if step.get("confidence") is None else f"  {step['confidence']:.2f}"
        who = f"  {'.'.join(step['agent'].split('.')[-2:])}" if step.get("agent") else ""
        console.print(
            styled(
                marks[step["state"]],
                (step["step"], "bold"),
                confidence,
                (who, "dim"),
                f"  {cut(step['task'] or '', 70)}",
            )
        )
        if why:
            _print_why(console, step)
    print_closing(console, execution, offered=not why, fresh=False)


def _print_why(console: Any, step: dict[str, Any]) -> None:
    from parallax.cli.output import cut, styled

    if step.get("error"):
        console.print(styled(("    error      ", "dim"), step["error"]))
        return
    sources = {
        "evidence": "what Parallax checked itself", "agreement": "agreement", "reported": "the agent says so",
        "record": "the agent's record", "prior": "nothing speaks for or against it",
    }  # fmt: skip
    if step.get("source"):
        console.print(styled(("    source     ", "dim"), sources.get(step["source"], step["source"])))
    if step.get("reported") is not None:
        console.print(styled(("    it claimed ", "dim"), f"{step['reported']:.2f}"))
    for entry in step.get("evidence", ()):
        word = {True: ("passed", "green"), False: ("failed", "red"), None: ("could not run", "yellow")}[entry["passed"]]
        score = "" if entry["score"] is None else f"  score {entry['score']:.2f}"
        took = f"  in {entry['duration_s']:.1f} s" if entry["duration_s"] else ""
        console.print(
            styled(
                ("    evidence   ", "dim"), f"{entry['oracle']} ", word, f"{score}{took}  {cut(entry['detail'], 70)}"
            )
        )
    if step.get("commit"):
        turns = f", after {step['turns']} turns" if step["turns"] > 1 else ""
        console.print(styled(("    commit     ", "dim"), f"{step['commit'][:10]} on {step['branch']}{turns}"))


def agents(
    execution: Annotated[str | None, typer.Option("--execution", "-e", help="Only this one's.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """List the agents that live: what each does or waits for."""

    async def work(client: Any) -> None:
        from parallax.cli.connection import resolve
        from parallax.cli.output import out, print_json, print_table

        only = None if execution is None else await resolve(client, execution)
        found = await client.agents(only)
        if as_json:
            print_json({"agents": found})
        elif not found:
            out().print("no agent is running")
        else:
            print_table(out(), ("AGENT", "EXECUTION", "TYPE", "STATE", "SINCE", "WHY"), [_agent_line(a) for a in found])

    with_client(work)


def _agent_line(agent: dict[str, Any]) -> tuple[str, ...]:
    import time

    from parallax.cli.closing import short
    from parallax.cli.live import agent_name, parked_until

    state = parked_until(agent["until"]) if agent["state"] == "parked" else agent["state"]
    if agent["stall"]:
        state = f"{state}, stalled ({agent['stall']})"
    since = f"{max(0.0, time.time() - agent['since']):.0f} s"
    return agent_name(agent["id"]), short(agent["execution"]), agent["type"], state, since, agent["reason"] or ""


def logs(
    agent: Annotated[str | None, typer.Argument(help="Only this agent, such as engineer.1.")] = None,
    execution: Annotated[str | None, typer.Option("--execution", "-e", help="Its id; the newest by default.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the execution ends.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """What the agents said and did."""

    async def work(client: Any) -> None:
        from parallax.cli.connection import resolve
        from parallax.cli.live import agent_name
        from parallax.cli.output import out, print_json, safe, styled

        execution_id = await resolve(client, execution)
        collected: list[dict[str, Any]] = []
        console = out()
        async with aclosing(client.events(execution_id, follow=follow)) as events:
            async for event in events:
                name = agent_name(event.agent_id)
                if event.type not in {"agent.output", "agent.tool"} or (agent and agent not in {name, event.agent_id}):
                    continue
                if as_json:
                    told = {"seq": event.seq, "at": event.at, "agent": name, "type": event.type}
                    collected.append(told | event.data)
                    continue
                text = event.data.get("text") or f"[{event.data['name']} {event.data['status']}]"
                for line in safe(text).splitlines():
                    console.print(styled((f"{name:<14}", "dim"), line))
        if as_json:
            print_json({"logs": collected})

    with_client(work, run=follow)


def diff(
    execution: ExecutionArg = None,
    stat: Annotated[bool, typer.Option("--stat", help="Only which files, and how much.")] = False,
    branch: Annotated[str | None, typer.Option(help="Another branch than the result.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """What the result changes against the base."""

    async def work(client: Any) -> None:
        import sys

        from parallax.cli.connection import resolve
        from parallax.cli.output import print_json

        execution_id = await resolve(client, execution)
        text = await client.diff(execution_id, stat=stat, branch=branch)
        if as_json:
            print_json({"execution": execution_id, "diff": text})
        else:
            sys.stdout.write(text)

    with_client(work)


def with_client(work: Any, *, run: bool = False) -> None:
    """Run a command's work with a client of the server that there is, or of one of its own."""

    async def main() -> None:
        from parallax.cli.connection import connect
        from parallax.config import load

        async with connect(load(), run=run) as connection:
            await work(connection.client)

    asyncio.run(main())
