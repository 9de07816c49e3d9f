"""`mobileclip demo`."""

from __future__ import annotations

from pathlib import Path

import typer

from mobileclip.cli import output
from mobileclip.specs import DEFAULT_MODEL


def demo(
    model: str = typer.Argument(DEFAULT_MODEL, metavar="[NAME_OR_CHECKPOINT]", help="Variant or checkpoint file."),
    out: Path = typer.Option(Path("demo"), "-o", "--out", help="Folder for checkpoint, bundles, results and report."),
) -> None:
    """The whole road: checkpoint, fused, exported to every target, verified, timed on this host, used, reported. Example:
    mobileclip demo mobileclip_s0.pt -o s0
    """
    from mobileclip.benchmark.demo import run
    from mobileclip.benchmark.results import table
    from mobileclip.cli.bench import COLUMNS

    with output.progress() as step:
        result = run(model, out, step)
    for bundle in result.bundles:
        output.print_parity(str(bundle.path), bundle)
    output.print_table("host, 1 thread", COLUMNS, table(result.results))
    trained = "" if result.prediction.trained else " (untrained weights: predictions mean nothing)"
    output.print_table(f"{result.prediction.caption}{trained}", ("label", "probability"), result.prediction.rows)
    output.print_table(
        f"search: {result.prediction.query}{trained}", ("picture", "cosine"), [(name, c) for _, name, c in result.prediction.found]
    )
    for line in result.skipped:
        output.print_line(line)
    output.print_line(f"report: {result.report}")
