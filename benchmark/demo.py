"""The demo: everything that the toolkit does for one checkpoint, end to end, on real pictures and captions."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
from PIL import Image

from mobileclip.benchmark import report
from mobileclip.benchmark.bench import bench
from mobileclip.benchmark.protocol import BenchResult
from mobileclip.benchmark.report import Prediction
from mobileclip.benchmark.results import save
from mobileclip.export.bundle import PRECISIONS, Bundle, Options, default_name
from mobileclip.export.encoder import from_bundle
from mobileclip.export.export import export_bundle
from mobileclip.preprocess import open_image
from mobileclip.sources import load_model
from mobileclip.specs import REGISTRY
from mobileclip.zeroshot import class_embeddings, predict, read_labels, read_templates

TOP, THUMBNAIL = 5, 192


@dataclass(frozen=True)
class Trial:
    """What a model is tried on.

    Attributes:
        folder: Of the pictures, among the toolkit's assets.
        picture: Which one is classified.
        query: What is searched for.
        labels: Name of the file with the classes; None: the names of the pictures.
    """

    folder: str
    picture: str
    query: str
    labels: str | None = None


PHOTOGRAPHS = Trial("photos", "cat", "a cup of coffee on a table", "labels.txt")
DRAWINGS = Trial("drawings", "pineapple", "animal")
"""For our own model, which is made for drawings; these are of a style that its training data does not have."""


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
        source: A checkpoint file, or a variant.
        out: Folder for everything.
        progress: Told each step.
    """
    progress(f"loading {source}")
    model = load_model(source)
    bundles = []
    for precision in PRECISIONS:
        bundles.append(export_bundle(model, Options(precision=precision), out / default_name(model.name, precision), progress))
    measured = bench([b.path for b in bundles], progress=progress)
    results = out / "results"
    save(measured, results)
    prediction = try_out(bundles[0], _trial(model.name))
    page = out / "report.html"
    report.write(report.collect([*(b.path for b in bundles), results]), page, prediction)
    return Demo(bundles, list(measured.results), tuple(measured.skipped), prediction, page)


def _trial(name: str) -> Trial:
    spec = REGISTRY.get(name)
    return DRAWINGS if spec is not None and spec.weights is None else PHOTOGRAPHS


def try_out(bundle: Bundle, trial: Trial) -> Prediction:
    """Zero-shot classification of a picture that ships with the toolkit, and a search for one, by the bundle's ONNX artifacts."""
    assets = Path(str(files("mobileclip.assets")))
    paths = sorted((assets / trial.folder).glob("*.webp"))
    names = [path.stem.replace("_", " ") for path in paths]
    labels = read_labels(file=assets / trial.labels) if trial.labels else names
    images = [open_image(path) for path in paths]
    encoder = from_bundle(bundle, "onnx")
    embedded = encoder.encode_images(images)
    chosen = names.index(trial.picture)
    ranked = predict(embedded[chosen], class_embeddings(encoder, labels, read_templates("none")), labels, encoder.logit_scale, TOP)
    cosines = embedded @ encoder.encode_texts([trial.query])[0]
    best = np.argsort(-cosines, kind="stable")[:TOP]
    return Prediction(
        image=_png(images[chosen]),
        caption=f"classified: “{trial.picture}”",
        rows=[(p.label, p.probability) for p in ranked],
        labels=len(labels),
        query=trial.query,
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
