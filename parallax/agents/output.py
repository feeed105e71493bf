"""What is kept of an agent's output: the beginning and the end, and a mark that says how much is missing between.

A flood would else fill the event log: `turn` puts everything through a ring before it becomes events.
"""

from __future__ import annotations

from collections import deque
from typing import Final

LIMIT: Final = 10 * 1024 * 1024  # characters of one turn
BATCH: Final = 64 * 1024  # characters of one event


class Ring:
    """Takes pieces of text. The head goes out as it comes, the tail is held until the end."""

    def __init__(self, limit: int = LIMIT) -> None:
        self._head = limit // 2
        self._keep = limit - self._head
        self._tail: deque[str] = deque()
        self._held = 0
        self._lost = 0

    def take(self, text: str) -> str:
        """What of this piece is told now."""
        now, later = text[: self._head], text[self._head :]
        self._head -= len(now)
        if later:
            self._tail.append(later)
            self._held += len(later)
        while self._held > self._keep:
            over = self._held - self._keep
            first = self._tail.popleft()
            if len(first) > over:
                self._tail.appendleft(first[over:])
            lost = min(over, len(first))
            self._held -= lost
            self._lost += lost
        return now

    def rest(self) -> list[str]:
        """What is told at the end: the mark, if anything is missing, and the tail, in pieces of one event each."""
        text = (mark(self._lost) if self._lost else "") + "".join(self._tail)
        self._tail.clear()
        self._held = self._lost = 0
        return [text[start : start + BATCH] for start in range(0, len(text), BATCH)]


def cut(text: str, limit: int = BATCH) -> str:
    """The head and the tail of one piece."""
    if len(text) <= limit:
        return text
    half = limit // 2
    return text[:half] + mark(len(text) - 2 * half) + text[-half:]


def mark(count: int) -> str:
    """The words in place of what is missing."""
    return f"\n[... {count} characters left out ...]\n"
