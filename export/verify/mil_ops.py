"""The arithmetic operators of CoreML's ML programs, as torch functions, and the table that all operators register in.

Precision. An arithmetic operator widens fp16 operands to fp32, computes and accumulates in fp32, and rounds its result once to fp16.
For element-wise operators that is exactly IEEE fp16. For sums (conv, linear, matmul, reductions, norms, softmax) it is an accumulation
in fp32, so an overflow inside one operator on a device that accumulates in fp16 does not show here; an overflow of a result does.
fp32 stays fp32, and integers are never widened. Operators that only move data (mil_shape_ops) keep the type.

Semantics: coremltools 9.0 documentation of the MIL operators, opsets iOS 17 and iOS 18.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor


class OptionError(ValueError):
    """An option of a known operator that is not supported, or a value that its definition forbids."""


@dataclass(frozen=True)
class Parameter:
    """One parameter: handed over as tensor, as list of tensors, or as plain Python value (number, text, list)."""

    name: str
    kind: Literal["tensor", "tensors", "plain"]
    required: bool


@dataclass(frozen=True)
class Operator:
    """An operator: its function, its parameters in order, and whether it computes (fp16 widened) or moves data."""

    function: Callable[..., Any]
    parameters: dict[str, Parameter]
    computes: bool


OPERATORS: dict[str, Operator] = {}


def register(name: str, function: Callable[..., Any], computes: bool) -> None:
    """Enter a function under an operator's name; its signature is the list of parameters and options it supports."""
    parameters = {}
    for p in inspect.signature(function).parameters.values():
        kind = {"Tensor": "tensor", "Tensor | None": "tensor", "list[Tensor]": "tensors"}.get(p.annotation, "plain")
        parameters[p.name] = Parameter(p.name, kind, p.default is p.empty)  # type: ignore[arg-type]
    OPERATORS[name] = Operator(function, parameters, computes)


def computes(function: Callable[..., Any]) -> Callable[..., Any]:
    """Register an arithmetic operator under its function's name."""
    register(function.__name__.rstrip("_"), function, computes=True)
    return function


def _unary(name: str, function: Callable[..., Tensor]) -> None:
    def operator(x: Tensor) -> Tensor:
        return function(x)

    register(name, operator, computes=True)


def _binary(name: str, function: Callable[..., Tensor]) -> None:
    def operator(x: Tensor, y: Tensor) -> Tensor:
        return function(x, y)

    register(name, operator, computes=True)


_UNARY: dict[str, Callable[..., Tensor]] = {
    "abs": torch.abs, "ceil": torch.ceil, "cos": torch.cos, "erf": torch.erf, "exp": torch.exp, "exp2": torch.exp2,
    "floor": torch.floor, "logical_not": torch.logical_not, "relu": F.relu, "relu6": F.relu6, "round": torch.round,
    "sigmoid": torch.sigmoid, "sign": torch.sign, "silu": F.silu, "sin": torch.sin, "softplus": F.softplus,
    "softsign": F.softsign, "sqrt": torch.sqrt, "square": torch.square, "tanh": torch.tanh,
}  # fmt: skip
_BINARY: dict[str, Callable[..., Tensor]] = {
    "add": torch.add, "sub": torch.sub, "mul": torch.mul, "floor_div": torch.floor_divide, "mod": torch.remainder,
    "pow": torch.pow, "maximum": torch.maximum, "minimum": torch.minimum, "equal": torch.eq, "not_equal": torch.ne,
    "greater": torch.gt, "greater_equal": torch.ge, "less": torch.lt, "less_equal": torch.le,
    "logical_and": torch.logical_and, "logical_or": torch.logical_or, "logical_xor": torch.logical_xor,
}  # fmt: skip
for _name in _UNARY:
    _unary(_name, _UNARY[_name])
for _name in _BINARY:
    _binary(_name, _BINARY[_name])


@computes
def real_div(x: Tensor, y: Tensor) -> Tensor:
    """Quotient of floating-point tensors."""
    if not x.is_floating_point():
        raise OptionError("integers are not supported")
    return x / y


@computes
def inverse(x: Tensor, epsilon: float = 1e-4) -> Tensor:
    """1 / (x + epsilon)."""
    return torch.reciprocal(x + epsilon)


@computes
def log(x: Tensor, epsilon: float = 1e-45) -> Tensor:
    """Natural logarithm of x + epsilon."""
    return torch.log(x + epsilon)


@computes
def rsqrt(x: Tensor, epsilon: float = 1e-12) -> Tensor:
    """1 / sqrt(x + epsilon)."""
    return torch.rsqrt(x + epsilon)


@computes
def clip(x: Tensor, alpha: float, beta: float) -> Tensor:
    """x limited to [alpha, beta]."""
    return torch.clamp(x, alpha, beta)


@computes
def gelu(x: Tensor, mode: str = "EXACT") -> Tensor:
    """Gaussian error linear unit, exact or by one of its two approximations."""
    if mode == "EXACT":
        return F.gelu(x)
    if mode == "TANH_APPROXIMATION":
        return F.gelu(x, approximate="tanh")
    if mode == "SIGMOID_APPROXIMATION":
        return x * torch.sigmoid(1.702 * x)
    raise OptionError(f"mode {mode!r} is not supported")


@computes
def leaky_relu(x: Tensor, alpha: float = 0.01) -> Tensor:
    """x where positive, alpha * x elsewhere."""
    return F.leaky_relu(x, alpha)


@computes
def elu(x: Tensor, alpha: float = 1.0) -> Tensor:
    """x where positive, alpha * (exp(x) - 1) elsewhere."""
    return F.elu(x, alpha)


@computes
def thresholded_relu(x: Tensor, alpha: float = 1.0) -> Tensor:
    """x where it is at least alpha, 0 elsewhere."""
    return torch.where(x >= alpha, x, 0.0)


@computes
def sigmoid_hard(x: Tensor, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    """alpha * x + beta, limited to [0, 1]."""
    return torch.clamp(alpha * x + beta, 0.0, 1.0)


@computes
def softmax(x: Tensor, axis: int = -1) -> Tensor:
    """Softmax along one axis."""
    return torch.softmax(x, axis)


@computes
def cumsum(x: Tensor, axis: int = 0, exclusive: bool = False, reverse: bool = False) -> Tensor:
    """Running sum along an axis; integers keep their type and wrap around."""
    if reverse:
        return cumsum(x.flip(axis), axis, exclusive).flip(axis)  # type: ignore[no-any-return]
    total = torch.cumsum(x, axis, dtype=x.dtype)
    if exclusive:
        first = torch.zeros_like(total.narrow(axis, 0, 1))
        total = torch.cat([first, total.narrow(axis, 0, total.shape[axis] - 1)], axis)
    return total


# --- matrix products and convolution ---------------------------------------------------------------------------------


@computes
def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., I) times weight (O, I) transposed, plus bias (O)."""
    return F.linear(x, weight, bias)


@computes
def matmul(x: Tensor, y: Tensor, transpose_x: bool = False, transpose_y: bool = False) -> Tensor:
    """Batched matrix product; either factor may be transposed in its last two axes."""
    return torch.matmul(x.mT if transpose_x else x, y.mT if transpose_y else y)


@computes
def einsum(values: list[Tensor], equation: str) -> Tensor:
    """Sum of products in Einstein's notation."""
    return torch.einsum(equation, *values)


@computes
def scaled_dot_product_attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    """Attention with scale 1/sqrt(E); the mask is added, or, if boolean, true where a key takes part (iOS 18)."""
    return F.scaled_dot_product_attention(query, key, value, attn_mask)


@computes
def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    strides: list[int] | None = None,
    pad_type: str = "valid",
    pad: list[int] | None = None,
    dilations: list[int] | None = None,
    groups: int = 1,
) -> Tensor:
    """Convolution of x (N, C, *D) in 1 to 3 dimensions; `pad` is before and after, dimension by dimension."""
    n = _spatial(x)
    strides, dilations = strides or [1] * n, dilations or [1] * n
    pads = _padding(x, pad_type, pad, list(weight.shape[2:]), strides, dilations)
    if all(before == after for before, after in pads):
        padding = [before for before, _ in pads]
    else:
        x, padding = F.pad(x, _flat(pads)), [0] * n
    function = (F.conv1d, F.conv2d, F.conv3d)[n - 1]
    return function(x, weight, bias, strides, padding, dilations, groups)


@computes
def max_pool(
    x: Tensor,
    kernel_sizes: list[int],
    strides: list[int] | None = None,
    pad_type: str = "valid",
    pad: list[int] | None = None,
    ceil_mode: bool = False,
) -> Tensor:
    """Largest element of each window; padding never wins."""
    n = _spatial(x)
    strides = strides or [1] * n
    x = F.pad(x, _flat(_pool_padding(x, kernel_sizes, strides, pad_type, pad, ceil_mode)), value=-math.inf)
    return (F.max_pool1d, F.max_pool2d, F.max_pool3d)[n - 1](x, kernel_sizes, strides)  # type: ignore[no-any-return]


@computes
def avg_pool(
    x: Tensor,
    kernel_sizes: list[int],
    strides: list[int] | None = None,
    pad_type: str = "valid",
    pad: list[int] | None = None,
    exclude_padding_from_average: bool = False,
    ceil_mode: bool = False,
) -> Tensor:
    """Mean of each window; padding counts as zeros, or not at all."""
    n = _spatial(x)
    strides = strides or [1] * n
    padding = _flat(_pool_padding(x, kernel_sizes, strides, pad_type, pad, ceil_mode))
    function = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[n - 1]
    mean: Tensor = function(F.pad(x, padding), kernel_sizes, strides)
    if exclude_padding_from_average:
        mean = mean / function(F.pad(torch.ones_like(x), padding), kernel_sizes, strides)
    return mean


def _spatial(x: Tensor) -> int:
    if not 3 <= x.dim() <= 5:
        raise OptionError(f"rank {x.dim()} is not supported, 3 to 5 are")
    return x.dim() - 2


def _pool_padding(
    x: Tensor, kernel: list[int], strides: list[int], pad_type: str, pad: list[int] | None, ceil_mode: bool
) -> list[tuple[int, int]]:
    if ceil_mode:
        raise OptionError("ceil_mode is not supported")
    return _padding(x, pad_type, pad, kernel, strides, [1] * len(kernel))


def _padding(
    x: Tensor, pad_type: str, pad: list[int] | None, kernel: list[int], strides: list[int], dilations: list[int]
) -> list[tuple[int, int]]:
    """Elements before and after in each spatial dimension. "same" gives ceil(size / stride) outputs, extra at the end."""
    n = len(kernel)
    if pad_type == "valid":
        return [(0, 0)] * n
    if pad_type == "custom":
        pad = pad or [0] * (2 * n)
        return [(pad[2 * i], pad[2 * i + 1]) for i in range(n)]
    if pad_type not in ("same", "same_lower"):
        raise OptionError(f"pad_type {pad_type!r} is not supported")
    pairs = []
    for size, k, stride, dilation in zip(x.shape[2:], kernel, strides, dilations, strict=True):
        total = max(0, (math.ceil(size / stride) - 1) * stride + (k - 1) * dilation + 1 - size)
        small, large = total // 2, total - total // 2
        pairs.append((small, large) if pad_type == "same" else (large, small))
    return pairs


def _flat(pads: list[tuple[int, int]]) -> list[int]:
    """In torch's order: last dimension first."""
    return [p for pair in reversed(pads) for p in pair]


# --- normalization ---------------------------------------------------------------------------------------------------


@computes
def batch_norm(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: float = 1e-5,
) -> Tensor:
    """gamma * (x - mean) / sqrt(variance + epsilon) + beta, each a value per channel (axis 1)."""
    return F.batch_norm(x, mean, variance, gamma, beta, training=False, eps=epsilon)


@computes
def layer_norm(
    x: Tensor,
    axes: list[int] | None = None,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: float = 1e-5,
) -> Tensor:
    """Normalization over `axes` (default: all) with the biased variance."""
    over = sorted(a % x.dim() for a in (axes if axes is not None else range(x.dim())))
    last = list(range(-len(over), 0))
    moved = x.movedim(over, last)
    y = F.layer_norm(moved, [x.shape[a] for a in over], gamma, beta, epsilon)
    return y.movedim(last, over)


# --- reductions ------------------------------------------------------------------------------------------------------


def _reduction(name: str, function: Callable[[Tensor, list[int], bool], Tensor]) -> None:
    def operator(x: Tensor, axes: list[int] | None = None, keep_dims: bool = False) -> Tensor:
        return function(x, list(range(x.dim())) if axes is None else axes, keep_dims)

    register(name, operator, computes=True)


_reduction("reduce_sum", lambda x, axes, keep: torch.sum(x, axes, keep, dtype=x.dtype))
_reduction("reduce_mean", lambda x, axes, keep: torch.mean(x, axes, keep))
_reduction("reduce_max", lambda x, axes, keep: torch.amax(x, axes, keep))
_reduction("reduce_min", lambda x, axes, keep: torch.amin(x, axes, keep))
_reduction("reduce_l1_norm", lambda x, axes, keep: torch.sum(torch.abs(x), axes, keep, dtype=x.dtype))
_reduction("reduce_l2_norm", lambda x, axes, keep: torch.linalg.vector_norm(x, 2, axes, keep))
_reduction("reduce_sum_square", lambda x, axes, keep: torch.sum(torch.square(x), axes, keep, dtype=x.dtype))
_reduction("reduce_log_sum_exp", lambda x, axes, keep: torch.logsumexp(x, axes, keep))


def _arg_reduction(name: str, function: Callable[[Tensor, int, bool], Tensor]) -> None:
    def operator(x: Tensor, axis: int = -1, keep_dims: bool = False, output_dtype: str = "int32") -> Tensor:
        if output_dtype not in ("int32", "uint16"):
            raise OptionError(f"output_dtype {output_dtype!r} is not supported")
        return function(x, axis, keep_dims).to(getattr(torch, output_dtype))

    register(name, operator, computes=True)


# Of equal elements torch returns the first; CoreML leaves it open, so a program should not depend on it.
_arg_reduction("reduce_argmax", torch.argmax)
_arg_reduction("reduce_argmin", torch.argmin)
