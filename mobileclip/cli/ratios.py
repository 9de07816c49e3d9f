"""`mobileclip ratios`."""

from __future__ import annotations

import typer

from mobileclip.cli import output
from mobileclip.files import did_you_mean


def ratios(
    variants: list[str] = typer.Argument(None, metavar="[VARIANT]...", help="Variants that open_clip has too; three by default."),
    rounds: int = typer.Option(25, min=1, help="Timed runs of each path."),
    precision: str = typer.Option(None, help="Of ours: fp32 or fp16; default: both."),
) -> None:
    """Time open_clip eager, its plain ONNX export and ours, one thread, in one run, and print ratios. Example:
    mobileclip ratios mobileclip2_s0
    """
    from mobileclip.benchmark import ratios as benchmark
    from mobileclip.export.bundle import PRECISIONS

    if precision is not None and precision not in PRECISIONS:
        raise did_you_mean("precision", precision, PRECISIONS)
    precisions = PRECISIONS if precision is None else (precision,)
    with output.progress() as step:
        for table in benchmark.tables(variants or [], step, rounds, precisions):
            work = f"{2 * table.macs / 1e9:.2f} GFLOP at {table.gflops:.0f} GFLOP/s"
            title = f"{table.variant} {table.tower}, 1 thread; roofline {table.roofline_ms:.1f} ms = {work}"
            output.print_table(title, benchmark.COLUMNS, table.rows())
