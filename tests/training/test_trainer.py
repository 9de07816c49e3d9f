"""The training loop: the same weights however a run was cut, and nothing lost when it fails."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mobileclip import checkpoints
from mobileclip.checkpoints import recipe_checkpoint
from mobileclip.data.shards import write_shard
from mobileclip.errors import CheckpointError, GateError, InputError
from mobileclip.specs import get_spec
from mobileclip.training import state
from mobileclip.training.log import read_log
from mobileclip.training.optim import Schedule
from mobileclip.training.setup import start_model
from mobileclip.training.trainer import train
from tests.training.conftest import digests, exit_code, forked, picture, settings


def silent(step):
    pass


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


@pytest.mark.trains_in_forks
def test_tensorboard_has_what_the_log_has(shards, tmp_path):
    """Also of a run that was killed behind its last state: what it had logged is there, and in the end no step twice."""

    def scalars():
        events = EventAccumulator(str(tmp_path / "tensorboard"), {"scalars": 0}).Reload()
        return {(tag, e.step): e.value for tag in events.Tags()["scalars"] for e in events.Scalars(tag)}, events

    def logged():
        lines = read_log(tmp_path)
        return {(k, line["step"]): v for line in lines for k, v in line.items() if k != "step" and not isinstance(v, dict)}

    def kill(step):
        if step.startswith("step 3"):
            os.kill(os.getpid(), signal.SIGKILL)

    child = forked(lambda: train(settings(shards), tmp_path, progress=kill))
    assert exit_code(child) == -signal.SIGKILL
    assert state.saved_steps(tmp_path) == [2]
    assert scalars()[0] == pytest.approx(logged(), rel=1e-6)
    time.sleep(1)  # the names of the files have the second
    train(settings(shards), tmp_path, progress=silent)
    values, events = scalars()
    assert values == pytest.approx(logged(), rel=1e-6)
    assert [e.step for e in events.Scalars("loss")] == [1, 2, 3, 4, 5, 6]


def test_no_tensorboard_is_told_once(shards, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *package: None if name == "tensorboard" else find(name, *package))
    told = []
    train(settings(shards, schedule={"samples": 8, "warmup_steps": 1}), tmp_path, progress=told.append)
    assert [line for line in told if "TensorBoard" in line] == [
        f"no TensorBoard, only {tmp_path / 'log.jsonl'}; for both: pip install 'mobileclip-toolkit[train]'"
    ]
    assert not (tmp_path / "tensorboard").exists()


@pytest.mark.parametrize("damage", [
    {"processes": []}, {"processes": [{}]}, {"processes": 3}, {"student": {}}, {"student": {"a": torch.zeros(1)}},
    {"optimizer": {}}, {"optimizer": 1},
])  # fmt: skip
def test_a_state_that_was_damaged_by_hand(whole, shards, tmp_path, damage):
    path = state.path_of(whole, max(state.saved_steps(whole)))
    torch.save(torch.load(path, weights_only=True) | damage, tmp_path / path.name)
    with pytest.raises(CheckpointError, match=r"is damaged \(\w+\); remove it to go on from the one before"):
        train(settings(shards), tmp_path, progress=silent)


def test_another_config_is_refused(whole, shards):
    with pytest.raises(InputError, match=r"another config \(optimizer.lr: 0.001 before, 0.002 now\)"):
        train(settings(shards, optimizer={"lr": 2e-3}), whole, progress=silent)


def test_a_finished_run_stays_as_it_is(whole, shards):
    before = digests(whole)
    assert train(settings(shards), whole, progress=silent)["step"] == 6
    assert digests(whole) == before


def test_a_damaged_state(shards, tmp_path):
    train(settings(shards, schedule={"samples": 8, "warmup_steps": 1}), tmp_path, progress=silent)
    path = state.path_of(tmp_path, state.saved_steps(tmp_path)[-1])
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=path.name):
        train(settings(shards, schedule={"samples": 8, "warmup_steps": 1}), tmp_path, progress=silent)


@pytest.mark.parametrize(
    ("good", "told"),
    [
        (3, r"the last good state is .*state-000000003\.pt; .*as init"),
        (0, r"no state that is known to be good was saved; .* start in another folder"),
    ],
)
def test_loss_that_is_not_finite(shards, tmp_path, monkeypatch, good, told):
    """The state behind a step that ruins the weights is saved before anything shows it: it is not a good one."""
    monkeypatch.setattr(Schedule, "__call__", lambda self, step: 1e-33 if step < good else 1.0)
    config = settings(shards, optimizer={"lr": 1e30, "max_norm": None}, schedule={"samples": 40, "warmup_steps": 0}, save_every=1)
    with pytest.raises(GateError, match=rf"no longer finite at step {good + 2}; {told}"):
        train(config, tmp_path, progress=silent)
    ruined = [
        max(float(t.abs().max()) for t in stored["student"].values() if t.is_floating_point()) > 1e6
        for step in state.saved_steps(tmp_path)
        for stored in (state.load(state.path_of(tmp_path, step)),)
    ]
    assert ruined == ([False, True] if good else [True])


def test_bad_samples_are_counted(tmp_path):
    good = [(f"{i:032x}", {"png": picture(i), "txt": b"x"}) for i in range(12)]
    bad = [
        ("a" * 32, {"png": picture(0)[:300], "txt": b"x"}), ("b" * 32, {"txt": b"x"}), ("c" * 32, {"png": picture(0)}),
        ("d" * 32, {"png": picture(0), "txt": b"\xff"}), ("e" * 32, {"png": b"not a picture", "txt": b"x"}),
        ("f" * 32, {"png": b"P6 10000 10000 255 ", "txt": b"x"}),  # a PPM that claims more pixels than the limit
    ]  # fmt: skip
    write_shard(tmp_path / "0.tar", good + bad)
    config = settings(tmp_path, schedule={"samples": 24, "warmup_steps": 1}, data={"shards": [str(tmp_path)], "workers": 0, "max_bad": 0.4})
    train(config, tmp_path / "run", progress=silent)
    last = read_log(tmp_path / "run")[-1]
    reasons = {"bad_image": 2, "no_caption": 1, "no_image": 1, "not_utf8": 1, "too_large": 1}
    assert last["seen"] == 24
    assert last["skipped"].keys() <= reasons.keys()
    assert all(reasons[r] <= n <= 3 * reasons[r] for r, n in last["skipped"].items())  # one epoch is over, and parts of one or two more
    assert sum(last["skipped"].values()) >= 6


def test_a_short_run_is_judged_when_it_ends(tmp_path):
    """Inside its first epoch, with too few samples to be judged on the way; where more is allowed, it goes on from there."""
    good = [(f"{i:032x}", {"png": picture(i), "txt": b"x"}) for i in range(40)]
    write_shard(tmp_path / "0.tar", good + [(f"{i:032x}", {"png": b"no picture", "txt": b"x"}) for i in range(40, 60)])
    schedule, data = {"samples": 16, "warmup_steps": 1}, {"shards": [str(tmp_path)], "workers": 0}
    with pytest.raises(InputError, match=r"samples are bad \(bad_image \d+\), more than data.max_bad 1.00%.*; the last one: 0{30}"):
        train(settings(tmp_path, schedule=schedule), tmp_path / "run", progress=silent)
    assert state.saved_steps(tmp_path / "run")[-1] == 4
    assert not (tmp_path / "run/model.safetensors").exists()
    train(settings(tmp_path, schedule=schedule, data=data | {"max_bad": 0.9}), tmp_path / "run", progress=silent)
    assert (tmp_path / "run/model.safetensors").exists()


def test_starts_from_weights(whole, shards, tmp_path):
    train(settings(shards, init=str(whole / "model.safetensors"), freeze=["text"]), tmp_path, progress=silent)
    before, after = (checkpoints.load(f / "model.safetensors").state for f in (whole, tmp_path))
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"visual", "logit_scale"}


def test_starts_from_the_weights_that_ship(shards):
    shipped = checkpoints.load(Path(checkpoints.__file__).parent / "assets/mobileclip_nano.safetensors")
    assert shipped.trained
    started = start_model(settings(shards, init="mobileclip_nano")).state_dict()
    assert started.keys() == shipped.state.keys()
    assert all(torch.equal(t, shipped.state[n]) for n, t in started.items())


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


def test_empty_log_lines(tmp_path):
    Path(tmp_path / "log.jsonl").write_text('{"step": 1}\n{"step": 2, "lo')
    assert read_log(tmp_path) == [{"step": 1}]
