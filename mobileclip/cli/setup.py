"""`mobileclip setup`."""

from __future__ import annotations

import typer

from mobileclip.cli import output


def setup(what: str = typer.Argument(..., help="web: the runtime for browsers. android: the runner for phones, compiled here.")) -> None:
    """Get what a device needs, once, for use without a network afterwards. Without it the first benchmark does so.

    Example: mobileclip setup web
    """
    from mobileclip.benchmark.devices import setup as library
    from mobileclip.files import did_you_mean

    steps = {"web": library.web, "android": library.android_runner}
    if what not in steps:
        raise did_you_mean("part", what, steps)
    with output.progress() as progress:
        steps[what](progress)
    output.print_line(f"{what} is ready")
