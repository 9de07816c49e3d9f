"""The two towers together."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mobileclip.models.mci import MCi
from mobileclip.models.text import TextEncoder
from mobileclip.models.vit import ViT
from mobileclip.specs import Form, MCiTower, ModelSpec


class ImageEncoder(nn.Module):
    """The image tower under the name that checkpoints give it, `visual.trunk`."""

    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        self.trunk = trunk

    def forward(self, image: Tensor) -> Tensor:
        """Preprocessed RGB (B, 3, R, R) -> embedding (B, embed_dim), not normalised."""
        return self.trunk(image)


class CLIP(nn.Module):
    """An image and a text tower into one embedding space (arXiv 2103.00020). Parameter names are open_clip's.

    Args:
        spec: The variant.
        form: Which net of the variant, see `ModelSpec`; default: the published one.
        folded: Build in inference form, for fused checkpoints.
    """

    def __init__(self, spec: ModelSpec, form: Form | None = None, *, folded: bool = False) -> None:
        super().__init__()
        self.spec, self.form = spec, form or spec.published_form
        tower = spec.image(self.form)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.visual = ImageEncoder(
            MCi(tower, spec.embed_dim, folded=folded)
            if isinstance(tower, MCiTower)
            else ViT(tower, spec.embed_dim, spec.preprocess.resolution)
        )
        self.text = TextEncoder(spec.text, spec.embed_dim, folded=folded)

    def encode_image(self, image: Tensor, *, normalize: bool = False) -> Tensor:
        """Preprocessed RGB (B, 3, R, R) -> embedding (B, embed_dim)."""
        return normalized(self.visual(image)) if normalize else self.visual(image)

    def encode_text(self, tokens: Tensor, *, normalize: bool = False) -> Tensor:
        """Token ids (B, context) -> embedding (B, embed_dim)."""
        return normalized(self.text(tokens)) if normalize else self.text(tokens)

    def forward(self, image: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Normalised image (B, D) and text (B, D) embeddings and the scale exp(logit_scale), unclamped."""
        return self.encode_image(image, normalize=True), self.encode_text(tokens, normalize=True), self.logit_scale.exp()


def normalized(x: Tensor) -> Tensor:
    """x / max(|x|, 1e-12) over the last dimension."""
    return nn.functional.normalize(x, dim=-1)


def parameter_counts(model: CLIP) -> tuple[int, int]:
    """(image, text) numbers of parameters."""
    return sum(p.numel() for p in model.visual.parameters()), sum(p.numel() for p in model.text.parameters())
