"""Towers of any CLIP that open_clip builds, brought to the form that our exporters take."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mobileclip.errors import InputError
from mobileclip.models.blocks import attention, thirds
from mobileclip.models.text import MASKED, first_end_token


class ExplicitAttention(nn.Module):
    """Self-attention with the weights of an `nn.MultiheadAttention`, without its hidden fast path."""

    def __init__(self, mha: nn.MultiheadAttention) -> None:
        super().__init__()
        if mha.in_proj_weight is None or mha.bias_k is not None or not mha.batch_first:
            raise InputError("this open_clip model has an attention layer of an unknown kind; only packed self-attention can be exported")
        self.heads, self.scale = mha.num_heads, mha.head_dim**-0.5
        self.in_proj_weight, self.in_proj_bias, self.out_proj = mha.in_proj_weight, mha.in_proj_bias, mha.out_proj

    def forward(self, q: Tensor, k: Tensor, v: Tensor, need_weights: bool = False, attn_mask: Tensor | None = None) -> tuple[Tensor, None]:
        """(B, L, D) three times the same -> ((B, L, D), None), as `nn.MultiheadAttention` answers."""
        qkv = nn.functional.linear(q, self.in_proj_weight, self.in_proj_bias)
        return self.out_proj(attention(*thirds(qkv), self.heads, self.scale, attn_mask)), None


class OpenClipText(nn.Module):
    """A text transformer of open_clip: pooling at the first end token without an ArgMax, a finite mask.

    Args:
        text: `open_clip.CLIP` itself, or the `TextTransformer` of a `CustomTextCLIP`.
        end_token: Id that ends a caption.
    """

    attn_mask: Tensor | None

    def __init__(self, text: Any, end_token: int) -> None:
        super().__init__()
        if not hasattr(text, "token_embedding") or getattr(text, "cls_emb", None) is not None or getattr(text, "use_pad_mask", False):
            raise InputError("the text tower of this open_clip model is of a kind that cannot be exported (only plain transformers can)")
        self.token_embedding, self.positional_embedding = text.token_embedding, text.positional_embedding
        self.transformer, self.ln_final, self.text_projection = text.transformer, text.ln_final, text.text_projection
        self.pool, self.end_token = getattr(text, "text_pool_type", None) or text.pool_type, end_token
        mask = text.attn_mask
        self.register_buffer("attn_mask", None if mask is None else mask.clamp(min=MASKED), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Token ids (B, L) -> embedding (B, D), not normalised."""
        x = self.token_embedding(tokens) + self.positional_embedding[: tokens.shape[1]]
        x = self.ln_final(self.transformer(x, attn_mask=self.attn_mask))
        if self.pool == "first":
            x = x[:, 0]
        elif self.pool == "last":
            x = x[:, -1]
        else:
            x = torch.bmm(first_end_token(tokens, self.end_token).to(x.dtype).unsqueeze(1), x).squeeze(1)
        if self.text_projection is None:
            return x
        return self.text_projection(x) if isinstance(self.text_projection, nn.Module) else x @ self.text_projection


def export_towers(model: Any, end_token: int) -> tuple[nn.Module, nn.Module]:
    """(image, text) towers of an `open_clip` model in eval mode; their attention layers are replaced in place."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.MultiheadAttention):
                setattr(parent, name, ExplicitAttention(child))
        if hasattr(parent, "fused_attn"):  # timm: written-out attention instead of scaled_dot_product_attention
            parent.fused_attn = False
    text = OpenClipText(getattr(model, "text", model), end_token)
    return model.visual.eval(), text.eval()
