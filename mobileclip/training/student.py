"""The model as a training step calls it: a batch in, normalised embeddings out."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn

from mobileclip.data.batch import Batch, Rows
from mobileclip.models.clip import CLIP
from mobileclip.training.losses import Features


class Student(nn.Module):
    """A model with its pixels' scaling, its precision and its frozen towers. This is what DDP wraps.

    Both caption streams pass through the text tower in one go, the images once. A tower without a parameter to train stays in eval mode,
    so that its BatchNorm statistics stay as they are.

    Args:
        clip: The model, in train form.
        dtype: Precision of the towers by autocast; None: that of the parameters. The embeddings leave in float32 at least.
        bias: Start of a learned bias of the logits, for the sigmoid loss (SigLIP: -10); None: without.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, clip: CLIP, *, dtype: torch.dtype | None = None, bias: float | None = None) -> None:
        super().__init__()
        self.clip, self.dtype = clip, dtype
        clip.visual.to(memory_format=torch.channels_last)  # depthwise convolutions: half the time of a step on the CPU
        self.logit_bias = None if bias is None else nn.Parameter(torch.tensor(bias, device=clip.logit_scale.device))
        for name in ("mean", "std"):
            value = torch.tensor(getattr(clip.spec.preprocess, name), device=clip.logit_scale.device).view(3, 1, 1)
            self.register_buffer(name, value, persistent=False)

    def train(self, mode: bool = True) -> Self:
        """Train mode, but for frozen towers."""
        super().train(mode)
        for tower in (self.clip.visual, self.clip.text):
            if not any(p.requires_grad for p in tower.parameters()):
                tower.eval()
        return self

    def forward(self, batch: Batch) -> Features:
        """Embeddings of a batch."""
        with torch.autocast(batch.image.device.type, self.dtype, enabled=self.dtype is not None):
            pixels = (batch.image.to(self.mean.dtype) / 255 - self.mean) / self.std
            pixels = pixels.contiguous(memory_format=torch.channels_last)
            image = self.clip.encode_image(pixels)
            synthetic = batch.synthetic_tokens
            text = self.clip.encode_text(batch.tokens if synthetic is None else torch.cat([batch.tokens, synthetic]))
        rows = Rows(_unit(image), *_unit(text).split(len(batch)))
        return Features(rows, self.clip.logit_scale.exp(), self.logit_bias)

    def pair_texts(self, tokens: Tensor) -> Features:
        """Embeddings of (2 b, context) token ids, the first half in the images' place, the second in the captions'."""
        with torch.autocast(tokens.device.type, self.dtype, enabled=self.dtype is not None):
            text = self.clip.encode_text(tokens)
        return Features(Rows(*_unit(text).chunk(2)), self.clip.logit_scale.exp(), self.logit_bias)


def _unit(x: Tensor) -> Tensor:
    """(b, d) -> rows of length 1. Shorter than 1e-6 they stay as short, so that the gradient of a zero row is no more than a million."""
    return nn.functional.normalize(x if x.dtype == torch.float64 else x.float(), dim=-1, eps=1e-6)


def freeze(clip: CLIP, *, image: bool = False, text: bool = False) -> None:
    """Take towers out of training, with their projections. Before the optimizer and DDP are made."""
    for tower, frozen in ((clip.visual, image), (clip.text, text)):
        if frozen:
            tower.requires_grad_(False).eval()
