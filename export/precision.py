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

TARGET_COSINE = 0.9995
"""Above the gate's bar, so that a runtime's own rounding does not bring the artifact below it."""
CALIBRATION_INPUTS = 16


def fp32_layers(tower: nn.Module, plan: Plan, inputs: npt.NDArray[np.generic], reference: npt.NDArray[np.float32]) -> tuple[str, ...]:
    """A small set of layers that must stay in fp32; no layer of it can be left out on its own halves.

    Args:
        tower: Fused tower, float32.
        plan: The fp16 plan.
        inputs: Verification inputs as the artifact takes them, (N, ...); a spread of them is used.
        reference: (N, D), normalised embeddings of the fp32 model.

    Raises:
        GateError: Not even with every layer in fp32 is the cosine reached.
    """
    spread = np.linspace(0, len(inputs) - 1, min(CALIBRATION_INPUTS, len(inputs))).astype(int)
    batch = torch.from_numpy(np.ascontiguousarray(inputs[spread]))
    wanted = torch.from_numpy(reference[spread])
    kind = ImageGraph if plan.tower == "image" else TextGraph

    def holds(pinned: Sequence[str]) -> bool:
        graph = kind(tower, replace(plan, fp32_layers=tuple(pinned)), half=True)
        with torch.no_grad():
            cosine = nn.functional.cosine_similarity(graph(batch).double(), wanted.double(), dim=-1)
        return bool((cosine >= TARGET_COSINE).all())  # NaN is not

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
