"""What a training step takes: pictures, tokens and the teachers' embeddings, one row a sample."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor

from mobileclip.errors import InputError


@dataclass(frozen=True)
class _Tensors:
    """A dataclass of tensors with one row a sample, or None."""

    def map(self, change: Callable[[Tensor], Tensor]) -> Self:
        """The same with each tensor changed."""
        return replace(self, **{f.name: change(t) for f in fields(self) if isinstance(t := getattr(self, f.name), Tensor)})

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """The rows of all parts one below the other."""
        columns = {f.name: [getattr(part, f.name) for part in parts] for f in fields(cls)}
        return cls(**{name: None if column[0] is None else torch.cat(column) for name, column in columns.items()})


@dataclass(frozen=True)
class Rows(_Tensors):
    """Embeddings of one batch, row i of each belongs to sample i.

    Attributes:
        image: (b, width), floating point.
        real: (b, width), of the caption; whether it is the real, the synthetic or either by chance is the data's choice.
        synthetic: (b, width), of a second, synthetic caption; None without.
    """

    image: Tensor
    real: Tensor
    synthetic: Tensor | None = None

    @property
    def captions(self) -> tuple[Tensor, ...]:
        """The caption streams, one or two of (b, width)."""
        return (self.real,) if self.synthetic is None else (self.real, self.synthetic)


@dataclass(frozen=True)
class Batch(_Tensors):
    """One training batch of b samples. Pixels stay uint8 until the device: a quarter of the memory and of the transfer.

    Attributes:
        image: (b, 3, R, R) uint8 RGB.
        tokens: (b, context) int32.
        synthetic_tokens: (b, context) int32, a second, synthetic caption; None without.
        teacher_image: (b, sum of the teachers' widths) float32, each teacher's part L2-normalised; None without teachers.
        teacher_real: The same of `tokens`.
        teacher_synthetic: The same of `synthetic_tokens`.
    """

    image: Tensor
    tokens: Tensor
    synthetic_tokens: Tensor | None = None
    teacher_image: Tensor | None = None
    teacher_real: Tensor | None = None
    teacher_synthetic: Tensor | None = None

    def __len__(self) -> int:
        return len(self.image)

    @property
    def teachers(self) -> Rows | None:
        """The teachers' embeddings; None where the images' or the captions' are missing."""
        if self.teacher_image is None or self.teacher_real is None:
            return None
        return Rows(self.teacher_image, self.teacher_real, self.teacher_synthetic)

    def to(self, device: torch.device | str) -> Batch:
        """The same on another device; without waiting for the copy where the memory is pinned."""
        return self.map(lambda t: t.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """The same in page-locked memory. `DataLoader(pin_memory=True)` calls a method of this name."""
        return self.map(Tensor.pin_memory)

    def split(self, n: int) -> list[Batch]:
        """`n` micro-batches in order; the first are one sample longer where `n` does not divide.

        Raises:
            InputError: Fewer than `n` samples.
        """
        if not 1 <= n <= len(self):
            raise InputError(f"a batch of {len(self)} cannot be split in {n}; accumulate over fewer micro-batches")
        bounds = [0, *itertools.accumulate(len(part) for part in self.image.tensor_split(n))]
        return [self.rows(start, stop) for start, stop in itertools.pairwise(bounds)]

    def rows(self, start: int, stop: int) -> Batch:
        """Samples `start` to `stop - 1`, in the same memory."""
        return self.map(lambda t: t[start:stop])
