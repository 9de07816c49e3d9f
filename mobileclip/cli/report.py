"""`mobileclip report`."""

from __future__ import annotations

from pathlib import Path

import typer

from mobileclip.cli import output
from mobileclip.cli.options import JsonOption


def report(
    paths: list[Path] = typer.Argument(..., metavar="RESULTS_OR_BUNDLES...", help="Bundles, result files, or folders of results."),
    out: Path = typer.Option(Path("report.html"), "--out", "-o", help="The page to write."),
    device: str | None = typer.Option(None, help="Only results of the device with this name or model."),
    runtime: str | None = typer.Option(None, help="Only results of this runtime."),
    check: Path | None = typer.Option(None, metavar="BASELINE", help="Earlier results: exits 3 if something is slower or wrong now."),
    json_output: JsonOption = False,
) -> None:
    """Write one self-contained HTML page of verification and measurements. Example:
    mobileclip report mobileclip_nano-fp32 results -o report.html
    """
    from mobileclip.benchmark import report as reports
    from mobileclip.benchmark.compare import regressions
    from mobileclip.benchmark.results import read_results
    from mobileclip.errors import GateError

    inputs = reports.collect(paths, device, runtime)
    baseline = reports.select(read_results(check), device, runtime) if check else None
    reports.write(inputs, out)
    slower, wrong = regressions(baseline, inputs.results) if baseline is not None else ([], [])
    if json_output:
        worse = {"slower": [c.to_json() for c in slower], "wrong": wrong} if baseline is not None else {}
        output.print_json({"report": str(out), "size_bytes": out.stat().st_size, **worse})
    else:
        output.print_line(f"wrote {out} ({out.stat().st_size / 1e3:.0f} kB)")
    if slower or wrong:
        told = [f"{c.label_b}: {c.ratio:.2f} of {check}'s cost" for c in slower] + wrong
        raise GateError(f"worse than {check}: {'; '.join(told)}")
    if baseline is not None and not json_output:
        output.print_line(f"nothing is slower or wrong, against {check}")
