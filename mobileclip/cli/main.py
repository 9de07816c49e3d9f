"""`mobileclip`: the table of commands, and the one place where an exception becomes a line and an exit code."""

from __future__ import annotations

import logging
import os
import sys
import warnings

import typer

from mobileclip import __version__
from mobileclip.cli import output
from mobileclip.errors import MobileClipError

app = typer.Typer(
    help="MobileCLIP from checkpoint to verified, measured bundles on phones.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

COMMANDS = (
    "models", "pull", "convert", "export", "verify", "classify", "embed", "search", "bench", "compare", "report", "doctor",
)  # fmt: skip


def _version(value: bool) -> None:
    if value:
        output.print_line(__version__)
        raise typer.Exit


@app.callback()
def _root(
    debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error."),
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Show the version."),
) -> None:
    if not debug:
        warnings.filterwarnings("ignore")
        logging.disable(logging.WARNING)


def _register() -> None:
    from importlib import import_module

    for name in COMMANDS:
        app.command(name)(getattr(import_module(f"mobileclip.cli.{name}"), name))


def main() -> None:
    """Run the command line; exits 0 fine, 2 bad input, 3 gate failed, 4 tool missing, 5 reading or writing failed, 130 interrupted."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    _register()
    try:
        app()
    except MobileClipError as e:
        if "--debug" in sys.argv:
            raise
        output.print_error(str(e))
        sys.exit(e.exit_code)
    except KeyboardInterrupt:
        output.print_error("interrupted; nothing was published")
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as e:
        if "--debug" in sys.argv:
            raise
        output.print_error(str(e))
        sys.exit(5)
    except MemoryError:
        output.print_error("out of memory; use a smaller model or batch")
        sys.exit(5)
