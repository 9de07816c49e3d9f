"""Fusing: exact in float64 for every kind of block, a new module, idempotent, and it counts what it folds."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from mobileclip.checkpoints import expected_shapes
from mobileclip.models.blocks import LargeKernelConv, LayerScale, MobileOne, PositionEncoding, RepMixer, RepMixerBlock
from mobileclip.models.clip import CLIP
from mobileclip.models.fuse import fuse, is_fused
from mobileclip.models.mci import Stage
from mobileclip.models.text import RepMixer1D
from mobileclip.specs import REGISTRY, TextTower

EXACT = 1e-10
NANO = REGISTRY["mobileclip_nano"]


def randomised(module: nn.Module, seed: int = 0) -> nn.Module:
    """float64, eval mode, all values drawn; each fourth channel of a BatchNorm has a variance far below eps."""
    generator = torch.Generator().manual_seed(seed)
    module = module.double().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 1
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * fan_in**-0.5)
        for m in module.modules():
            if isinstance(m, LayerScale):
                m.gamma.copy_(0.5 + torch.rand(m.gamma.shape, generator=generator, dtype=torch.float64))
            if isinstance(m, nn.BatchNorm2d):
                m.running_mean.copy_(torch.randn(m.running_mean.shape, generator=generator))
                m.running_var.copy_(0.1 + torch.rand(m.running_var.shape, generator=generator))
                m.running_var[::4] = 1e-9
    return module


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def check(block: nn.Module, x: Tensor, *, convolutions: int, branches: int, call: Callable = lambda m, x: m(x)) -> None:
    """The fused copy gives the same, the original is as it was, and fusing again folds nothing."""
    randomised(block)
    before = copy.deepcopy(block.state_dict())
    with torch.no_grad():
        expected = call(block, x)
        fused = fuse(block)
        got = call(fused.model, x)
    assert (got - expected).abs().max() <= EXACT * max(1.0, expected.abs().max().item())
    assert expected.std() > 1e-3  # a constant would agree with anything
    assert (fused.convolutions, fused.branches) == (convolutions, branches)
    assert is_fused(fused.model)
    assert fused.model is not block

    after = block.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert not {t.data_ptr() for t in fused.model.state_dict().values()} & {t.data_ptr() for t in after.values()}

    again = fuse(fused.model)
    assert (again.convolutions, again.branches) == (0, 0)
    assert all(torch.equal(a, b) for a, b in zip(again.model.state_dict().values(), fused.model.state_dict().values(), strict=True))


def mobileone_cases():
    for has_conv, has_scale, kernel, (inputs, outputs, stride, groups), se in itertools.product(
        (True, False),
        (True, False),
        ((1, 1), (3, 3), (7, 7), (1, 11)),
        ((8, 8, 1, 1), (8, 8, 1, 8), (8, 8, 1, 2), (8, 16, 1, 8), (8, 8, 2, 8), (3, 8, 2, 1)),
        (0, 4),
    ):
        identity = inputs == outputs and stride == 1
        branches = has_conv + has_scale + identity
        if branches:
            yield pytest.param(has_conv, has_scale, kernel, inputs, outputs, stride, groups, se, branches)


@pytest.mark.parametrize(("has_conv", "has_scale", "kernel", "inputs", "outputs", "stride", "groups", "se", "branches"), mobileone_cases())
def test_mobileone(has_conv, has_scale, kernel, inputs, outputs, stride, groups, se, branches):
    block = MobileOne(inputs, outputs, kernel, stride, groups, has_conv=has_conv, has_scale=has_scale, se_hidden=se, activation=bool(se))
    check(block, noise(2, inputs, 12, 14), convolutions=1, branches=branches)


@pytest.mark.parametrize("kernel", [(3, 3), (1, 11), (5, 5)])
@pytest.mark.parametrize("has_scale", [True, False])
def test_repmixer(kernel, has_scale):
    # identity and kxk of the mixer, its scale branch, the identity of the norm, and the skip
    check(RepMixer(8, kernel, has_scale=has_scale), noise(2, 8, 9, 13), convolutions=1, branches=4 + has_scale)
    check(RepMixerBlock(8, 24, kernel, (7, 7), has_scale=has_scale), noise(2, 8, 9, 13), convolutions=1, branches=4 + has_scale)


def test_repmixer_1d():
    check(RepMixer1D(16, folded=False), noise(2, 77, 16), convolutions=1, branches=4)


@pytest.mark.parametrize("se", [0, 4])
def test_large_kernel_convolution(se):
    check(LargeKernelConv(8, 16, se_hidden=se), noise(2, 8, 16, 12), convolutions=1, branches=2)


def test_position_encoding():
    check(PositionEncoding(8), noise(2, 8, 9, 7), convolutions=1, branches=2)


@pytest.mark.parametrize("norm", ["batch", "layer"])
@pytest.mark.parametrize("index", range(4))
def test_stages(index, norm):
    tower = replace(REGISTRY[NANO.name].image("open_clip"), norm=norm)
    attention, depth = tower.attention[index], tower.depths[index]
    mixers = 0 if attention else depth
    downsample, position = index > 0, attention
    x = noise(2, tower.dims[max(0, index - 1)], 16, 16)
    convolutions = mixers + 2 * downsample + position
    check(Stage(tower, index, folded=False), x, convolutions=convolutions, branches=5 * mixers + 4 * downsample + 2 * position)


def test_whole_image_tower():
    # stem 2 + 2 + 2, mixers 8 x 5, three downsamplings 2 + 2, position encoding 2, final convolution 2
    check(CLIP(NANO).visual, noise(2, 3, 64, 64), convolutions=3 + 8 + 6 + 1 + 1, branches=6 + 40 + 12 + 2 + 2)


def test_whole_text_tower():
    tokens = torch.zeros(2, NANO.text.context, dtype=torch.int64)
    tokens[:, :4] = torch.tensor([49406, 320, 1929, 49407])
    tokens[1, 1] = 2533
    check(CLIP(NANO).text, tokens, convolutions=2, branches=8)


def test_towers_without_branches():
    spec = replace(NANO, text=TextTower(64, 4, 2))
    fused = fuse(CLIP(spec).text)
    assert (fused.convolutions, fused.branches) == (0, 0)


# one variant of each architecture; the other form of a variant differs only in its head
ARCHITECTURES = {(spec.image(spec.published_form), spec.text): spec for spec in REGISTRY.values()}


@pytest.mark.parametrize("spec", [pytest.param(spec, id=spec.name) for spec in ARCHITECTURES.values()])
def test_fused_names_and_shapes_are_those_of_a_model_built_in_inference_form(spec):
    with torch.device("meta"):
        model = CLIP(spec)
    fused = fuse(model)
    assert {n: tuple(t.shape) for n, t in fused.model.state_dict().items()} == expected_shapes(spec, spec.published_form, fused=True)
    assert is_fused(fused.model)
    assert is_fused(model) == (fused.convolutions == 0)


def test_original_still_trains():
    model = CLIP(NANO).train()
    fused = fuse(model)
    assert model.training
    assert not fused.model.training
    assert not is_fused(model)
    image, tokens = torch.rand(4, 3, 64, 64), torch.randint(1, 49406, (4, NANO.text.context))
    tokens[:, 20] = 49407
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    a, b, scale = model(image, tokens)
    loss = nn.functional.cross_entropy(scale * a @ b.T, torch.arange(4))
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())
    optimizer.step()
    moved = [n for n, p in model.named_parameters() if not torch.equal(p, before[n])]
    assert len(moved) > 0.9 * len(before)


def test_fused_model_can_be_fused_from_another_dtype_and_keeps_it():
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        fused = fuse(CLIP(NANO).to(dtype))
        assert {p.dtype for p in fused.model.parameters()} == {dtype}
