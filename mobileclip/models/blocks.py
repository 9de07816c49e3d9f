"""Building blocks with training branches that fold into one convolution (structural reparameterization).

MobileOne (arXiv 2206.04040), FastViT (arXiv 2303.14189). Every block with a `fold` method holds its branches in training form and
one convolution, `reparam_conv`, after it; the arithmetic of the folding is in `mobileclip.models.fuse`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mobileclip.models.fuse import conv_of, fold_batch_norm, identity_kernel, pad_kernel

Kernel = tuple[int, int]


def _same(kernel: Kernel) -> Kernel:
    return kernel[0] // 2, kernel[1] // 2


class ConvNorm(nn.Module):
    """Convolution without bias, then BatchNorm (eps 1e-5).

    A 1x1 kernel with a stride takes every stride-th pixel, then convolves with stride 1: the backward pass of oneDNN's strided 1x1
    convolution of few channels writes beyond its memory (uxlfoundation/oneDNN issue 6035).
    """

    def __init__(self, inputs: int, outputs: int, kernel: Kernel, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.step = stride if kernel == (1, 1) else 1
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride // self.step, _same(kernel), groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H/stride, W/stride)."""
        if self.step > 1:
            x = x[:, :, :: self.step, :: self.step]
        return self.bn(self.conv(x))


class SqueezeExcite(nn.Module):
    """Channel gate: global mean, 1x1 reduce, ReLU, 1x1 expand, sigmoid (arXiv 1709.01507)."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, hidden, 1)
        self.fc2 = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        gate = x.mean((2, 3), keepdim=True)
        return x * self.fc2(self.fc1(gate).relu()).sigmoid()


class MobileOne(nn.Module):
    """Sum of parallel branches, then squeeze-excite and GELU: kxk conv-BN, optional 1x1 conv-BN, identity BN where shapes allow.

    Args:
        kernel: (height, width), odd.
        has_conv: With the kxk branch (False only for the identity-only norm in a RepMixer).
        has_scale: With the 1x1 branch.
        se_hidden: Hidden channels of the squeeze-excite, 0 for none.
        activation: GELU (exact) at the end.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: Kernel,
        stride: int = 1,
        groups: int = 1,
        *,
        has_conv: bool = True,
        has_scale: bool = False,
        se_hidden: int = 0,
        activation: bool = True,
        folded: bool = False,
    ) -> None:
        super().__init__()
        self.inputs, self.outputs, self.kernel, self.stride, self.groups = inputs, outputs, kernel, stride, groups
        self.se = SqueezeExcite(outputs, se_hidden) if se_hidden else nn.Identity()
        self.act = nn.GELU() if activation else nn.Identity()
        if folded:
            self.reparam_conv = nn.Conv2d(inputs, outputs, kernel, stride, _same(kernel), groups=groups)
            return
        self.conv_kxk = nn.ModuleList([ConvNorm(inputs, outputs, kernel, stride, groups)] if has_conv else [])
        self.conv_scale = ConvNorm(inputs, outputs, (1, 1), stride, groups) if has_scale else None
        self.identity = nn.BatchNorm2d(inputs) if inputs == outputs and stride == 1 else None

    @property
    def folded(self) -> bool:
        """True in inference form."""
        return hasattr(self, "reparam_conv")

    def branches(self) -> list[nn.Module]:
        """The parallel training branches."""
        return [b for b in (*self.conv_kxk, self.conv_scale, self.identity) if b is not None]

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H/stride, W/stride)."""
        if self.folded:
            y = self.reparam_conv(x)
        else:
            first, *rest = self.branches()
            y = first(x)
            for branch in rest:
                y = y + branch(x)
        return self.act(self.se(y))

    def kernel_and_bias(self) -> tuple[Tensor, Tensor]:
        """The kernel (outputs, inputs/groups, *kernel) and bias (outputs) that equal the sum of all branches."""
        folded = [self._fold_branch(b) for b in self.branches()]
        return torch.stack([k for k, _ in folded]).sum(0), torch.stack([b for _, b in folded]).sum(0)

    def _fold_branch(self, branch: nn.Module) -> tuple[Tensor, Tensor]:
        if isinstance(branch, ConvNorm):
            return fold_batch_norm(pad_kernel(branch.conv.weight, self.kernel), branch.bn)
        assert isinstance(branch, nn.BatchNorm2d)
        unit = identity_kernel(self.outputs, self.inputs // self.groups, self.kernel, branch.weight)
        return fold_batch_norm(unit, branch)

    def fold(self) -> int:
        """Fold in place; returns the number of branches folded."""
        if self.folded:
            return 0
        branches = len(self.branches())
        self.reparam_conv = conv_of(*self.kernel_and_bias(), self.stride, self.groups)
        del self.conv_kxk, self.conv_scale, self.identity
        return branches


class LayerScale(nn.Module):
    """Learned gain of one value a channel, (C, 1, 1)."""

    def __init__(self, channels: int, initial: float = 1e-5) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((channels, 1, 1), initial))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        return x * self.gamma


class RepMixer(nn.Module):
    """Depthwise token mixer `x + scale * (mixer(x) - norm(x))` (FastViT section 3.1)."""

    def __init__(self, channels: int, kernel: Kernel, *, has_scale: bool, folded: bool = False) -> None:
        super().__init__()
        self.channels, self.kernel = channels, kernel
        if folded:
            self.reparam_conv = nn.Conv2d(channels, channels, kernel, 1, _same(kernel), groups=channels)
            return
        self.norm = MobileOne(channels, channels, kernel, groups=channels, has_conv=False, activation=False)
        self.mixer = MobileOne(channels, channels, kernel, groups=channels, has_scale=has_scale, activation=False)
        self.layer_scale = LayerScale(channels)

    @property
    def folded(self) -> bool:
        """True in inference form."""
        return hasattr(self, "reparam_conv")

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        if self.folded:
            return self.reparam_conv(x)
        return x + self.layer_scale(self.mixer(x) - self.norm(x))

    def fold(self) -> int:
        """Fold in place; returns the number of branches folded (the skip counts as one)."""
        if self.folded:
            return 0
        branches = len(self.mixer.branches()) + len(self.norm.branches()) + 1
        mixer_kernel, mixer_bias = self.mixer.kernel_and_bias()
        norm_kernel, norm_bias = self.norm.kernel_and_bias()
        gamma = self.layer_scale.gamma.detach()
        kernel = identity_kernel(self.channels, 1, self.kernel, gamma) + gamma[:, None] * (mixer_kernel - norm_kernel)
        bias = gamma.flatten() * (mixer_bias - norm_bias)
        self.reparam_conv = conv_of(kernel, bias, 1, self.channels)
        del self.norm, self.mixer, self.layer_scale
        return branches


class LargeKernelConv(nn.Module):
    """7x7 and 3x3 conv-BN branches with `groups=inputs`, summed; then squeeze-excite and GELU (downsampling, stride 2)."""

    def __init__(self, inputs: int, outputs: int, *, se_hidden: int, folded: bool = False) -> None:
        super().__init__()
        self.groups, self.kernel, self.stride = inputs, (7, 7), 2
        self.se = SqueezeExcite(outputs, se_hidden) if se_hidden else nn.Identity()
        self.act = nn.GELU()
        if folded:
            self.reparam_conv = nn.Conv2d(inputs, outputs, self.kernel, self.stride, 3, groups=inputs)
            return
        self.large_conv = ConvNorm(inputs, outputs, self.kernel, self.stride, inputs)
        self.small_conv = ConvNorm(inputs, outputs, (3, 3), self.stride, inputs)

    @property
    def folded(self) -> bool:
        """True in inference form."""
        return hasattr(self, "reparam_conv")

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H/2, W/2)."""
        y = self.reparam_conv(x) if self.folded else self.large_conv(x) + self.small_conv(x)
        return self.act(self.se(y))

    def fold(self) -> int:
        """Fold in place; returns the number of branches folded."""
        if self.folded:
            return 0
        large = fold_batch_norm(self.large_conv.conv.weight, self.large_conv.bn)
        small = fold_batch_norm(pad_kernel(self.small_conv.conv.weight, self.kernel), self.small_conv.bn)
        self.reparam_conv = conv_of(large[0] + small[0], large[1] + small[1], self.stride, self.groups)
        del self.large_conv, self.small_conv
        return 2


class PositionEncoding(nn.Module):
    """Conditional position encoding `x + depthwise 7x7(x)` (arXiv 2102.10882)."""

    def __init__(self, channels: int, *, folded: bool = False) -> None:
        super().__init__()
        conv = nn.Conv2d(channels, channels, 7, 1, 3, groups=channels)
        if folded:
            self.reparam_conv = conv
        else:
            self.pos_enc = conv

    @property
    def folded(self) -> bool:
        """True in inference form."""
        return hasattr(self, "reparam_conv")

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        return self.reparam_conv(x) if self.folded else x + self.pos_enc(x)

    def fold(self) -> int:
        """Fold in place; returns the number of branches folded."""
        if self.folded:
            return 0
        conv = self.pos_enc
        assert conv.bias is not None
        unit = identity_kernel(conv.out_channels, 1, (7, 7), conv.weight)
        self.reparam_conv = conv_of(unit + conv.weight.detach(), conv.bias.detach(), 1, conv.groups)
        del self.pos_enc
        return 2


class ConvFFN(nn.Module):
    """Depthwise conv-BN, then a two-layer pointwise MLP with exact GELU."""

    def __init__(self, channels: int, hidden: int, kernel: Kernel) -> None:
        super().__init__()
        self.conv = ConvNorm(channels, channels, kernel, groups=channels)
        self.fc1 = nn.Conv2d(channels, hidden, 1)
        self.act = nn.GELU()
        self.fc2 = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        return self.fc2(self.act(self.fc1(self.conv(x))))


class RepMixerBlock(nn.Module):
    """RepMixer, then a ConvFFN with layer scale and skip."""

    def __init__(
        self, channels: int, hidden: int, mixer_kernel: Kernel, ffn_kernel: Kernel, *, has_scale: bool, folded: bool = False
    ) -> None:
        super().__init__()
        self.token_mixer = RepMixer(channels, mixer_kernel, has_scale=has_scale, folded=folded)
        self.mlp = ConvFFN(channels, hidden, ffn_kernel)
        self.layer_scale: nn.Module = LayerScale(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        x = self.token_mixer(x)
        return x + self.layer_scale(self.mlp(x))


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float, mask: Tensor | None = None) -> Tensor:
    """Multi-head attention of projected positions.

    Written out with three-dimensional products rather than `scaled_dot_product_attention`: every exporter takes these operators as they
    are, without broadcasts.

    Args:
        q: (B, L, D).
        k: (B, L, D).
        v: (B, L, D).
        heads: Number of heads.
        scale: Factor of the scores, (D / heads)^-0.5; 1 where it was folded into the query projection.
        mask: (L, L) added to the scores; finite.

    Returns:
        (B, L, D).
    """
    b, length, width = q.shape
    head = width // heads

    def split(x: Tensor) -> Tensor:  # (B, L, D) -> (B * heads, L, head)
        return x.reshape(b, length, heads, head).transpose(1, 2).reshape(b * heads, length, head)

    q, k, v = split(q), split(k), split(v)
    if scale != 1:
        q = q * scale
    scores = torch.bmm(q, k.transpose(1, 2))  # (B * heads, L, L)
    if mask is not None:
        scores = scores + mask
    mixed = torch.bmm(scores.softmax(-1), v)
    return mixed.reshape(b, heads, length, head).transpose(1, 2).reshape(b, length, width)


def thirds(packed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(..., 3 * D), packed [q | k | v] -> three of (..., D)."""
    width = packed.shape[-1] // 3
    return packed[..., :width], packed[..., width : 2 * width], packed[..., 2 * width :]
