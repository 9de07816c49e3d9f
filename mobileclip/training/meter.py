"""What is measured between two logged steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mobileclip.training import distributed
from mobileclip.training.losses import Losses

_MAX_IN_A_ROW = 20
"""Steps that a scaler may leave out while it looks for its scale."""


class Meter:
    """Sums between two logged steps, on the device, so that a step need not wait for its numbers."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._in_a_row = torch.zeros((), device=device)
        """Steps that were left out since the last that was not, also before a clearing."""
        self._clear()

    def _clear(self) -> None:
        self._sums = {f.name: torch.zeros((), device=self._device) for f in dataclasses.fields(Losses)}
        self._norm, self._skipped = torch.zeros((), device=self._device), torch.zeros((), device=self._device)
        self._steps = self._samples = 0
        self._waited_s = self._took_s = 0.0

    def add(self, losses: Losses, norm: Tensor, samples: int, waited_s: float, took_s: float) -> None:
        """Add a step."""
        for name in self._sums:
            self._sums[name] = self._sums[name] + getattr(losses, name)
        finite = torch.isfinite(norm)
        self._norm = self._norm + torch.where(finite, norm, 0)
        self._skipped = self._skipped + (~finite).float()
        self._in_a_row = torch.where(finite, 0, self._in_a_row + 1)
        self._steps, self._samples = self._steps + 1, self._samples + samples
        self._waited_s, self._took_s = self._waited_s + waited_s, self._took_s + took_s

    def finite(self, scaled: bool) -> bool:
        """Whether all losses were finite, and the gradients too; a scaler may leave out steps, but not `_MAX_IN_A_ROW`."""
        skipped = self._in_a_row - _MAX_IN_A_ROW if scaled else self._skipped
        return bool(torch.isfinite(distributed.mean(self._sums["loss"])) & (distributed.mean(skipped) <= 0))

    def values(self) -> dict[str, Any]:
        """Means since the last call."""
        means = distributed.mean(torch.stack([*self._sums.values(), self._norm, self._skipped]) / self._steps).tolist()
        values = dict(zip([*self._sums, "gradient_norm", "skipped_steps"], means, strict=True))
        values["skipped_steps"] = round(values["skipped_steps"] * self._steps)
        values |= {"samples_per_s": self._samples / self._took_s, "waiting_share": self._waited_s / self._took_s}
        self._clear()
        return values


def progress_line(step: int, steps: int, values: Mapping[str, Any]) -> str:
    """The means of the steps up to `step` of `steps`, and how long the rest will take."""
    left_s = (steps - step) * (values["samples"] / step) / values["samples_per_s"]
    return (
        f"step {step:,} of {steps:,}, loss {values['loss']:.4f}, {values['samples_per_s']:,.0f} samples/s, "
        f"waiting for data {values['waiting_share']:.0%}, {left_s / 60:,.0f} min left"
    )
