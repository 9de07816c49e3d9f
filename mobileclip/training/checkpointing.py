"""Gradient checkpointing (arXiv 1604.06174): blocks keep their inputs alone and are computed again on the way back."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator

from torch import nn
from torch.utils.checkpoint import checkpoint

from mobileclip.models.clip import CLIP
from mobileclip.models.mci import MCi


def checkpoint_blocks(clip: CLIP) -> None:
    """Let every block of both towers be computed twice. The weights of a step are the same as without."""
    trunk = clip.visual.trunk
    assert isinstance(trunk, nn.Module)
    stages = [stage.blocks for stage in trunk.stages] if isinstance(trunk, MCi) else [trunk.blocks]
    for block in [*(b for blocks in stages for b in blocks), *clip.text.transformer.resblocks]:  # type: ignore[union-attr]
        block.forward = functools.partial(  # type: ignore[method-assign]
            checkpoint, block.forward, use_reentrant=False, context_fn=functools.partial(_contexts, block)
        )


def _contexts(block: nn.Module) -> tuple[contextlib.AbstractContextManager[None], contextlib.AbstractContextManager[None]]:
    return contextlib.nullcontext(), _kept_buffers(block)


@contextlib.contextmanager
def _kept_buffers(block: nn.Module) -> Iterator[None]:
    """BatchNorm counts a batch once, not again when it is computed for the gradient."""
    before = [buffer.clone() for buffer in block.buffers()]
    try:
        yield
    finally:
        for buffer, value in zip(block.buffers(), before, strict=True):
            buffer.data.copy_(value)
