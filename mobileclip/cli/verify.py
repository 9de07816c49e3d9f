"""`mobileclip verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mobileclip.cli import output
from mobileclip.cli.options import JsonOption


def verify(
    bundles: Annotated[list[Path] | None, typer.Argument(help="Folders of bundles.", metavar="BUNDLE...")] = None,
    self_test: Annotated[bool, typer.Option("--self-test", help="Put deliberately broken exports before the gate instead.")] = False,
    json_output: JsonOption = False,
) -> None:
    """Run every artifact in its real runtime on real pictures and captions; exits 3 when one is wrong.

    Example: mobileclip verify mobileclip_s0-fp16
    """
    from mobileclip.errors import InputError
    from mobileclip.export.bundle import Bundle
    from mobileclip.export.verify import gate

    if self_test:
        _self_test(json_output=json_output)
        return
    if not bundles:
        raise InputError("no bundle given; name its folder, for example: mobileclip verify mobileclip_nano-fp32")
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


def _self_test(*, json_output: bool) -> None:
    from mobileclip.errors import GateError
    from mobileclip.export.verify.mutants import self_test

    with output.progress(json_output=json_output) as step:
        (_, healthy), *broken = self_test(step)
    if json_output:
        output.print_json({name: parity.model_dump(mode="json") for name, parity in broken})
    else:
        rows = [
            (name, p.tower, f"{p.cosine_min:.6f}", f"{p.top1_agreement:.1%}", "LET PASS" if p.passed else "refused") for name, p in broken
        ]
        output.print_table("Broken exports (ONNX fp32, untrained nano)", ("mistake", "tower", "min cosine", "top-1", "gate"), rows)
    if not healthy.passed or any(p.passed for _, p in broken):
        raise GateError("the gate let a broken export pass, or refused a healthy one; do not trust it on this machine")
