"""Which layers must stay in fp32 for an fp16 tower to keep its embeddings: found by bisection."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from mobileclip.errors import GateError
from mobileclip.export.graph import ImageGraph, Plan, TextGraph, layers
from mobileclip.export.verify.gate import MIN_RECALL10_OVERLAP, MIN_TOP1_AGREEMENT, compare
from mobileclip.zeroshot import normalized

TARGET_COSINE = 0.9995
"""Above the gate's bar, so that a runtime's own rounding does not bring the artifact below it. The gate's rank bars hold as well."""
BATCH = 8


def fp32_layers(
    tower: nn.Module, plan: Plan, inputs: npt.NDArray[np.generic], reference: npt.NDArray[np.float32], others: npt.NDArray[np.float32]
) -> tuple[str, ...]:
    """A small set of layers that must stay in fp32; no layer of it can be left out on its own.

    Args:
        tower: Fused tower, float32.
        plan: The fp16 plan.
        inputs: Verification inputs as the artifact takes them, (N, ...).
        reference: (N, D), normalised embeddings of the fp32 model.
        others: (M, D), those of the other tower.

    Raises:
        GateError: Not even with every layer in fp32 does the gate hold.
    """

    def holds(pinned: Sequence[str]) -> bool:
        outputs: list[npt.NDArray[np.float32]] = []
        for got, cosine in _run(tower, replace(plan, fp32_layers=tuple(pinned)), inputs, reference):
            if not (cosine >= TARGET_COSINE).all():  # NaN is not
                return False
            outputs.append(got)
        agreement = compare(reference, np.concatenate(outputs), others, "fp16")
        return agreement.top1_agreement >= MIN_TOP1_AGREEMENT and agreement.recall10_overlap >= MIN_RECALL10_OVERLAP

    if holds(()):
        return ()
    everything = layers(tower)
    if not holds(everything):
        raise GateError(f"fp16 does not hold for the {plan.tower} tower even with all {len(everything)} layers in fp32; export fp32")
    return tuple(_smallest(everything, holds))


def _run(
    tower: nn.Module, plan: Plan, inputs: npt.NDArray[np.generic], reference: npt.NDArray[np.float32]
) -> Iterator[tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]]:
    """Normalised embeddings by torch at the plan's precision and their cosines with the reference, batch by batch."""
    graph = (ImageGraph if plan.tower == "image" else TextGraph)(tower, plan, half=True)
    for start in range(0, len(inputs), BATCH):
        with torch.no_grad():
            got = normalized(graph(torch.from_numpy(inputs[start : start + BATCH])).numpy())
        yield got, (got * reference[start : start + BATCH]).sum(1)


def by_sensitivity(tower: nn.Module, plan: Plan, inputs: npt.NDArray[np.generic], reference: npt.NDArray[np.float32]) -> tuple[str, ...]:
    """Layers that the plan leaves in fp16, those first that cost the most cosine when they alone are in fp16."""
    everything = layers(tower)

    def cost(layer: str) -> float:
        alone = replace(plan, fp32_layers=tuple(name for name in everything if name != layer))
        _, cosine = next(_run(tower, alone, inputs, reference))
        return float(np.nan_to_num(1 - cosine, nan=np.inf).mean())

    return tuple(sorted((name for name in everything if name not in plan.fp32_layers), key=cost, reverse=True))


def fewest(order: Sequence[str], passes: Callable[[Sequence[str]], bool]) -> None:
    """Bisect for the shortest beginning of `order` that passes; the empty one is known not to. The one found is tried last."""
    low, high, last = 0, len(order), 0
    while high - low > 1:
        last = (low + high) // 2
        low, high = (low, last) if passes(order[:last]) else (last, high)
    if last != high:
        passes(order[:high])


def _smallest(pinned: list[str], holds: Callable[[Sequence[str]], bool]) -> list[str]:
    """Delta debugging: drop ever smaller runs of layers for as long as the rest still holds."""
    run = max(len(pinned) // 2, 1)
    while True:
        start = 0
        while start < len(pinned):
            rest = pinned[:start] + pinned[start + run :]
            if holds(rest):
                pinned = rest
            else:
                start += run
        if run == 1:
            return pinned
        run //= 2
