"""Ranks, accuracy and recall: by hand, against brute force, and against scikit-learn's and clip_benchmark's own functions."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch
from clip_benchmark.metrics.zeroshot_retrieval import batchify, recall_at_k
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score

from mobileclip.evaluation.metrics import classification, positive_ranks, retrieval
from mobileclip.zeroshot import normalized


def unit(rows: int, dim: int, seed: int) -> np.ndarray:
    return normalized(np.random.default_rng(seed).normal(size=(rows, dim)))


def test_classification_by_hand():
    classes = np.eye(5, dtype=np.float32)
    images = np.array(
        [[0.9, 0.1, 0, 0, 0], [0.1, 0.9, 0, 0, 0], [0.2, 0.5, 0.1, 0.3, 0], [0, 0.9, 0.8, 0, 0]],
        np.float32,
    )
    # Ranks of the right classes 0, 0, 0, 2: 1, 2, 3, 2. Recall of class 0 is 1/3, of class 2 it is 0.
    assert classification(images, classes, np.arange(len(classes)), np.array([0, 0, 0, 2])) == {
        "acc1": 1 / 4,
        "acc5": 1.0,
        "mean_per_class_recall": pytest.approx(1 / 6),
    }
    assert classification(images, classes[:4], np.arange(4), np.array([0, 0, 0, 2]))["acc5"] is None


def test_retrieval_by_hand_with_several_captions_and_a_pool():
    images = np.array([[1, 0, 0], [0, 1, 0]], np.float32)
    texts = np.array(
        [
            [0.1, 0.9, 0],  # of image 0, nearer to image 1
            [0.8, 0.2, 0],  # of image 0
            [0.3, 0.7, 0],  # of image 1; for image 1 the first text comes before it
            [0.9, 0.8, 0],  # of no image: in the pool, no query; the first one for image 0
        ],
        np.float32,
    )
    metrics = retrieval(images, texts, np.array([[0, 0], [0, 1], [1, 2]]))
    assert metrics == pytest.approx(
        {
            "image_retrieval_recall@1": 2 / 3,
            "image_retrieval_recall@5": 1.0,
            "image_retrieval_recall@10": 1.0,
            "image_retrieval_mean_rank": 4 / 3,
            "image_retrieval_median_rank": 1.0,
            "text_retrieval_recall@1": 0.0,
            "text_retrieval_recall@5": 1.0,
            "text_retrieval_recall@10": 1.0,
            "text_retrieval_mean_rank": 2.5,  # ranks 2 and 3
            "text_retrieval_median_rank": 2.5,
            "mean_recall@1": 1 / 3,
        }
    )


def test_equal_scores_rank_by_index():
    same = np.ones((4, 1), np.float32)
    own = np.stack([np.arange(4), np.arange(4)], 1)
    assert positive_ranks(same, same, own).tolist() == [1, 2, 3, 4]
    assert positive_ranks(same[:1], same, np.array([[0, 3], [0, 1]])).tolist() == [2]


@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 90), st.integers(0, 2**32))
@settings(deadline=None, max_examples=200)
def test_ranks_equal_a_stable_sort_for_any_block(queries, gallery, at_once, seed):
    rng = np.random.default_rng(seed)
    q, g = (rng.integers(-1, 2, (n, 3)).astype(np.float32) for n in (queries, gallery))  # many ties
    positives = [rng.choice(gallery, rng.integers(1, gallery + 1), replace=False) for _ in range(queries)]
    pairs = np.array([(i, p) for i, many in enumerate(positives) for p in many])
    order = np.argsort(-(q @ g.T), axis=1, kind="stable").tolist()
    expected = [1 + min(order[i].index(p) for p in many) for i, many in enumerate(positives)]
    assert positive_ranks(q, g, rng.permutation(pairs), at_once).tolist() == expected


def test_blocks_do_not_change_the_rank_of_repeated_rows():
    queries, gallery = unit(301, 67, 0), np.repeat(unit(97, 67, 1), 3, 0)
    pairs = np.stack([np.arange(301), np.arange(301) % 291], 1)
    whole = positive_ranks(queries, gallery, pairs)
    assert ((whole - 1) % 3 == pairs[:, 1] % 3).all()  # the copies of an answer stand together, in their order
    for at_once in (1, 1000, 7777):
        np.testing.assert_array_equal(positive_ranks(queries, gallery, pairs, at_once), whole)


@pytest.mark.parametrize("classes", [3, 4, 5, 37])
def test_classification_equals_scikit_learn(classes):
    images, weights = unit(500, 16, 2), unit(classes, 16, 3)
    labels = np.random.default_rng(4).integers(0, classes - 1, 500)  # the last class never occurs
    scores = images @ weights.T
    got = classification(images, weights, np.arange(len(weights)), labels)
    expected = [top_k_accuracy_score(labels, scores, k=k, labels=range(classes)) for k in (1, 5) if k < classes]
    assert [v for v in (got["acc1"], got["acc5"]) if v is not None and v < 1] == pytest.approx(expected)
    assert got["mean_per_class_recall"] == pytest.approx(balanced_accuracy_score(labels, scores.argmax(1)))


def test_retrieval_equals_clip_benchmark():
    images = unit(60, 8, 5)
    owner = np.repeat(np.arange(60), np.random.default_rng(6).integers(1, 6, 60))
    texts = normalized(images[owner] + 0.6 * unit(len(owner), 8, 7))
    got = retrieval(images, texts, np.stack([owner, np.arange(len(owner))], 1))
    scores = torch.from_numpy(texts @ images.T)
    positive = torch.from_numpy(owner[:, None] == np.arange(60))
    for k in (1, 5, 10):
        for way, s, p in (("image", scores, positive), ("text", scores.T, positive.T)):
            theirs = (batchify(recall_at_k, s, p, 16, "cpu", k=k) > 0).float().mean().item()
            assert got[f"{way}_retrieval_recall@{k}"] == pytest.approx(theirs)
            assert theirs > 0.1  # the case is neither hopeless nor trivial
    assert 0.1 < got["mean_recall@1"] < 0.9


def test_memory_does_not_grow_with_the_product_of_both_sides():
    images, texts = unit(20_000, 4, 8), unit(20_000, 4, 9)
    tracemalloc.start()
    try:
        positive_ranks(images[:2000], texts, np.stack([np.arange(2000)] * 2, 1), 1 << 20)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 2000 * 20_000 * 4 / 4
