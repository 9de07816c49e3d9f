"""The commands that use a model: classify, embed, search, and eval in every runtime."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

from mobileclip.export.bundle import TARGETS, Bundle
from mobileclip.export.search import FOLDER_NAME, SIDECAR
from mobileclip.export.verify.dataset import photograph, photograph_names

NOTE = "untrained weights: predictions mean nothing"


@pytest.fixture
def pictures(tmp_path) -> Path:
    folder = tmp_path / "pictures"
    (folder / "below").mkdir(parents=True)
    for name in ("cat.png", "below/rocket.png", "below/coffee.png"):
        photograph(Path(name).stem).resize((96, 90)).save(folder / name)
    return folder


def test_classify_without_a_model_takes_the_default(run, pictures):
    result = run("classify", pictures / "cat.png", "--labels", "a cat,a rocket,a cat", "--templates", "photo", "--json")
    assert result.code == 0
    value = result.json
    assert (value["model"], value["trained"], value["labels"]) == ("mobileclip_nano", True, ["a cat", "a rocket"])
    assert value["engine"].startswith("torch ")
    assert value["templates"] == ["a photo of a {}."]
    (picture,) = value["images"]
    assert sum(p["probability"] for p in picture["predictions"]) == pytest.approx(1)
    assert [p["cosine"] for p in picture["predictions"]] == sorted((p["cosine"] for p in picture["predictions"]), reverse=True)


def test_classify_says_that_the_weights_are_untrained(run, pictures, nano_bundle, tmp_path):
    labels = tmp_path / "labels.txt"
    labels.write_text("a cat\n\na rocket, starting\n[/b] :smile: [red]\n", "utf-8")
    result = run("classify", pictures / "cat.png", pictures / "below" / "rocket.png", "--labels-file", labels, "--model", nano_bundle)
    assert (result.code, result.errors) == (0, [])
    assert f"mobileclip_nano on onnxruntime {version('onnxruntime')}; {NOTE}; 3 labels" in result.text
    for label in ("a cat", "a rocket, starting", "[/b] :smile: [red]"):
        assert result.text.count(label) >= 2


@pytest.mark.parametrize("runtime", TARGETS)
def test_every_command_runs_a_bundle_in_every_runtime(run, pictures, nano_bundle_all, runtime, tmp_path):
    with_model = ("--model", nano_bundle_all, "--runtime", runtime, "--json")
    engines = {p.target: p.engine for p in Bundle.open(nano_bundle_all).manifest.parity}
    value = run("classify", pictures / "cat.png", "--labels", "a cat,a rocket", *with_model).json
    assert value["engine"] == engines[runtime]
    assert len(value["images"][0]["predictions"]) == 2
    assert run("embed", pictures / "cat.png", "--text", "a cat", "-o", tmp_path / "e.npz", *with_model).code == 0
    with np.load(tmp_path / "e.npz") as saved:
        assert any(saved[name].shape == (2, 128) for name in saved.files)
    found = run("search", pictures, "a cat", *with_model).json
    assert len(found["results"]) == 3
    names, table = photograph_names()[::2], tmp_path / "captions.jsonl"
    for name in names:
        photograph(name).resize((96, 90)).save(tmp_path / f"{name}.png")
    table.write_text("".join(json.dumps({"image": f"{name}.png", "caption": f"the {name}, seen from near"}) + "\n" for name in names))
    (row,) = run("eval", nano_bundle_all, "--data", table, "--runtime", runtime, "--json").json
    (model,) = run("eval", "untrained:mobileclip_nano", "--data", table, "--json").json
    assert (row["engine"], row["details"]["pictures"]) == (engines[runtime], len(names))
    assert row["metrics"] == model["metrics"]  # cosines that a rank hangs on are 3e-4 apart, in fp32 they are off by 1e-6


@pytest.mark.slow
def test_an_export_as_typed_takes_the_default_model(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run("export", "--target", "coreml")
    assert (result.code, result.errors) == (0, [])
    (folder,) = (p for p in tmp_path.iterdir() if not p.name.startswith("."))
    manifest = Bundle.open(folder).manifest
    assert (manifest.model.name, manifest.model.trained) == ("mobileclip_nano", True)
    assert [(a.target, a.tower) for a in manifest.artifacts] == [("coreml", "image"), ("coreml", "text")]


def test_one_bad_picture_does_not_lose_the_others(run, pictures, nano_bundle):
    bad = pictures / "bad.png"
    bad.write_bytes(b"no picture")
    images = [bad, pictures / "cat.png", pictures / "absent.png", pictures / "below", pictures / "below" / "rocket.png"]
    result = run("classify", *images, "--labels", "a cat,a rocket", "--model", nano_bundle, "--top", 1, "--json")
    assert result.code == 2
    assert [p["image"] for p in result.json["images"]] == [str(images[1]), str(images[4])]
    assert all(len(p["predictions"]) == 1 for p in result.json["images"])
    assert [e["image"] for e in result.json["errors"]] == [str(images[0]), str(images[2]), str(images[3])]
    assert ["not a picture" in result.errors[0], "no such file" in result.errors[1], "is a folder" in result.errors[2]] == [True] * 3
    table = run("classify", *images[:2], "--labels", "a cat,a rocket", "--model", nano_bundle)
    assert table.code == 2
    assert "cat.png" in table.text
    assert len(table.errors) == 1
    alone = run("classify", bad, "--labels", "a cat", "--model", nano_bundle)
    assert (alone.code, alone.out, len(alone.errors)) == (2, "", 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("classify", "CAT"), "no labels; give --labels"),
        (("classify", "CAT", "--labels", "a", "--templates", "fotos"), "unknown template set or file 'fotos'; did you mean 'photo'"),
        (("classify", "CAT", "--labels", "a", "--runtime", "onyx", "--model", "BUNDLE"), "unknown runtime 'onyx'; did you mean 'onnx'"),
        (("classify", "CAT", "--labels", "a", "--model", "mobileclip_s9"), "unknown model 'mobileclip_s9'"),
        (("embed",), "nothing to embed"),
        (("embed", "CAT", "-o", "e.nyp"), "unknown file ending '.nyp'"),
        (("search", "ABSENT", "a cat", "--model", "BUNDLE"), "no such folder"),
        (("search", "FOLDER", "--model", "BUNDLE"), "either a text or --image FILE"),
        (("search", "FOLDER", "a cat", "--image", "CAT", "--model", "BUNDLE"), "either a text or --image FILE"),
    ],
)
def test_bad_input_is_one_line(run, pictures, nano_bundle, arguments, message):
    names = {"CAT": pictures / "cat.png", "BUNDLE": nano_bundle, "FOLDER": pictures, "ABSENT": pictures / "absent"}
    result = run(*(names.get(a, a) for a in arguments))
    assert (result.code, result.out) == (2, "")
    (line,) = result.errors
    assert message in line
    assert "Traceback" not in result.err


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".safetensors", ".jsonl"])
def test_embed_to_a_file(run, pictures, nano_bundle, tmp_path, suffix):
    out = tmp_path / f"e{suffix}"
    result = run("embed", pictures / "cat.png", "--text", "a cat", "--text", "ein Hund", "-o", out, "--model", nano_bundle)
    assert (result.code, result.errors) == (0, [])
    assert f"wrote {out}: 3 embeddings of 128 numbers by mobileclip_nano" in result.text
    assert NOTE in result.text
    assert out.stat().st_size > 3 * 128 * 4


def test_embed_as_json_and_as_a_table(run, pictures, nano_bundle, tmp_path):
    arguments = ("embed", pictures / "cat.png", pictures / "absent.png", "--text", "a cat", "--model", nano_bundle)
    value = run(*arguments, "--json")
    assert value.code == 2
    rows = value.json["embeddings"]
    assert [r["name"] for r in rows] == [str(pictures / "cat.png"), "a cat"]
    assert np.linalg.norm([r["embedding"] for r in rows], axis=1) == pytest.approx(1, abs=1e-5)
    assert [e["image"] for e in value.json["errors"]] == [str(pictures / "absent.png")]
    assert NOTE in run(*arguments).text
    out = tmp_path / "e.npy"
    brief = run(*arguments, "--json", "-o", out).json
    assert (brief["out"], brief["embeddings"]) == (str(out), [{"name": r["name"]} for r in rows])
    np.testing.assert_allclose(np.load(out), [r["embedding"] for r in rows], atol=1e-7)


def test_search_by_text_and_by_picture(run, pictures, nano_bundle):
    (pictures / "bad.png").write_bytes(b"no picture")
    table = run("search", pictures, "a cat", "--model", nano_bundle)
    assert (table.code, table.errors) == (0, [])
    assert NOTE in table.text
    assert "left out: 1 pictures that cannot be read" in table.text
    assert "below/rocket.png" in table.text
    assert (pictures / FOLDER_NAME / SIDECAR).is_file()
    result = run("search", pictures, "--image", pictures / "below" / "coffee.png", "--top", 2, "--model", nano_bundle, "--json")
    value = result.json
    assert (value["pictures"], value["embedded"], value["removed"], value["trained"]) == (3, 0, 0, False)
    assert len(value["results"]) == 2
    assert value["results"][0]["path"] == str(pictures / "below" / "coffee.png")
    assert value["results"][0]["score"] == pytest.approx(1, abs=1e-3)
    assert [s["path"] for s in value["skipped"]] == [str(pictures / "bad.png")]


def test_search_with_a_damaged_index(run, pictures, nano_bundle, tmp_path):
    index = tmp_path / "index"
    assert run("search", pictures, "a cat", "--model", nano_bundle, "--index", index).code == 0
    (index / SIDECAR).write_text("{}")
    damaged = run("search", pictures, "a cat", "--model", nano_bundle, "--index", index)
    assert (damaged.code, len(damaged.errors)) == (2, 1)
    assert "--rebuild" in damaged.errors[0]
    assert run("search", pictures, "a cat", "--model", nano_bundle, "--index", index, "--rebuild").code == 0


@pytest.mark.parametrize("command", ["classify", "embed", "search"])
def test_help_shows_an_example(run, command):
    result = run(command, "--help")
    assert result.code == 0
    assert f"Example: mobileclip {command} " in result.text


@pytest.mark.slow
def test_bench_without_a_bundle_exports_the_default_model_once(run, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    quick = ("bench", "--runtime", "onnx", "--tower", "text", "--seconds", 0, "--samples", 3, "--json")
    first = run(*quick)
    assert (first.code, first.errors) == (0, [])
    assert [r["request"]["bundle"] for r in first.json["results"]] == ["mobileclip_nano-fp32-onnx-executorch"]
    (bundle,) = (path for path in tmp_path.iterdir() if path.name.startswith("mobileclip_nano"))
    written = (bundle / "manifest.json").stat().st_mtime_ns
    assert run(*quick).code == 0
    assert (bundle / "manifest.json").stat().st_mtime_ns == written
