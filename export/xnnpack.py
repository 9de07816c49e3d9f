"""Convolutions in the form that XNNPACK has fast kernels for."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

MAX_TAPS = 25
"""XNNPACK's depthwise kernels take up to 25 taps; a larger one, such as the 7x7 of MCi, falls to a path about ten times slower."""


def split_depthwise(tower: nn.Module) -> nn.Module:
    """A copy of a tower in which no depthwise convolution has more than `MAX_TAPS` taps, equal up to rounding."""
    tower = copy.deepcopy(tower)
    for name, conv in list(tower.named_modules()):
        if type(conv) is nn.Conv2d and _splits(conv):
            parent, _, child = name.rpartition(".")
            setattr(tower.get_submodule(parent), child, SplitDepthwise(conv))
    return tower


def _splits(conv: nn.Conv2d) -> bool:
    height, width = conv.kernel_size
    same = conv.padding == (height // 2, width // 2) and conv.dilation == (1, 1) and conv.padding_mode == "zeros"
    odd = height % 2 == width % 2 == 1
    return conv.groups == conv.in_channels > 1 and height * width > MAX_TAPS >= 2 * width and same and odd


class SplitDepthwise(nn.Module):
    """A depthwise convolution as a sum of smaller ones: the rows in the middle, then each pair of rows around them, by dilation.

    Several outputs for each input channel come from as many convolutions, as XNNPACK knows one output only.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        height, width = conv.kernel_size
        middle = height // 2
        most = MAX_TAPS // width
        reach = (most - 1) // 2  # rows on each side of the middle in the first part
        rows = [list(range(middle - reach, middle + reach + 1))]
        rows += [[middle - far, middle + far] for far in range(reach + 1, middle + 1)]
        multiplier = conv.out_channels // conv.in_channels
        self.outputs = nn.ModuleList(nn.ModuleList(_part(conv, part, i, multiplier) for part in rows) for i in range(multiplier))

    def forward(self, x: Tensor) -> Tensor:
        """As the convolution: (B, C, H, W) -> (B, C * multiplier, H', W')."""
        sums = []
        for parts in self.outputs:
            assert isinstance(parts, nn.ModuleList)
            total = parts[0](x)
            for part in parts[1:]:
                total = total + part(x)
            sums.append(total)
        return sums[0] if len(sums) == 1 else torch.stack(sums, 2).flatten(1, 2)


def _part(conv: nn.Conv2d, rows: list[int], output: int, multiplier: int) -> nn.Conv2d:
    """The convolution with these rows of the kernel only, for one output of each channel; the first part has the bias."""
    width, channels = conv.kernel_size[1], conv.in_channels
    apart = rows[1] - rows[0] if len(rows) > 1 else 1
    first = conv.kernel_size[0] // 2 in rows
    stride, padding = (conv.stride[0], conv.stride[1]), ((len(rows) - 1) * apart // 2, width // 2)
    bias = first and conv.bias is not None
    part = nn.Conv2d(channels, channels, (len(rows), width), stride, padding, (apart, 1), channels, bias)
    part.weight = nn.Parameter(conv.weight.detach()[output::multiplier, :, rows].clone(), requires_grad=False)
    if part.bias is not None and conv.bias is not None:
        part.bias = nn.Parameter(conv.bias.detach()[output::multiplier].clone(), requires_grad=False)
    return part
