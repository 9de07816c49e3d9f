"""`mobileclip classify`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from mobileclip.cli import output
from mobileclip.cli.options import JsonOption
from mobileclip.specs import DEFAULT_MODEL


def classify(
    images: Annotated[list[Path], typer.Argument(help="Picture files.", metavar="IMAGE...")],
    labels: Annotated[str | None, typer.Option(help="Labels, separated by commas.")] = None,
    labels_file: Annotated[Path | None, typer.Option(help="Text file with one label a line.")] = None,
    templates: Annotated[str, typer.Option(help="none, photo, ensemble, a text with {} for the label, or a file of such lines.")] = "none",
    model: Annotated[str, typer.Option(help="Bundle, variant, checkpoint file or open_clip:NAME/TAG.")] = DEFAULT_MODEL,
    runtime: Annotated[str | None, typer.Option(help="For a bundle: onnx, executorch or coreml; the first that runs here.")] = None,
    top: Annotated[int, typer.Option(min=1, help="Labels shown for each picture.")] = 5,
    json_output: JsonOption = False,
) -> None:
    """Tell which of the labels fit each picture best. A picture that cannot be read does not stop the others (exit 2 at the end).

    Example: mobileclip classify cat.jpg --labels "cat,dog,bird" --templates photo --model mobileclip_s0
    """
    from mobileclip import zeroshot
    from mobileclip.export.encoder import open_encoder, printable

    names, captions = zeroshot.read_labels(printable(labels or ""), labels_file), zeroshot.read_templates(templates)
    with output.progress(json_output=json_output) as progress:
        progress(f"loading {model}")
        encoder = open_encoder(model, runtime)
        results = [(printable(str(c.path)), c) for c in zeroshot.classify(encoder, images, names, captions, top, progress)]
    failed = [(name, c.error) for name, c in results if c.error is not None]
    if json_output:
        pictures = [{"image": name, "predictions": [asdict(p) for p in c.predictions]} for name, c in results if c.error is None]
        errors = [{"image": name, "error": str(e)} for name, e in failed]
        output.print_json({**encoder.about(), "labels": names, "templates": captions, "images": pictures, "errors": errors})
    elif len(failed) < len(results):
        rows = [(name, p.label, f"{p.probability:.2%}", f"{p.cosine:.4f}") for name, c in results for p in c.predictions]
        output.print_table(f"{encoder.title}; {len(names):,} labels", ("picture", "label", "probability", "cosine"), rows)
    for _, error in failed:
        output.print_error(str(error))
    if failed:
        raise typer.Exit(failed[0][1].exit_code)
