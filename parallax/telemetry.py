"""Logging: structlog on standard error, one line per fact, redacted before it leaves the process.

`app` calls `configure` once. Standard output belongs to the command line's answers, so nothing is logged there.
structlog is loaded with the first line that is logged: a quarter of a second that a quiet start does not pay.
"""

from __future__ import annotations

import logging
import sys
from functools import cache
from typing import Any

from parallax.redaction import Redactor

_level = "warning"
_redact = Redactor()


def configure(level: str, redact: Redactor) -> None:
    """Log at `level` (debug, info, warning, error) to standard error."""
    global _level, _redact
    _level, _redact = level, redact
    _structlog.cache_clear()


@cache
def _structlog() -> Any:
    import structlog

    redact = _redact

    def redacted(_logger: Any, _method: str, entry: structlog.typing.EventDict) -> structlog.typing.EventDict:
        return {key: redact(value) if isinstance(value, str) else value for key, value in entry.items()}

    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            redacted,
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, _level.upper())),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    return structlog


class Logger:
    """A logger that names its part of the house: `.debug`, `.info`, `.warning`, `.error` with keywords."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, method: str) -> Any:
        return getattr(_structlog().get_logger(part=self._name), method)


def logger(name: str) -> Logger:
    """The logger of one part of the house."""
    return Logger(name)
