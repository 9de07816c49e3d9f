"""FastViT-MCi image towers, S0 to S4 (MobileCLIP section 4.1; FastViT, arXiv 2303.14189)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mobileclip.models.blocks import (
    ConvFFN,
    LargeKernelConv,
    LayerScale,
    MobileOne,
    PositionEncoding,
    RepMixerBlock,
    attention,
    thirds,
)
from mobileclip.specs import MCiTower


class ChannelLayerNorm(nn.LayerNorm):
    """LayerNorm over the channels of (B, C, H, W), eps 1e-5."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class MapAttention(nn.Module):
    """Self-attention over the cells of a feature map; heads of 32 channels; qkv without bias."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.heads, self.scale = channels // 32, 32**-0.5
        self.qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        shape = x.shape
        tokens = x.flatten(2).transpose(1, 2)  # (B, H*W, C)
        tokens = self.proj(attention(*thirds(self.qkv(tokens)), self.heads, self.scale))
        return tokens.transpose(1, 2).reshape(shape)


class AttentionBlock(nn.Module):
    """Attention, then ConvFFN, each with layer scale and skip."""

    def __init__(self, channels: int, hidden: int, norm: str) -> None:
        super().__init__()
        self.norm: nn.Module = nn.BatchNorm2d(channels) if norm == "batch" else ChannelLayerNorm(channels)
        self.token_mixer = MapAttention(channels)
        self.layer_scale_1: nn.Module = LayerScale(channels)
        self.mlp = ConvFFN(channels, hidden, (7, 7))
        self.layer_scale_2: nn.Module = LayerScale(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        x = x + self.layer_scale_1(self.token_mixer(self.norm(x)))
        return x + self.layer_scale_2(self.mlp(x))


class Downsample(nn.Module):
    """Halve the map and widen the channels: large-kernel convolution, then a pointwise MobileOne."""

    def __init__(self, inputs: int, outputs: int, *, squeeze_excite: bool, folded: bool) -> None:
        super().__init__()
        self.proj = nn.Sequential(
            LargeKernelConv(inputs, outputs, se_hidden=outputs // 4 if squeeze_excite else 0, folded=folded),
            MobileOne(outputs, outputs, (1, 1), folded=folded),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H/2, W/2)."""
        return self.proj(x)


class Stage(nn.Module):
    """Optional downsampling and position encoding (both from the second and the first attention stage on), then the blocks."""

    def __init__(self, tower: MCiTower, index: int, *, folded: bool) -> None:
        super().__init__()
        dim = tower.dims[index]
        hidden = dim * tower.mlp_ratio
        self.downsample = (
            Downsample(tower.dims[index - 1], dim, squeeze_excite=tower.squeeze_excite[index], folded=folded) if index else nn.Identity()
        )
        self.pos_emb = PositionEncoding(dim, folded=folded) if tower.attention[index] else nn.Identity()
        self.blocks = nn.Sequential(
            *(
                AttentionBlock(dim, hidden, tower.norm)
                if tower.attention[index]
                else RepMixerBlock(dim, hidden, (3, 3), (7, 7), has_scale=True, folded=folded)
                for _ in range(tower.depths[index])
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, previous dim, H, W) -> (B, dim, H/2, W/2); the first stage keeps H and W."""
        return self.blocks(self.pos_emb(self.downsample(x)))


class Head(nn.Module):
    """Global mean, then projection."""

    def __init__(self, features: int, embed_dim: int, *, bias: bool) -> None:
        super().__init__()
        self.fc = nn.Linear(features, embed_dim, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, features, H, W) -> (B, embed_dim)."""
        return self.fc(x.mean((2, 3), keepdim=True).flatten(1))


class MCi(nn.Module):
    """The image tower.

    Args:
        tower: Sizes.
        embed_dim: Size of the embedding.
        folded: Build in inference form, for fused checkpoints.
    """

    def __init__(self, tower: MCiTower, embed_dim: int, *, folded: bool = False) -> None:
        super().__init__()
        first, last = tower.dims[0], tower.dims[-1]
        self.stem = nn.Sequential(
            MobileOne(3, first, (3, 3), 2, has_scale=tower.stem_scale, folded=folded),
            MobileOne(first, first, (3, 3), 2, groups=first, has_scale=tower.stem_scale, folded=folded),
            MobileOne(first, first, (1, 1), folded=folded),
        )
        self.stages = nn.Sequential(*(Stage(tower, i, folded=folded) for i in range(len(tower.dims))))
        self.final_conv = MobileOne(last, 2 * last, (3, 3), groups=last, has_scale=True, se_hidden=2 * last // 16, folded=folded)
        self.head = Head(2 * last, embed_dim, bias=tower.head_bias)
        self.apply(_initialise)

    def forward(self, image: Tensor) -> Tensor:
        """Preprocessed RGB (B, 3, H, W), sides multiples of the tower's stride -> embedding (B, embed_dim), not normalised."""
        return self.head(self.final_conv(self.stages(self.stem(image))))


def _initialise(module: nn.Module) -> None:
    """Truncated normal (std 0.02) for linear layers and ConvFFN convolutions, zero biases, as in FastViT."""
    layers: list[nn.Module] = [module] if isinstance(module, nn.Linear) else []
    if isinstance(module, ConvFFN):
        layers = [module.conv.conv, module.fc1, module.fc2]
    for layer in layers:
        assert isinstance(layer, nn.Linear | nn.Conv2d)
        torch.nn.init.trunc_normal_(layer.weight, std=0.02)
        if layer.bias is not None:
            torch.nn.init.zeros_(layer.bias)
