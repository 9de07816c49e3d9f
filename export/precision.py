"""Which layers must stay in fp32 for an fp16 tower to keep its embeddings: found by bisection."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    kind = ImageGraph if plan.tower == "image" else TextGraph

    def holds(pinned: Sequence[str]) -> bool:
        graph = kind(tower, replace(plan, fp32_layers=tuple(pinned)), half=True)
        outputs: list[npt.NDArray[np.float32]] = []
        for start in range(0, len(inputs), BATCH):
            with torch.no_grad():
                got = normalized(graph(torch.from_numpy(inputs[start : start + BATCH])).numpy())
            cosine = (got * reference[start : start + BATCH]).sum(1)
            if not (cosine >= TARGET_COSINE).all():  # NaN is not
                return False
            outputs.append(got)
        agreement = compare(reference, np.concatenate(outputs), others)
        return agreement.top1_agreement >= MIN_TOP1_AGREEMENT and agreement.recall10_overlap >= MIN_RECALL10_OVERLAP

    if holds(()):
        return ()
    everything = layers(tower)
    if not holds(everything):
        raise GateError(f"fp16 does not hold for the {plan.tower} tower even with all {len(everything)} layers in fp32; export fp32")
    return tuple(_smallest(everything, holds))


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
