"""Results for people and for a team's folder: rows of a table, files and their reading."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from mobileclip.benchmark import statistics
from mobileclip.benchmark.protocol import SCHEMA_VERSION, BenchResult, BenchRun
from mobileclip.errors import InputError
from mobileclip.files import reading, write_bytes, writing

MAX_RESULT_BYTES = 256 * 2**20


def state(result: BenchResult) -> str:
    """What to think of a result, in a few words."""
    return "valid" if result.valid else "not valid: " + "; ".join(result.reasons)


def table(results: Sequence[BenchResult]) -> list[tuple[object, ...]]:
    """Rows for people: bundle, runtime, tower, p50, p90, p99, CV, n, load, first run, peak RSS in MB, cosine, state.

    Times of what was emulated are left out: they say nothing about a device.
    """
    return [
        (
            r.request.bundle, r.samples.engine, r.request.tower, *_times(r), megabytes(r.samples.peak_memory_bytes),
            f"{r.parity.cosine_min:.7f}" if r.parity else "-", state(r),
        )
        for r in results
    ]  # fmt: skip


def _times(r: BenchResult) -> tuple[object, ...]:
    if r.device.emulated:
        return "-", "-", "-", "-", r.summary.n, "-", "-"
    return (
        f"{r.summary.p50_ms:.3f}", f"{r.summary.p90_ms:.3f}", f"{r.summary.p99_ms:.3f}", f"{r.summary.cv_percent:.1f}", r.summary.n,
        f"{r.samples.load_ms:.1f}", f"{r.samples.first_run_ms:.2f}",
    )  # fmt: skip


def course(result: BenchResult) -> str | None:
    """What the mode tells beyond the table's row; None for `burst` and where it was emulated."""
    if result.device.emulated:
        return None
    if result.sustained:
        first, last = result.sustained.windows[0], result.sustained.windows[-1]
        slope = result.sustained.slope_percent_per_minute
        return (
            f"{result.label}: p50 {first.p50_ms:.3f} ms in the first 5 s, {last.p50_ms:.3f} ms in the last (from {last.start_s:g} s on), "
            f"{slope:+.1f} % a minute"
        )
    if result.mlperf:
        return f"{result.label}: p90 {result.mlperf.p90_ms:.3f} ms by MLPerf's early stopping, n {result.summary.n}"
    return None


def megabytes(size: int | None) -> str:
    """For tables; `-` for what a device does not tell."""
    return "-" if size is None else f"{size / 1e6:.0f}"


def check_target(target: Path) -> None:
    """See that results can be saved to `target`, before hours are spent on them.

    Raises:
        StorageError: They cannot.
    """
    folder = target.parent if target.suffix == ".json" else target
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    with writing(there), tempfile.TemporaryFile(dir=there):  # nothing is made yet: the call may still be refused
        pass


def save(run: BenchRun, target: Path) -> list[Path]:
    """Write the results: one file each into a folder, or all into one file if `target` ends in `.json`.

    A result takes the place of the one of the same bundle, runtime, tower, device, provider, number of threads and mode. Devices are the
    same if name, model and unit are.

    Raises:
        StorageError: The folder cannot be written.
    """
    if target.suffix == ".json":
        write_bytes(target, run.model_dump_json(indent=1).encode() + b"\n")
        return [target]
    paths = []
    for result in run.results:
        request = result.request
        machine = result.device
        device = "-".join(dict.fromkeys(filter(None, (machine.name, machine.model, machine.unit))))
        mode = "" if request.mode == "burst" else f"-{request.mode}"
        name = f"{request.bundle}-{request.target}-{request.tower}-{device}-{request.provider}-{request.threads}t{mode}"
        name = re.sub(r"[^\w.-]+", "-", name).lstrip(".")[:200] + ".json"
        write_bytes(target / name, result.model_dump_json(indent=1).encode() + b"\n")
        paths.append(target / name)
    return paths


def read_results(path: Path) -> list[BenchResult]:
    """The results in a file, or in all `.json` files of a folder.

    Raises:
        InputError: Not a result of the benchmark, of an unknown schema, or a folder without any.
        StorageError: Cannot be read.
    """
    if path.is_dir():
        found = [r for file in sorted(path.glob("*.json")) for r in read_results(file)]
        if not found:
            raise InputError(f"{path}: no results here; make some with: mobileclip bench -o {path}")
        return found
    with reading(path):
        if path.stat().st_size > MAX_RESULT_BYTES:
            raise InputError(f"{path}: over {MAX_RESULT_BYTES} bytes is no result of mobileclip bench")
        data = path.read_bytes()
    try:
        value = json.loads(data)
        if not isinstance(value, dict) or not {"results", "samples", "latency_ms"} & value.keys():
            raise ValueError
        if value.get("schema_version") != SCHEMA_VERSION:
            raise InputError(
                f"{path}: schema version {value.get('schema_version')!r} is unknown; this toolkit reads {SCHEMA_VERSION}; measure again"
            )
        results = list(BenchRun.model_validate(value).results) if "results" in value else [BenchResult.model_validate(value)]
        for r in results:
            _check_against_samples(path, r)
        return results
    except ValidationError as e:
        first = e.errors()[0]
        raise InputError(f"{path}: field {'.'.join(map(str, first['loc']))!r}: {first['msg']}; measure again") from None
    except (ValueError, RecursionError):
        raise InputError(f"{path}: is not a result of mobileclip bench; give a file or folder that it wrote") from None


def _check_against_samples(path: Path, r: BenchResult) -> None:
    """The verdicts that a result carries must follow from its samples: a file may have been edited."""
    if statistics.summarize(r.samples.latency_ms, r.samples.wait_ms) != r.summary:
        raise InputError(f"{path}: the summary does not follow from the samples; the file was edited; measure again")
    if r.valid and (reasons := statistics.invalid_reasons(r.request.mode, r.samples, r.summary, r.parity)):
        raise InputError(f"{path}: says that it is valid, but {'; '.join(reasons)}; the file was edited; measure again")
