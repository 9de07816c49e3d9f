"""`mobileclip compare`."""

from __future__ import annotations

from pathlib import Path

import typer

from mobileclip.cli import output
from mobileclip.cli.options import JsonOption

COLUMNS = ("A", "B", "verdict on B", "p50 A ms", "p50 B ms", "cost B / A", "95 % interval", "figure B / A", "n A", "n B")


def compare(
    a: Path = typer.Argument(..., metavar="A", help="Result file, or folder of results."),
    b: Path = typer.Argument(..., metavar="B", help="What to judge against A."),
    json_output: JsonOption = False,
) -> None:
    """Say whether B is faster or slower than A, or no different, from the raw samples. Example:
    mobileclip compare before.json after.json
    """
    from mobileclip.benchmark.compare import compare_all
    from mobileclip.benchmark.results import read_results

    found, alone = compare_all(read_results(a), read_results(b))
    if json_output:
        output.print_json({"comparisons": [c.to_json() for c in found], "in_one_only": alone})
        return
    rows = [
        (
            c.label_a, c.label_b, c.verdict, f"{c.p50_a_ms:.3f}", f"{c.p50_b_ms:.3f}", f"{c.ratio:.3f}",
            f"{c.ratio_low:.3f} to {c.ratio_high:.3f}", f"{c.figure_ratio:.3f}", c.n_a, c.n_b,
        )
        for c in found
    ]  # fmt: skip
    output.print_table("A difference counts from 9 % of the cost if its interval leaves out 1, or 50 % of the figure", COLUMNS, rows)
    for c in found:
        for remark in c.remarks:
            output.print_line(f"{c.label_b}: {remark}")
    for label in alone:
        output.print_line(f"{label}: only in one of the two")
