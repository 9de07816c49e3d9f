"""The operators of CoreML's ML programs that move, select or make data. They keep the element type; only cast changes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mobileclip.export.verify.mil_ops import OptionError, register

_CAST = {
    "fp16": torch.float16, "fp32": torch.float32, "bool": torch.bool, "int8": torch.int8, "uint8": torch.uint8,
    "int16": torch.int16, "uint16": torch.uint16, "int32": torch.int32,
}  # fmt: skip


def moves(function: Callable[..., Any]) -> Callable[..., Any]:
    """Register an operator that moves data under its function's name."""
    register(function.__name__.rstrip("_"), function, computes=False)
    return function


@moves
def identity(x: Tensor) -> Tensor:
    """The input."""
    return x


@moves
def cast(x: Tensor, dtype: str) -> Tensor:
    """Conversion of the element type: to integers towards zero, to bool by x != 0."""
    if dtype not in _CAST:
        raise OptionError(f"dtype {dtype!r} is not supported")
    return x.to(_CAST[dtype])


@moves
def reshape(x: Tensor, shape: list[int]) -> Tensor:
    """A new shape: 0 takes the input's dimension counted from the right (1 where there is none), -1 the rest (iOS 17)."""
    n = len(shape)
    own = [x.shape[i - n] if n - i <= x.dim() else 1 for i in range(n)]
    return x.reshape([own[i] if s == 0 else s for i, s in enumerate(shape)])


@moves
def transpose(x: Tensor, perm: list[int]) -> Tensor:
    """The axes in the order of `perm`."""
    return x.permute(perm)


@moves
def expand_dims(x: Tensor, axes: list[int]) -> Tensor:
    """Axes of length 1 at the places `axes` of the result."""
    rank = x.dim() + len(axes)
    for axis in sorted(a % rank for a in axes):
        x = x.unsqueeze(axis)
    return x


@moves
def squeeze(x: Tensor, axes: list[int] | None = None) -> Tensor:
    """Without the axes of length 1 (default: all of them)."""
    if axes is None:
        return x.squeeze()
    if any(x.shape[a] != 1 for a in axes):
        raise OptionError(f"axes {axes} of shape {list(x.shape)} are not all of length 1")
    return x.squeeze(axes)


@moves
def concat(values: list[Tensor], axis: int, interleave: bool = False) -> Tensor:
    """The tensors one after the other along an axis."""
    if interleave:
        raise OptionError("interleave is not supported")
    return torch.cat(values, axis)


@moves
def stack(values: list[Tensor], axis: int) -> Tensor:
    """The tensors along a new axis."""
    return torch.stack(values, axis)


@moves
def split(x: Tensor, axis: int, split_sizes: list[int] | None = None, num_splits: int | None = None) -> tuple[Tensor, ...]:
    """Pieces along an axis, of the given sizes or of equal size."""
    if split_sizes is None:
        if not num_splits or x.shape[axis] % num_splits:
            raise OptionError(f"axis of length {x.shape[axis]} does not split into {num_splits} equal pieces")
        split_sizes = [x.shape[axis] // num_splits] * num_splits
    return torch.split(x, split_sizes, axis)


@moves
def slice_by_index(
    x: Tensor,
    begin: list[int],
    end: list[int],
    stride: list[int] | None = None,
    begin_mask: list[bool] | None = None,
    end_mask: list[bool] | None = None,
    squeeze_mask: list[bool] | None = None,
) -> Tensor:
    """x[begin:end:stride] in every dimension; masks ignore begin or end, or take one element and drop the axis."""
    n = x.dim()
    stride, none = stride or [1] * n, [False] * n
    begin_mask, end_mask, squeeze_mask = begin_mask or none, end_mask or none, squeeze_mask or none
    for i in range(n):
        first = None if begin_mask[i] else begin[i]
        if squeeze_mask[i]:
            start = first or 0
            if not -x.shape[i] <= start < x.shape[i]:
                raise OptionError(f"index {start} is outside axis {i} of length {x.shape[i]}")
            x = x.narrow(i, start % x.shape[i], 1)
            continue
        chosen = range(x.shape[i])[slice(first, None if end_mask[i] else end[i], stride[i])]
        if chosen.step > 0:
            x = x[(slice(None),) * i + (slice(chosen.start, chosen.stop, chosen.step),)]
        else:
            x = x.index_select(i, torch.tensor(list(chosen), dtype=torch.int64))
    return x.squeeze([i for i in range(n) if squeeze_mask[i]])


@moves
def slice_by_size(x: Tensor, begin: list[int], size: list[int]) -> Tensor:
    """`size` elements from `begin` in every dimension; -1 takes all that follow."""
    for i, (first, count) in enumerate(zip(begin, size, strict=True)):
        first = first % x.shape[i] if first < 0 else first
        x = x.narrow(i, first, x.shape[i] - first if count == -1 else count)
    return x


@moves
def reverse(x: Tensor, axes: list[int] | None = None) -> Tensor:
    """The order of the elements turned round along `axes` (default: all)."""
    return x.flip(list(range(x.dim())) if axes is None else axes)


@moves
def tile(x: Tensor, reps: list[int]) -> Tensor:
    """Copies of x, `reps` times along each axis."""
    return x.repeat(reps)


@moves
def pad(x: Tensor, pad: list[int], mode: str = "constant", constant_val: float = 0.0) -> Tensor:
    """Elements before and after the last len(pad) / 2 dimensions: a constant, mirrored, or the edge repeated."""
    n = len(pad) // 2
    if mode == "constant":
        pairs = [pad[2 * i : 2 * i + 2] for i in reversed(range(n))]
        return F.pad(x, [p for pair in pairs for p in pair], value=constant_val)
    if mode not in ("reflect", "replicate"):
        raise OptionError(f"mode {mode!r} is not supported")
    for i in range(n):
        axis = x.dim() - n + i
        last = x.shape[axis] - 1
        if mode == "reflect" and max(pad[2 * i], pad[2 * i + 1]) > last:
            raise OptionError(f"pad {pad} mirrors more than axis {axis} of length {last + 1} has")
        index = torch.arange(-pad[2 * i], last + 1 + pad[2 * i + 1])
        index = last - (last - index.abs()).abs() if mode == "reflect" else index.clamp(0, last)
        x = x.index_select(axis, index)
    return x


@moves
def select(cond: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """a where cond is true, b elsewhere."""
    return torch.where(cond, a, b)


@moves
def band_part(x: Tensor, lower: int = -1, upper: int = -1) -> Tensor:
    """The band of each matrix that reaches `lower` below and `upper` above the diagonal (-1: all), zeros elsewhere."""
    x = x if lower < 0 else x.triu(-lower)
    return x if upper < 0 else x.tril(upper)


@moves
def fill(shape: list[int], value: Tensor) -> Tensor:
    """A tensor of one value."""
    return value.reshape(()).repeat(shape)


@moves
def range_1d(start: Tensor, end: Tensor, step: Tensor) -> Tensor:
    """start, start + step, ... below end."""
    return torch.arange(start.item(), end.item(), step.item(), dtype=start.dtype)


@moves
def shape(x: Tensor) -> Tensor:
    """The shape, as int32."""
    return torch.tensor(x.shape, dtype=torch.int32)


def _indices(indices: Tensor, size: int) -> Tensor:
    """As int64. CoreML leaves an index outside 0..size-1 undefined (iOS 17), so it is an error here."""
    index = indices.to(torch.int64)
    if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < size:
        raise OptionError(f"indices {int(index.min())}..{int(index.max())} are outside 0..{size - 1}")
    return index


@moves
def gather(x: Tensor, indices: Tensor, axis: int = 0, batch_dims: int = 0, validate_indices: bool = False) -> Tensor:
    """Slices of x along an axis; the first `batch_dims` axes of both run together."""
    axis %= x.dim()
    if batch_dims:
        pairs = zip(x, indices, strict=True)
        return torch.stack([gather(i, j, axis - 1, batch_dims - 1) for i, j in pairs])
    index = _indices(indices, x.shape[axis])
    picked = x.index_select(axis, index.reshape(-1))
    return picked.reshape(x.shape[:axis] + index.shape + x.shape[axis + 1 :])


@moves
def gather_along_axis(x: Tensor, indices: Tensor, axis: int = 0, validate_indices: bool = False) -> Tensor:
    """x at `indices` along one axis, all other coordinates being those of the index."""
    return torch.gather(x, axis, _indices(indices, x.shape[axis]))


@moves
def gather_nd(x: Tensor, indices: Tensor, batch_dims: int = 0, validate_indices: bool = False) -> Tensor:
    """x at coordinates that lie along the last axis of `indices`; the first `batch_dims` axes of both run together."""
    if batch_dims:
        return torch.stack([gather_nd(i, j, batch_dims - 1) for i, j in zip(x, indices, strict=True)])
    columns = indices.unbind(-1)
    return x[tuple(_indices(column, x.shape[i]) for i, column in enumerate(columns))]
