"""`mobileclip bench`."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import typer

from mobileclip.cli import output
from mobileclip.cli.options import JsonOption

COLUMNS = (
    "bundle", "runtime", "tower", "p50 ms", "p90 ms", "p99 ms", "CV %", "n", "load ms", "first ms", "peak RSS MB", "cosine min", "state",
)  # fmt: skip


OPERATOR_COLUMNS = ("operator", "kind", "where", "median ms", "share %")


def bench(
    bundles: list[Path] = typer.Argument(None, metavar="[BUNDLE]...", help="Bundle folders; default: those here, else the default model."),
    device: str = typer.Option("host", help="Where to measure: a serial number, udid, name, model or alias; see: mobileclip devices."),
    via: str | None = typer.Option(
        None, help="How to reach it, if there are several ways: shell, app or web; devicectl or pymobiledevice3."
    ),
    runtime: list[str] = typer.Option([], help="onnx, executorch or coreml; may be given again. All that can run there by default."),
    provider: str | None = typer.Option(
        None, help="What shall run it: cpu, xnnpack, nnapi, qnn, wasm, webgpu; all, cpuOnly, cpuAndGPU ..."
    ),
    tower: str = typer.Option("both", help="image, text or both."),
    threads: int = typer.Option(1, min=1, help="Threads of each measurement."),
    app: Path | None = typer.Option(None, metavar="FILE", help="The benchmark app for --via app or an iPhone, to be installed first."),
    app_id: str | None = typer.Option(None, help="Its name, where you signed it under one of your own."),
    lan: bool = typer.Option(False, "--lan", help="For a browser elsewhere: serve the page to the network, not to this machine alone."),
    mode: str = typer.Option("burst", help="burst, sustained (without a pause, to see it warm up) or mlperf (single stream)."),
    seconds: float | None = typer.Option(
        None, help="Least timed seconds of each; by default what a valid result needs: 10, not in burst 60."
    ),
    samples: int | None = typer.Option(None, help="Least timed runs of each; by default what a valid result needs: 100, in mlperf 1024."),
    per_op: bool = typer.Option(False, "--per-op", help="Also print the ten operators that cost most, where the runtime tells."),
    out: Path = typer.Option(Path("results"), "--out", "-o", help="Folder for the results, or one file that ends in .json."),
    json_output: JsonOption = False,
) -> None:
    """Measure bundles, each artifact in its own process; in burst all in turns, so that ratios are fair. Example:
    mobileclip bench mobileclip_nano-fp32 --runtime onnx --threads 2

    All models are in memory at the same time; give fewer bundles in one call where that is too much.
    """
    from mobileclip.benchmark import devices, operators, results
    from mobileclip.benchmark.bench import bench as measure
    from mobileclip.benchmark.devices.app import AppDevice, app_name
    from mobileclip.benchmark.devices.web import Web
    from mobileclip.benchmark.protocol import Mode
    from mobileclip.errors import InputError
    from mobileclip.export.bundle import TOWERS
    from mobileclip.files import did_you_mean

    place = devices.find(device, via)
    if lan and place.kind != Web.kind:
        raise InputError("--lan is for --device web only")
    if isinstance(place, Web):
        place.lan, place.show = lan, lambda address: output.print_address(address, code=lan)
    app_id = app_name(app_id) if app_id else None
    if isinstance(place, AppDevice):
        place.package, place.app = app, app_id or place.app
    elif app or app_id:
        raise InputError("--app and --app-id are for devices with the benchmark app only; see: mobileclip devices")
    towers = TOWERS if tower == "both" else tuple(t for t in TOWERS if t == tower)
    if not towers:
        raise did_you_mean("tower", tower, (*TOWERS, "both"))
    if app and not app.exists():
        raise InputError(f"--app {app}: no such file; check the path")
    results.check_target(out)
    with output.progress(json_output=json_output) as progress:
        run = measure(
            bundles or [], device=place, runtimes=runtime, towers=towers, provider=provider, threads=threads, mode=cast(Mode, mode),
            seconds=seconds, samples=samples, per_op=per_op, progress=progress,
        )  # fmt: skip
    if json_output:
        output.print_json(run.model_dump(mode="json"))
    paths = results.save(run, out)
    if not json_output:
        if run.results:
            output.print_table(f"{threads} thread(s) on {run.results[0].device.model}", COLUMNS, results.table(run.results))
        for result in run.results:
            if result.samples.operators:
                title = f"{result.label}: the operators that cost most, of {len(result.samples.operators)}"
                output.print_table(title, OPERATOR_COLUMNS, operators.dearest(result))
        courses = [line for result in run.results if (line := results.course(result))]
        for line in (*courses, *run.skipped, *(f"saved {path}" for path in paths)):
            output.print_line(line)
    for failure in run.failures:
        output.print_error(f"{failure.bundle} {failure.target} {failure.tower}: {failure.message}")
    if run.failures:
        raise typer.Exit(max(failure.exit_code for failure in run.failures))  # 130 before all others
