"""What is folded for the export leaves the function as it was, in float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from mobileclip.export.graph import fold_affine
from mobileclip.models.clip import CLIP
from mobileclip.models.text import TextEncoder
from mobileclip.models.vit import ViT
from mobileclip.specs import REGISTRY, TextTower, ViTTower

TEXT = TextTower(32, 4, 3, vocabulary=49408)


def randomised(net: nn.Module) -> nn.Module:
    """Values that make every step matter, in eval mode and float64."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, value in net.state_dict().items():
            if value.is_floating_point():
                value.copy_(torch.rand_like(value) + 0.5 if "var" in name else torch.randn_like(value) * 0.3)
    return net.eval().double().requires_grad_(False)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("mixers", [0, 1])
def test_text_tower(causal, mixers):
    tower = randomised(TextEncoder(replace(TEXT, causal=causal, mixers=mixers), 16, folded=True))
    ids = torch.randint(1, 49406, (5, 77))
    for row, end in enumerate((1, 2, 30, 75, 76)):
        ids[row, end] = tower.end_token
        ids[row, end + 1 :] = 0
    folded = fold_affine(tower)
    assert torch.allclose(folded(ids), tower(ids), atol=1e-10)


@pytest.mark.parametrize("stem", ["conv", "patch"])
def test_vision_transformer(stem):
    tower = randomised(ViT(ViTTower(32, 3, 4, 16, stem, 1e-5, head_bias=stem == "conv"), 16, 64))
    image = torch.rand(2, 3, 64, 64, dtype=torch.float64)
    folded = fold_affine(tower)
    assert torch.allclose(folded(image), tower(image), atol=1e-10)


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_convolutional_tower(norm):
    nano = REGISTRY["mobileclip_nano"]
    spec = replace(nano, open_clip=replace(nano.open_clip, norm=norm))
    tower = randomised(CLIP(spec, "open_clip", folded=True).visual)
    image = torch.rand(2, 3, 64, 64, dtype=torch.float64)
    got, wanted = fold_affine(tower)(image), tower(image)
    assert torch.allclose(got, wanted, atol=1e-10 * float(wanted.abs().max()))
