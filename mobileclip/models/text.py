"""Text towers: a transformer, and MCt with convolutional RepMixer1D blocks at both ends (MobileCLIP section 4.2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mobileclip.models.blocks import RepMixerBlock, attention, thirds
from mobileclip.specs import TextTower

END_TOKEN = 49407
MASKED = -1e4
"""Added to masked attention scores. Finite, as infinities break converters; the softmax is the same in fp16 and fp32."""


class PackedAttention(nn.Module):
    """Self-attention with packed input projection, [q | k | v]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.in_proj_weight = nn.Parameter(width**-0.5 * torch.randn(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None, select: Tensor | None) -> Tensor:
        """(B, L, width), mask (L, L) or None -> the same shape; with `select` (B, 1, L), a one-hot row, this position: (B, 1, width)."""
        qkv = nn.functional.linear(x, self.in_proj_weight, self.in_proj_bias)
        mixed = attention(*thirds(qkv), self.heads, self.scale, mask)
        return self.out_proj(mixed if select is None else torch.bmm(select, mixed))


class Mlp(nn.Module):
    """Two linear layers with exact GELU; hidden size 4 * width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width)
        self.gelu = nn.GELU()
        self.c_proj = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, width) -> the same shape."""
        return self.c_proj(self.gelu(self.c_fc(x)))


class TransformerBlock(nn.Module):
    """Pre-norm transformer block, LayerNorm eps 1e-5."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = PackedAttention(width, heads)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = Mlp(width)

    def forward(self, x: Tensor, mask: Tensor | None, select: Tensor | None = None) -> Tensor:
        """(B, L, width), mask (L, L) or None -> the same shape; with `select` (B, 1, L), a one-hot row, this position: (B, 1, width)."""
        x = (x if select is None else torch.bmm(select, x)) + self.attn(self.ln_1(x), mask, select)
        return x + self.mlp(self.ln_2(x))


class RepMixer1D(RepMixerBlock):
    """RepMixer block over a sequence: kernels (1, 11), hidden size 4 * width. Mixes padding too, so padding must be 0."""

    def __init__(self, width: int, *, folded: bool) -> None:
        super().__init__(width, 4 * width, (1, 11), (1, 11), has_scale=False, folded=folded)

    def forward(self, x: Tensor, mask: Tensor | None = None, select: Tensor | None = None) -> Tensor:
        """(B, L, width) -> the same shape, or with `select` (B, 1, L), a one-hot row, this position; the mask has no effect."""
        x = super().forward(x.transpose(1, 2).unsqueeze(2)).squeeze(2).transpose(1, 2)
        return x if select is None else torch.bmm(select, x)


class Blocks(nn.Module):
    """The stack of blocks."""

    def __init__(self, tower: TextTower, *, folded: bool) -> None:
        super().__init__()
        ends = {*range(tower.mixers), *range(tower.layers - tower.mixers, tower.layers)}
        self.resblocks = nn.ModuleList(
            RepMixer1D(tower.width, folded=folded) if i in ends else TransformerBlock(tower.width, tower.heads) for i in range(tower.layers)
        )

    def forward(self, x: Tensor, mask: Tensor | None, select: Tensor) -> Tensor:
        """(B, L, width), mask (L, L) or None, `select` (B, 1, L), a one-hot row -> the selected position: (B, 1, width).

        Nothing behind the last attention mixes positions, so the rest of the last block computes this one only.
        """
        for block in self.resblocks[:-1]:
            x = block(x, mask)
        return self.resblocks[-1](x, mask, select)


def first_end_token(tokens: Tensor, end_token: int) -> Tensor:
    """One-hot rows that select the first end token, without ArgMax (int64 ArgMax is missing or slow on phones).

    Args:
        tokens: (B, L) integer ids.

    Returns:
        (B, L) float32, 1 at the first end token and 0 elsewhere; all 0 for a row without one.
    """
    is_end = (tokens == end_token).float()
    length = tokens.shape[1]
    strictly_before = torch.ones(length, length, device=tokens.device).triu(1)
    earlier = is_end @ strictly_before  # number of end tokens in front of each position
    return is_end * (1 - earlier).relu()


class TextEncoder(nn.Module):
    """The text tower.

    Non-causal towers attend to the padding, so ids must be padded with 0 to exactly `context`. A row without an end token has no embedding
    of meaning.
    """

    mask: Tensor | None

    def __init__(self, tower: TextTower, embed_dim: int, *, folded: bool = False) -> None:
        super().__init__()
        width = tower.width
        self.end_token = END_TOKEN
        self.positional_embedding = nn.Parameter(0.01 * torch.randn(tower.context, width))
        self.text_projection = nn.Parameter(width**-0.5 * torch.randn(width, embed_dim))
        self.token_embedding = nn.Embedding(tower.vocabulary, width)
        self.transformer = Blocks(tower, folded=folded)
        self.ln_final = nn.LayerNorm(width)
        mask = torch.full((tower.context, tower.context), MASKED).triu(1) if tower.causal else None
        self.register_buffer("mask", mask, persistent=False)
        self._initialise(tower)

    def _initialise(self, tower: TextTower) -> None:
        """open_clip's initialisation: output projections shrink with depth."""
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        for block in self.transformer.resblocks:
            if isinstance(block, TransformerBlock):
                out_std = tower.width**-0.5 * (2 * tower.layers) ** -0.5
                nn.init.normal_(block.attn.out_proj.weight, std=out_std)
                nn.init.zeros_(block.attn.out_proj.bias)
                nn.init.normal_(block.mlp.c_fc.weight, std=(2 * tower.width) ** -0.5)
                nn.init.normal_(block.mlp.c_proj.weight, std=out_std)

    def forward(self, tokens: Tensor) -> Tensor:
        """Token ids (B, context), any integer dtype -> embedding (B, embed_dim), not normalised."""
        x = self.token_embedding(tokens) + self.positional_embedding
        select = first_end_token(tokens, self.end_token).to(x.dtype).unsqueeze(1)
        pooled = self.ln_final(self.transformer(x, self.mask, select))
        return pooled.squeeze(1) @ self.text_projection
