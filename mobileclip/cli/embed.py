"""`mobileclip embed`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mobileclip.cli import output
from mobileclip.cli.options import JsonOption
from mobileclip.specs import DEFAULT_MODEL


def embed(
    images: Annotated[list[Path] | None, typer.Argument(help="Picture files.", metavar="[IMAGE]...")] = None,
    text: Annotated[list[str] | None, typer.Option(help="A caption; may be repeated.")] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="File that ends in .npy, .npz, .safetensors or .jsonl.")] = None,
    model: Annotated[str, typer.Option(help="Bundle, variant, checkpoint file or open_clip:NAME/TAG.")] = DEFAULT_MODEL,
    runtime: Annotated[str | None, typer.Option(help="For a bundle: onnx, executorch or coreml; the first that runs here.")] = None,
    json_output: JsonOption = False,
) -> None:
    """Embed pictures, then captions, as rows of unit length. A picture that cannot be read is left out (exit 2 at the end).

    Example: mobileclip embed *.jpg --text "a cat" -o embeddings.npz --model mobileclip_s0
    """
    from mobileclip.errors import InputError
    from mobileclip.export import encoder as encoders

    if not images and not text:
        raise InputError("nothing to embed; give picture files or --text 'a caption'")
    if out is not None:
        encoders.check_format(out)
    with output.progress(json_output=json_output) as progress:
        progress(f"loading {model}")
        encoder = encoders.open_encoder(model, runtime)
        names, embeddings, failed = encoders.embed(encoder, images or [], text or [], progress)
    if out is not None and names:
        encoders.save_embeddings(out, encoder, names, embeddings)
    if json_output:
        rows = [{"name": n} if out else {"name": n, "embedding": e.tolist()} for n, e in zip(names, embeddings, strict=True)]
        errors = [{"image": name, "error": str(e)} for name, e in failed]
        output.print_json({**encoder.about(), "out": str(out) if out and names else None, "embeddings": rows, "errors": errors})
    elif out is not None and names:
        output.print_line(f"wrote {out}: {len(names):,} embeddings of {encoder.embed_dim} numbers by {encoder.title}")
    elif names:
        first = [(n, " ".join(f"{v:+.4f}" for v in e[:6])) for n, e in zip(names, embeddings, strict=True)]
        output.print_table(f"{encoder.title}; {encoder.embed_dim} numbers each", ("name", "the first numbers (all of them: --json)"), first)
    for _, error in failed:
        output.print_error(str(error))
    if failed:
        raise typer.Exit(failed[0][1].exit_code)
