"""Score an encoder on a data set: zero-shot classification (arXiv 2103.00020, section 3.1) and retrieval both ways."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, get_args

import numpy as np
from PIL import Image

from mobileclip.data.samples import BadSample, Reason, Tally, decode_image
from mobileclip.data.source import LABEL
from mobileclip.errors import InputError
from mobileclip.evaluation import metrics
from mobileclip.evaluation.datasets import Dataset, Example, Kind, matching
from mobileclip.files import did_you_mean, json_lines
from mobileclip.zeroshot import Embeddings, class_embeddings, read_labels, read_templates

Progress = Callable[[str], None]
WHOLE = ("{}",)
"""The templates that take a text as it is."""


class Encoder(Protocol):
    """What is scored; `mobileclip.export.encoder.Encoder` is one, and a model in training can be wrapped as another."""

    def encode_images(self, images: Iterable[Image.Image]) -> Embeddings:
        """Normalised embeddings (N, D) of pictures, which are taken from the iterable a few at a time."""
        ...

    def encode_texts(self, texts: Sequence[str]) -> Embeddings:
        """Normalised embeddings (N, D) of captions."""
        ...


@dataclass(frozen=True)
class Task:
    """What to measure; each field that is left out follows from the data set.

    Attributes:
        kind: Classification where the examples have labels, else retrieval.
        label_field: Field of the examples that holds the label; default for classification `label`. For retrieval the labels are then the
            texts, each with all pictures of that label; default: the captions, each with its own picture.
        labels: All classes, or all labels for retrieval; for retrieval of captions more texts that are searched. `NAME<tab>TEXT` gives a
            label another text; a class that stands there with several texts has them all, and the nearest counts. An example's label is a
            name or an index. Default: the data set's classes, else all labels that occur.
        templates: Captions with `{}` for the label; default: the data set's own, else the label itself.
        where: See `mobileclip.evaluation.datasets.matching`.
    """

    kind: Kind | None = None
    label_field: str | None = None
    labels: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()
    where: tuple[str, ...] = ()


def task(
    kind: str | None, label_field: str | None, labels_file: Path | None, templates: str | None, where: Sequence[str],
    text_field: str | None = None,
) -> Task:  # fmt: skip
    """A task from what a user writes; see `mobileclip.zeroshot.read_labels` and `read_templates`.

    Args:
        labels_file: Text with one label a line; or `.jsonl`, where the label is each line's `label_field`, by default `label`.
        text_field: Field of a `.jsonl` file with the labels' texts; default: the labels themselves.

    Raises:
        InputError: An unknown kind, or a file that cannot be used.
    """
    known = next((k for k in get_args(Kind) if k == kind), None)
    if kind is not None and known is None:
        raise did_you_mean("task", kind, get_args(Kind))
    labels: Sequence[str] = ()
    if labels_file and labels_file.suffix == ".jsonl":
        labels = _listed(labels_file, label_field or LABEL, text_field)
    elif labels_file:
        labels = read_labels(file=labels_file, repeated=True)
    return Task(known, label_field, tuple(labels), read_templates(templates) if templates else (), tuple(where))


def _listed(path: Path, label_field: str, text_field: str | None) -> list[str]:
    """The values of a field in their order, each once; with texts, each once with each of its texts."""
    fields = [label_field, *([text_field] if text_field else [])]
    rows = ([str(row.get(name, "")).strip() for name in fields] for row, _, _ in json_lines(path))
    found = dict.fromkeys("\t".join(values) for values in rows if all(values))
    if not found:
        raise InputError(f"{path}: no line has a field {' and '.join(map(repr, fields))}; name another with --label-field or --text-field")
    return list(found)


@dataclass(frozen=True)
class Embedded:
    """Embedded pictures (N, D) with the examples they are of, without their pictures."""

    rows: Embeddings
    examples: list[Example]
    skipped: Counter[str]


@dataclass(frozen=True)
class Score:
    """A measurement.

    Attributes:
        metrics: Name to value, with `main_metric`.
        details: Numbers that the main metric must be read with: pictures, classes or texts, chance, the share of the largest class.
        tally: Examples that were used, and those that were not by reason.
    """

    kind: Kind
    metrics: metrics.Metrics
    details: dict[str, int | float]
    tally: Tally


def run(encoder: Encoder, dataset: Dataset, wanted: Task, max_bad: float, progress: Progress, option: str = "--max-bad") -> Score:
    """Score an encoder on a data set.

    Args:
        max_bad: Largest share of examples that may be unusable, 0 to 1.
        progress: Told how far it is.
        option: What the user calls `max_bad`.

    Raises:
        InputError: No usable example, or too many unusable ones.
    """
    kind, dataset = _kind(dataset, wanted), matching(dataset, wanted.where)
    embedded = embed(encoder, dataset.read(), progress)
    templates = wanted.templates or dataset.templates or WHOLE
    if kind == "classification":
        labels = wanted.labels or dataset.classes
        score = classification(encoder, embedded, labels, templates, wanted.label_field or LABEL, progress)
    else:
        templates = wanted.templates or WHOLE
        score = retrieval(encoder, embedded, wanted.label_field, wanted.labels, templates, progress)
    score.tally.check(max_bad, at_least=1, option=option)
    return score


def _kind(dataset: Dataset, wanted: Task) -> Kind:
    if wanted.kind or dataset.kind:
        return wanted.kind or dataset.kind or "classification"
    first = next((e for e in dataset.read() if isinstance(e, Example)), None)
    return "classification" if wanted.label_field or (first and LABEL in first.fields) else "retrieval"


def embed(encoder: Encoder, examples: Iterable[Example | BadSample], progress: Progress) -> Embedded:
    """Embed the pictures of examples; one that cannot be decoded is counted. One picture is decoded at a time."""
    kept: list[Example] = []
    skipped: Counter[str] = Counter()

    def pictures() -> Iterator[Image.Image]:
        for i, example in enumerate(examples):
            if i % 256 == 0:
                progress(f"embedding pictures: {i:,}")
            if isinstance(example, BadSample):
                skipped[example.reason] += 1
                continue
            try:
                image = decode_image(example.image) if isinstance(example.image, bytes) else example.image
            except BadSample as e:
                skipped[e.reason] += 1
                continue
            kept.append(Example(example.key, b"", example.captions, example.fields))
            yield image

    return Embedded(encoder.encode_images(pictures()), kept, skipped)


def classification(
    encoder: Encoder, embedded: Embedded, labels: Sequence[str], templates: Sequence[str], label_field: str, progress: Progress
) -> Score:
    """Zero-shot classification of embedded pictures; those without a label, or with one that is no class, are counted.

    Raises:
        InputError: No picture has a label that is a class.
    """
    names, texts = _classes(labels or _labels_of(embedded, label_field))
    classes, index = _numbered(names, texts)
    count = max(classes, default=-1) + 1
    found = [_label(e.fields.get(label_field), index, count if labels else 0) for e in embedded.examples]
    tally, used = _tally(embedded, found)
    if not used:
        raise InputError(f"no picture has a class in its field {label_field!r} ({tally.reasons()}); name the field, or give the labels")
    targets, rows = np.array([found[i] for i in used], np.int64), class_embeddings(encoder, texts, templates, progress)
    measured = metrics.classification(embedded.rows[used], rows, np.array(classes, np.int64), targets)
    details = {
        "pictures": len(used),
        "classes": count,
        "templates": len(templates),
        "chance": 1 / count,
        "largest_class": float(np.bincount(targets).max() / len(used)),
    }
    return Score("classification", {**measured, "main_metric": measured["acc1"]}, details, tally)


def retrieval(
    encoder: Encoder, embedded: Embedded, label_field: str | None, pool: Sequence[str], templates: Sequence[str], progress: Progress
) -> Score:
    """Retrieval between embedded pictures and texts: their captions, or their labels; pictures without one are counted.

    Equal captions of two pictures stay two texts, each with one right picture, as clip_benchmark and the published numbers have it.

    Args:
        label_field: Field with the labels that are the texts; None takes the captions.
        pool: All labels; without a label field more texts that are searched.

    Raises:
        InputError: No picture has a text.
    """
    if label_field is None:
        own = [e.captions for e in embedded.examples]
        tally, used = _tally(embedded, ["no_caption" if not captions else 0 for captions in own])
        texts = [*itertools.chain.from_iterable(own[i] for i in used), *pool]
        pairs = [(row, text) for text, row in enumerate(row for row, i in enumerate(used) for _ in own[i])]
    else:
        names, texts = _classes(pool or _labels_of(embedded, label_field))
        index = {name: i for i, name in reversed(list(enumerate(names)))}
        found = [_label(e.fields.get(label_field), index, len(names) if pool else 0) for e in embedded.examples]
        tally, used = _tally(embedded, found)
        pairs = [(row, int(found[i])) for row, i in enumerate(used)]
    if not pairs:
        raise InputError(f"no picture has a text ({tally.reasons()}); give captions, or name a field of labels")
    both = np.array(pairs, np.int64)
    measured = metrics.retrieval(embedded.rows[used], class_embeddings(encoder, texts, templates, progress), both)
    queries = len(np.unique(both[:, 1]))  # texts with a picture
    chance = (len(both) / len(used) / len(texts) + len(both) / queries / len(used)) / 2
    details = {"pictures": len(used), "texts": len(texts), "templates": len(templates), "chance": chance}
    return Score("retrieval", {**measured, "main_metric": measured["mean_recall@1"]}, details, tally)


def _labels_of(embedded: Embedded, label_field: str) -> list[str]:
    return sorted({str(e.fields[label_field]).strip() for e in embedded.examples if _is_label(e.fields.get(label_field))})


def _classes(labels: Sequence[str]) -> tuple[list[str], list[str]]:
    """Names and texts of labels, see `Task.labels`."""
    parts = [label.partition("\t") for label in labels]
    return [name.strip() for name, _, _ in parts], [(text or name).strip() for name, _, text in parts]


def _numbered(names: Sequence[str], texts: Sequence[str]) -> tuple[list[int], dict[str, int]]:
    """The class of each label, and of each name. Another text for a name belongs to its class.

    A label that is there again is a class of its own, known by its number: two of ImageNet's 1000 names are there twice.
    """
    numbers, index, classes, seen = itertools.count(), dict[str, int](), list[int](), set[tuple[str, str]]()
    for name, text in zip(names, texts, strict=True):
        classes.append(index[name] if name in index and (name, text) not in seen else next(numbers))
        index.setdefault(name, classes[-1])
        seen.add((name, text))
    return classes, index


def _is_label(value: Any) -> bool:
    return isinstance(value, int | str) and not isinstance(value, bool) and str(value).strip() != ""


def _label(value: Any, index: Mapping[str, int], numbered: int) -> int | Reason:
    """The class of a field's value, or why it has none.

    Numbers are indices below `numbered`, if there are any; so is a text of digits (a table has no numbers) that is no class's name.
    """
    if not _is_label(value):
        return "no_label"
    text = str(value).strip()
    if text in index and not (isinstance(value, int) and numbered):
        return index[text]
    is_index = text.isascii() and text.isdecimal() and len(text) < 10 and int(text) < numbered
    return int(text) if is_index else "unknown_label"


def _tally(embedded: Embedded, found: Sequence[int | Reason]) -> tuple[Tally, list[int]]:
    """The final count, and the examples that can be used."""
    used = [i for i, value in enumerate(found) if isinstance(value, int)]
    return Tally(len(used), embedded.skipped + Counter(value for value in found if isinstance(value, str))), used
