"""Tasks on real pictures: equal to the step-by-step computation, and exact where the answers are known."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pytest
from PIL import Image

from mobileclip import zeroshot
from mobileclip.data.samples import BadSample
from mobileclip.errors import InputError
from mobileclip.evaluation.datasets import Dataset, Example, open_dataset
from mobileclip.evaluation.tasks import Task, embed, run, task
from mobileclip.export.encoder import open_encoder

NAMES = ("cat", "coffee", "dahlia", "drum", "rocket")


def quiet(step: str) -> None:
    """Say nothing."""


class Colours:
    """Embeds a picture by its first pixel and a caption by the colours that it names, so that every answer is known."""

    axes = ("red", "green", "blue")

    def encode_images(self, images: Iterable[Image.Image]) -> np.ndarray:
        pixels = [image.getpixel((0, 0)) for image in images]
        return zeroshot.normalized(np.array(pixels, np.float32).reshape(-1, 3))

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        return zeroshot.normalized(np.array([[float(a in t) for a in self.axes] for t in texts], np.float32))


def coloured(key: str, rgb: tuple[int, int, int], *captions: str, **fields: object) -> Example:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), rgb).save(file, "PNG")
    return Example(key, file.getvalue(), captions, fields)


def dataset(*examples: Example | BadSample, **known: object) -> Dataset:
    return Dataset("colours", lambda: iter(examples), **known)


RED, GREEN, BLUE = (255, 10, 0), (0, 255, 10), (10, 0, 255)


def test_classification_of_known_answers():
    data = dataset(
        coloured("a", RED, label="red", group="warm"),
        coloured("b", GREEN, label="green"),
        coloured("c", GREEN, label="red"),
        coloured("d", BLUE, label="blue"),
        coloured("e", BLUE),
        Example("f", b"no picture", (), {"label": "red"}),
        Example("g", b"P6 10000 10000 255 ", (), {"label": "red"}),  # a PPM that claims more pixels than the limit
        BadSample("no_image"),
    )
    score = run(Colours(), data, Task(), 0.5, quiet)
    assert (score.kind, score.tally.seen) == ("classification", 4)
    assert dict(score.tally.skipped) == {"no_label": 1, "bad_image": 1, "no_image": 1, "too_large": 1}
    assert score.metrics == {"acc1": 0.75, "acc5": None, "mean_per_class_recall": pytest.approx((1 / 2 + 1 + 1) / 3), "main_metric": 0.75}
    assert score.details == {"pictures": 4, "classes": 3, "templates": 1, "chance": pytest.approx(1 / 3), "largest_class": 0.5}
    with pytest.raises(InputError, match=r"4 of 8 samples are bad \(bad_image 1, no_image 1, no_label 1, too_large 1\), more than"):
        run(Colours(), data, Task(), 0.1, quiet)


def test_the_pool_may_be_larger_and_labels_may_have_other_texts():
    data = dataset(coloured("a", RED, label="x"), coloured("b", GREEN, label="y"), coloured("c", BLUE, label="z"))
    score = run(Colours(), data, Task(labels=("y\tgreen", "x\tgreen and blue", "w\tred", "v\tred")), 0.5, quiet)
    assert dict(score.tally.skipped) == {"unknown_label": 1}
    assert score.metrics["acc1"] == 0.5  # `y` is found, `x` is not


def test_a_class_with_several_texts_is_as_near_as_the_nearest_of_them():
    data = dataset(coloured("a", RED, label="warm"), coloured("b", GREEN, label="cold"), coloured("c", BLUE, label="cold"))
    labels = ("warm\tred", "cold\tblue", "odd\tgreen and blue", "cold\tgreen", "d\td", "e\te")
    score = run(Colours(), data, Task(labels=labels), 0, quiet)
    assert score.metrics == {"acc1": 1.0, "acc5": None, "mean_per_class_recall": 1.0, "main_metric": 1.0}
    assert score.details["classes"] == 5
    worse = run(Colours(), data, Task(labels=labels[:3]), 0, quiet)
    assert worse.metrics["acc1"] == pytest.approx(2 / 3)


def test_labels_that_are_numbers_are_indices_into_the_classes():
    classes = ("blue", "green", "red")
    data = dataset(
        coloured("a", RED, label=2), coloured("b", GREEN, label="1"), coloured("c", BLUE, label=0), coloured("d", BLUE, label=3),
        coloured("e", BLUE, label=-1), coloured("f", BLUE, label=True), classes=classes,
    )  # fmt: skip
    score = run(Colours(), data, Task(), 0.6, quiet)
    assert score.metrics["acc1"] == 1
    assert dict(score.tally.skipped) == {"unknown_label": 2, "no_label": 1}
    without = run(Colours(), dataset(coloured("a", RED, label=7), coloured("b", GREEN, label=8)), Task(templates=("{}",)), 0.0, quiet)
    assert without.details["classes"] == 2


def test_a_name_that_is_there_twice_is_two_classes(tmp_path):
    """As in ImageNet's 1000 names; the numbers of the classes behind it must not shift. Of equal texts the first is chosen."""
    names = ("red", "green", "green", "blue")
    pictures = [coloured(str(i), colour, label=i) for i, colour in enumerate((RED, GREEN, GREEN, BLUE))]
    (tmp_path / "names.txt").write_text("\n".join(names))
    given = task(None, None, tmp_path / "names.txt", None, ())
    for data, wanted in ((dataset(*pictures, classes=names), Task()), (dataset(*pictures), given)):
        score = run(Colours(), data, wanted, 0.0, quiet)
        assert score.metrics["acc1"] == 0.75
        assert (score.details["classes"], score.details["chance"]) == (4, 0.25)


def test_another_field_is_another_task_on_the_same_embeddings():
    data = dataset(coloured("a", RED, label="x", group="red"), coloured("b", RED, label="y", group="green"))
    score = run(Colours(), data, Task(label_field="group", labels=("green", "red")), 0.0, quiet)
    assert score.metrics["acc1"] == 0.5
    with pytest.raises(InputError, match=r"no picture has a class in its field 'grupo' \(no_label 2\)"):
        run(Colours(), data, Task(label_field="grupo"), 1.0, quiet)


def test_retrieval_of_captions_and_of_labels():
    data = dataset(
        coloured("a", RED, "red", "green"), coloured("b", GREEN, "green and red"), coloured("c", BLUE, "blue"), coloured("d", BLUE)
    )
    captions = run(Colours(), data, Task(), 0.25, quiet)
    assert captions.kind == "retrieval"
    assert dict(captions.tally.skipped) == {"no_caption": 1}
    # Picture b is nearest to the caption "green", which is a's. The texts "green" and "green and red" are nearest to the other picture.
    assert captions.metrics["text_retrieval_recall@1"] == pytest.approx(2 / 3)
    assert captions.metrics["image_retrieval_recall@1"] == 0.5
    assert captions.metrics["main_metric"] == captions.metrics["mean_recall@1"] == pytest.approx(7 / 12)
    assert captions.details == {"pictures": 3, "texts": 4, "templates": 1, "chance": pytest.approx((4 / 3 / 4 + 1 / 3) / 2)}
    wider = run(Colours(), data, Task(labels=("blue!", "yellow")), 0.25, quiet)
    assert wider.details["texts"] == 6
    assert wider.metrics["text_retrieval_recall@1"] == captions.metrics["text_retrieval_recall@1"]  # ties go to what stands first
    labelled = dataset(*(coloured(str(i), c, label=n) for i, (c, n) in enumerate([(RED, "red"), (RED, "red"), (GREEN, "red")])))
    labels = run(Colours(), labelled, Task("retrieval", "label", labels=("red", "green", "blue")), 0.0, quiet)
    assert labels.metrics["text_retrieval_recall@1"] == pytest.approx(2 / 3)
    assert labels.metrics["image_retrieval_recall@1"] == 1  # one of the two red ones
    with pytest.raises(InputError, match=r"no picture has a text \(no_caption 3\)"):
        run(Colours(), labelled, Task("retrieval"), 1.0, quiet)


def test_picture_to_label_retrieval_is_classification(layouts, nano_encoder):
    data, labels = open_dataset(str(layouts.shards)), (*NAMES, "a boat", "a bird")
    retrieval = run(nano_encoder, data, Task("retrieval", "label", labels), 0.0, quiet)
    classification = run(nano_encoder, data, Task("classification", "label", labels), 0.0, quiet)
    assert retrieval.metrics["text_retrieval_recall@1"] == classification.metrics["acc1"]
    assert retrieval.metrics["text_retrieval_recall@5"] == classification.metrics["acc5"]


def test_published_layout_equals_classifying_the_files(layouts, nano_encoder):
    files = sorted(layouts.folders.rglob("*.png"))
    ranked = zeroshot.classify(nano_encoder, files, NAMES, ("a photo of a {}.", "the {}"), 5)
    first = [c.predictions[0].label == c.path.parent.name for c in ranked]
    for data in (layouts.published, layouts.folders):
        chosen = Task(templates=("a photo of a {}.", "the {}"))
        score = run(nano_encoder, open_dataset(str(data)), chosen if data == layouts.folders else Task(), 0.0, quiet)
        assert score.metrics["acc1"] == np.mean(first)
        assert score.metrics["acc5"] == 1
        assert score.details["templates"] == 2


def test_a_bundle_scores_as_its_model(layouts, nano_encoder, nano_bundle):
    bundle = open_encoder(str(nano_bundle))
    for data in (layouts.table, layouts.published_retrieval, layouts.published):
        ours, theirs = (run(e, open_dataset(str(data)), Task(), 0.0, quiet) for e in (nano_encoder, bundle))
        assert ours == theirs
    both = [embed(e, open_dataset(str(layouts.shards)).read(), quiet) for e in (nano_encoder, bundle)]
    assert (both[0].rows * both[1].rows).sum(1).min() > 0.99999
    assert [e.key for e in both[0].examples] == [e.key for e in both[1].examples]


def test_a_table_and_shards_with_the_same_captions_score_alike(layouts, nano_encoder):
    table, shards = (run(nano_encoder, open_dataset(str(d)), Task(), 0.0, quiet) for d in (layouts.table, layouts.published_retrieval))
    assert table.metrics == shards.metrics
    assert (table.details["pictures"], table.details["texts"]) == (10, 20)


def test_pictures_are_read_and_decoded_one_by_one():
    read: list[int] = []

    class OneByOne(Colours):
        def encode_images(self, images: Iterable[Image.Image]) -> np.ndarray:
            rows = []
            for image in images:
                rows.append(super().encode_images([image]))
                assert len(read) == len(rows)
            return np.concatenate(rows)

    def examples() -> Iterator[Example]:
        for i in range(3):
            read.append(i)
            yield coloured(str(i), RED)

    assert len(embed(OneByOne(), examples(), quiet).rows) == 3


def test_what_a_user_writes_becomes_a_task(tmp_path):
    (tmp_path / "labels.txt").write_text("cat\ndog\ta dog\n")
    made = task("retrieval", "group", tmp_path / "labels.txt", "photo", ["style=half"])
    assert made == Task("retrieval", "group", ("cat", "dog\ta dog"), ("a photo of a {}.",), ("style=half",))
    (tmp_path / "all.jsonl").write_text('{"label": "a", "group": "g"}\n\n{"label": "b", "group": "g"}\n{"label": "a"}\n')
    assert task(None, None, tmp_path / "all.jsonl", None, ()).labels == ("a", "b")
    assert task(None, "group", tmp_path / "all.jsonl", None, ()).labels == ("g",)
    assert task(None, "group", tmp_path / "all.jsonl", None, (), "label").labels == ("g\ta", "g\tb")
    with pytest.raises(InputError, match="no line has a field 'kind'"):
        task(None, "kind", tmp_path / "all.jsonl", None, ())
    assert task(None, None, None, None, ()) == Task()
    assert len(task(None, None, None, "openai", ()).templates) == 80
    with pytest.raises(InputError, match="did you mean 'classification'"):
        task("classify", None, None, None, ())
