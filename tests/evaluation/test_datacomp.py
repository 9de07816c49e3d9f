"""The average over 38 data sets, against the published one of MobileCLIP-S0, and results files."""

from __future__ import annotations

import json

import pytest

from mobileclip.data.samples import Tally
from mobileclip.errors import InputError
from mobileclip.evaluation import results
from mobileclip.evaluation.datacomp import GROUPS, MAIN_METRIC, summarize
from mobileclip.evaluation.tasks import Score

# Main metrics of MobileCLIP-S0 in percent, from github.com/apple/ml-mobileclip, results/mobileclip_s0.jsonl.
S0 = {
    "cars": 79.3434, "cifar10": 93.18, "country211": 13.8341, "fairness/dollar_street": 58.2944, "fairness/geode": 86.3466,
    "fgvc_aircraft": 20.1569, "food101": 82.5188, "gtsrb": 46.7379, "imagenet-a": 26.48, "imagenet-o": 53.85, "imagenet-r": 78.64,
    "imagenet1k": 67.786, "imagenet_sketch": 55.5228, "imagenetv2": 59.94, "misc/winogavil": 48.3172, "mnist": 68.63, "objectnet": 55.89,
    "renderedsst2": 54.3657, "retrieval/flickr_1k_test_image_text_retrieval": 76.79,
    "retrieval/mscoco_2014_5k_test_image_text_retrieval": 49.5899, "stl10": 97.35, "sun397": 68.6025, "voc2007": 80.5355,
    "vtab/caltech101": 92.8638, "vtab/cifar100": 74.86, "vtab/clevr_closest_object_distance": 22.5267, "vtab/clevr_count_all": 28.5667,
    "vtab/dtd": 57.5, "vtab/eurosat": 50.1667, "vtab/flowers": 67.3387, "vtab/kitti_closest_vehicle_distance": 21.097,
    "vtab/pcam": 66.5283, "vtab/pets": 89.9046, "vtab/resisc45": 57.0317, "vtab/svhn": 62.5999, "wilds/camelyon17": 73.5615,
    "wilds/fmow": 9.2943, "wilds/iwildcam": 11.9049,
}  # fmt: skip


COCO = "retrieval/mscoco_2014_5k_test_image_text_retrieval"


def row(key: str, percent: float) -> dict[str, object]:
    return {"key": key, "dataset": key, "metrics": {"other": 0.0, MAIN_METRIC.get(key, "acc"): percent / 100, "main_metric": percent / 100}}


def test_the_published_average_and_groups_come_out():
    extra = [row("comp/sugarcrepe_add_att", 99), row("longclip/urban1k", 99), {"key": "fairness/utkface", "metrics": {"acc": 1.0}}]
    summary = summarize([*(row(k, v) for k, v in S0.items()), *extra])
    assert (summary.average.sets, summary.average.missing, len(summary.scores)) == (38, (), 38)
    assert round(100 * summary.average.mean, 2) == 58.12
    assert {n: round(100 * g.mean, 1) for n, g in summary.groups.items()} == {
        "ImageNet": 67.8, "ImageNet shifts": 55.1, "VTAB": 58.4, "retrieval": 58.2,
    }  # fmt: skip


def test_there_are_38_keys_and_the_groups_are_among_them():
    assert len(MAIN_METRIC) == 38
    assert {name: len(keys) for name, keys in GROUPS.items()} == {"ImageNet": 1, "ImageNet shifts": 6, "VTAB": 13, "retrieval": 3}
    assert {key for keys in GROUPS.values() for key in keys} <= set(MAIN_METRIC)


def test_missing_sets_are_named_and_the_last_line_of_a_key_counts():
    summary = summarize([row("imagenet1k", 10), row("imagenet-a", 20), row("imagenet1k", 40)])
    assert summary.average.mean == pytest.approx(0.3)
    assert (summary.average.sets, len(summary.average.missing)) == (2, 36)
    assert "imagenet1k" not in summary.average.missing
    assert summary.groups["VTAB"].mean is None
    assert summary.groups["ImageNet shifts"].missing == ("imagenet_sketch", "imagenetv2", "imagenet-o", "imagenet-r", "objectnet")


def test_the_main_metric_is_the_one_of_the_data_set():
    both = {"acc1": 0.1, "mean_per_class_recall": 0.7, "main_metric": 0.1}
    assert summarize([{"key": "vtab/pets", "metrics": both}]).scores == {"vtab/pets": 0.7}
    for foreign in ({"main_metric": 0.2}, {"acc1": 0.7, "main_metric": 0.2}, {"acc_worst_region": 0.2, "acc1": 0.2, "main_metric": 0.7}):
        assert summarize([{"key": "wilds/fmow", "metrics": foreign}]).scores == {"wilds/fmow": 0.2}


@pytest.mark.parametrize("key", ["wilds/fmow", "wilds/iwildcam", "fairness/dollar_street", "fairness/geode", "misc/winogavil"])
def test_accuracy_does_not_stand_for_a_metric_that_is_not_measured(key):
    metrics = {"acc1": 0.75, "acc5": None, "mean_per_class_recall": 0.5, "main_metric": 0.75}
    ours = results.row(key, "folder", Score("classification", metrics, {}, Tally(4)), {})
    assert ours["metrics"] == metrics | {"main_metric": None}
    for line in (ours, {"key": key, "metrics": metrics}, {"key": key, "metrics": {}}):
        summary = summarize([row("imagenet1k", 10), row(key, 90), line])
        assert (summary.average.mean, summary.scores) == (0.1, {"imagenet1k": 0.1})
        assert key in summary.average.missing
    assert summarize([ours]).average.mean is None


def test_main_metrics_of_our_own_lines():
    classified = Score("classification", {"acc1": 0.75, "mean_per_class_recall": 0.5, "main_metric": 0.75}, {}, Tally(4))
    retrieved = Score("retrieval", {"mean_recall@1": 0.25, "main_metric": 0.25}, {}, Tally(4))
    found = {k: results.row(k, "", classified, {})["metrics"]["main_metric"] for k in ("mnist", "vtab/pets", "my-folder")}
    assert found == {"mnist": 0.75, "vtab/pets": 0.5, "my-folder": 0.75}
    found = {k: results.row(k, "", retrieved, {})["metrics"]["main_metric"] for k in (COCO, "mnist", "my-folder")}
    assert found == {COCO: 0.25, "mnist": None, "my-folder": 0.25}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 58.12, -0.1, "0.5", None, True, [0.5]])
def test_a_main_metric_that_is_no_share_is_refused(value):
    with pytest.raises(InputError, match=r"mnist: its main metric acc1 must be a number from 0 to 1"):
        summarize([{"key": "mnist", "metrics": {"acc1": value}}])


def test_no_known_set_at_all():
    with pytest.raises(InputError, match="none of the 38"):
        summarize([row("shapes", 50)])


def test_a_file_with_bare_nan_and_blank_lines_is_read(tmp_path):
    file = tmp_path / "r.jsonl"
    file.write_text(
        '{"key": "wilds/camelyon17", "metrics": {"acc1": 0.5, "acc_slide:0": NaN}}\n\n{"key": "mnist", "metrics": {"acc1": 1}}\n'
    )
    assert summarize(results.read(file)).average.mean == 0.75


@pytest.mark.parametrize("line", [b"{", b"[]", b'{"key": 1, "metrics": {}}', b'{"key": "a"}', b"\xff", b"[" * 100_000])
def test_a_damaged_line_is_named(tmp_path, line):
    file = tmp_path / "r.jsonl"
    file.write_bytes(b'{"key": "a", "metrics": {}}\n' + line + b"\n")
    with pytest.raises(InputError, match=r"r\.jsonl:2: (is not a JSON object|has no text `key`)"):
        results.read(file)
    with pytest.raises(InputError, match="jsonl:2: "):
        results.append(file, [{"key": "a", "metrics": {"acc1": 1.0}}])


def test_append_replaces_a_key_and_keeps_other_lines_as_they_are(tmp_path):
    file = tmp_path / "below" / "r.jsonl"
    results.append(file, [{"key": "a", "metrics": {"acc1": 0.5}}])
    with file.open("a") as f:
        f.write('{ "key": "b",  "metrics": {"x": NaN} }\n')
    results.append(file, [{"key": "c", "metrics": {"acc1": 0.25}}, {"key": "a", "metrics": {"acc1": 1.0}}])
    lines = file.read_text().splitlines()
    assert lines[1] == '{ "key": "b",  "metrics": {"x": NaN} }'
    assert [json.loads(line)["key"] for line in lines] == ["a", "b", "c"]
    assert json.loads(lines[0])["metrics"] == {"acc1": 1.0}


def test_a_file_belongs_to_one_model(tmp_path):
    file = tmp_path / "r.jsonl"
    results.append(file, [{"key": "published", "metrics": {}}, {"key": "a", "metrics": {}, "model": "m1", "embedding_space": "1"}])
    before = file.read_bytes()
    with pytest.raises(InputError, match=r"results of another model \(m1, key a\); give another file with -o"):
        results.append(file, [{"key": "b", "metrics": {}, "model": "m2", "embedding_space": "2"}])
    assert file.read_bytes() == before
    results.append(file, [{"key": "b", "metrics": {}, "embedding_space": "1"}])
    assert len(results.read(file)) == 3
