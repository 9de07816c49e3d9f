"""Measure bundles on a device: which artifacts can run, their real inputs, the measurement, and its statistics and parity."""

from __future__ import annotations

import importlib.util
import random
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mobileclip import __version__
from mobileclip.benchmark import statistics
from mobileclip.benchmark.devices.device import Device
from mobileclip.benchmark.devices.host import Host
from mobileclip.benchmark.devices.rounds import Ended, Job, Progress
from mobileclip.benchmark.protocol import (
    MIN_WARMUP_RUNS,
    MODES,
    PARITY_BAR,
    PARITY_SHARE,
    BenchRequest,
    BenchResult,
    BenchRun,
    DeviceSamples,
    Failure,
    Measured,
    Mode,
)
from mobileclip.errors import BundleError, DeviceError, InputError, MissingToolError, MobileClipError
from mobileclip.export.bundle import MANIFEST, TARGETS, TOWERS, ArtifactInfo, Bundle, Options, Tower, default_name, read_manifest
from mobileclip.files import did_you_mean
from mobileclip.specs import DEFAULT_MODEL

TIMEOUT_S = 300.0
"""For one answer of a device; loading a large model on a busy one is the longest."""
KEEP_OF = round(1 / PARITY_SHARE)
KEPT_GROUPS = 64


def find_bundles(folder: Path) -> list[Path]:
    """The folder itself if it is a bundle, else the bundles right below it."""
    if (folder / MANIFEST).is_file():
        return [folder]
    return sorted(p.parent for p in folder.glob(f"*/{MANIFEST}"))


def default_bundles(folder: Path, runtimes: Sequence[str], device: Device, progress: Progress) -> list[Path]:
    """The bundles in `folder` that hold what shall run, else the default model, exported into it and kept there.

    It is exported for every target that is installed and that the device can time, in fp16 where CoreML comes first: the Neural Engine
    computes in nothing else.

    Raises:
        BundleError: The manifest of one of the bundles is damaged; the files of those that are chosen are checked when they are opened.
        MissingToolError: The default model cannot be exported for the device here.
    """
    from mobileclip.export.export import export_bundle
    from mobileclip.export.exporter import PACKAGES
    from mobileclip.sources import load_model

    wanted = set(runtimes or device.targets[:1])
    if found := [path for path in find_bundles(folder) if wanted <= {a.target for a in read_manifest(path).artifacts}]:
        return found
    targets = tuple(t for t in device.targets if all(importlib.util.find_spec(package) for package in PACKAGES[t]))
    for name in runtimes or device.targets[:1]:
        if name not in targets:
            raise MissingToolError(
                f"the default model cannot be exported with {name} here and timed on {device.name}; see: mobileclip doctor"
            )
    model = load_model(DEFAULT_MODEL)
    options = Options(targets=targets, precision="fp16" if targets[0] == "coreml" else "fp32")
    name = "-".join((default_name(model.name, options.precision), *targets))  # never in place of a bundle for something else
    return [export_bundle(model, options, folder / name, progress).path]


def bench(
    bundles: Sequence[Path],
    *,
    device: Device | None = None,
    runtimes: Sequence[str] = (),
    towers: Sequence[Tower] = TOWERS,
    provider: str | None = None,
    threads: int = 1,
    mode: Mode = "burst",
    seconds: float | None = None,
    samples: int | None = None,
    warmup_runs: int = MIN_WARMUP_RUNS,
    per_op: bool = False,
    seed: int = 0,
    timeout_s: float = TIMEOUT_S,
    progress: Progress = lambda _: None,
) -> BenchRun:
    """Measure every chosen artifact, each in its own process; in mode `burst` interleaved.

    Args:
        bundles: Bundle folders; see `default_bundles` if empty.
        device: Where, see `mobileclip.benchmark.devices.find`; default: this machine.
        runtimes: Targets to run; everything that can run there if empty.
        towers: Towers to run.
        provider: What shall run them, see `BenchRequest.provider`; default: the device's first choice for each.
        threads: Of each measurement.
        mode: See `mobileclip.benchmark.protocol.MODES`.
        seconds: Least time of timed runs of each measurement; default: the mode's.
        samples: Least number of timed runs of each measurement; default: the mode's.
        warmup_runs: Untimed runs before.
        per_op: Also tell what each operator costs, where the runtime does.
        seed: Of the order of turns and of the choice of outputs to check.
        timeout_s: For one answer of the device.
        progress: Told what is being done.

    Returns:
        Results, failures of single measurements, and what was left out.

    Raises:
        InputError: An unknown mode, runtime or provider, an absent runtime, no tower, a damaged bundle.
        MissingToolError: Nothing that was asked for can run there.
        DeviceError: The device is gone.
    """
    device = device or Host()
    seconds, samples = _minima(mode, seconds, samples)
    if threads < 1 or warmup_runs < 0:
        raise InputError("threads must be 1 or more, warm-up runs 0 or more")
    for name in runtimes:
        if name not in TARGETS:
            raise did_you_mean("runtime", name, TARGETS)
    bundles = bundles or default_bundles(Path(), runtimes, device, progress)
    opened = [Bundle.open(path) for path in dict.fromkeys(path.resolve() for path in bundles)]
    chosen, skipped = _choose(opened, device, runtimes, towers)
    asked = {
        "threads": threads, "mode": mode, "warmup_runs": warmup_runs, "min_samples": samples, "min_seconds": seconds, "per_op": per_op,
        "keep": _keep(seed), "keep_of": KEEP_OF,
    }  # fmt: skip
    started = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    with tempfile.TemporaryDirectory(prefix="mobileclip-bench-") as scratch:
        jobs = list(_jobs(chosen, device, provider, asked, Path(scratch), progress))
        with device.prepared(jobs, progress):
            ended = device.measure(jobs, seed, timeout_s, progress)
            results, failures = _results(chosen, jobs, ended, started)
            device.finished(results)
    return BenchRun(results=tuple(results), failures=tuple(failures), skipped=tuple(skipped))


def _minima(mode: Mode, seconds: float | None, samples: int | None) -> tuple[float, int]:
    """Least time and number of timed runs, the mode's where none is given."""
    if mode not in MODES:
        raise did_you_mean("mode", mode, MODES)
    limits = MODES[mode]
    seconds, samples = limits.seconds if seconds is None else seconds, limits.samples if samples is None else samples
    if samples < 1 or not 0 <= seconds < float("inf"):
        raise InputError("samples must be 1 or more, seconds 0 or more")
    if seconds > limits.max_seconds:
        raise InputError(f"mode {mode} lasts {limits.max_seconds:g} s at most")
    return seconds, samples


def _jobs(
    chosen: Sequence[tuple[Bundle, ArtifactInfo]],
    device: Device,
    provider: str | None,
    asked: Mapping[str, Any],
    scratch: Path,
    progress: Progress,
) -> Iterator[Job]:
    """The requests, and the inputs of each as a file."""
    names, prepared = _names(list(dict.fromkeys(bundle.path for bundle, _ in chosen))), dict[str, tuple[Path, int]]()
    for bundle, artifact in chosen:
        progress(f"preparing the inputs of {names[bundle.path]} {artifact.tower}")
        inputs, rows = _inputs(bundle, artifact.tower, scratch, prepared)
        request = BenchRequest(
            bundle=names[bundle.path],
            target=artifact.target,
            tower=artifact.tower,
            artifact=artifact.path,
            input=artifact.input,
            output=artifact.output,
            inputs=inputs.name,
            rows=rows,
            provider=_provider(provider, device, artifact),
            **asked,
        )
        yield Job(request, bundle.path, inputs)


def _results(
    chosen: Sequence[tuple[Bundle, ArtifactInfo]], jobs: Sequence[Job], ended: Sequence[Ended], started: str
) -> tuple[list[BenchResult], list[Failure]]:
    results, failures, run_id = [], [], uuid.uuid4().hex[:12]
    for (bundle, artifact), job, end in zip(chosen, jobs, ended, strict=True):
        error = end.error
        if end.samples is not None:
            try:
                about = run_id, started, len(jobs) if job.request.mode == "burst" else 1
                results.append(_result(bundle, artifact, job.request, end.samples, about))
            except DeviceError as e:
                error = error or e
        if error is not None:
            failures.append(_failure(job.request, error))
    return results, failures


def _names(paths: Sequence[Path]) -> dict[Path, str]:
    """What results call each bundle: its folder's name, with the parent's in front where two have the same."""
    for parts in (1, 2):
        names = {path: "-".join(path.parts[-parts:]) for path in paths}
        if len(set(names.values())) == len(names):
            return names
    raise InputError(f"several bundles would be called the same ({', '.join(sorted(set(names.values())))}); rename their folders")


def _provider(asked: str | None, device: Device, artifact: ArtifactInfo) -> str:
    known = device.providers(artifact)
    if asked is None or asked in known:
        return asked or known[0]
    raise did_you_mean(f"provider of {artifact.target} on {device.name}", asked, known)


def _choose(
    bundles: Sequence[Bundle], device: Device, runtimes: Sequence[str], towers: Sequence[Tower]
) -> tuple[list[tuple[Bundle, ArtifactInfo]], list[str]]:
    from mobileclip.export.verify.dataset import dataset_sha256

    chosen: list[tuple[Bundle, ArtifactInfo]] = []
    skipped: list[str] = []
    for bundle in bundles:
        if bundle.manifest.dataset_sha256 != dataset_sha256():
            raise BundleError(f"{bundle.path}: was verified on other pictures and captions than this version has; export it again")
        for name in runtimes:
            if name not in bundle.targets:
                raise InputError(f"{bundle.path}: has no {name} artifact; it holds: {', '.join(bundle.targets)}")
        for artifact in bundle.manifest.artifacts:
            if artifact.tower not in towers or (runtimes and artifact.target not in runtimes):
                continue
            if reason := device.lacks(artifact):
                skipped.append(f"{bundle.path.name} {artifact.target} {artifact.tower}: {reason}")
            else:
                chosen.append((bundle, artifact))
    if not chosen:
        raise MissingToolError("; ".join(skipped) or f"no {' or '.join(towers)} tower in the bundles; choose another --tower")
    return chosen, skipped


def _keep(seed: int) -> tuple[int, ...]:
    """The first run, then one of each group at random: a fixed step could meet the same few inputs over and over."""
    chosen = random.Random(seed)
    return (0, *(chosen.randrange(KEEP_OF) for _ in range(KEPT_GROUPS - 1)))


def _inputs(bundle: Bundle, tower: Tower, scratch: Path, prepared: dict[str, tuple[Path, int]]) -> tuple[Path, int]:
    """The verification inputs as this bundle's tower takes them, saved once for all bundles that take the same, and their number."""
    m = bundle.manifest
    key = m.preprocess.model_dump_json() if tower == "image" else m.tokenizer.file.sha256
    if key not in prepared:
        rows = tower_inputs(bundle, tower)
        path = scratch / f"inputs{len(prepared)}.bin"
        np.ascontiguousarray(rows, rows.dtype.newbyteorder("<")).tofile(path)
        prepared[key] = path, len(rows)
    return prepared[key]


def tower_inputs(bundle: Bundle, tower: Tower) -> npt.NDArray[np.generic]:
    """All verification inputs of a tower.

    Returns:
        Pictures (N, 3, resolution, resolution) float32, or (N, resolution, resolution, 3) uint8 where the preprocessing is baked in;
        captions (N, context_length) int32.
    """
    from mobileclip.export.verify import dataset
    from mobileclip.preprocess import preprocess_batch, resize_crop

    if tower == "text":
        return bundle.tokenizer()(dataset.captions())
    info = bundle.manifest.preprocess
    images = [picture.image for picture in dataset.pictures()]
    return np.stack([resize_crop(image, info.spec) for image in images]) if info.baked else preprocess_batch(images, info.spec)


def _result(
    bundle: Bundle,
    artifact: ArtifactInfo,
    request: BenchRequest,
    got: DeviceSamples,
    run: tuple[str, str, int],
) -> BenchResult:
    m = bundle.manifest
    try:
        if [k.sample for k in got.kept] != [i for i in range(len(got.latency_ms)) if request.keeps(i)]:
            raise ValueError("other outputs were kept than asked for")
        summary = statistics.summarize(got.latency_ms, got.wait_ms)
        parity = statistics.parity(got.kept, bundle.reference(request.tower), PARITY_BAR[m.options.precision])
        sustained = statistics.sustained(got.latency_ms, got.start_ms) if request.mode == "sustained" else None
    except (ValueError, ArithmeticError) as e:
        raise DeviceError(f"{bundle.path}: {request.target} {request.tower}: what was measured does not fit together ({e})") from None
    reasons = statistics.invalid_reasons(request.mode, got, summary, parity)
    return BenchResult(
        toolkit_version=__version__,
        run_id=run[0],
        started_utc=run[1],
        interleaved=run[2],
        request=request,
        measured=Measured(
            name=request.bundle,
            model=m.model.name,
            form=m.model.form,
            trained=m.model.trained,
            precision=m.options.precision,
            batch=m.options.batch,
            normalize=m.options.normalize,
            bake_preprocessing=m.preprocess.baked,
            embed_dim=m.embed_dim,
            embedding_space=m.embedding_space,
            weights_sha256=m.model.weights_sha256,
            manifest_sha256=m.manifest_sha256,
            files=artifact.files,
        ),
        samples=got.model_copy(update={"kept": ()}),
        summary=summary,
        sustained=sustained,
        mlperf=statistics.early_stopping(got.latency_ms) if request.mode == "mlperf" else None,
        parity=parity,
        valid=not reasons,
        reasons=reasons,
    )


def _failure(request: BenchRequest, e: MobileClipError) -> Failure:
    return Failure(
        bundle=request.bundle, target=request.target, tower=request.tower,
        error=type(e).__name__, exit_code=e.exit_code, message=" ".join(str(e).split()),
    )  # fmt: skip
