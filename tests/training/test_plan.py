"""Dry runs: what a config would do, told without doing it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mobileclip import checkpoints
from mobileclip.data.batch import Rows
from mobileclip.errors import CheckpointError, InputError
from mobileclip.models.clip import CLIP
from mobileclip.specs import get_spec
from mobileclip.training.config import load_config
from mobileclip.training.losses import Features
from mobileclip.training.plan import plan
from mobileclip.training.setup import make_loss
from tests.training.conftest import settings

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


def test_what_is_told(shards, tmp_path):
    (tmp_path / "bad.tar").write_bytes(b"no shard" * 100)
    told = plan(settings(shards, data={"shards": [str(shards), str(tmp_path / "bad.tar")], "workers": 0}))
    assert told["data"]["samples"] == 25
    assert told["data"]["bad"] == 1
    assert told["data"]["epochs"] == pytest.approx(24 / 25)
    assert (told["schedule"]["steps"], told["schedule"]["samples"]) == (6, 24)
    parameters = told["model"]["image_parameters"] + told["model"]["text_parameters"]
    assert told["memory"]["weights_bytes"] == 4 * parameters
    assert told["memory"]["average_bytes"] == 4 * parameters
    assert told["memory"]["logits_bytes"] == 4 * 2 * 2 * 4 * 4
    assert told["cost"]["flops"] == pytest.approx(24 * told["cost"]["flops_per_sample"])
    assert told["cost"]["flops_per_sample"] > 6 * 1e6


def test_a_step_costs_three_times_the_forward_passes(shards):
    """Less the gradient of the pictures; depthwise convolutions included, whose backward pass torch's own counter takes for dense."""
    config = settings(shards)
    clip = CLIP(get_spec(config.model))
    side = clip.spec.preprocess.resolution
    tokens = torch.full((2, clip.spec.text.context), clip.text.end_token)
    with FlopCounterMode(display=False) as counter:
        clip.encode_image(torch.zeros(2, 3, side, side))
        clip.encode_text(tokens)
    assert config.data.captions == "real"
    forward = counter.get_total_flops() / 2
    assert 2.8 * forward < plan(config)["cost"]["flops_per_sample"] < 3.05 * forward  # and the logits


LONG = {"samples": 1000, "warmup_steps": 1}
TAUGHT = {
    "distillation": 0.5,
    "teachers": [{"name": "a", "width": 300}, {"name": "b", "width": 200}, {"name": "c", "width": 9, "weight": 0}],
}


@pytest.mark.parametrize("kind", ["clip", "siglip"])
@pytest.mark.parametrize("captions", ["real", "both"])
def test_the_loss_of_the_whole_batch_is_in_the_cost(shards, kind, captions):
    """As it is counted, for teachers and for more columns than the trial step has."""
    data = {"shards": [str(shards)], "augmentation": "stored", "captions": captions, "workers": 0}

    def told(batch_size, loss):
        config = settings(shards, data=data, batch_size=batch_size, schedule=LONG, loss={"kind": kind, **loss})
        return plan(config)["cost"]["flops_per_sample"]

    def counted(batch_size, loss):
        def rows(width):
            return Rows(*(torch.rand(batch_size, width, requires_grad=True) for _ in range(2 if captions == "real" else 3)))

        config = settings(shards, data=data, loss={"kind": kind, **loss})
        with FlopCounterMode(display=False) as counter:
            make_loss(config)(Features(rows(128), torch.tensor(9.0, requires_grad=True)), rows(509)).loss.backward()
        return counter.get_total_flops() / batch_size

    assert told(8, TAUGHT) - told(8, {}) == pytest.approx(counted(8, TAUGHT) - counted(8, {}))
    for loss in ({}, TAUGHT):
        assert told(256, loss) - told(8, loss) == pytest.approx(counted(256, loss) - counted(8, loss))


def test_freezing_and_checkpointing_need_less(shards):
    whole, frozen, checkpointed = (
        plan(settings(shards, **c)) for c in ({}, {"freeze": ["image"]}, {"gradient_checkpointing": True})
    )  # fmt: skip
    assert frozen["model"]["trained_parameters"] < whole["model"]["trained_parameters"]
    assert frozen["memory"]["gradients_and_optimizer_bytes"] < whole["memory"]["gradients_and_optimizer_bytes"]
    assert checkpointed["memory"]["activations_bytes"] < 0.7 * whole["memory"]["activations_bytes"]


def test_memory_of_one_of_several_processes(shards):
    told = [plan(settings(shards), processes=n)["memory"] for n in (1, 2)]
    assert [m["micro_batch"] for m in told] == [4, 2]
    assert told[0]["activations_bytes"] == pytest.approx(2 * told[1]["activations_bytes"], abs=1)
    assert told[0]["logits_bytes"] == 2 * told[1]["logits_bytes"]
    with pytest.raises(InputError, match="does not divide by 3 processes"):
        plan(settings(shards), processes=3)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux, which tells a process's peak")
def test_a_run_takes_the_memory_that_is_told(shards, tmp_path):
    """A real one of nano: with a batch of 8 most is weights and optimizer, with 64 activations. The way back takes a quarter more."""
    script = [sys.executable, "-m", "tests.training.peak_memory", shards, tmp_path, "8", "64"]
    ran = subprocess.run(script, capture_output=True, text=True, timeout=300, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    for size, grown in zip((8, 64), json.loads(ran.stdout), strict=True):
        told = plan(settings(shards, batch_size=size, schedule=LONG))["memory"]
        expected = sum(value for name, value in told.items() if name.endswith("_bytes"))
        assert 0.8 * expected < grown < 1.6 * expected, (size, grown, told)


def test_missing_data_is_told(shards, tmp_path):
    told = plan(settings(shards, data={"shards": [str(tmp_path / "none-{00..09}.tar")], "workers": 0}))
    assert told["data"]["samples"] is None
    assert "no such shard" in told["data"]["note"]
    told = plan(settings(shards, evaluations=[{"name": "mine", "data": str(tmp_path / "none")}]))
    assert told["data"]["samples"] > 0
    assert told["data"]["note"] == f"evaluations: {tmp_path / 'none'} is not there"


def test_what_the_run_refuses_is_refused(shards, tmp_path):
    with pytest.raises(InputError, match=r"init: .*gone.pt: no such file"):
        plan(settings(shards, init=str(tmp_path / "gone.pt")))
    checkpoints.save(checkpoints.fused(checkpoints.recipe_checkpoint(get_spec("mobileclip_nano"))), tmp_path / "fused.safetensors")
    with pytest.raises(CheckpointError, match="is fused for inference"):
        plan(settings(shards, init=str(tmp_path / "fused.safetensors")))
    with pytest.raises(InputError, match=r"evaluations.0: mine: .*gone"):
        plan(settings(shards, evaluations=[{"name": "mine", "data": str(shards), "labels_file": str(tmp_path / "gone.txt")}]))
    (tmp_path / "reinforcement.json").write_text(json.dumps({"teachers": [{"name": "other"}]}))
    taught = {"augmentation": "stored", "shards": [str(tmp_path)], "workers": 0}
    with pytest.raises(InputError, match=r"loss.teachers: mine, but .* has rows of other"):
        plan(settings(shards, data=taught, loss={"distillation": 1.0, "teachers": [{"name": "mine", "width": 4}]}))


def test_a_batch_that_does_not_divide_is_refused(shards):
    with pytest.raises(InputError, match="batch_size: 4 does not divide by 1 processes x 3 micro-batches"):
        plan(settings(shards, accumulation=3))


@pytest.mark.slow
@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_dry_runs_of_shipped_configs(path):
    config = load_config(path)
    told = plan(config)
    assert told["schedule"]["samples"] >= config.schedule.samples
    towers = told["model"]["image_parameters"] + told["model"]["text_parameters"]
    assert told["model"]["trained_parameters"] == towers + 1  # the logit scale
    assert told["cost"]["flops"] > 0
