"""Zero-shot classification: labels and templates to class embeddings, class embeddings to ranked labels (CLIP, arXiv 2103.00020)."""

from __future__ import annotations

import importlib.util
import runpy
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from mobileclip.errors import InputError, MobileClipError
from mobileclip.files import did_you_mean, reading, require

Embeddings = npt.NDArray[np.float32]
Progress = Callable[[str], None]

TEMPLATES: dict[str, tuple[str, ...]] = {
    "none": ("{}",),
    "photo": ("a photo of a {}.",),
    "ensemble": (
        "a photo of a {}.",
        "a photo of the {}.",
        "a close-up of a {}.",
        "a dark photo of a {}.",
        "a blurry photo of a {}.",
        "a small {} far away.",
        "a drawing of a {}.",
    ),
}
"""Built-in sets; `{}` stands for the label. `none` takes the labels as whole captions."""

OPENAI = "openai"
"""Name of the 80 templates that published ImageNet numbers are made with; they come with the package open_clip."""

UNTRAINED_NOTE = "untrained weights: predictions mean nothing"
_TEXTS_AT_ONCE = 256


class TextEncoder(Protocol):
    """What class embeddings are made with."""

    def encode_texts(self, texts: Sequence[str]) -> Embeddings:
        """Normalised embeddings (N, D) of captions."""
        ...


class Encoder(TextEncoder, Protocol):
    """What classifies pictures; `mobileclip.export.encoder.Encoder` is one."""

    @property
    def logit_scale(self) -> float:
        """Factor of the cosines before the softmax."""
        ...

    def encode_files(self, paths: Iterable[Path]) -> Iterator[tuple[Path, Embeddings | MobileClipError]]:
        """Each path with its normalised embedding (D,), or why it has none."""
        ...


@dataclass(frozen=True)
class Prediction:
    """One label of a ranking.

    Attributes:
        probability: Softmax over all labels.
        cosine: Of the picture's embedding and the class embedding.
    """

    label: str
    probability: float
    cosine: float


@dataclass(frozen=True)
class Classified:
    """One picture with its best labels, or why it has none."""

    path: Path
    predictions: tuple[Prediction, ...] = ()
    error: MobileClipError | None = None


def normalized(x: npt.NDArray[np.floating]) -> Embeddings:
    """Rows of unit length, float32; rows of zeros stay."""
    wide = x.astype(np.float64)
    return np.asarray(wide / np.maximum(np.linalg.norm(wide, axis=-1, keepdims=True), 1e-12), np.float32)


def read_labels(commas: str | None = None, file: Path | None = None, *, repeated: bool = False) -> list[str]:
    """Labels in their order, stripped; empty ones and repetitions are dropped, for a repeated label would halve its own probability.

    Args:
        commas: Labels separated by commas.
        file: UTF-8 text, one label a line; labels may hold commas.
        repeated: Keep repetitions, where labels are known by their numbers.

    Raises:
        InputError: No label is left, or the file cannot be used.
    """
    found = [*(commas or "").split(","), *(_lines(file) if file else [])]
    labels = [label.strip() for label in found if label.strip()]
    if not labels:
        raise InputError(
            f"{file}: holds no label; write one a line" if file else "no labels; give --labels 'a cat,a dog' or --labels-file FILE"
        )
    return labels if repeated else list(dict.fromkeys(labels))


def read_templates(source: str = "none") -> tuple[str, ...]:
    """A built-in set or `openai` by name, one template as it is (anything that holds `{}`), or a UTF-8 file with one template a line.

    Raises:
        InputError: An unknown set, an empty file, or a template without `{}`.
        MissingToolError: `openai` without open_clip.
    """
    if source in TEMPLATES:
        return TEMPLATES[source]
    if source == OPENAI:
        return _openai_templates()
    if "{}" in source:
        return (source,)
    if not Path(source).exists():
        raise did_you_mean("template set or file", source, (*TEMPLATES, OPENAI))
    templates = tuple(dict.fromkeys(line.strip() for line in _lines(Path(source)) if line.strip()))
    if not templates:
        raise InputError(f"{source}: holds no template; write one a line, with {{}} for the label")
    for template in templates:
        if "{}" not in template:
            raise InputError(f"{source}: the template {template[:80]!r} has no {{}} for the label")
    return templates


def _openai_templates() -> tuple[str, ...]:
    require("open_clip", "open-clip", f"the template set {OPENAI}")
    package = importlib.util.find_spec("open_clip")
    assert package is not None
    assert package.origin is not None
    # The file alone: importing the whole package takes seconds.
    found = runpy.run_path(str(Path(package.origin).with_name("zero_shot_metadata.py")))["OPENAI_IMAGENET_TEMPLATES"]
    return tuple(template("{}") for template in found)


def _lines(path: Path) -> list[str]:
    with reading(path):
        data = path.read_bytes()
    try:
        return data.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as e:
        raise InputError(f"{path}: is not UTF-8 text (byte {e.start}); save it as UTF-8") from None


def class_embeddings(encoder: TextEncoder, labels: Sequence[str], templates: Sequence[str], progress: Progress | None = None) -> Embeddings:
    """One embedding a label: the mean of its captions' normalised embeddings, normalised (arXiv 2103.00020, section 3.1.4).

    Args:
        labels: L labels.
        templates: T captions with `{}` for the label.
        progress: Told how far it is.

    Returns:
        (L, D) float32, normalised.
    """
    at_once = max(1, _TEXTS_AT_ONCE // len(templates))
    classes = []
    for start in range(0, len(labels), at_once):
        part = labels[start : start + at_once]
        if progress:
            progress(f"embedding labels: {start:,} of {len(labels):,}")
        captions = [template.replace("{}", label) for label in part for template in templates]
        embeddings = encoder.encode_texts(captions)  # (labels * T, D)
        classes.append(normalized(embeddings.reshape(len(part), len(templates), -1).mean(1)))
    return np.concatenate(classes)


def classify(
    encoder: Encoder, paths: Sequence[Path], labels: Sequence[str], templates: Sequence[str], top: int, progress: Progress | None = None
) -> list[Classified]:
    """Classify picture files; one that cannot be read carries its error and does not stop the others.

    Args:
        labels: See `read_labels`.
        templates: See `read_templates`.
        top: Labels for each picture, at most.
        progress: Told how far it is.
    """
    classes = class_embeddings(encoder, labels, templates, progress)
    results = []
    for i, (path, row) in enumerate(encoder.encode_files(paths)):
        if progress and i % 32 == 0:
            progress(f"classifying pictures: {i:,} of {len(paths):,}")
        if isinstance(row, MobileClipError):
            results.append(Classified(path, error=row))
        else:
            results.append(Classified(path, tuple(predict(row, classes, labels, encoder.logit_scale, top))))
    return results


def predict(image: Embeddings, classes: Embeddings, labels: Sequence[str], logit_scale: float, top: int) -> list[Prediction]:
    """The most probable labels of one picture, best first; equal ones in the labels' order.

    Args:
        image: (D,), normalised.
        classes: (L, D), normalised, see `class_embeddings`.
        logit_scale: Factor of the cosines before the softmax.
        top: How many, at most L.
    """
    cosines = classes.astype(np.float64) @ image.astype(np.float64)  # (L,)
    odds = np.exp(logit_scale * (cosines - cosines.max()))
    probabilities = odds / odds.sum()
    best = np.argsort(-cosines, kind="stable")[:top]
    return [Prediction(labels[i], float(probabilities[i]), float(cosines[i])) for i in best]


def top_rows(matrix: npt.NDArray[np.floating], query: Embeddings, top: int, rows_at_once: int = 16_384) -> list[tuple[int, float]]:
    """The rows with the largest dot product, best first; equal ones by row. Memory does not grow with the number of rows.

    Args:
        matrix: (N, D), of any float type; may be memory-mapped.
        query: (D,).
        top: How many, at most N.
        rows_at_once: Rows that are in memory as float32 at one time.

    Returns:
        Row and score.
    """
    rows, scores = np.empty(0, np.int64), np.empty(0, np.float32)
    for start in range(0, len(matrix), rows_at_once):
        part = np.asarray(matrix[start : start + rows_at_once], np.float32) @ query
        rows, scores = np.concatenate([rows, np.arange(start, start + len(part))]), np.concatenate([scores, part])
        best = np.argsort(-scores, kind="stable")[:top]
        rows, scores = rows[best], scores[best]
    return [(int(row), float(score)) for row, score in zip(rows, scores, strict=True)]
