"""Labels, templates, class embeddings and ranking."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mobileclip.errors import InputError
from mobileclip.export.encoder import Encoder, open_encoder
from mobileclip.zeroshot import TEMPLATES, class_embeddings, normalized, predict, read_labels, read_templates, top_rows


@pytest.fixture(scope="module")
def nano_encoder() -> Encoder:
    return open_encoder("untrained:mobileclip_nano")


def unit(rows: int, dim: int, seed: int = 0) -> np.ndarray:
    return normalized(np.random.default_rng(seed).normal(size=(rows, dim)))


def test_labels_keep_their_order_without_blanks_and_repetitions():
    assert read_labels(" a cat,a dog ,, a cat,a bird,") == ["a cat", "a dog", "a bird"]


def test_labels_file_with_bom_and_windows_lines_may_hold_commas(tmp_path):
    file = tmp_path / "labels.txt"
    file.write_bytes("\ufeffa cat, asleep\r\n\r\n  a dög  \r\na cat, asleep\r\n".encode())
    assert read_labels(file=file) == ["a cat, asleep", "a dög"]
    assert read_labels("a bird", file) == ["a bird", "a cat, asleep", "a dög"]


@pytest.mark.parametrize(("content", "message"), [(b" \n\n", "one a line"), (b"caf\xe9\n", "UTF-8"), (None, "no such file")])
def test_unusable_labels_file(tmp_path, content, message):
    file = tmp_path / "labels.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_labels(file=file)


def test_no_labels_names_the_options():
    with pytest.raises(InputError, match="--labels-file"):
        read_labels(" , ,")


def test_templates_by_name_text_and_file(tmp_path):
    file = tmp_path / "templates.txt"
    file.write_text("a sketch of a {}.\n\na {} toy\na sketch of a {}.\n")
    assert read_templates() == ("{}",)
    assert read_templates("photo") == ("a photo of a {}.",)
    assert read_templates("one {} only") == ("one {} only",)
    assert read_templates(str(file)) == ("a sketch of a {}.", "a {} toy")
    assert all(t.count("{}") == 1 for templates in TEMPLATES.values() for t in templates)


@pytest.mark.parametrize(("content", "message"), [("a photo\n", "has no {}"), ("\n", "holds no template")])
def test_unusable_templates(tmp_path, content, message):
    file = tmp_path / "templates.txt"
    file.write_text(content)
    with pytest.raises(InputError, match=message):
        read_templates(str(file))


def test_unknown_template_set_names_the_nearest():
    with pytest.raises(InputError, match="did you mean 'ensemble'"):
        read_templates("ensembel")


def test_class_embeddings_are_normalised_means_of_normalised_captions(nano_encoder):
    labels, templates = ["cat", "{}", "{0} dog", "100 % wool"], ("a photo of a {}.", "{} and {}", "the {label} {}")
    got = class_embeddings(nano_encoder, labels, templates)
    for label, row in zip(labels, got, strict=True):
        captions = [f"a photo of a {label}.", f"{label} and {label}", "the {label} " + label]
        mean = np.mean([nano_encoder.encode_texts([c])[0] for c in captions], axis=0, dtype=np.float64)
        np.testing.assert_allclose(row, mean / np.linalg.norm(mean), atol=1e-6)


class HashedTexts:
    """A text encoder that costs nothing, for numbers of labels that matter."""

    largest = 0

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        self.largest = max(self.largest, len(texts))
        return normalized(np.stack([np.random.default_rng(list(t.encode())).normal(size=8) for t in texts]))


def test_twelve_thousand_labels_are_encoded_a_few_at_a_time():
    labels, encoder, steps = [f"thing {i}" for i in range(12_000)], HashedTexts(), []
    classes = class_embeddings(encoder, labels, ("{}", "a {}"), steps.append)
    assert classes.shape == (12_000, 8)
    assert encoder.largest <= 256
    assert len(steps) > 10
    for i in (0, 127, 128, 11_999):
        np.testing.assert_allclose(classes[i], class_embeddings(encoder, [labels[i]], ("{}", "a {}"))[0], atol=1e-7)
    best = predict(classes[7_777], classes, labels, 100.0, 3)
    assert best[0].label == "thing 7777"
    assert best[0].cosine == pytest.approx(1.0, abs=1e-6)


@given(st.integers(1, 40), st.floats(0.0, 1000.0), st.integers(0, 2**32))
@settings(deadline=None, max_examples=60)
def test_predictions_are_a_softmax_over_all_labels(labels, scale, seed):
    classes, image = unit(labels, 16, seed), unit(1, 16, seed + 1)[0]
    names = [str(i) for i in range(labels)]
    ranked = predict(image, classes, names, scale, labels)
    cosines = {n: float(np.dot(classes[i].astype(float), image.astype(float))) for i, n in enumerate(names)}
    highest = max(cosines.values())
    total = sum(np.exp(scale * (c - highest)) for c in cosines.values())
    assert sorted((p.label for p in ranked), key=int) == names
    assert [p.cosine for p in ranked] == sorted((p.cosine for p in ranked), reverse=True)
    for p in ranked:
        assert p.cosine == pytest.approx(cosines[p.label], abs=1e-12)
        assert p.probability == pytest.approx(np.exp(scale * (cosines[p.label] - highest)) / total, abs=1e-9)
    assert predict(image, classes, names, scale, 2) == ranked[:2]


def test_equal_labels_keep_their_order():
    classes = np.repeat(unit(1, 4), 3, 0)
    assert [p.label for p in predict(classes[0], classes, ["b", "a", "c"], 50.0, 3)] == ["b", "a", "c"]


@given(st.integers(0, 60), st.integers(1, 70), st.integers(1, 70), st.integers(0, 2**32))
@settings(deadline=None, max_examples=100)
def test_ranking_in_chunks_equals_ranking_at_once(rows, top, at_once, seed):
    rng = np.random.default_rng(seed)
    matrix = rng.integers(-2, 3, (rows, 3)).astype(np.float16)  # many ties
    query = rng.integers(-2, 3, 3).astype(np.float32)
    scores = matrix.astype(np.float32) @ query
    order = np.argsort(-scores, kind="stable")[:top]
    assert top_rows(matrix, query, top, at_once) == [(int(i), float(scores[i])) for i in order]


def test_ranking_reads_a_mapped_matrix_in_bounded_memory(tmp_path):
    rows, dim = 200_000, 64
    file: Path = tmp_path / "matrix.npy"
    np.save(file, np.random.default_rng(0).normal(size=(rows, dim)).astype(np.float16))
    matrix = np.load(file, mmap_mode="r")
    query = np.asarray(matrix[123_456], np.float32)
    tracemalloc.start()
    try:
        best = top_rows(matrix, query, 5)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert best[0][0] == 123_456
    assert peak_bytes < rows * dim * 4 / 5
