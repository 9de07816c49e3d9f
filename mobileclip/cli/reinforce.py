"""`mobileclip reinforce`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from mobileclip.cli import output
from mobileclip.cli.options import JsonOption, SetOption, share


def reinforce(
    shards: Annotated[list[str], typer.Argument(help="Shards: folders, patterns, URLs, commands (pipe:) or tables.", metavar="SHARDS...")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder of the reinforced data set.")],
    teachers: Annotated[Path, typer.Option(help="YAML file: teachers, augmentation, captioner and words.")],
    changes: SetOption = None,
    views: Annotated[int, typer.Option(min=1, max=1000, help="Augmentations of each picture.")] = 5,
    captions: Annotated[int, typer.Option(min=0, max=1000, help="Synthetic captions of each picture.")] = 5,
    dtype: Annotated[Literal["bf16", "fp32"], typer.Option(help="Of the stored embeddings.")] = "bf16",
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Of all that is drawn.")] = 0,
    images: Annotated[bool, typer.Option(help="Also write pictures and captions; without, the set is to be joined by key.")] = True,
    workers: Annotated[int, typer.Option(min=1, help="Processes, one core each.")] = 1,
    gpus: Annotated[float, typer.Option(min=0, help="GPUs of each worker, with Ray.")] = 0,
    engine: Annotated[Literal["local", "ray"] | None, typer.Option(help="Default: Ray for several workers or a cluster.")] = None,
    address: Annotated[str | None, typer.Option(help="Of a running Ray cluster.")] = None,
    max_bad: Annotated[str, typer.Option(help="Stop where a larger share of the samples is bad.")] = "1%",
    json_output: JsonOption = False,
) -> None:
    """Add augmentations, synthetic captions and teachers' embeddings to a data set, shard by shard. Run again to go on where it stopped.

    Example: mobileclip reinforce emoji/train -o emoji-dr --teachers configs/teachers/emoji.yaml --workers 2
    """
    from mobileclip import reinforce as library
    from mobileclip.data.source import find_shards

    allowed = share("--max-bad", max_bad)
    found, ensemble = find_shards(shards), library.load_ensemble(teachers, changes or ())
    with output.progress(json_output=json_output) as progress:
        summary = library.reinforce(
            found, out, ensemble, progress, views=views, captions=captions, dtype=dtype, seed=seed, images=images, workers=workers,
            gpus=gpus, engine=engine or ("ray" if workers > 1 or address else "local"), address=address, max_bad=allowed,
        )  # fmt: skip
    if json_output:
        output.print_json(summary.about())
        return
    if summary.stages:
        rows = [(name, items, f"{seconds:.1f}", f"{rate:.1f}") for name, items, seconds, rate in summary.throughput()]
        output.print_table("throughput of one worker", ("stage", "items", "seconds", "items/s"), rows)
    output.print_line(
        f"wrote {out}: {summary.tally.seen:,} of {summary.tally.present:,} samples "
        f"in {summary.shards:,} shards ({summary.made:,} made now); "
        f"skipped: {summary.tally.reasons()}"
    )
