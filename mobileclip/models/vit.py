"""Vision transformer image towers: B/16 with a convolutional stem (MobileCLIP-B, MobileCLIP2-B) and L/14 (arXiv 2010.11929)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mobileclip.models.blocks import attention, thirds
from mobileclip.specs import ViTTower


class Attention(nn.Module):
    """Self-attention with biases everywhere."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, *, first_only: bool) -> Tensor:
        """(B, L, width) -> the same shape, or only the first position: (B, 1, width)."""
        mixed = attention(*thirds(self.qkv(x)), self.heads, self.scale)
        return self.proj(mixed[:, :1] if first_only else mixed)


class Mlp(nn.Module):
    """Two linear layers with exact GELU; hidden size 4 * width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, width) -> the same shape."""
        return self.fc2(self.act(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, width: int, heads: int, eps: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps)
        self.mlp = Mlp(width)

    def forward(self, x: Tensor, *, first_only: bool = False) -> Tensor:
        """(B, L, width) -> the same shape, or only the first position: (B, 1, width)."""
        x = (x[:, :1] if first_only else x) + self.attn(self.norm1(x), first_only=first_only)
        return x + self.mlp(self.norm2(x))


class StemLayer(nn.Module):
    """Strided convolution; all but the last layer of the stem with BatchNorm and GELU."""

    def __init__(self, inputs: int, outputs: int, stride: int, padding: int, *, last: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, stride, stride, padding, bias=last)
        self.bn = nn.Identity() if last else nn.BatchNorm2d(outputs)
        self.act = nn.Identity() if last else nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H/stride, W/stride)."""
        return self.act(self.bn(self.conv(x)))


class ConvStem(nn.Module):
    """16x16 patches by three convolutions of stride 4, 2, 2."""

    def __init__(self, width: int, padding: int) -> None:
        super().__init__()
        mid = width // 4
        self.backbone = nn.Sequential(
            StemLayer(3, mid, 4, padding, last=False),
            StemLayer(mid, mid, 2, 0, last=False),
            StemLayer(mid, width, 2, 0, last=True),
        )

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, width, H/16, W/16)."""
        return self.backbone(image)


class PatchEmbed(nn.Module):
    """Non-overlapping patches by one convolution without bias."""

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, patch, bias=False)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, width, H/patch, W/patch)."""
        return self.proj(image)


class ViT(nn.Module):
    """The image tower.

    With a `conv` stem the class token has no position and there is no norm before the blocks; with a `patch` stem it has both.
    Nothing behind the last attention mixes positions, so the rest of the last block computes the class token only.
    """

    def __init__(self, tower: ViTTower, embed_dim: int, resolution: int) -> None:
        super().__init__()
        width, patches = tower.width, (resolution // tower.patch) ** 2
        self.class_position = tower.stem == "patch"
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, patches + self.class_position, width))
        self.patch_embed = ConvStem(width, tower.stem_padding) if tower.stem == "conv" else PatchEmbed(width, tower.patch)
        self.norm_pre = nn.LayerNorm(width, tower.norm_eps) if self.class_position else nn.Identity()
        self.blocks = nn.Sequential(*(Block(width, tower.heads, tower.norm_eps) for _ in range(tower.layers)))
        self.norm = nn.LayerNorm(width, tower.norm_eps)
        self.head = nn.Linear(width, embed_dim, bias=tower.head_bias)

    def forward(self, image: Tensor) -> Tensor:
        """Preprocessed RGB (B, 3, R, R) at the tower's resolution -> embedding (B, embed_dim), not normalised."""
        x = self.patch_embed(image).flatten(2).transpose(1, 2)  # (B, patches, width)
        cls = self.cls_token.expand(x.shape[0], -1, -1)
        if self.class_position:
            x = self.norm_pre(torch.cat([cls, x], 1) + self.pos_embed)
        else:
            x = torch.cat([cls, x + self.pos_embed], 1)
        x = self.blocks[-1](self.blocks[:-1](x), first_only=True)
        return self.head(self.norm(x[:, 0]))
