"""`mobileclip`: the table of commands, and the one place where an exception becomes a line and an exit code."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from mobileclip.errors import InputError, MobileClipError

if TYPE_CHECKING:
    import typer

COMMANDS = (
    "models", "pull", "convert", "export", "verify", "classify", "embed", "search", "train", "eval", "reinforce", "bench", "devices",
    "setup", "compare", "report", "conformance", "demo", "ratios", "doctor",
)  # fmt: skip
GROUPS = {"data": ("Training data.", ("fetch",)), "app": ("The sample app on a phone.", ("install",))}
"""`mobileclip GROUP COMMAND` is the function COMMAND of `mobileclip.cli.GROUP_COMMAND`."""


def build() -> typer.Typer:
    """The application with all commands."""
    import logging
    import warnings
    from importlib import import_module

    import typer

    from mobileclip import __version__
    from mobileclip.cli import output

    app = typer.Typer(
        help="MobileCLIP from checkpoint to verified, measured bundles on phones.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    def show_version(value: bool) -> None:
        if value:
            output.print_line(__version__)
            raise typer.Exit

    @app.callback()
    def root(
        debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error."),
        version: bool = typer.Option(False, "--version", callback=show_version, is_eager=True, help="Show the version."),
    ) -> None:
        if not debug:
            warnings.filterwarnings("ignore")
            logging.disable(logging.WARNING)

    for name in COMMANDS:
        app.command(name)(getattr(import_module(f"mobileclip.cli.{name}"), name))
    for group, (about, names) in GROUPS.items():
        commands = typer.Typer(help=about, no_args_is_help=True, rich_markup_mode=None)
        for name in names:
            commands.command(name)(getattr(import_module(f"mobileclip.cli.{group}_{name}"), name))
        app.add_typer(commands, name=group)
    return app


def main() -> None:
    """Run the command line; exits 0 fine, 2 bad input, 3 gate failed, 4 tool missing, 5 reading or writing failed, 130 interrupted.

    Exit code 1 is an error of the toolkit itself.
    """
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    try:
        _run()
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(0)
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except MobileClipError as e:
        _fail(str(e), e.exit_code)
    except OSError as e:
        _fail(str(e), 5)
    except MemoryError:
        _fail("out of memory; use a smaller model or batch", 5)
    except Exception as e:
        if "OutOfMemory" in type(e).__name__ or "can't allocate memory" in str(e):  # torch has no MemoryError
            _fail("out of memory; use a smaller model or batch", 5)
        _fail(f"this is a bug: {type(e).__name__}: {e}; `mobileclip --debug ...` shows where", 1)


def _run() -> None:
    app = build()  # inside the `try` of `main`: an interruption may come this early
    from typer.exceptions import TyperException

    try:
        code = app(prog_name="mobileclip", standalone_mode=False)
    except SystemExit as e:
        if isinstance(e.__context__, BrokenPipeError):  # typer has caught it before us
            raise e.__context__ from None
        raise
    except TyperException as e:  # words that the command line does not take; without any, the help
        if type(e).__name__ == "NoArgsIsHelpError":
            sys.stderr.write(e.format_message() + "\n")
            sys.exit(e.exit_code)
        command = getattr(getattr(e, "ctx", None), "command_path", "mobileclip")
        raise InputError(f"{e.format_message().rstrip('.')}; see {command} --help") from None
    if code == 130:
        raise KeyboardInterrupt
    sys.stdout.flush()  # while a broken pipe can still be answered
    sys.exit(code)


def _fail(message: str, exit_code: int) -> None:
    """The only way out with an error."""
    from mobileclip.cli import output

    if "--debug" in sys.argv:
        import traceback

        traceback.print_exc()
    output.print_error(message)
    sys.exit(exit_code)
