"""Logging: structlog on standard error, one line per fact, redacted before it leaves the process.

`app` calls `configure` once. Standard output belongs to the command line's answers, so nothing is logged there.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog

from parallax.redaction import Redactor


def configure(level: str, redact: Redactor) -> None:
    """Log at `level` (debug, info, warning, error) to standard error."""

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
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )


def logger(name: str) -> Any:
    """A logger that names its part of the house."""
    return structlog.get_logger(part=name)
