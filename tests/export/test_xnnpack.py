"""Large depthwise convolutions as sums of small ones."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from mobileclip.export import runtimes
from mobileclip.export.bundle import TensorInfo
from mobileclip.export.exporter import write
from mobileclip.export.graph import Plan, fold_affine
from mobileclip.export.xnnpack import MAX_TAPS, SplitDepthwise, split_depthwise
from mobileclip.models.text import TextEncoder
from mobileclip.specs import TextTower


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("multiplier", [1, 2])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [(7, 7), (9, 9), (11, 11), (7, 5), (13, 3), (3, 11)])
def test_the_sum_equals_the_convolution(kernel, stride, multiplier, bias):
    torch.manual_seed(0)
    padding = (kernel[0] // 2, kernel[1] // 2)
    conv = nn.Conv2d(6, 6 * multiplier, kernel, stride, padding, groups=6, bias=bias).double()
    x = torch.randn(2, 6, 17, 20, dtype=torch.float64)
    split = split_depthwise(nn.Sequential(conv))[0]
    assert isinstance(split, SplitDepthwise)
    assert torch.allclose(split(x), conv(x), atol=1e-12)
    assert all(m.kernel_size[0] * m.kernel_size[1] <= MAX_TAPS for m in split.modules() if isinstance(m, nn.Conv2d))


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(6, 6, 5, padding=2, groups=6),
        nn.Conv2d(6, 6, 7, padding=3),
        nn.Conv2d(6, 6, 7, padding=3, groups=3),
        nn.Conv2d(6, 6, 7, padding=0, groups=6),
        nn.Conv2d(6, 6, 7, padding=6, groups=6, dilation=2),
        nn.Conv2d(6, 6, 8, padding=4, groups=6),
        nn.Conv2d(6, 6, (1, 31), padding=(0, 15), groups=6),
        nn.Conv2d(6, 6, 7, padding=3, groups=6, padding_mode="reflect"),
        nn.Conv2d(1, 1, 7, padding=3),
    ],
)
def test_others_stay(conv):
    tower = nn.Sequential(conv)
    assert isinstance(split_depthwise(tower)[0], nn.Conv2d)


def test_the_tower_itself_is_left_alone():
    tower = nn.Sequential(nn.Conv2d(6, 6, 7, padding=3, groups=6))
    assert split_depthwise(tower) is not tower
    assert isinstance(tower[0], nn.Conv2d)


def test_a_causal_text_transformer_is_lowered(tmp_path):
    """The partitioner must be able to cut the graph, with a mask."""
    torch.manual_seed(0)
    tower = TextEncoder(replace(TextTower(64, 4, 3, vocabulary=49408), causal=True), 32).eval()
    tokens = TensorInfo(name="tokens", dtype="int32", shape=(1, 77))
    plan = Plan("text", tokens, TensorInfo(name="embedding", dtype="float32", shape=(1, 32)), None, normalize=True, half=False)
    artifact = write("executorch", fold_affine(tower), plan, tmp_path)
    ids = np.zeros((1, 77), np.int32)
    ids[0, :5] = 49406, 320, 1125, 539, 49407
    got = runtimes.load_artifact(tmp_path, artifact).run(ids)
    with torch.no_grad():
        wanted = nn.functional.normalize(tower(torch.from_numpy(ids)), dim=-1).numpy()
    assert abs(got - wanted).max() < 1e-5
