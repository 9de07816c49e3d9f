"""One self-contained HTML page from bundles and results: no scripts, no requests, readable on a phone and on a desk."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment as Templates
from jinja2 import PackageLoader, StrictUndefined
from markupsafe import Markup

from mobileclip import __version__
from mobileclip.benchmark import plots
from mobileclip.benchmark.devices.device import plain
from mobileclip.benchmark.operators import dearest
from mobileclip.benchmark.plots import Point, distribution, nice_step, scatter, tick_text
from mobileclip.benchmark.protocol import BenchResult, DeviceInfo
from mobileclip.benchmark.results import course, read_results
from mobileclip.errors import InputError
from mobileclip.export.bundle import MANIFEST, TOWERS, Bundle
from mobileclip.files import write_bytes
from mobileclip.specs import REGISTRY

LOG_SCALE_FROM = 12.0
"""Ratio of largest to smallest value from which an axis is logarithmic."""
FLOAT32_ERROR = 1e-7
"""Cosines closer to 1 than this are equal in float32."""
PUBLISHED_ON = "iPhone 12 Pro Max"


@dataclass(frozen=True)
class Prediction:
    """A classified picture and a search to show. Pictures are PNG or JPEG files."""

    image: bytes
    caption: str
    rows: list[tuple[str, float]]
    """The likeliest labels with their probabilities, best first."""
    labels: int
    """How many the probabilities are over."""
    query: str
    found: list[tuple[bytes, str, float]]
    """Pictures, their names and cosines to the query, best first."""
    pictures: int
    """How many were searched."""
    trained: bool
    engine: str


@dataclass
class Inputs:
    """What a report is made of."""

    bundles: list[Bundle] = field(default_factory=list)
    results: list[BenchResult] = field(default_factory=list)


def collect(paths: Sequence[Path], device: str | None = None, runtime: str | None = None) -> Inputs:
    """Open bundles and results by path.

    Args:
        paths: Bundles, result files and folders of results.
        device: Only results of a device with this name or model; case, blanks and signs do not matter.
        runtime: Only results of this target.

    Raises:
        InputError: A path is neither, there is none, or no result is left.
    """
    if not paths:
        raise InputError("nothing to report on; give bundles, result files or folders of results")
    found = Inputs()
    for path in paths:
        if (path / MANIFEST).is_file():
            found.bundles.append(Bundle.open(path))
        else:
            found.results += read_results(path)
    found.results = select(found.results, device, runtime)
    return found


def select(results: Sequence[BenchResult], device: str | None, runtime: str | None) -> list[BenchResult]:
    """The results of a device and a runtime, see `collect`.

    Raises:
        InputError: None is left.
    """
    found = [
        r for r in results
        if (device is None or plain(device) in (plain(r.device.name), plain(r.device.model))) and runtime in (None, r.request.target)
    ]  # fmt: skip
    if not found and (device or runtime):
        known = [f"{r.device.name}, {r.device.model}, {r.request.target}" for r in results]
        raise InputError(f"no result of {device or runtime}; there are: {'; '.join(dict.fromkeys(known)) or 'none'}")
    return found


def render(bundles: Sequence[Bundle], results: Sequence[BenchResult], prediction: Prediction | None = None) -> str:
    """The page as HTML text."""
    templates = Templates(
        loader=PackageLoader("mobileclip.benchmark", ""), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    templates.filters |= {"megabytes": lambda b: f"{b / 1e6:.1f}", "tiny": lambda v: f"{v:.1e}", "cosine": lambda v: f"{v:.7f}"}
    untrained = any(not b.manifest.model.trained for b in bundles) or any(not r.measured.trained for r in results)
    names = dict.fromkeys([b.manifest.model.name for b in bundles] + [r.measured.model for r in results])
    emulated = [r for r in results if r.device.emulated]
    timed = sorted((r for r in results if not r.device.emulated), key=lambda r: (r.request.tower, r.summary.p50_ms))
    return templates.get_template("report.html").render(
        title=", ".join(names) or "MobileCLIP",
        version=__version__,
        untrained=untrained,
        verified=(artifacts := _artifacts(bundles)),
        passed=sum(row["passed"] for row in artifacts),
        cosine_min=min((row["parity"].cosine_min for row in artifacts if row["parity"]), default=None),
        bundles=bundles,
        results=timed,
        emulated=emulated,
        courses=[(i, told) for i, r in enumerate(timed, 1) if (told := course(r))],
        invalid=[(i, r) for i, r in enumerate(timed, 1) if not r.valid],
        fastest=[r for r in (_fastest(timed, "image"), _fastest(timed, "text")) if r is not None],
        bars=_bars(timed),
        distributions=[(r, *distribution(r.samples.latency_ms, f"s-{r.request.target}")) for r in timed],
        scatters=_scatters(timed),
        sustained=[(i, r, course_plot(r)) for i, r in enumerate(timed, 1) if r.sustained],
        placed=[(i, r, dearest(r)) for i, r in enumerate(timed, 1) if r.samples.placement],
        several_devices=len({r.device for r in timed}) > 1,
        prediction=_prediction(prediction),
        published=[spec for spec in REGISTRY.values() if spec.published],
        published_plot=_published_plot(),
        published_on=PUBLISHED_ON,
        environments=_environments(results),
    )


def write(inputs: Inputs, target: Path, prediction: Prediction | None = None) -> None:
    """Make a report from bundles and results and write it.

    Raises:
        StorageError: The file cannot be written.
    """
    write_bytes(target, render(inputs.bundles, inputs.results, prediction).encode())


def _artifacts(bundles: Sequence[Bundle]) -> list[dict[str, Any]]:
    rows = []
    for bundle in bundles:
        parities = {(p.target, p.tower): p for p in bundle.manifest.parity}
        for artifact in bundle.manifest.artifacts:
            parity = parities.get((artifact.target, artifact.tower))
            rows.append({"bundle": bundle, "artifact": artifact, "parity": parity, "passed": parity is not None and parity.passed})
    return rows


def _fastest(results: Sequence[BenchResult], tower: str) -> BenchResult | None:
    return min(
        (r for r in results if r.request.tower == tower and r.request.mode == "burst" and r.valid),
        key=lambda r: r.summary.p50_ms,
        default=None,
    )


def _bars(results: Sequence[BenchResult]) -> dict[str, Any]:
    """Percentages of the width for bars (p50) and whiskers (p90, p99) that share one scale from 0."""
    if not results:
        return {"rows": [], "ticks": []}
    # One wild p99 must not squeeze all the rest; its whisker then ends in an arrow at the edge.
    top = 1.02 * min(max(r.summary.p90_ms for r in results) * 1.4, max(r.summary.p99_ms for r in results))
    step = nice_step(top / 6)
    rows = [
        {
            "result": r,
            "p50": 100 * r.summary.p50_ms / top,
            "p90": 100 * r.summary.p90_ms / top,
            "p99": min(100 * r.summary.p99_ms / top, 100.0),
            "beyond": r.summary.p99_ms > top,
        }
        for r in results
    ]
    return {"rows": rows, "ticks": [(100 * i * step / top, tick_text(i * step)) for i in range(int(top / step) + 1)]}


def _scatters(results: Sequence[BenchResult]) -> list[tuple[str, Markup]]:
    """Size and error over latency of each tower on each device: what a picture costs does not compete with what a text costs."""
    groups: dict[tuple[str, DeviceInfo], list[tuple[int, BenchResult]]] = {}
    for i, r in enumerate(results, 1):
        groups.setdefault((r.request.tower, r.device), []).append((i, r))
    several = len({device for _, device in groups}) > 1
    found = []
    for (tower, device), group in sorted(groups.items(), key=lambda item: TOWERS.index(item[0][0])):
        found += _scatters_of(f"{tower.capitalize()} tower{f' on {device.name}' if several else ''}", group)
    return found


def _scatters_of(title: str, results: Sequence[tuple[int, BenchResult]]) -> list[tuple[str, Markup]]:
    if len(results) < 2:
        return []
    p50 = [r.summary.p50_ms for _, r in results]
    log_x = max(p50) > LOG_SCALE_FROM * min(p50)

    def points(value: Any) -> list[Point]:
        return [
            Point(
                r.summary.p50_ms,
                value(r),
                str(i),
                f"s-{r.request.target}",
                f"{r.label}: p50 {r.summary.p50_ms:.3f} ms, n {r.summary.n}",
                r.valid,
            )
            for i, r in results
            if value(r) is not None
        ]

    sizes = points(lambda r: r.measured.size_bytes / 1e6)
    plots = [(f"{title}: latency and size", scatter(sizes, "p50 latency, ms", "artifact, MB", log_x=log_x))]
    errors = points(lambda r: max(1 - r.parity.cosine_min, FLOAT32_ERROR) if r.parity and r.parity.cosine_min < 1 + 1e-6 else None)
    if any(p.y > FLOAT32_ERROR for p in errors):
        plot = scatter(errors, "p50 latency, ms", "1 − smallest cosine", log_x=log_x, log_y=True)
        plots.append((f"{title}: latency and error", plot))
    return plots


def course_plot(r: BenchResult) -> Markup:
    """How a sustained measurement went on."""
    assert r.sustained is not None
    return plots.course([(w.start_s, w.p50_ms) for w in r.sustained.windows], f"s-{r.request.target}")


def _published_plot() -> Markup:
    points = []
    for spec in REGISTRY.values():
        if spec.published:
            label = spec.name.removeprefix("mobileclip2_").removeprefix("mobileclip_").upper().replace("L14", "L-14").replace("BLT", "B-LT")
            p = spec.published
            title = f"{spec.name}: {p.image_latency_ms} ms, {p.imagenet_top1_percent} %"
            style = "s-second" if spec.name.startswith("mobileclip2") else "s-first"
            points.append(Point(p.image_latency_ms, p.imagenet_top1_percent, label, style, title))
    return scatter(points, f"image tower, ms on {PUBLISHED_ON}", "ImageNet top-1, %", log_x=True, zero_y=False, beside=True, best="high")


def _prediction(prediction: Prediction | None) -> dict[str, Any] | None:
    if prediction is None:
        return None
    found = [(_source(image), name, cosine) for image, name, cosine in prediction.found]
    return vars(prediction) | {"source": _source(prediction.image), "found": found}


def _source(image: bytes) -> str:
    kind = "jpeg" if image.startswith(b"\xff\xd8") else "png"
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"


def _environments(results: Sequence[BenchResult]) -> list[dict[str, Any]]:
    """One entry a machine, with everything that ran on it."""
    grouped: dict[tuple[object, ...], list[BenchResult]] = {}
    for r in results:
        grouped.setdefault((r.device, r.toolkit_version), []).append(r)
    return [
        {
            "device": device,
            "toolkit": toolkit,
            "engines": sorted({r.samples.engine for r in group}),
            "threads": sorted({r.request.threads for r in group}),
            "loads": sorted({s.load_average_1m for r in group for s in r.samples.states if s.load_average_1m is not None}),
            "started": sorted({r.started_utc for r in group}),
            "spaces": sorted({r.measured.embedding_space for r in group}),
            "n": len(group),
        }
        for (device, toolkit), group in grouped.items()
    ]
