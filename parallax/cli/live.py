"""What a person sees of a running execution: told lines for what matters, and below them one line per agent.

On a terminal the agent lines are live (rich); elsewhere only the told lines are printed. `Story` turns events into
both; `run`, `watch` and `demo` feed it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, Final

from rich.console import Console, Group
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from parallax.cli.output import cut, err, print_line, safe, styled
from parallax.client import StreamEvent

LINE: Final = 110
_STYLE: Final = {
    "busy": "cyan",
    "asking": "yellow",
    "ready": "dim",
    "starting": "dim",
    "error": "red",
    "parked": "yellow",
}


@dataclass(slots=True)
class _AgentLine:
    name: str
    type: str = ""
    state: str = "starting"
    step: str = ""
    doing: str = ""
    since: float = field(default_factory=time.time)
    confidence: float | None = None


def agent_name(agent_id: str | None) -> str:
    """`engineer.1`: an agent's id without the execution."""
    return "" if agent_id is None else ".".join(agent_id.split(".")[-2:])


def parked_until(until: float | None) -> str:
    """`parked until 05:00`, with the day where that is not within a day."""
    if until is None:
        return "parked"
    form = "%H:%M" if until - time.time() < 86_400 else "%a %d %b %H:%M"
    return f"parked until {time.strftime(form, time.localtime(until))}"


class Story:
    """Follows the events of one execution."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or err()
        self.agents: dict[str, _AgentLine] = {}
        self.last_seq = 0
        self.ended: str | None = None
        self.started_at = time.time()
        self._at: float | None = None
        self._sandbox: str | None = None
        self._live: Live | None = None
        self._spinner = Spinner("dots")

    # -- drawing -------------------------------------------------------------------------------------------------------

    def __enter__(self) -> Story:
        if self.console.is_terminal:
            self._live = Live(console=self.console, get_renderable=self._table, refresh_per_second=8, transient=True)
            self._live.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if self._live is not None:
            self._live.__exit__(*error)
            self._live = None

    def say(self, *parts: tuple[str, str] | str, whole: bool = False, at: float | None = None) -> None:
        """A told line, with the time since the start: an event's own time, so that a replay tells the truth.

        On a terminal it ends at the right edge, unless a person has to read the `whole` of it.
        """
        stamp = f"{(at or self._at or time.time()) - self.started_at:6.1f}s  "
        print_line(self.console, styled((stamp, "dim"), *parts), whole=whole)

    def _table(self) -> Group:
        """One line per agent: name, state, current step, elapsed, confidence, and what it does where there is room."""
        table = Table.grid(padding=(0, 2), expand=True)
        for _ in range(6):
            table.add_column(no_wrap=True)
        table.add_column(no_wrap=True, ratio=1, overflow="ellipsis")
        shown = [line for line in self.agents.values() if line.state != "gone"]
        for line in shown:
            style = _STYLE.get(line.state, "")
            elapsed = f"{time.time() - line.since:4.0f}s"
            mark: Any = self._spinner if line.state == "busy" else Text("·", style=style)
            table.add_row(
                mark, Text(line.name, style="bold"), Text(line.state, style=style), Text(cut(line.step, 20)),
                Text(elapsed, style="dim"), Text("" if line.confidence is None else f"{line.confidence:.2f}"),
                Text(cut(line.doing, 80), style="dim"),
            )  # fmt: skip
        return Group(table) if shown else Group()

    # -- following -----------------------------------------------------------------------------------------------------

    def take(self, event: StreamEvent) -> None:
        """One more event."""
        self.last_seq = event.seq
        if event.seq == 1:
            self.started_at = event.at
        handler = getattr(self, "_on_" + event.type.replace(".", "_"), None)
        if handler is not None:
            self._at = event.at
            handler(event)
            self._at = None

    def _agent(self, event: StreamEvent) -> _AgentLine:
        name = agent_name(event.agent_id)
        return self.agents.setdefault(name, _AgentLine(name))

    def _set(self, event: StreamEvent, state: str, **changes: Any) -> _AgentLine:
        line = self._agent(event)
        if line.state != state:
            line.state, line.since = state, event.at
        for key, value in changes.items():
            setattr(line, key, value)
        return line

    def _on_execution_started(self, _event: StreamEvent) -> None:
        self.say(("started", "bold"))

    def _on_execution_resumed(self, event: StreamEvent) -> None:
        self.agents.clear()
        self.ended = None
        kept = event.data["finished"]
        names = f": {', '.join(kept)}" if kept else ""
        count = f"{len(kept)} finished step{'s are' if len(kept) != 1 else ' is'} kept"
        self.say(("resumed ", "bold green"), f"after a restart; {count}{names}")

    def _on_agent_starting(self, event: StreamEvent) -> None:
        self._set(event, "starting", type=event.data["type"])
        if (sandbox := event.data["sandbox"]) == self._sandbox:
            return
        self._sandbox = sandbox
        if sandbox == "off":
            self.say(("! ", "yellow"), "no sandbox: agents run with all rights of your own", whole=True)
        else:
            self.say(
                f"agents and checks run in a sandbox ({sandbox}): they reach their workspace, no other file of yours"
            )

    def _on_agent_ready(self, event: StreamEvent) -> None:
        self._set(event, "ready", doing="")

    def _on_agent_busy(self, event: StreamEvent) -> None:
        self._set(event, "busy")

    def _on_agent_asking(self, event: StreamEvent) -> None:
        self._set(event, "asking", doing=event.data["text"])

    def _on_agent_stopped(self, event: StreamEvent) -> None:
        self._set(event, "gone")

    def _on_agent_error(self, event: StreamEvent) -> None:
        self._set(event, "gone")
        self.say(
            ("! ", "red"), (agent_name(event.agent_id), "bold"), f" failed: {cut(event.data['cause'], 300)}", whole=True
        )

    def _on_agent_stalled(self, event: StreamEvent) -> None:
        data = event.data
        self._agent(event).doing = f"{data['kind'].replace('_', ' ')}: {data['cause']}"
        self.say(
            ("! ", "yellow"),
            (agent_name(event.agent_id), "bold"),
            f" is stalled ({data['kind']}): {cut(data['cause'], 200)}",
        )

    def _on_agent_parked(self, event: StreamEvent) -> None:
        parked = parked_until(event.data.get("until"))
        self._set(event, "parked", doing=f"{parked}: {event.data['cause']}")
        self.say(
            ("… ", "yellow"), (agent_name(event.agent_id), "bold"), f" is {parked}: {cut(event.data['cause'], 200)}"
        )

    def _on_agent_tool(self, event: StreamEvent) -> None:
        self._agent(event).doing = event.data["name"]

    def _on_agent_output(self, event: StreamEvent) -> None:
        self._agent(event).doing = event.data["text"].strip().splitlines()[-1] if event.data["text"].strip() else ""

    def _on_agent_told(self, event: StreamEvent) -> None:
        self.say(
            ("✉ ", "cyan"), "you told ", (agent_name(event.agent_id), "bold"), f": {cut(event.data['text'], LINE)}"
        )

    def _on_step_started(self, event: StreamEvent) -> None:
        line = self._agent(event)
        line.step, line.confidence, line.doing = event.step_key or "", None, ""
        if event.data["word"] != "review":
            again = f" (attempt {event.data['attempt']})" if event.data["attempt"] > 1 else ""
            self.say(
                ("▸ ", "cyan"), (agent_name(event.agent_id), "bold"), f" begins {event.step_key}{again}: ",
                (cut(event.data["task"], 70), "dim"),
            )  # fmt: skip

    def _on_step_verifying(self, event: StreamEvent) -> None:
        self._agent(event).doing = f"checking: {', '.join(event.data['oracles'])}"

    def _on_evidence_recorded(self, event: StreamEvent) -> None:
        if event.data["oracle"].startswith("review") or event.data["passed"]:
            return
        claimed = (agent_name(event.agent_id), "bold") if event.agent_id else ("Parallax", "bold")
        says = " says it is done; " if event.agent_id else ": "
        oracle = event.data["oracle"]
        word = "fails" if event.data["passed"] is not None else "could not run"
        found = f"the {oracle} {word}" if oracle in {"schema", "turn", "merge"} else f"the check {oracle} {word}"
        self.say(
            ("✗ ", "red"), claimed, says, (found, "red"),
            f" ({cut(event.data['detail'], 60)})",
        )  # fmt: skip

    def _on_step_retrying(self, event: StreamEvent) -> None:
        if event.data.get("next_s"):
            self.say(("↻ ", "yellow"), f"{event.step_key}: another try in {event.data['next_s']:.0f} s")
            return
        who = agent_name(event.agent_id)
        self.say(("↩ ", "yellow"), f"{event.step_key} is sent back to ", (who, "bold"), " with what was found")

    def _on_step_escalated(self, event: StreamEvent) -> None:
        self.say(("↑ ", "yellow"), f"{event.step_key} goes up to {event.data['to']}: {cut(event.data['cause'], 80)}")

    def _on_step_finished(self, event: StreamEvent) -> None:
        data, name = event.data, agent_name(event.agent_id)
        if name in self.agents:
            self.agents[name].confidence, self.agents[name].doing = data["confidence"], ""
        if data["word"] == "review":
            good = data["action"] == "approve"
            self.say(
                ("✓ " if good else "↩ ", "green" if good else "yellow"), (name, "bold"),
                f" reviewed {(event.step_key or '').partition('/')[0]}: {data['action']}",
                (f"  {cut(data['detail'], 60)}", "dim"),
            )  # fmt: skip
            return
        confidence = "" if data["confidence"] is None else f" at {data['confidence']:.2f}"
        why = cut(data["detail"] or "", 80)
        took = f" after {data['attempts']} turns" if data["attempts"] > 1 else ""
        self.say(("✓ ", "green"), (event.step_key or "", "bold"), f" accepted{confidence}{took}", (f"  {why}", "dim"))

    def _on_step_failed(self, event: StreamEvent) -> None:
        self.say(("✗ ", "red"), (event.step_key or "", "bold"), f" failed: {cut(event.data['error'], 300)}", whole=True)

    def _on_question_asked(self, event: StreamEvent) -> None:
        who = agent_name(event.agent_id) or "the program"
        self.say(("? ", "yellow"), (who, "bold"), f" asks: {cut(event.data['text'], 300)}", whole=True)

    def _on_question_routed(self, event: StreamEvent) -> None:
        self.say(("  → ", "yellow"), f"the question goes to {event.data['to']}")

    def _on_question_surfaced(self, event: StreamEvent) -> None:
        options = " | ".join(option["id"] for option in event.data["options"]) or '"your answer"'
        command = f"parallax answer {event.data['id']} {options}"
        self.say(("? ", "bold yellow"), ("it waits for you: ", "bold"), command, whole=True)

    def _on_question_answered(self, event: StreamEvent) -> None:
        by = "you" if event.data["by"] == "person" else event.data["by"]
        verb = "answer" if by == "you" else "answers"
        self.say(("! ", "green"), (by, "bold"), f" {verb}: {cut(event.data['answer'], 90)}")

    def _on_question_defaulted(self, event: StreamEvent) -> None:
        self.say(("! ", "yellow"), f"nobody answered in time; the default holds: {event.data['answer']}", whole=True)

    def _on_workspace_merged(self, event: StreamEvent) -> None:
        files = event.data["files"]
        self.say(("⇢ ", "green"), f"{event.step_key} merged into the result ({files} file{'s' * (files != 1)})")

    def _on_workspace_conflict(self, event: StreamEvent) -> None:
        if event.step_key:
            self.say(
                ("⇄ ", "yellow"),
                f"{event.step_key} conflicts in {', '.join(event.data['files'][:4])}: back to its owner",
            )

    def _on_log_printed(self, event: StreamEvent) -> None:
        self.say(("  ", ""), safe(event.data["line"]))

    def _on_execution_cancelling(self, _event: StreamEvent) -> None:
        self.say(("cancelling", "yellow"))

    def _on_execution_needs_attention(self, event: StreamEvent) -> None:
        self.ended = "needs_attention"
        self.say(("needs attention: ", "bold red"), event.data["cause"], whole=True)

    def _finish(self, event: StreamEvent) -> None:
        self.ended = event.type.partition(".")[2]
        self.agents.clear()

    _on_execution_succeeded = _on_execution_partial = _on_execution_failed = _on_execution_cancelled = _finish
