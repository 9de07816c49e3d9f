"""Structural reparameterization: fold parallel training branches into single convolutions (MobileOne, arXiv 2206.04040, section 3.1)."""

from __future__ import annotations

import copy
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


class Fused(NamedTuple, Generic[M]):
    """A fused model, and what was folded into it."""

    model: M
    convolutions: int
    """Convolutions that replaced training branches."""
    branches: int
    """Training branches that they replaced, skips included."""


def fuse(model: M) -> Fused[M]:
    """A copy of `model` in inference form.

    The original is left alone. Calling it on a fused model folds nothing and returns an equal copy. BatchNorms in front of pointwise
    layers (ConvFFN, attention) stay: they are part of the published inference form. The copy is in eval mode, as folding uses the running
    statistics.
    """
    fused = copy.deepcopy(model).eval()
    with torch.no_grad():
        folded = _fold_all(fused)
    return Fused(fused, sum(n > 0 for n in folded), sum(folded))


def _fold_all(module: nn.Module) -> list[int]:
    """Fold the outermost modules that can; those inside one (the two halves of a RepMixer) go with it."""
    if callable(fold := getattr(module, "fold", None)):
        return [int(fold())]
    return [n for child in module.children() for n in _fold_all(child)]


def is_fused(model: nn.Module) -> bool:
    """True when no module of `model` has training branches left."""
    return all(m.folded for m in model.modules() if hasattr(m, "fold"))


def fold_batch_norm(kernel: Tensor, bn: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """The kernel and bias of `bn(conv(x))` in eval mode: kernel * s and beta - mean * s with s = gamma / sqrt(var + eps).

    Args:
        kernel: (out, in/groups, kh, kw), of a convolution without bias.

    Returns:
        Kernel of the same shape and bias (out).
    """
    assert bn.running_mean is not None
    assert bn.running_var is not None
    s = bn.weight.detach() / torch.sqrt(bn.running_var + bn.eps)
    return kernel.detach() * s[:, None, None, None], bn.bias.detach() - bn.running_mean * s


def identity_kernel(outputs: int, inputs_per_group: int, kernel: tuple[int, int], like: Tensor) -> Tensor:
    """(outputs, inputs_per_group, *kernel) kernel that copies its input; dtype and device of `like`."""
    unit = torch.zeros(outputs, inputs_per_group, *kernel, dtype=like.dtype, device=like.device)
    channel = torch.arange(outputs, device=like.device)
    unit[channel, channel % inputs_per_group, kernel[0] // 2, kernel[1] // 2] = 1
    return unit


def pad_kernel(kernel: Tensor, size: tuple[int, int]) -> Tensor:
    """Zero-pad an odd kernel (..., kh, kw) symmetrically to `size`."""
    h, w = (size[0] - kernel.shape[2]) // 2, (size[1] - kernel.shape[3]) // 2
    return nn.functional.pad(kernel, (w, w, h, h))


def conv_of(kernel: Tensor, bias: Tensor, stride: int, groups: int) -> nn.Conv2d:
    """A convolution with "same" padding that holds the given kernel and bias."""
    outputs, per_group, kh, kw = kernel.shape
    conv = nn.Conv2d(
        per_group * groups, outputs, (kh, kw), stride, (kh // 2, kw // 2), groups=groups, dtype=kernel.dtype, device=kernel.device
    )
    conv.weight.data.copy_(kernel)
    assert conv.bias is not None
    conv.bias.data.copy_(bias)
    return conv
