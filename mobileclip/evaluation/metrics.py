"""From embeddings to scores, in numpy and in bounded memory.

All of them rest on one number: the rank of the best-placed right answer. Scores are computed in float64 and rounded to float32, so that
equal embeddings have equal scores whatever the block size; equal scores rank by their index, as a stable sort does.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mobileclip.zeroshot import Embeddings

Indices = npt.NDArray[np.int64]
Metrics = dict[str, float | None]
"""Name to value; shares are from 0 to 1. None where a metric does not apply."""

RECALLS = (1, 5, 10)


def positive_ranks(queries: Embeddings, gallery: Embeddings, pairs: Indices, scores_at_once: int = 1 << 22) -> Indices:
    """For each query the rank of its best-placed positive; 1 is the best.

    Args:
        queries: (Q, D).
        gallery: (G, D).
        pairs: (P, 2) rows of a query and of one of its positives in the gallery; each query has at least one.
        scores_at_once: Scores that are in memory at one time.

    Returns:
        (Q,).
    """
    pairs = pairs[np.argsort(pairs[:, 0], kind="stable")]
    bounds = np.searchsorted(pairs[:, 0], np.arange(len(queries) + 1))
    wide, columns = gallery.astype(np.float64).T, np.arange(len(gallery))
    rows_at_once = max(1, scores_at_once // max(1, len(gallery)))
    ranks = np.empty(len(queries), np.int64)
    for start in range(0, len(queries), rows_at_once):
        stop = min(start + rows_at_once, len(queries))
        scores = (queries[start:stop].astype(np.float64) @ wide).astype(np.float32)
        row, column = (pairs[bounds[start] : bounds[stop]] - (start, 0)).T
        first = bounds[start:stop] - bounds[start]
        own = scores[row, column]
        best = np.maximum.reduceat(own, first)
        place = np.minimum.reduceat(np.where(own == best[row], column, len(gallery)), first)
        ahead = (scores > best[:, None]) | ((scores == best[:, None]) & (columns < place[:, None]))
        ranks[start:stop] = 1 + ahead.sum(1)
    return ranks


def classification(images: Embeddings, texts: Embeddings, classes: Indices, labels: Indices) -> Metrics:
    """Zero-shot classification with one right class for each picture; that of the nearest text is chosen.

    Args:
        images: (N, D), normalised.
        texts: (T, D), normalised, see `mobileclip.zeroshot.class_embeddings`.
        classes: (T,) the class of each text, 0 to C - 1.
        labels: (N,) the class of each picture.

    Returns:
        `acc1`, `acc5` (None below five classes or with several texts for one), `mean_per_class_recall` over the classes that occur.
    """
    ranks = positive_ranks(images, texts, np.argwhere(labels[:, None] == classes))
    count = int(classes.max()) + 1
    pictures = np.bincount(labels, minlength=count)
    right = np.bincount(labels[ranks == 1], minlength=count)
    present = pictures > 0
    return {
        "acc1": _share(ranks, 1),
        "acc5": _share(ranks, 5) if len(texts) == count >= 5 else None,
        "mean_per_class_recall": float((right[present] / pictures[present]).mean()),
    }


def retrieval(images: Embeddings, texts: Embeddings, pairs: Indices) -> Metrics:
    """Retrieval both ways: a query counts as found when at least one of its positives is among the first k (Karpathy and Fei-Fei 2015).

    What has no positive (a text that only enlarges the pool) is searched through, but is no query.

    Args:
        images: (N, D), normalised.
        texts: (T, D), normalised.
        pairs: (P, 2) rows of a picture and of a text that belong together, at least one.

    Returns:
        For `image_retrieval` (text to picture) and `text_retrieval` (picture to text) `_recall@1`, `@5`, `@10`, `_mean_rank` and
        `_median_rank` of the best-placed positive, with 1 as the best; `mean_recall@1` of both ways.
    """
    metrics: Metrics = {}
    for way, queries, gallery, ordered in (("image", texts, images, pairs[:, ::-1]), ("text", images, texts, pairs)):
        rows, query = np.unique(ordered[:, 0], return_inverse=True)
        ranks = positive_ranks(queries[rows], gallery, np.stack([query, ordered[:, 1]], 1))
        metrics.update({f"{way}_retrieval_recall@{k}": _share(ranks, k) for k in RECALLS})
        metrics[f"{way}_retrieval_mean_rank"] = float(ranks.mean())
        metrics[f"{way}_retrieval_median_rank"] = float(np.median(ranks))
    both = (metrics["image_retrieval_recall@1"] or 0.0, metrics["text_retrieval_recall@1"] or 0.0)
    return {**metrics, "mean_recall@1": sum(both) / 2}


def _share(ranks: Indices, k: int) -> float:
    return float((ranks <= k).mean())
