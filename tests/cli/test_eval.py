"""`mobileclip eval`."""

from __future__ import annotations

import json

import pytest

from mobileclip.export.verify.dataset import photograph


@pytest.fixture
def folders(tmp_path):
    for name in ("cat", "drum"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i, side in enumerate((60, 80)):
            photograph(name).resize((side, 70)).save(tmp_path / "data" / name / f"{i}.png")
    return tmp_path / "data"


def test_scores_of_a_folder_are_shown_and_kept(run, folders, nano_bundle, tmp_path):
    (folders / "cat" / "bad.jpg").write_bytes(b"no picture")
    arguments = (
        "eval",
        nano_bundle,
        "--data",
        folders,
        "--templates",
        "photo",
        "--max-bad",
        "20%",
        "--key",
        "vtab/pets",
        "-o",
        tmp_path / "r",
    )
    table = run(*arguments)
    assert (table.code, table.errors) == (0, [])
    for part in (
        "onnxruntime",
        "predictions mean nothing; classification on vtab/pets",
        "│ pictures │ 4 │",
        "chance",
        "left out: bad_image 1",
    ):
        assert part in table.text
    (row,) = run(*arguments, "--json").json
    assert (row["key"], row["dataset"], row["model"], row["trained"]) == ("vtab/pets", "data", "mobileclip_nano", False)
    assert row["metrics"]["main_metric"] == row["metrics"]["mean_per_class_recall"]
    assert row["metrics"]["acc5"] is None
    assert row["skipped"] == {"bad_image": 1}
    (kept,) = (tmp_path / "r").read_text().splitlines()
    assert json.loads(kept) == row


def test_a_results_file_is_averaged(run, tmp_path):
    file = tmp_path / "r.jsonl"
    file.write_text('{"key": "imagenet1k", "metrics": {"acc1": 0.5, "x": NaN}}\n{"key": "imagenet-a", "metrics": {"acc1": 0.25}}\n')
    table = run("eval", "--results", file)
    assert table.code == 0
    for part in (
        "│ all 38 │ 37.50% │ 2 of 38 │",
        "│ ImageNet shifts │ 25.00% │ 1 of 6 │",
        "│ VTAB │ - │ 0 of 13 │",
        "missing: cars, cifar10",
    ):
        assert part in table.text
    value = run("eval", "--results", file, "--json").json
    assert (value["average"]["mean"], value["groups"]["ImageNet"]["mean"], value["scores"]["imagenet-a"]) == (0.375, 0.5, 0.25)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "no data set; give --data"),
        (("--data", "absent.csv"), "no such shard or table"),
        (("--data", "DATA", "--max-bad", "lots"), "--max-bad lots: is not a share"),
        (("--data", "DATA", "--max-bad", "101%"), "--max-bad 101%: is not a share"),
        (("--data", "DATA", "--task", "captioning"), "unknown task 'captioning'"),
        (("--data", "DATA", "--where", "style"), "not of the form FIELD=VALUE"),
        (("--data", "DATA", "--label-field", "group"), "no picture has a class in its field 'group' (no_label 4)"),
        (("--data", "DATA", "--task", "retrieval"), "no picture has a text (no_caption 4)"),
        (("--results", "absent.jsonl"), "no such file"),
    ],
)
def test_bad_input_is_one_line(run, folders, nano_bundle, arguments, message):
    result = run("eval", nano_bundle, *(folders if a == "DATA" else a for a in arguments))
    assert (result.code, result.out) == (2, "")
    assert message in result.error


def test_too_many_bad_pictures_stop_it(run, folders, nano_bundle, tmp_path):
    (folders / "cat" / "bad.jpg").write_bytes(b"no picture")
    result = run("eval", nano_bundle, "--data", folders, "-o", tmp_path / "r.jsonl")
    assert result.code == 2
    assert "1 of 5 samples are bad (bad_image 1), more than --max-bad 1.00%" in result.error
    assert not (tmp_path / "r.jsonl").exists()


def test_help_shows_an_example(run):
    assert "Example: mobileclip eval mobileclip_s0 --data " in run("eval", "--help").text
