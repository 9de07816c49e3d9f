"""Batches and small models for tests of the training step."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from mobileclip.data.batch import Batch
from mobileclip.models.blocks import LayerScale
from mobileclip.models.clip import CLIP
from mobileclip.specs import REGISTRY, MCiTower, PreprocessSpec, TextTower
from mobileclip.training.losses import ClipLoss, Loss, SigLipLoss, Teachers
from mobileclip.training.state import State
from mobileclip.training.student import Student

NANO = REGISTRY["mobileclip_nano"]
_TOWER = NANO.image("open_clip")
assert isinstance(_TOWER, MCiTower)
# Every kind of block of nano, small enough for float64.
TINY = replace(
    NANO,
    embed_dim=16,
    open_clip=replace(_TOWER, depths=(1, 1, 1, 1), dims=(16, 16, 16, 32), mlp_ratio=2),
    text=TextTower(16, 2, 3, mixers=1, vocabulary=100),
    preprocess=PreprocessSpec(32, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)),
)
TRAINABLE = replace(TINY, text=replace(TINY.text, vocabulary=49408))
"""With a place for each of the tokenizer's tokens."""
DIMS = (6, 10)
LOSSES: dict[str, Loss] = {
    "plain": ClipLoss(),
    "reinforced": ClipLoss(0.75, Teachers(DIMS, (70.0, 60.0))),
    "distilled": ClipLoss(1.0, Teachers(DIMS)),
    "sigmoid": SigLipLoss(),
    "sigmoid reinforced": SigLipLoss(0.5, Teachers(DIMS, (20.0,), (-5.0,))),
}
CASES = ((True, 1), (False, 1), (True, 2))
"""With a synthetic caption stream, number of micro-batches."""


def unit_rows(b: int, generator: torch.Generator) -> Tensor:
    members = [torch.randn(b, d, generator=generator) for d in DIMS]
    return torch.cat([nn.functional.normalize(m, dim=1) for m in members], 1)


def captions(b: int, generator: torch.Generator) -> Tensor:
    tokens = torch.zeros(b, 77, dtype=torch.int32)
    tokens[:, :12] = torch.randint(1, 99, (b, 12), generator=generator, dtype=torch.int32)
    tokens[:, 12] = 99
    return tokens


def batch_of(b: int, *, synthetic: bool = True, seed: int = 0, resolution: int = 32) -> Batch:
    g = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (b, 3, resolution, resolution), generator=g, dtype=torch.uint8)
    whole = Batch(image, captions(b, g), captions(b, g), unit_rows(b, g), unit_rows(b, g), unit_rows(b, g))
    return whole if synthetic else replace(whole, synthetic_tokens=None, teacher_synthetic=None)


def student(*, bias: float | None = -1.0, seed: int = 0, dropout: float = 0.0, dtype: torch.dtype = torch.float64) -> Student:
    """A tiny one, with layer scales of 0.5, so that every block has a say."""
    torch.manual_seed(seed)
    clip = CLIP(TINY)
    clip.text.end_token = 99
    for module in clip.modules():
        if isinstance(module, LayerScale):
            nn.init.constant_(module.gamma, 0.5)
    if dropout:
        clip.visual.trunk.head = nn.Sequential(nn.Dropout(dropout), clip.visual.trunk.head)
        clip.text.ln_final = nn.Sequential(clip.text.ln_final, nn.Dropout(dropout))
    return Student(clip, bias=bias).to(dtype).train()


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def difference(got: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Largest difference of two sets of gradients, relative to the largest value of all."""
    assert got.keys() == expected.keys()
    scale = max(g.abs().max().item() for g in expected.values())
    assert scale > 1e-4
    return max((got[n] - expected[n]).abs().max().item() for n in got) / scale


def parts_that_differ(a: State, b: State) -> list[str]:
    """Of two states of a run."""
    return [part for part in {**a, **b} if not _same(a.get(part), b.get(part))]


def _same(a: object, b: object) -> bool:
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    return torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else bool(a == b)
