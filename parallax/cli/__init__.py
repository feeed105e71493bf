"""The `parallax` command: one module per group of commands.

Nothing of the server is imported until a command needs it, so that `parallax --help` answers at once. Answers go to
standard output, everything else to standard error; with `--json` standard output is one JSON document.
Exit codes: 0 succeeded, 1 the execution did not, 2 bad usage or bad pattern, 130 interrupted.
"""

from __future__ import annotations

import sys

import typer

from parallax.cli import demo, look, patterns, prism_, run, setup, talk

app = typer.Typer(
    name="parallax",
    help="Teams of AI coding agents: a repository and a goal in the evening, tested branches in the morning.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
)

for module in (run, look, talk, patterns, setup, demo):
    module.register(app)
app.add_typer(prism_.app, name="prism")


def main() -> None:
    """Entry point: errors of ours are one sentence and an exit code, never a traceback."""
    from parallax.errors import AgentError, ConfigurationError, ParallaxError, UsageError

    try:
        app()
    except (UsageError, ConfigurationError, AgentError) as error:
        print(f"parallax: {error}", file=sys.stderr)  # noqa: T201 - this is the door
        sys.exit(2)
    except ParallaxError as error:
        print(f"parallax: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
