"""The training loop: the same weights however a run was cut, and nothing lost when it fails."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from mobileclip import checkpoints
from mobileclip.checkpoints import recipe_checkpoint
from mobileclip.data.shards import write_shard
from mobileclip.errors import CheckpointError, GateError, InputError
from mobileclip.specs import get_spec
from mobileclip.training import state
from mobileclip.training.log import read_log
from mobileclip.training.setup import start_model
from mobileclip.training.trainer import train
from tests.training.conftest import picture, settings


def silent(step):
    pass


def digests(folder):
    return [hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in ("model.safetensors", "model-ema.safetensors")]


@pytest.fixture(scope="module")
def whole(shards, tmp_path_factory):
    """An uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    train(settings(shards), folder, progress=silent)
    return folder


def test_what_a_run_leaves(whole):
    assert state.saved_steps(whole) == [4, 6]
    log = [line for line in read_log(whole) if "loss" in line]
    assert [line["step"] for line in log] == [1, 2, 3, 4, 5, 6]
    assert log[-1]["seen"] == log[-1]["samples"] == 24
    assert log[0]["lr"] == pytest.approx(5e-4)
    assert log[-1]["loss"] != log[0]["loss"]
    assert list((whole / "tensorboard").iterdir())
    model = checkpoints.load(whole / "model.safetensors")
    assert (model.spec.name, model.fused, model.trained) == ("mobileclip_nano", False, True)


@pytest.mark.parametrize("changes", [{"log_every": 3}, {"save_every": 1}, {"keep": 1}])
def test_the_rhythm_does_not_matter(whole, shards, tmp_path, changes):
    train(settings(shards, **changes), tmp_path, progress=silent)
    assert digests(tmp_path) == digests(whole)


def test_workers_do_not_matter(whole, shards, tmp_path):
    train(settings(shards, data={"shards": [str(shards)], "workers": 2}), tmp_path, progress=silent)
    assert digests(tmp_path) == digests(whole)


def test_gradient_checkpointing_does_not_matter(whole, shards, tmp_path):
    train(settings(shards, gradient_checkpointing=True), tmp_path, progress=silent)
    assert digests(tmp_path) == digests(whole)


def test_the_seed_matters(whole, shards, tmp_path):
    train(settings(shards, seed=1), tmp_path, progress=silent)
    assert digests(tmp_path) != digests(whole)


def test_going_on(whole, shards, tmp_path):
    """Interrupted between two steps, with steps done since the last state."""

    def interrupt(step):
        if step.startswith("step 3"):
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(settings(shards), tmp_path, progress=interrupt)
    assert max(state.saved_steps(tmp_path)) in (3, 4)
    told = []
    train(settings(shards), tmp_path, progress=told.append)
    assert told[0].startswith("going on from step")
    assert digests(tmp_path) == digests(whole)
    assert [line["step"] for line in read_log(tmp_path) if "loss" in line] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("damage", [
    {"processes": []}, {"processes": [{}]}, {"processes": 3}, {"student": {}}, {"student": {"a": torch.zeros(1)}},
    {"optimizer": {}}, {"optimizer": 1},
])  # fmt: skip
def test_a_state_that_was_damaged_by_hand(whole, shards, tmp_path, damage):
    path = state.path_of(whole, max(state.saved_steps(whole)))
    torch.save(torch.load(path, weights_only=True) | damage, tmp_path / path.name)
    with pytest.raises(CheckpointError, match=r"is damaged \(\w+\); remove it to go on from the one before"):
        train(settings(shards), tmp_path, progress=silent)


def killed(config, folder, after_s):
    """Train in a process of its own that is killed at a moment."""
    child = os.fork()
    if not child:
        try:
            train(config, folder, progress=silent)
        finally:
            os._exit(0)
    timer = threading.Timer(after_s, os.kill, (child, signal.SIGKILL))
    timer.start()
    os.waitpid(child, 0)
    timer.cancel()


@pytest.mark.parametrize("kills", [3, pytest.param(50, marks=pytest.mark.slow)])
def test_killed(whole, shards, tmp_path, kills):
    """At any moment; the run that goes on ends with the same bytes."""
    torch.set_num_threads(1)
    began = time.monotonic()
    train(settings(shards, save_every=1), tmp_path / "measured", progress=silent)
    duration = time.monotonic() - began
    done = 0
    while done < kills:
        folder = tmp_path / f"run{done}"
        for moment in range(done, min(done + 5, kills)):
            killed(settings(shards, save_every=1), folder, duration * (moment * 0.618 % 1))
            done += 1
        train(settings(shards, save_every=1), folder, progress=silent)
        assert digests(folder) == digests(whole)
        assert not list(folder.glob(".mobileclip-tmp-*"))


def test_another_config_is_refused(whole, shards):
    with pytest.raises(InputError, match=r"another config \(optimizer.lr: 0.001 before, 0.002 now\)"):
        train(settings(shards, optimizer={"lr": 2e-3}), whole, progress=silent)


def test_a_finished_run_stays_as_it_is(whole, shards):
    before = digests(whole)
    assert train(settings(shards), whole, progress=silent)["step"] == 6
    assert digests(whole) == before


def test_two_trainers_in_one_folder(shards, tmp_path):
    refused = []

    def second(step):
        if not refused:
            with pytest.raises(InputError, match="another process works there") as e:
                train(settings(shards), tmp_path, progress=silent)
            refused.append(e)

    train(settings(shards), tmp_path, progress=second)
    assert refused


def test_a_damaged_state(shards, tmp_path):
    train(settings(shards, schedule={"samples": 8, "warmup_steps": 1}), tmp_path, progress=silent)
    path = state.path_of(tmp_path, state.saved_steps(tmp_path)[-1])
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=path.name):
        train(settings(shards, schedule={"samples": 8, "warmup_steps": 1}), tmp_path, progress=silent)


def test_loss_that_is_not_finite(shards, tmp_path):
    config = settings(shards, optimizer={"lr": 1e30, "max_norm": None}, schedule={"samples": 40, "warmup_steps": 0}, save_every=1)
    with pytest.raises(GateError, match=r"no longer finite at step \d+; the last good state is .*state-"):
        train(config, tmp_path, progress=silent)
    for step in state.saved_steps(tmp_path):
        stored = state.load(state.path_of(tmp_path, step))
        assert step == 1 or all(t.isfinite().all() for t in stored["student"].values() if t.is_floating_point())


def test_bad_samples_are_counted(tmp_path):
    good = [(f"{i:032x}", {"png": picture(i), "txt": b"x"}) for i in range(12)]
    bad = [
        ("a" * 32, {"png": picture(0)[:300], "txt": b"x"}), ("b" * 32, {"txt": b"x"}), ("c" * 32, {"png": picture(0)}),
        ("d" * 32, {"png": picture(0), "txt": b"\xff"}), ("e" * 32, {"png": b"not a picture", "txt": b"x"}),
    ]  # fmt: skip
    write_shard(tmp_path / "0.tar", good + bad)
    config = settings(tmp_path, schedule={"samples": 24, "warmup_steps": 1}, data={"shards": [str(tmp_path)], "workers": 0, "max_bad": 0.3})
    train(config, tmp_path / "run", progress=silent)
    last = read_log(tmp_path / "run")[-1]
    reasons = {"bad_image": 2, "no_caption": 1, "no_image": 1, "not_utf8": 1}
    assert last["seen"] == 24
    assert last["skipped"].keys() <= reasons.keys()
    assert all(reasons[r] <= n <= 3 * reasons[r] for r, n in last["skipped"].items())  # one epoch is over, and parts of one or two more
    assert sum(last["skipped"].values()) >= 5


def test_starts_from_weights(whole, shards, tmp_path):
    train(settings(shards, init=str(whole / "model.safetensors"), freeze=["text"]), tmp_path, progress=silent)
    before, after = (checkpoints.load(f / "model.safetensors").state for f in (whole, tmp_path))
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"visual", "logit_scale"}


def test_starts_from_a_state(whole, shards, tmp_path):
    """As the error of a loss that is not finite advises."""
    path = state.path_of(whole, 4)
    stored = state.load(path)["student"]
    config = settings(shards, init=str(path))
    model = start_model(config)
    assert all(torch.equal(t, stored[f"clip.{name}"]) for name, t in model.state_dict().items())
    train(config, tmp_path, progress=silent)
    assert digests(tmp_path) != digests(whole)
    with pytest.raises(CheckpointError, match="another model than mobileclip_s0"):
        start_model(settings(shards, init=str(path), model="mobileclip_s0"))


def test_the_share_of_bad_samples_may_be_changed(whole, shards):
    train(settings(shards, data={"shards": [str(shards)], "workers": 0, "max_bad": 0.5}), whole, progress=silent)


def test_teachers_must_be_those_of_the_data(shards, tmp_path):
    (tmp_path / "data").mkdir()
    for shard in shards.glob("*.tar"):
        (tmp_path / "data" / shard.name).write_bytes(shard.read_bytes())
    (tmp_path / "data/reinforcement.json").write_text(json.dumps({"teachers": [{"name": "a"}, {"name": "b"}]}))
    loss = {"distillation": 0.5, "teachers": [{"name": "b", "width": 2}, {"name": "a", "width": 2}]}
    config = settings(tmp_path / "data", data={"shards": [str(tmp_path / "data")], "augmentation": "stored"}, loss=loss)
    with pytest.raises(InputError, match=r"loss.teachers: b, a, but .*data has rows of a, b; name them in that order"):
        train(config, tmp_path / "run", progress=silent)


def test_fused_weights_are_refused(shards, tmp_path):
    path = tmp_path / "fused.safetensors"
    checkpoints.save(checkpoints.fused(recipe_checkpoint(get_spec("mobileclip_nano"))), path)
    with pytest.raises(CheckpointError, match="fused for inference"):
        train(settings(shards, init=str(path)), tmp_path / "run", progress=silent)


def test_evaluation_leaves_the_run_alone(whole, shards, tmp_path):
    def evaluate(model):
        assert not model.training
        torch.rand(3)
        return {"score": 0.5}

    result = train(settings(shards, evaluate_every=2), tmp_path, progress=silent, evaluate=evaluate)
    assert digests(tmp_path) == digests(whole)
    assert result["score"] == 0.5
    assert [line["step"] for line in read_log(tmp_path) if "score" in line] == [2, 4, 6]


def test_two_processes(shards, tmp_path):
    """Through torchrun and the command line; the run goes on after a stop, and with another number of processes it is refused."""
    config = tmp_path / "run.yaml"
    config.write_text(json.dumps(settings(shards, schedule={"samples": 16, "warmup_steps": 1}).model_dump(mode="json")))

    def run(processes):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m", "mobileclip"]
        return subprocess.run([*command, "train", str(config), "-o", str(tmp_path / "run")], capture_output=True, text=True, timeout=300)

    first = run(2)
    assert first.returncode == 0, first.stderr[-2000:]
    last = read_log(tmp_path / "run")[-1]
    assert (last["step"], last["samples"], last["seen"]) == (4, 16, 16)
    other = run(1)
    assert "another config (processes: 2 before, 1 now)" in other.stderr


@pytest.mark.slow
def test_two_processes_that_are_stopped(shards, tmp_path):
    """By a scheduler's SIGTERM to torchrun: everything is saved, and the run that goes on ends with the same bytes."""
    config = tmp_path / "run.yaml"
    data = {"shards": [str(shards)], "workers": 1}
    config.write_text(
        json.dumps(settings(shards, schedule={"samples": 160, "warmup_steps": 1}, data=data, save_every=1000).model_dump(mode="json"))
    )
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        "-m",
        "mobileclip",
        "train",
        str(config),
    ]
    subprocess.run([*command, "-o", str(tmp_path / "whole")], check=True, capture_output=True, timeout=300)
    process = subprocess.Popen([*command, "-o", str(tmp_path / "run")], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while not read_log(tmp_path / "run"):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    told = process.communicate(timeout=120)[0]
    assert process.returncode != 0
    assert len(state.saved_steps(tmp_path / "run")) == 1, told[-2000:]
    assert "saved None" not in told
    subprocess.run([*command, "-o", str(tmp_path / "run")], check=True, capture_output=True, timeout=300)
    assert digests(tmp_path / "run") == digests(tmp_path / "whole")


def test_empty_log_lines(tmp_path):
    Path(tmp_path / "log.jsonl").write_text('{"step": 1}\n{"step": 2, "lo')
    assert read_log(tmp_path) == [{"step": 1}]
