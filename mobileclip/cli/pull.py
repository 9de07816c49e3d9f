"""`mobileclip pull`."""

from __future__ import annotations

from typing import Annotated

import typer

from mobileclip.cli import output
from mobileclip.cli.options import JsonOption


def pull(
    names: Annotated[list[str], typer.Argument(help="Variants, see `mobileclip models`.", metavar="NAME...")],
    json_output: JsonOption = False,
) -> None:
    """Get published weights from the Hub, check their size and sha256, and keep them for offline use.

    Honours HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE. Run it again after an interruption: it resumes.

    Example: mobileclip pull mobileclip2_s0
    """
    from mobileclip import hub
    from mobileclip.errors import InputError
    from mobileclip.specs import get_spec

    done = {}
    for name in names:
        spec = get_spec(name)
        if spec.weights is None:
            raise InputError(f"{spec.name} has no published weights; it is used as it ships")
        weights = spec.weights
        if not hub.licence_shown(weights.repo_id):
            typer.echo(hub.LICENCE_TERMS[weights.licence], err=True)
            hub.mark_licence_shown(weights.repo_id)
        with output.progress(json_output=json_output) as step:

            def report(got: int, total: int, name: str = spec.name) -> None:
                step(f"{name}: {got / 1e6:.0f} of {total / 1e6:.0f} MB")

            done[spec.name] = str(hub.pull(weights.repo_id, weights.filename, sha256=weights.sha256, on_progress=report))
    if json_output:
        output.print_json(done)
    else:
        for name, path in done.items():
            output.print_line(f"{name}: {path}")
