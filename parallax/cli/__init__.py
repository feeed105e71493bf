"""The `parallax` command: one module per group of commands.

Nothing of the server is imported until a command needs it, so that `parallax --help` answers at once. Answers go to
standard output, everything else to standard error; with `--json` standard output is one JSON document.
Exit codes: 0 succeeded, 1 the execution did not, 2 bad usage or bad pattern, 130 interrupted.
"""

from __future__ import annotations

import os
import sys

import typer

from parallax.cli import demo, history, land, look, patterns, prism_, run, serve, setup, spent, talk, workspace

app = typer.Typer(
    name="parallax",
    help="Teams of AI coding agents: a repository and a goal in the evening, tested branches in the morning.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
)

for module in (demo, run, look, land, history, spent, talk, patterns, setup, serve):
    module.register(app)
app.add_typer(prism_.app, name="prism")
app.add_typer(workspace.app, name="workspace")


def main() -> None:
    """Entry point: an error is one sentence on standard error and an exit code, never a traceback."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # Whoever read us has gone (`parallax logs | head`): nothing is left to say, and nothing was lost.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as error:  # noqa: BLE001 - the last line: whatever it is, a person reads it
        sys.exit(_told(error))


def _told(error: Exception) -> int:
    """Say an error in one sentence; returns the exit code."""
    from parallax.errors import AgentError, ConfigurationError, ParallaxError, UsageError, leaf

    cause = leaf(error)
    if isinstance(cause, ParallaxError):
        text, code = str(cause), 2 if isinstance(cause, (UsageError, ConfigurationError, AgentError)) else 1
    elif os.environ.get("PARALLAX_LOG_LEVEL", "").lower() == "debug":
        raise error
    else:
        kind = type(cause).__name__
        text, code = (
            f"a defect of Parallax: {kind}: {cause} (PARALLAX_LOG_LEVEL=debug shows where; please report it)",
            1,
        )
    print(f"parallax: {text}", file=sys.stderr)  # noqa: T201 - this is the door
    return code
