"""`mobileclip verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mobileclip.cli import output
from mobileclip.cli.options import JsonOption


def verify(
    bundles: Annotated[list[Path], typer.Argument(help="Folders of bundles.", metavar="BUNDLE...")],
    json_output: JsonOption = False,
) -> None:
    """Run every artifact in its real runtime on real pictures and captions; exits 3 when one is wrong.

    Example: mobileclip verify mobileclip_s0-fp16
    """
    from mobileclip.export.bundle import Bundle
    from mobileclip.export.verify import gate

    results = []
    for path in bundles:
        with output.progress(json_output=json_output) as step:
            step(f"verifying {path}")
            bundle = Bundle.open(path)
            parity = gate.verify(bundle)
        results.append((path, bundle, parity))
    if json_output:
        output.print_json([{"bundle": str(path), "parity": [p.model_dump(mode="json") for p in parity]} for path, _, parity in results])
    else:
        for path, bundle, parity in results:
            output.print_parity(str(path), bundle, parity)
    for _, bundle, parity in results:
        gate.require_passed(parity, bundle.manifest.options.precision)
