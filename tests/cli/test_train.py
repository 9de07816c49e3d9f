"""`mobileclip train`: from a config to weights, and what it says on the way."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mobileclip import checkpoints
from mobileclip.data.shards import write_shard
from mobileclip.training import trainer
from tests.training.conftest import picture, settings

MOBILECLIP = Path(sys.executable).with_name("mobileclip")


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    write_shard(folder / "0.tar", [(f"{i:032x}", {"png": picture(i), "txt": f"part {i}".encode()}) for i in range(8)])
    path = folder / "tiny.yaml"
    path.write_text(json.dumps(settings(folder, schedule={"samples": 8, "warmup_steps": 1}).model_dump(mode="json")))
    return path


def test_trains_and_goes_on(run, config, tmp_path):
    first = run("train", config, "-o", tmp_path / "run")
    assert first.code == 0, first.err
    assert "done: step 2; weights in" in first.text
    assert re.search(r"[\d,]+ samples/s, waiting for data \d+%, 0 min left", first.err)
    assert checkpoints.load(tmp_path / "run/model.safetensors").trained
    again = run("train", config, "-o", tmp_path / "run", "--json")
    assert (again.code, again.json["step"]) == (0, 2)
    other = run("train", config, "-o", tmp_path / "run", "--set", "seed=1")
    assert other.code == 2
    assert "another config (seed: 0 before, 1 now)" in other.error


def test_ctrl_c_saves_and_the_run_goes_on(run, config, tmp_path):
    """To the weights of one that nobody interrupted."""
    command = ["train", str(config), "--set", "schedule.samples=80", "-o"]
    process = subprocess.Popen([MOBILECLIP, *command, tmp_path / "run"], stderr=subprocess.PIPE, text=True)
    assert process.stderr
    next(line for line in process.stderr if line.startswith("step "))
    process.send_signal(signal.SIGINT)
    error = process.communicate()[1]
    assert (process.returncode, error.splitlines()[-1]) == (130, "error: interrupted")
    assert "Traceback" not in error
    assert not (tmp_path / "run/model.safetensors").exists()
    for name in ("run", "whole"):
        assert run(*command, tmp_path / name).code == 0
    run_bytes, whole_bytes = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("run", "whole"))
    assert run_bytes == whole_bytes


def test_dry_run(run, config):
    told = run("train", config, "--dry-run", "--json").json
    assert set(told) == {"model", "data", "schedule", "memory", "cost"}
    text = run("train", config, "--dry-run").text
    assert "weights bytes" in text
    assert "samples per s here" in text


def test_ctrl_c_saves_and_a_loss_that_is_not_finite_stops_it(run, config, tmp_path, monkeypatch):
    def interrupt(step, *_):
        if step == 1:
            signal.raise_signal(signal.SIGINT)
        return ""

    monkeypatch.setattr(trainer, "progress_line", interrupt)
    stopped = run("train", config, "-o", tmp_path / "run", "--set", "schedule.samples=16")
    assert (stopped.code, stopped.error) == (130, "error: interrupted")
    (saved,) = (tmp_path / "run").glob("state-*.pt")
    assert f"saved {saved}; run the same command to go on" in stopped.err
    lost = run("train", config, "-o", tmp_path / "lost", "--set", "optimizer={lr: 1e30, max_norm: null}")
    assert lost.code == 3
    assert lost.error.endswith("check the data, or start in another folder with a lower optimizer.lr")


def test_errors_name_the_field(run, config, tmp_path):
    assert "--set: optimizer.ir: Extra inputs" in run("train", config, "--set", "optimizer.ir=1").error
    missing = run("train", tmp_path / "none.yaml")
    assert (missing.code, "no such file" in missing.error) == (2, True)
