"""`mobileclip convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mobileclip.cli import output
from mobileclip.cli.options import JsonOption


def convert(
    source: Annotated[Path, typer.Argument(metavar="IN", help="A checkpoint; its variant and form are told from its tensors.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="The file to write: .safetensors, .pt or .pth.")],
    form: Annotated[str | None, typer.Option(help="native (Apple's names) or open_clip; as it is by default.")] = None,
    fuse: Annotated[bool, typer.Option("--fuse", help="Write the inference form; it cannot be trained any more.")] = False,
    half: Annotated[bool, typer.Option("--half", help="Store weights as float16, in half the space.")] = False,
    json_output: JsonOption = False,
) -> None:
    """Write a checkpoint in another form, as another kind of file, or fused.

    Example: mobileclip convert mobileclip_s1.pt mobileclip_s1.safetensors --form open_clip --fuse
    """
    from typing import get_args

    from mobileclip import checkpoints
    from mobileclip.files import did_you_mean
    from mobileclip.specs import Form

    wanted: Form | None = next((f for f in get_args(Form) if f == form), None)
    if form is not None and wanted is None:
        raise did_you_mean("form", form, get_args(Form))
    checkpoints.check_suffix(target)
    with output.progress(json_output=json_output) as step:
        step(f"reading {source}")
        checkpoint = checkpoints.load(source)
        if wanted is not None:
            checkpoint = checkpoints.convert(checkpoint, wanted)
        if fuse:
            step("fusing")
            checkpoint = checkpoints.fused(checkpoint)
        step(f"writing {target}")
        checkpoints.save(checkpoint, target, half=half)
    kind = "inference form" if checkpoint.fused else "training form"
    untrained = "" if checkpoint.trained else ", untrained weights"
    if json_output:
        written = {"file": str(target), "variant": checkpoint.spec.name, "form": checkpoint.form}
        output.print_json({**written, "fused": checkpoint.fused, "trained": checkpoint.trained, "size_bytes": target.stat().st_size})
    else:
        output.print_line(
            f"wrote {target} ({target.stat().st_size / 1e6:.1f} MB): {checkpoint.spec.name}, {checkpoint.form}, {kind}{untrained}"
        )
