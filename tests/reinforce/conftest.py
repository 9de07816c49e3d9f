"""A small data set and the smallest teachers: this toolkit's own untrained nano, and open_clip models made on the spot."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import open_clip
import pytest
import safetensors.torch
import torch
from small_sets import ensemble, sample

from mobileclip.data.shards import write_shard
from mobileclip.data.source import find_shards
from mobileclip.reinforce import Summary, reinforce


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """Three shards of 5, 4 and 1 samples; pictures 1 and 6 are the same."""
    folder = tmp_path_factory.mktemp("data")
    samples = [sample(n) for n in range(10)]
    samples[6][1]["png"] = samples[1][1]["png"]
    for i, part in enumerate((samples[:5], samples[5:9], samples[9:])):
        write_shard(folder / f"{i:05d}.tar", part)
    return folder


@pytest.fixture(scope="session")
def tiny(tiny_open_clip) -> dict[str, object]:
    """The smallest teacher."""
    return {"kind": "open_clip", "name": "tiny", "model": tiny_open_clip()}


@pytest.fixture
def make(data, tiny, tmp_path) -> Callable[..., Summary]:
    """Reinforce `data`, or other shards, into a folder; the smallest run unless told otherwise."""

    def call(
        *teachers: dict[str, object], shards: object = data, out: Path = tmp_path / "out", words: object = None, **options: object
    ) -> Summary:
        config = ensemble(*(teachers or (tiny,)), words=words)
        settings = {"views": 2, "captions": 2} | options
        return reinforce(find_shards([str(shards)]), out, config, lambda step: None, **settings)

    return call


@pytest.fixture(scope="session")
def tiny_open_clip(tmp_path_factory) -> Callable[..., str]:
    """A function that makes an open_clip model with drawn weights, and gives its name: `tiny_open_clip(init_logit_bias=-10)`."""

    def build(kind: str = "clip", **more: object) -> str:
        text = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
        config = {
            "embed_dim": 24,
            "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "patch_size": 16, "head_width": 16},
            "text_cfg": text,
            **more,
        }
        if kind == "coca":
            config["vision_cfg"] |= {"attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True}
            config["text_cfg"] |= {"embed_cls": True, "output_tokens": True}
            config |= {"custom_text": True, "embed_dim": 32}
            config["multimodal_cfg"] = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
        preprocess = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], "interpolation": "bilinear", "resize_mode": "squash"}
        folder = tmp_path_factory.mktemp("open_clip")
        (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))
        model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
        rng = torch.Generator().manual_seed(0)
        state = {name: torch.randn(t.shape, generator=rng) * 0.1 if t.ndim else t for name, t in model.state_dict().items()}
        safetensors.torch.save_file(state, folder / "open_clip_model.safetensors")
        return f"local-dir:{folder}"

    return build
