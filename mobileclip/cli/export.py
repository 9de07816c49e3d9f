"""`mobileclip export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mobileclip.cli import output
from mobileclip.cli.options import JsonOption
from mobileclip.specs import DEFAULT_MODEL


def export(
    model: Annotated[
        str, typer.Argument(help="Variant, checkpoint file, open_clip:NAME[/TAG], or untrained:VARIANT.", metavar="NAME_OR_CHECKPOINT")
    ] = DEFAULT_MODEL,
    target: Annotated[list[str] | None, typer.Option(help="onnx, coreml, executorch or all; may be repeated.")] = None,
    precision: Annotated[str, typer.Option(help="fp32 or fp16.")] = "fp32",
    tower: Annotated[str, typer.Option(help="image, text or both.")] = "both",
    batch: Annotated[int, typer.Option(min=1, help="Inputs an artifact takes at once.")] = 1,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Folder of the bundle; default NAME-PRECISION.")] = None,
    normalize: Annotated[bool, typer.Option(help="L2 normalisation inside the graph.")] = True,
    bake_preprocessing: Annotated[bool, typer.Option("--bake-preprocessing", help="The graph takes uint8 RGB.")] = False,
    backend: Annotated[str, typer.Option(help="Delegate of the executorch target: xnnpack or coreml.")] = "xnnpack",
    again: Annotated[bool, typer.Option("--again", help="Export even if the same bundle is there.")] = False,
    json_output: JsonOption = False,
) -> None:
    """Export both towers as a verified bundle. Nothing is published when its numbers are wrong (exit 3).

    Example: mobileclip export mobileclip_s0.pt --target coreml --precision fp16 -o s0
    """
    from mobileclip.export.bundle import default_name
    from mobileclip.export.export import export_bundle
    from mobileclip.export.request import options_from
    from mobileclip.sources import load_model

    options = options_from(target or ["all"], precision, tower, batch, normalize, bake_preprocessing, backend)
    with output.progress(json_output=json_output) as step:
        step(f"loading {model}")
        loaded = load_model(model)
        folder = out or Path(default_name(loaded.name, options.precision))
        bundle = export_bundle(loaded, options, folder, step, again=again)
    if json_output:
        output.print_json({"bundle": str(folder), "manifest": bundle.manifest.model_dump(mode="json")})
        return
    output.print_parity(str(folder), bundle)
