"""Dry runs: what a config would do, told without doing it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mobileclip.errors import InputError
from mobileclip.models.clip import CLIP
from mobileclip.specs import get_spec
from mobileclip.training.config import load_config
from mobileclip.training.plan import plan
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


def test_missing_data_is_told(shards, tmp_path):
    told = plan(settings(shards, data={"shards": [str(tmp_path / "none-{00..09}.tar")], "workers": 0}))
    assert told["data"]["samples"] is None
    assert "no such shard" in told["data"]["note"]


def test_a_batch_that_does_not_divide_is_refused(shards):
    with pytest.raises(InputError, match="batch_size 4 does not divide by 1 processes x 3 micro-batches"):
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
