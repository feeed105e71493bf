"""What is known of a running turn at one moment, gathered from its client, its processes and its door to the model.

`Turn` owns a Watch, hands it what the agent shows, and asks it for `Signals`; `stalls.detect` judges them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from parallax.agents.stalls import Signals
from parallax.errors import AgentError
from parallax.models import Progress, Question, TaskResult
from parallax.ports import AgentClient, Traffic

LIVELY: Final = 0.03  # share of a processor that counts as work; an idle JavaScript program uses less
LOOKS: Final = 12  # at the processes within one limit, and only when nothing else shows life


class Watch:
    """The senses for one turn. `limit_s`: seconds of silence that are a stall."""

    def __init__(self, client: AgentClient, traffic: Callable[[], Traffic | None], limit_s: float) -> None:
        self._client = client
        self._traffic = traffic
        self._limit_s = limit_s
        self._work = _Work(limit_s)
        self._tools: dict[object, tuple[str, float]] = {}
        self._fill: float | None = None
        self._answered = 0  # calls to the model that were over when we last looked
        self._refused = 0
        self._since = time.monotonic()
        if (door := traffic()) is not None:
            self._answered = door.requests - door.in_flight

    def answered(self) -> None:
        """Somebody has answered the agent: the time that it waited for us is not its silence."""
        self._since = time.monotonic()

    def saw(self, progress: Progress) -> None:
        """The agent has shown something: its tools and its context are kept in mind."""
        data = progress.data if isinstance(progress.data, dict) else {}
        match progress.kind:
            case "tool" if data.get("status") in {"completed", "failed", "cancelled"}:
                self._tools.pop(data.get("id"), None)
            case "tool":
                self._tools.setdefault(data.get("id"), (progress.text, time.monotonic()))
            case "usage" if isinstance(used := data.get("used"), int) and isinstance(size := data.get("size"), int):
                self._fill = used / size if size > 0 else None

    def look(
        self, *, question: Question | None = None, result: TaskResult | None = None, error: AgentError | None = None
    ) -> Signals:
        """The signals of this moment."""
        now, vitals, door = time.monotonic(), self._client.vitals(), self._traffic()
        used = door is not None and door.requests > 0
        traffic_s = now - door.last_byte_at if door is not None and used else None
        ended = result is not None or error is not None
        output_s = min(vitals.output_s, now - self._since)
        quiet_s = output_s if traffic_s is None else min(output_s, traffic_s)
        if question is None and not ended and quiet_s > self._limit_s / 3:
            self._work.look(now, self._client)
        if door is not None:
            self._count(door)
        tool, since = next(reversed(self._tools.values()), (None, now))
        fill = door.context_fill if door is not None and door.context_fill is not None else self._fill
        return Signals(
            limit_s=self._limit_s,
            output_s=output_s,
            cpu_s=self._work.idle_s(now),
            traffic_s=traffic_s,
            in_flight=0 if door is None else door.in_flight,
            refused=self._refused,
            status=door.last_status if door is not None else None,
            limited=door is not None and door.limited,
            resets_at=door.resets_at if door is not None else None,
            context_fill=fill,
            tool=tool,
            tool_s=now - since,
            words=vitals.words,
            question=question,
            claimed=vitals.claimed,
            final=vitals.final,
            exit_code=vitals.exit_code,
            result=result,
            error=error,
        )

    def _count(self, door: Traffic) -> None:
        answered = door.requests - door.in_flight
        if answered > self._answered and door.last_status is not None:
            self._refused = self._refused + answered - self._answered if door.last_status >= 400 else 0
            self._answered = answered


class _Work:
    """When the process tree last did something that is more than the ticking of an idle program."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._worked_at = self._looked_at = time.monotonic()
        self._base: tuple[float, float] | None = None  # a moment, and the processor time used up to it

    def idle_s(self, now: float) -> float:
        """Seconds since it worked."""
        return now - self._worked_at

    def look(self, now: float, client: AgentClient) -> None:
        """Look at the processes, a few times within the limit: it is not free."""
        if now - self._looked_at < self._limit_s / LOOKS:
            return
        self._looked_at = now
        used = client.cpu_s()
        if self._base is None or used < self._base[1]:  # a part of the tree has gone, with what it had used
            self._base = (now, used)
            return
        since, before = self._base
        enough = LIVELY * max(now - since, self._limit_s / 6)
        if used - before >= enough:
            self._worked_at = now
        if used - before >= enough or now - since > self._limit_s / 3:
            self._base = (now, used)
