"""The demo: everything that the toolkit does for one checkpoint, end to end, on real pictures and captions."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from mobileclip.benchmark import bench, report
from mobileclip.benchmark.protocol import BenchResult
from mobileclip.benchmark.report import Prediction
from mobileclip.export.bundle import PRECISIONS, Bundle, Options, default_name
from mobileclip.export.encoder import from_bundle
from mobileclip.export.export import export_bundle
from mobileclip.export.verify.dataset import photograph
from mobileclip.sources import load_model
from mobileclip.specs import REGISTRY
from mobileclip.zeroshot import class_embeddings, predict, read_labels, read_templates

PHOTOGRAPH = "cat"
TOP = 5


@dataclass(frozen=True)
class Demo:
    """What the demo made."""

    bundles: list[Bundle]
    results: list[BenchResult]
    skipped: tuple[str, ...]
    prediction: Prediction
    report: Path


def run(source: str, out: Path, progress: Callable[[str], None]) -> Demo:
    """Export a model in both precisions to every target, verify, time, classify a photograph, and write the report.

    Args:
        source: A checkpoint file, or a variant; one without published weights gets a checkpoint of untrained ones, written in the
            published layout and then read like any other.
        out: Folder for everything.
        progress: Told each step.
    """
    checkpoint = _checkpoint(source, out, progress)
    progress(f"loading {checkpoint}")
    model = load_model(checkpoint)
    bundles = []
    for precision in PRECISIONS:
        bundles.append(export_bundle(model, Options(precision=precision), out / default_name(model.name, precision), progress))
    measured = bench.bench([b.path for b in bundles], progress=progress)
    results = out / "results"
    bench.save(measured, results)
    prediction = classify_photograph(bundles[0])
    page = out / "report.html"
    report.write([*(b.path for b in bundles), results], page, prediction)
    return Demo(bundles, list(measured.results), tuple(measured.skipped), prediction, page)


def _checkpoint(source: str, out: Path, progress: Callable[[str], None]) -> str:
    spec = REGISTRY.get(source)
    if spec is None or spec.weights is not None:
        return source
    from mobileclip import checkpoints

    path = out / f"{spec.name}.pt"
    if not path.exists():
        progress(f"writing {path} with untrained weights")
        checkpoints.save(checkpoints.recipe_checkpoint(spec), path)
    return str(path)


def classify_photograph(bundle: Bundle) -> Prediction:
    """Zero-shot classification of a photograph that ships with the toolkit, by the bundle's ONNX artifacts."""
    labels = read_labels(file=Path(str(files("mobileclip.assets") / "labels.txt")))
    encoder = from_bundle(bundle, "onnx")
    image = photograph(PHOTOGRAPH)
    classes = class_embeddings(encoder, labels, read_templates("none"))
    ranked = predict(encoder.encode_images([image])[0], classes, labels, encoder.logit_scale, TOP)
    png = io.BytesIO()
    image.save(png, "PNG")
    trained = bundle.manifest.model.trained
    return Prediction(png.getvalue(), f"photograph “{PHOTOGRAPH}”", [(p.label, p.probability) for p in ranked], trained, encoder.engine)
