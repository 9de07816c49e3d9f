"""DataComp's evaluation: 38 data sets, the main metric of each, and their plain average (Gadre et al. 2023, arXiv 2304.14108).

Its list has 40 entries; FairFace and UTKFace have no main metric and do not count. Published results files hold other sets besides
(SugarCrepe, long captions), which do not count either.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mobileclip.errors import InputError

MAIN_METRIC = {
    **dict.fromkeys(("cars", "cifar10", "country211", "food101", "gtsrb", "imagenet1k", "mnist", "renderedsst2", "stl10"), "acc1"),
    **dict.fromkeys(("imagenet-a", "imagenet-o", "imagenet-r", "imagenet_sketch", "imagenetv2", "objectnet", "sun397", "voc2007"), "acc1"),
    **dict.fromkeys(("vtab/cifar100", "vtab/clevr_closest_object_distance", "vtab/clevr_count_all", "vtab/dtd", "vtab/eurosat"), "acc1"),
    **dict.fromkeys(("vtab/kitti_closest_vehicle_distance", "vtab/pcam", "vtab/resisc45", "vtab/svhn", "wilds/camelyon17"), "acc1"),
    **dict.fromkeys(("fgvc_aircraft", "vtab/caltech101", "vtab/flowers", "vtab/pets"), "mean_per_class_recall"),
    "retrieval/flickr_1k_test_image_text_retrieval": "mean_recall@1",
    "retrieval/mscoco_2014_5k_test_image_text_retrieval": "mean_recall@1",
    "misc/winogavil": "jaccard_score_10-12",
    "wilds/iwildcam": "F1-macro_all",
    "wilds/fmow": "acc_worst_region",
    "fairness/dollar_street": "acc_top5_wg",
    "fairness/geode": "acc_wg",
}
"""The 38 keys, with the metric of each that enters the average."""

GROUPS: dict[str, tuple[str, ...]] = {
    "ImageNet": ("imagenet1k",),
    "ImageNet shifts": ("imagenet_sketch", "imagenetv2", "imagenet-a", "imagenet-o", "imagenet-r", "objectnet"),
    "VTAB": (*(key for key in MAIN_METRIC if key.startswith("vtab/")), "sun397"),
    "retrieval": (*(key for key in MAIN_METRIC if key.startswith("retrieval/")), "misc/winogavil"),
}


@dataclass(frozen=True)
class Average:
    """A mean of main metrics.

    Attributes:
        mean: From 0 to 1, over the sets that are there; None where none is.
        sets: How many are there.
        missing: Keys of those that are not.
    """

    mean: float | None
    sets: int
    missing: tuple[str, ...]


@dataclass(frozen=True)
class Summary:
    """The average over all 38 sets and over each of `GROUPS`; `scores` holds the main metrics that are there, by key."""

    average: Average
    groups: dict[str, Average]
    scores: dict[str, float]


def summarize(rows: Iterable[Mapping[str, Any]]) -> Summary:
    """Average the lines of a results file; of lines with the same key the last one counts.

    Args:
        rows: Each with `key` and `metrics`, see `mobileclip.evaluation.results.read`. A set whose metric is not among them is missing;
            `main_metric` stands for it, unless it only repeats another one (accuracy, where the worst group's is asked for).

    Raises:
        InputError: None of the 38 sets is there, or a main metric is not a share.
    """
    found = {row["key"]: _main(row) for row in rows if row["key"] in MAIN_METRIC}
    if not found:
        raise InputError("none of the 38 data sets is among the results; their keys are like imagenet1k, vtab/dtd, fairness/geode")
    scores = {key: value for key, value in found.items() if value is not None}
    groups = {name: _average(scores, keys) for name, keys in GROUPS.items()}
    return Summary(_average(scores, MAIN_METRIC), groups, scores)


def _main(row: Mapping[str, Any]) -> float | None:
    key, metrics = row["key"], row["metrics"]
    name = MAIN_METRIC[key]
    value = metrics.get(name, metrics.get("main_metric"))
    if name not in metrics and (value is None or value in [v for n, v in metrics.items() if n != "main_metric"]):
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value) or not 0 <= value <= 1:
        raise InputError(f"{key}: its main metric {name} must be a number from 0 to 1, not {value!r:.40}")
    return float(value)


def _average(scores: Mapping[str, float], keys: Iterable[str]) -> Average:
    keys = tuple(keys)
    found = [scores[key] for key in keys if key in scores]
    return Average(math.fsum(found) / len(found) if found else None, len(found), tuple(key for key in keys if key not in scores))
