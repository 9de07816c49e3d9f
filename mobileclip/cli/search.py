"""`mobileclip search`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mobileclip.cli import output
from mobileclip.cli.options import JsonOption
from mobileclip.specs import DEFAULT_MODEL


def search(
    folder: Annotated[Path, typer.Argument(help="Folder with pictures, at any depth.", metavar="FOLDER")],
    query: Annotated[str | None, typer.Argument(help="What to look for.", metavar="[QUERY]")] = None,
    image: Annotated[Path | None, typer.Option(help="Look for pictures like this one instead.")] = None,
    top: Annotated[int, typer.Option(min=1, help="Pictures shown.")] = 10,
    model: Annotated[str, typer.Option(help="Bundle, variant, checkpoint file or open_clip:NAME/TAG.")] = DEFAULT_MODEL,
    runtime: Annotated[str | None, typer.Option(help="For a bundle: onnx, executorch or coreml; the first that runs here.")] = None,
    index: Annotated[Path | None, typer.Option(help="Folder of the index; default FOLDER/.mobileclip-index.")] = None,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Make a new index, whatever is there.")] = False,
    json_output: JsonOption = False,
) -> None:
    """Find pictures by what they show. Embeds new and changed ones first; hidden files and links to folders are left out.

    Example: mobileclip search ~/Pictures "a dog on a beach" --top 5 --model mobileclip_s0
    """
    from mobileclip.export import encoder as encoders
    from mobileclip.export import search as searches

    with output.progress(json_output=json_output) as progress:
        progress(f"loading {model}")
        encoder = encoders.open_encoder(model, runtime)
        wanted = encoders.embed_query(encoder, query, image)
        state = searches.update(folder, encoder, progress, index=index, rebuild=rebuild)
    hits = state.index.search(wanted, top)
    found = [{"path": str(folder / hit.path), "score": hit.score} for hit in hits]
    if json_output:
        about = {**encoder.about(), "index": str(state.index.path), "pictures": len(state.index.matrix), "embedded": state.embedded}
        skipped = [{"path": str(folder / s.path), "error": s.error} for s in state.skipped]
        output.print_json({**about, "removed": state.removed, "results": found, "skipped": skipped})
        return
    rows = [(i, f"{hit.score:.4f}", str(folder / hit.path)) for i, hit in enumerate(hits, 1)]
    output.print_table(f"{encoder.title}; {len(state.index.matrix):,} pictures", ("rank", "cosine", "picture"), rows)
    if state.skipped:
        output.print_line(f"left out: {len(state.skipped):,} pictures that cannot be read; --json lists them")
