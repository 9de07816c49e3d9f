"""`mobileclip report`."""

from __future__ import annotations

from pathlib import Path

import typer

from mobileclip.cli import output
from mobileclip.cli.options import JsonOption


def report(
    paths: list[Path] = typer.Argument(..., metavar="RESULTS_OR_BUNDLES...", help="Bundles, result files, or folders of results."),
    out: Path = typer.Option(Path("report.html"), "--out", "-o", help="The page to write."),
    json_output: JsonOption = False,
) -> None:
    """Write one self-contained HTML page of verification and measurements. Example:
    mobileclip report mobileclip_nano-fp32 results -o report.html
    """
    from mobileclip.benchmark import report as reports

    reports.write(paths, out)
    if json_output:
        output.print_json({"report": str(out), "size_bytes": out.stat().st_size})
    else:
        output.print_line(f"wrote {out} ({out.stat().st_size / 1e3:.0f} kB)")
