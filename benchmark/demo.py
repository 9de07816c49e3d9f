"""The demo: everything that the toolkit does for one checkpoint, end to end, on real pictures and captions."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
from PIL import Image

from mobileclip.benchmark import bench, report
from mobileclip.benchmark.protocol import BenchResult
from mobileclip.benchmark.report import Prediction
from mobileclip.export.bundle import PRECISIONS, Bundle, Options, default_name
from mobileclip.export.encoder import from_bundle
from mobileclip.export.export import export_bundle
from mobileclip.export.verify.dataset import photograph, photograph_names
from mobileclip.sources import load_model
from mobileclip.specs import REGISTRY
from mobileclip.zeroshot import class_embeddings, predict, read_labels, read_templates

PICTURE, QUERY = "cat", "a cup of coffee on a table"
TOP, THUMBNAIL = 5, 192


@dataclass(frozen=True)
class Demo:
    """What the demo made."""

    bundles: list[Bundle]
    results: list[BenchResult]
    skipped: tuple[str, ...]
    prediction: Prediction
    report: Path


def run(source: str, out: Path, progress: Callable[[str], None]) -> Demo:
    """Export a model in both precisions to every target, verify, time, classify a picture, search, and write the report.

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
    prediction = try_out(bundles[0])
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


def try_out(bundle: Bundle) -> Prediction:
    """Zero-shot classification of a photograph that ships with the toolkit, and a search for one, by the bundle's ONNX artifacts."""
    labels = read_labels(file=Path(str(files("mobileclip.assets") / "labels.txt")))
    names = photograph_names()
    images = [photograph(name) for name in names]
    encoder = from_bundle(bundle, "onnx")
    embedded = encoder.encode_images(images)
    chosen = names.index(PICTURE)
    ranked = predict(embedded[chosen], class_embeddings(encoder, labels, read_templates("none")), labels, encoder.logit_scale, TOP)
    cosines = embedded @ encoder.encode_texts([QUERY])[0]
    best = np.argsort(-cosines, kind="stable")[:TOP]
    return Prediction(
        image=_png(images[chosen]),
        caption=f"photograph “{PICTURE}”",
        rows=[(p.label, p.probability) for p in ranked],
        labels=len(labels),
        query=QUERY,
        found=[(_png(images[i], THUMBNAIL), names[i], float(cosines[i])) for i in best],
        pictures=len(images),
        trained=bundle.manifest.model.trained,
        engine=encoder.engine,
    )


def _png(image: Image.Image, side: int = 640) -> bytes:
    file, small = io.BytesIO(), image.copy()
    small.thumbnail((side, side))
    small.save(file, "PNG")
    return file.getvalue()
