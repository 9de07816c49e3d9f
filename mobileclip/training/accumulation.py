"""A batch larger than memory holds, in micro-batches, with all its negatives (GradCache, arXiv 2101.06983)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mobileclip.data.batch import Batch, Rows
from mobileclip.training.losses import Features, Loss, Losses

RandomState = tuple[Tensor, Tensor | None, torch.device]


def accumulated_step(model: nn.Module, micro_batches: Sequence[Batch], loss: Loss, backward: Callable[[Tensor], None]) -> Losses:
    """Add to the parameters' gradients those of the whole batch's loss, holding the activations of one micro-batch at a time.

    First the embeddings of all micro-batches without gradient; then the loss on all of them, once, and its gradient for each embedding;
    then each micro-batch again with that gradient carried on. The random state and the buffers are put back in between, so that dropout
    draws the same and BatchNorm counts each micro-batch once. BatchNorm's batch is the micro-batch: with it the gradients are those of a
    step whose statistics come from micro-batches. Costs a second forward; one micro-batch is an ordinary step.

    Args:
        model: `Student`, or DDP around one, which then exchanges gradients in the last backward only.
        micro_batches: The batch in parts, see `Batch.split`; the same number and sizes in each process.
        loss: One of `mobileclip.training.losses`.
        backward: Called once with the loss, to call backward on it; scale it there for float16.

    Returns:
        The losses of the whole batch, without graph.
    """
    if len(micro_batches) == 1:
        losses = loss(model(micro_batches[0]), micro_batches[0].teachers)
        backward(losses.loss)
        return losses.detached()
    cached, states = _cached(model, micro_batches)
    teachers = [batch.teachers for batch in micro_batches]
    whole = Features(
        Rows.joined([f.rows for f in cached]).map(_leaf), _leaf(cached[0].scale), None if (b := cached[0].bias) is None else _leaf(b)
    )
    losses = loss(whole, None if None in teachers else Rows.joined([t for t in teachers if t]))
    backward(losses.loss)

    start = 0
    for i, (batch, state) in enumerate(zip(micro_batches, states, strict=True)):
        last, stop = i == len(micro_batches) - 1, start + len(batch)
        _set_random_state(state)
        with model.no_sync() if isinstance(model, DistributedDataParallel) and not last else contextlib.nullcontext():
            outputs = _tensors(model(batch))
            gradients = [_gradient(leaf) for leaf in _tensors(whole)]
            # The rows are this micro-batch's; scale and bias are shared, so their gradient comes in once, with the last.
            gradients = [g[start:stop] if g.ndim else g if last else torch.zeros_like(g) for g in gradients]
            taught = [(output, g) for output, g in zip(outputs, gradients, strict=True) if output.requires_grad]
            torch.autograd.backward([output for output, _ in taught], [g for _, g in taught])
        start = stop
    return losses.detached()


def _cached(model: nn.Module, micro_batches: Sequence[Batch]) -> tuple[list[Features], list[RandomState]]:
    """Embeddings without gradient, and the random state before each micro-batch; the model's buffers are as before."""
    before = [buffer.clone() for buffer in model.buffers()]
    cached, states = [], []
    with torch.no_grad():
        for batch in micro_batches:
            states.append(_random_state(batch.image.device))
            cached.append(model(batch))
        for buffer, value in zip(model.buffers(), before, strict=True):
            buffer.copy_(value)
    return cached, states


def _tensors(features: Features) -> list[Tensor]:
    optional = [] if features.bias is None else [features.bias]
    return [features.rows.image, *features.rows.captions, features.scale, *optional]


def _leaf(x: Tensor) -> Tensor:
    return x.detach().requires_grad_()


def _gradient(leaf: Tensor) -> Tensor:
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad


def _random_state(device: torch.device) -> RandomState:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None, device


def _set_random_state(state: RandomState) -> None:
    cpu, cuda, device = state
    torch.set_rng_state(cpu)
    if cuda is not None:
        torch.cuda.set_rng_state(cuda, device)
