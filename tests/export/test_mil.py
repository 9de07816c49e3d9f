"""The CoreML reference interpreter: every operator against torch in float64, whole models, and packages that are damaged."""

from __future__ import annotations

import gc
import json
import math
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobileclip.errors import BundleError, InputError
from mobileclip.export.verify.mil import MilProgram
from mobileclip.export.verify.mil_ops import OPERATORS
from mobileclip.export.verify.mil_storage import WeightFile, model_proto

SPEC = "Data/com.apple.CoreML/model.mlmodel"
WEIGHTS = "Data/com.apple.CoreML/weights/weight.bin"
RNG = np.random.default_rng(20)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def positive(*shape: int) -> np.ndarray:
    return (RNG.random(shape) + 0.1).astype(np.float32)


@dataclass(frozen=True)
class Case:
    """One program of one operator (or few), and the same in torch. `k` gives a constant in the precision under test."""

    build: Callable[..., Any]
    torch: Callable[..., Any]
    shapes: list[tuple[int, ...]]
    data: Callable[..., np.ndarray] = normal


X4, W33, B6 = [(2, 4, 9, 8)], normal(6, 4, 3, 3) / 6, normal(6)
DW, W1D, W3D = normal(8, 1, 1, 5), normal(6, 4, 3), normal(2, 3, 2, 2, 2)
W_LIN, B_LIN = normal(7, 5), normal(7)
MEAN, VAR, GAMMA, BETA = normal(4), positive(4), normal(4), normal(4)
G2 = normal(4, 8)
MASK = np.triu(np.full((5, 5), -1e4, np.float32), 1)
TABLE = normal(11, 3)


def pair(name: str, function: Callable[..., Tensor], data: Callable[..., np.ndarray] = normal) -> Case:
    return Case(lambda mb, k, x, y: getattr(mb, name)(x=x, y=y), lambda k, x, y: function(x, y), [(2, 3, 4), (3, 1)], data)


def single(name: str, function: Callable[..., Tensor], data: Callable[..., np.ndarray] = normal, **options: Any) -> Case:
    def build(mb: Any, k: Any, x: Any) -> Any:
        return getattr(mb, name)(x=x, **{n: k(v) if isinstance(v, float) else v for n, v in options.items()})

    return Case(build, lambda k, x: function(x), [(3, 4, 5)], data)


def pooled(x: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    return F.avg_pool2d(F.pad(x, (1, 1, 0, 1)), (3, 2), (2, 2)).to(dtype)


UNARY = (
    torch.abs, torch.ceil, torch.cos, torch.erf, torch.exp, torch.exp2, torch.floor, torch.relu, torch.round,
    torch.sigmoid, torch.sign, torch.sin, torch.square, torch.tanh, F.relu6, F.silu, F.softplus, F.softsign,
)  # fmt: skip
FLOAT_CASES = {
    "conv": Case(
        lambda mb, k, x: mb.conv(x=x, weight=k(W33), bias=k(B6), strides=[2, 1], pad_type="custom", pad=[1, 1, 2, 2]),
        lambda k, x: F.conv2d(x, k(W33), k(B6), (2, 1), (1, 2)),
        X4,
    ),
    "conv uneven pad, dilated": Case(
        lambda mb, k, x: mb.conv(x=x, weight=k(W33), dilations=[2, 1], pad_type="custom", pad=[2, 1, 0, 3]),
        lambda k, x: F.conv2d(F.pad(x, (0, 3, 2, 1)), k(W33), dilation=(2, 1)),
        X4,
    ),
    "conv same": Case(
        lambda mb, k, x: mb.conv(x=x, weight=k(W33), strides=[2, 2], pad_type="same"),
        lambda k, x: F.conv2d(F.pad(x, (0, 1, 1, 1)), k(W33), stride=2),
        X4,
    ),
    "conv same_lower": Case(
        lambda mb, k, x: mb.conv(x=x, weight=k(W33), strides=[2, 2], pad_type="same_lower"),
        lambda k, x: F.conv2d(F.pad(x, (1, 0, 1, 1)), k(W33), stride=2),
        X4,
    ),
    "conv depthwise 1x5": Case(
        lambda mb, k, x: mb.conv(x=x, weight=k(DW), groups=4, pad_type="valid"),
        lambda k, x: F.conv2d(x, k(DW), groups=4),
        X4,
    ),
    "conv 1d": Case(
        lambda mb, k, x: mb.conv(x=x, weight=k(W1D), pad_type="custom", pad=[1, 1]),
        lambda k, x: F.conv1d(x, k(W1D), padding=1),
        [(2, 4, 9)],
    ),
    "conv 3d": Case(lambda mb, k, x: mb.conv(x=x, weight=k(W3D)), lambda k, x: F.conv3d(x, k(W3D)), [(1, 3, 4, 4, 4)]),
    "linear": Case(
        lambda mb, k, x: mb.linear(x=x, weight=k(W_LIN), bias=k(B_LIN)),
        lambda k, x: F.linear(x, k(W_LIN), k(B_LIN)),
        [(2, 3, 5)],
    ),
    "linear without bias": Case(lambda mb, k, x: mb.linear(x=x, weight=k(W_LIN)), lambda k, x: F.linear(x, k(W_LIN)), [(4, 5)]),
    "matmul": Case(lambda mb, k, x, y: mb.matmul(x=x, y=y), lambda k, x, y: x @ y, [(2, 3, 4, 5), (3, 5, 6)]),
    "matmul transposed": Case(
        lambda mb, k, x, y: mb.matmul(x=x, y=y, transpose_x=True, transpose_y=True),
        lambda k, x, y: x.mT @ y.mT,
        [(2, 5, 4), (2, 6, 5)],
    ),
    "einsum": Case(
        lambda mb, k, x, y: mb.einsum(values=(x, y), equation="nchw,nwhu->nchu"),
        lambda k, x, y: torch.einsum("nchw,nwhu->nchu", x, y),
        [(2, 3, 4, 5), (2, 5, 4, 6)],
    ),
    "scaled_dot_product_attention": Case(
        lambda mb, k, q, v: mb.scaled_dot_product_attention(query=q, key=v, value=v, attn_mask=k(MASK)),
        lambda k, q, v: (q @ v.mT / math.sqrt(8) + k(MASK)).softmax(-1) @ v,
        [(2, 3, 5, 8), (2, 3, 5, 8)],
    ),
    "scaled_dot_product_attention boolean mask": Case(
        lambda mb, k, q, v: mb.scaled_dot_product_attention(query=q, key=v, value=v, attn_mask=MASK == 0),
        lambda k, q, v: (q @ v.mT / math.sqrt(8)).masked_fill(torch.from_numpy(MASK != 0), -math.inf).softmax(-1) @ v,
        [(2, 3, 5, 8), (2, 3, 5, 8)],
    ),
    "batch_norm": Case(
        lambda mb, k, x: mb.batch_norm(x=x, mean=k(MEAN), variance=k(VAR), gamma=k(GAMMA), beta=k(BETA), epsilon=k(1e-3)),
        lambda k, x: F.batch_norm(x, k(MEAN), k(VAR), k(GAMMA), k(BETA), eps=float(k(1e-3))),
        X4,
    ),
    "batch_norm plain": Case(
        lambda mb, k, x: mb.batch_norm(x=x, mean=k(MEAN), variance=k(VAR)),
        lambda k, x: F.batch_norm(x, k(MEAN), k(VAR)),
        X4,
    ),
    "layer_norm": Case(
        lambda mb, k, x: mb.layer_norm(x=x, axes=[-1], gamma=k(G2[0]), beta=k(G2[1]), epsilon=k(1e-3)),
        lambda k, x: F.layer_norm(x, [8], k(G2[0]), k(G2[1]), float(k(1e-3))),
        X4,
    ),
    "layer_norm over channels": Case(
        lambda mb, k, x: mb.layer_norm(x=x, axes=[1], gamma=k(GAMMA), beta=k(BETA)),
        lambda k, x: F.layer_norm(x.movedim(1, -1), [4], k(GAMMA), k(BETA)).movedim(-1, 1),
        X4,
    ),
    "layer_norm over two axes": Case(
        lambda mb, k, x: mb.layer_norm(x=x, axes=[1, 3], gamma=k(G2)),
        lambda k, x: F.layer_norm(x.movedim(2, 1), [4, 8], k(G2)).movedim(1, 2),
        X4,
    ),
    "max_pool": Case(
        lambda mb, k, x: mb.max_pool(x=x, kernel_sizes=[3, 3], strides=[2, 2], pad_type="custom", pad=[1, 1, 1, 1]),
        lambda k, x: F.max_pool2d(x, 3, 2, 1),
        X4,
    ),
    "avg_pool": Case(
        lambda mb, k, x: mb.avg_pool(x=x, kernel_sizes=[3, 2], strides=[2, 2], pad_type="custom", pad=[0, 1, 1, 1]),
        lambda k, x: pooled(x),
        X4,
    ),
    "avg_pool without padding": Case(
        lambda mb, k, x: mb.avg_pool(x=x, kernel_sizes=[3, 3], pad_type="custom", pad=[1, 1, 1, 1], exclude_padding_from_average=True),
        lambda k, x: F.avg_pool2d(x, 3, 1, 1, count_include_pad=False),
        X4,
    ),
    "gelu": single("gelu", F.gelu),
    "gelu tanh": single("gelu", lambda x: F.gelu(x, approximate="tanh"), mode="TANH_APPROXIMATION"),
    "gelu sigmoid": single("gelu", lambda x: x * torch.sigmoid(1.702 * x), mode="SIGMOID_APPROXIMATION"),
    "softmax": single("softmax", lambda x: x.softmax(1), axis=1),
    "clip": single("clip", lambda x: x.clamp(-0.5, 0.75), alpha=-0.5, beta=0.75),
    "leaky_relu": single("leaky_relu", lambda x: F.leaky_relu(x, 0.25), alpha=0.25),
    "elu": single("elu", lambda x: F.elu(x, 0.5), alpha=0.5),
    "thresholded_relu": single("thresholded_relu", lambda x: x * (x >= 0.5), alpha=0.5),
    "sigmoid_hard": single("sigmoid_hard", lambda x: (0.125 * x + 0.5).clamp(0, 1), alpha=0.125, beta=0.5),
    "cumsum": single("cumsum", lambda x: x.cumsum(1), axis=1),
    "cumsum exclusive": single("cumsum", lambda x: x.cumsum(2) - x, axis=2, exclusive=True),
    "cumsum reverse": single("cumsum", lambda x: x.flip(0).cumsum(0).flip(0), axis=0, reverse=True),
    "log": single("log", torch.log, positive),
    "inverse": single("inverse", lambda x: 1 / (x + 0.5), positive, epsilon=0.5),
    "rsqrt": single("rsqrt", lambda x: 1 / (x + 0.25).sqrt(), positive, epsilon=0.25),
    "sqrt": single("sqrt", torch.sqrt, positive),
    **{f.__name__: single(f.__name__, f) for f in UNARY},
    "add": pair("add", torch.add),
    "sub": pair("sub", torch.sub),
    "mul": pair("mul", torch.mul),
    "real_div": pair("real_div", torch.div, positive),
    "floor_div": pair("floor_div", torch.floor_divide, positive),
    "mod": pair("mod", torch.remainder, positive),
    "pow": pair("pow", torch.pow, positive),
    "maximum": pair("maximum", torch.maximum),
    "minimum": pair("minimum", torch.minimum),
    "reduce_mean": single("reduce_mean", lambda x: x.mean((0, 2), True), axes=[0, -1], keep_dims=True),
    "reduce_mean of all": single("reduce_mean", lambda x: x.mean()),
    "reduce_sum": single("reduce_sum", lambda x: x.sum(1), axes=[1]),
    "reduce_max": single("reduce_max", lambda x: x.amax(2), axes=[2]),
    "reduce_min": single("reduce_min", lambda x: x.amin((0, 1)), axes=[0, 1]),
    "reduce_l1_norm": single("reduce_l1_norm", lambda x: x.abs().sum(1), axes=[1]),
    "reduce_l2_norm": single("reduce_l2_norm", lambda x: x.norm(dim=-1, keepdim=True), axes=[-1], keep_dims=True),
    "reduce_sum_square": single("reduce_sum_square", lambda x: x.square().sum(1), axes=[1]),
    "reduce_log_sum_exp": single("reduce_log_sum_exp", lambda x: x.logsumexp(1), axes=[1]),
    "identity": single("identity", lambda x: x),
    "reshape": single("reshape", lambda x: x.reshape(2, 1, 6, 5), shape=[2, 1, -1, 0]),
    "transpose": single("transpose", lambda x: x.permute(2, 0, 1), perm=[-1, 0, 1]),
    "expand_dims": single("expand_dims", lambda x: x[:, None, :, :, None], axes=[1, -1]),
    "squeeze": Case(lambda mb, k, x: mb.squeeze(x=x, axes=[1, -1]), lambda k, x: x.squeeze(-1).squeeze(1), [(3, 1, 1, 5, 1)]),
    "squeeze all": Case(lambda mb, k, x: mb.squeeze(x=x), lambda k, x: x.squeeze(), [(3, 1, 5, 1)]),
    "concat": Case(
        lambda mb, k, x, y: mb.concat(values=(x, y, x), axis=1),
        lambda k, x, y: torch.cat([x, y, x], 1),
        [(2, 3, 4), (2, 1, 4)],
    ),
    "stack": Case(lambda mb, k, x, y: mb.stack(values=(x, y), axis=1), lambda k, x, y: torch.stack([x, y], 1), [(2, 3)] * 2),
    "split": single("split", lambda x: x.split([1, 4], 2), axis=2, split_sizes=[1, 4]),
    "split evenly": single("split", lambda x: x.chunk(2, 1), axis=1, num_splits=2),
    "slice_by_index": single(
        "slice_by_index",
        lambda x: x[0:2, 1, 0:-1:2],
        begin=[0, 1, 1],
        end=[2, 0, -1],
        stride=[1, 1, 2],
        begin_mask=[False, False, True],
        squeeze_mask=[False, True, False],
    ),
    "slice_by_index backwards": single(
        "slice_by_index",
        lambda x: x.flip(2)[:, 2:, 1:3],
        begin=[0, -2, 3],
        end=[0, 4, 1],
        stride=[1, 1, -1],
        end_mask=[True, False, False],
    ),
    "slice_by_size": single("slice_by_size", lambda x: x[1:3, 2:, 1:4], begin=[1, 2, 1], size=[2, -1, 3]),
    "reverse": single("reverse", lambda x: x.flip(0, 2), axes=[0, 2]),
    "tile": single("tile", lambda x: x.repeat(1, 2, 3), reps=[1, 2, 3]),
    "pad": single("pad", lambda x: F.pad(x, (3, 1, 0, 2), value=0.5), pad=[0, 2, 3, 1], constant_val=0.5),
    "pad reflect": single("pad", lambda x: F.pad(x, (3, 4), mode="reflect"), pad=[0, 0, 3, 4], mode="reflect"),
    "pad replicate": single("pad", lambda x: F.pad(x, (3, 1), mode="replicate"), pad=[3, 1], mode="replicate"),
    "band_part": single("band_part", lambda x: x.tril(1).triu(-2), lower=2, upper=1),
    "band_part lower": single("band_part", lambda x: x.tril(0), lower=-1, upper=0),
    "gather": Case(
        lambda mb, k, x: mb.gather(x=x, indices=np.int32([[2, 0], [1, 1]]), axis=1),
        lambda k, x: x[:, torch.tensor([[2, 0], [1, 1]])],
        [(2, 3, 4)],
    ),
    "gather batched": Case(
        lambda mb, k, x: mb.gather(x=x, indices=np.int32([[2, 0], [1, 1]]), axis=1, batch_dims=1),
        lambda k, x: torch.stack([x[0, [2, 0]], x[1, [1, 1]]]),
        [(2, 3, 4)],
    ),
    "gather_along_axis": Case(
        lambda mb, k, x: mb.gather_along_axis(x=x, indices=np.int16([[2], [0]]), axis=1),
        lambda k, x: x.gather(1, torch.tensor([[2], [0]])),
        [(2, 3)],
    ),
    "gather_nd": Case(
        lambda mb, k, x: mb.gather_nd(x=x, indices=np.uint16([[0, 2], [1, 1]])),
        lambda k, x: x[[0, 1], [2, 1]],
        [(2, 3, 4)],
    ),
    "gather_nd batched": Case(
        lambda mb, k, x: mb.gather_nd(x=x, indices=np.int32([[2], [1]]), batch_dims=1),
        lambda k, x: x[[0, 1], [2, 1]],
        [(2, 3, 4)],
    ),
    "select": Case(
        lambda mb, k, x, y: mb.select(cond=mb.greater(x=x, y=k(0.25)), a=x, b=y),
        lambda k, x, y: torch.where(x > 0.25, x, y),
        [(3, 4), (3, 4)],
    ),
    "fill": Case(lambda mb, k, x: mb.add(x=x, y=mb.fill(shape=mb.shape(x=x), value=k(0.5))), lambda k, x: x + 0.5, [(3, 4)]),
    "shape": Case(lambda mb, k, x: mb.reshape(x=x, shape=mb.reverse(x=mb.shape(x=x))), lambda k, x: x.reshape(4, 3), [(3, 4)]),
}
COMPARISONS = {
    "equal": torch.eq, "not_equal": torch.ne, "greater": torch.gt, "greater_equal": torch.ge, "less": torch.lt,
    "less_equal": torch.le,
}  # fmt: skip
IDS = np.array([[49406, 320, 49407, 0, 49407], [49406, 49407, 7, 7, 7]], np.int32)
INT_CASES: dict[str, tuple[Callable[..., Any], Callable[[Tensor], Tensor]]] = {
    **{n: (lambda mb, x, n=n: getattr(mb, n)(x=x, y=np.int32(320)), lambda x, f=f: f(x, 320)) for n, f in COMPARISONS.items()},
    "add": (lambda mb, x: mb.add(x=x, y=np.int32([1, 2, 3, 4, 5])), lambda x: x + torch.tensor([1, 2, 3, 4, 5])),
    "mod": (lambda mb, x: mb.mod(x=x, y=np.int32(-7)), lambda x: x % -7),
    "floor_div": (lambda mb, x: mb.floor_div(x=x, y=np.int32(-7)), lambda x: x // -7),
    "cumsum": (
        lambda mb, x: mb.cumsum(x=mb.cast(x=mb.equal(x=x, y=np.int32(49407)), dtype="int32"), axis=1, exclusive=True),
        lambda x: (x == 49407).int().cumsum(1) - (x == 49407).int(),
    ),
    "logical_and": (
        lambda mb, x: mb.logical_and(x=mb.greater(x=x, y=np.int32(7)), y=mb.less(x=x, y=np.int32(400))),
        lambda x: (x > 7) & (x < 400),
    ),
    "logical_or": (
        lambda mb, x: mb.logical_or(x=mb.greater(x=x, y=np.int32(400)), y=mb.equal(x=x, y=np.int32(0))),
        lambda x: (x > 400) | (x == 0),
    ),
    "logical_xor": (
        lambda mb, x: mb.logical_xor(x=mb.greater(x=x, y=np.int32(7)), y=mb.less(x=x, y=np.int32(400))),
        lambda x: (x > 7) ^ (x < 400),
    ),
    "logical_not": (lambda mb, x: mb.logical_not(x=mb.greater(x=x, y=np.int32(7))), lambda x: x <= 7),
    "reduce_argmax": (lambda mb, x: mb.reduce_argmax(x=x, axis=1), lambda x: torch.tensor([2, 1])),
    "reduce_argmin": (lambda mb, x: mb.reduce_argmin(x=x, axis=1, keep_dims=True), lambda x: torch.tensor([[3], [2]])),
    "reduce_sum wraps around": (
        lambda mb, x: mb.reduce_sum(x=mb.mul(x=x, y=np.int32(20000)), axes=[1]),
        lambda x: (x * 20000).int().sum(1).int(),
    ),
    "cast to bool": (lambda mb, x: mb.cast(x=x, dtype="bool"), lambda x: x != 0),
    "cast to int16 wraps around": (lambda mb, x: mb.cast(x=mb.cast(x=x, dtype="int16"), dtype="int32"), lambda x: x.short()),
    "cast to uint16": (lambda mb, x: mb.cast(x=mb.cast(x=x, dtype="uint16"), dtype="int32"), lambda x: x),
    "cast through int8 and uint8": (
        lambda mb, x: mb.cast(x=mb.cast(x=mb.cast(x=x, dtype="int8"), dtype="uint8"), dtype="int32"),
        lambda x: x.to(torch.int8).to(torch.uint8),
    ),
    "cast of a fraction": (
        lambda mb, x: mb.cast(x=mb.mul(x=mb.cast(x=x, dtype="fp32"), y=np.float32(-0.01)), dtype="int32"),
        lambda x: torch.trunc(x.float() * -0.01),
    ),
    "range_1d": (
        lambda mb, x: mb.range_1d(start=np.int32(0), end=mb.gather(x=mb.shape(x=x), indices=np.int32(1)), step=np.int32(2)),
        lambda x: torch.tensor([0, 2, 4]),
    ),
    "gather": (lambda mb, x: mb.gather(x=np.arange(49408, dtype=np.int32) * 3, indices=x, axis=0), lambda x: 3 * x),
}  # fmt: skip


@pytest.fixture(scope="module")
def ct() -> Iterator[Any]:
    """coremltools, which collects garbage at each conversion: without its own hundred thousand objects that is fast."""
    import coremltools

    gc.collect()
    gc.freeze()
    yield coremltools
    gc.unfreeze()


@pytest.fixture(scope="module")
def write(ct: Any) -> Callable[..., Path]:
    """A function that writes a program of one or two inputs as a package, without any optimization."""
    from coremltools.converters.mil.mil import Builder, types

    def function(folder: Path, build: Callable[..., Any], inputs: list[tuple[tuple[int, ...], str]], name: str = "") -> Path:
        specs = [Builder.TensorSpec(shape, getattr(types, dtype)) for shape, dtype in inputs]
        # The builder names the inputs after the function's parameters.
        body = (lambda a: build(a)) if len(inputs) == 1 else (lambda a, b: build(a, b))
        target = ct.target.iOS18 if "attention" in name else ct.target.iOS17
        program = Builder.program(input_specs=specs, opset_version=target)(body)
        model = ct.convert(
            program, source="milinternal", convert_to="mlprogram", minimum_deployment_target=target,
            compute_precision=ct.precision.FLOAT32, pass_pipeline=ct.PassPipeline.EMPTY, skip_model_load=True,
        )  # fmt: skip
        package = folder / "program.mlpackage"
        model.save(str(package))
        return package

    return function


def outputs_in_order(program: MilProgram, feeds: list[np.ndarray]) -> list[np.ndarray]:
    return list(program.run(dict(zip(program.inputs, feeds, strict=True))).values())


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
@pytest.mark.parametrize("name", FLOAT_CASES)
def test_operator_of_floats(name: str, dtype: str, write: Callable[..., Path], tmp_path: Path) -> None:
    from coremltools.converters.mil.mil import Builder as mb

    case, numpy_type = FLOAT_CASES[name], {"fp32": np.float32, "fp16": np.float16}[dtype]
    package = write(tmp_path, lambda *v: case.build(mb, numpy_type, *v), [(s, dtype) for s in case.shapes], name)
    program = MilProgram.load(package)
    assert name.split()[0] in program.operator_counts()
    feeds = [case.data(*shape).astype(numpy_type) for shape in case.shapes]
    exact = case.torch(lambda v: torch.from_numpy(np.array(v, numpy_type)).double(), *(torch.from_numpy(f).double() for f in feeds))
    exact = exact if isinstance(exact, tuple) else (exact,)
    got = outputs_in_order(program, feeds)
    # fp16: half a unit in the last place, and a little for the fp32 arithmetic before the rounding.
    rtol, atol = (1e-5, 1e-5) if dtype == "fp32" else (2**-11 * 1.01, 1e-5)
    for value, expected in zip(got, exact, strict=True):
        assert value.dtype == numpy_type
        assert value.shape == tuple(expected.shape)
        np.testing.assert_allclose(value.astype(np.float64), expected.numpy(), rtol, atol)


@pytest.mark.parametrize("name", INT_CASES)
def test_operator_of_integers(name: str, write: Callable[..., Path], tmp_path: Path) -> None:
    from coremltools.converters.mil.mil import Builder as mb

    build, reference = INT_CASES[name]
    program = MilProgram.load(write(tmp_path, lambda x: mb.cast(x=build(mb, x), dtype="int32"), [(IDS.shape, "int32")]))
    (got,) = outputs_in_order(program, [IDS])
    np.testing.assert_array_equal(got, reference(torch.from_numpy(IDS)).int().numpy())


def test_every_operator_has_a_case() -> None:
    from mobileclip.export.verify import mil_shape_ops  # noqa: F401

    tested = {n.split()[0] for n in (*FLOAT_CASES, *INT_CASES)}
    assert set(OPERATORS) == tested


def test_mixed_precision_convolution_gives_the_type_of_the_data(write: Callable[..., Path], tmp_path: Path) -> None:
    from coremltools.converters.mil.mil import Builder as mb

    weight = W33.astype(np.float16)
    program = MilProgram.load(write(tmp_path, lambda x: mb.conv(x=x, weight=weight), [(X4[0], "fp32")]))
    x = normal(*X4[0])
    (got,) = outputs_in_order(program, [x])
    assert got.dtype == np.float32
    expected = F.conv2d(torch.from_numpy(x).double(), torch.from_numpy(weight).double())
    np.testing.assert_allclose(got, expected.numpy(), 1e-5, 1e-5)


def test_fp16_results_overflow_as_fp16_does(write: Callable[..., Path], tmp_path: Path) -> None:
    from coremltools.converters.mil.mil import Builder as mb

    def build(x: Any) -> Any:
        return mb.mul(x=mb.mul(x=x, y=np.float16(300)), y=np.float16(0.001))

    program = MilProgram.load(write(tmp_path, build, [((2,), "fp16")]))
    (got,) = outputs_in_order(program, [np.float16([200, 300])])
    assert got[0] == pytest.approx(60, rel=1e-2)
    assert np.isinf(got[1])


@pytest.mark.parametrize("layout", ["RGB", "BGR"])
def test_image_input(layout: str, ct: Any, tmp_path: Path) -> None:
    from coremltools.converters.mil.mil import Builder as mb

    @mb.program(input_specs=[mb.TensorSpec((1, 3, 4, 6))], opset_version=ct.target.iOS17)  # type: ignore[untyped-decorator]
    def program(image: Any) -> Any:
        return mb.relu(x=image)

    image = ct.ImageType(
        name="image", shape=(1, 3, 4, 6), scale=1 / 255, bias=[-0.1, -0.2, -0.3],
        color_layout=getattr(ct.colorlayout, layout),
    )  # fmt: skip
    ct.convert(
        program, source="milinternal", convert_to="mlprogram", minimum_deployment_target=ct.target.iOS17,
        inputs=[image], compute_precision=ct.precision.FLOAT32, skip_model_load=True,
    ).save(str(tmp_path / "image.mlpackage"))  # fmt: skip
    loaded = MilProgram.load(tmp_path / "image.mlpackage")
    kind = loaded.inputs["image"]
    assert (kind.image, kind.dtype, kind.shape) == (True, np.dtype("uint8"), (1, 4, 6, 3))
    pixels = RNG.integers(0, 256, (1, 4, 6, 3), dtype=np.uint8)
    (got,) = outputs_in_order(loaded, [pixels])
    planes = pixels if layout == "RGB" else pixels[..., ::-1]
    expected = np.maximum(planes / 255 - np.array([0.1, 0.2, 0.3]), 0).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(got, expected, atol=1e-6)


# --- whole models ----------------------------------------------------------------------------------------------------


def convert(ct: Any, module: nn.Module, args: tuple[Tensor, ...], inputs: list[Any], precision: str, path: Path) -> Path:
    program = torch.export.export(module.eval(), args).run_decompositions({})
    ct.convert(
        program, convert_to="mlprogram", minimum_deployment_target=ct.target.iOS17, inputs=inputs,
        compute_precision=getattr(ct.precision, precision), skip_model_load=True,
    ).save(str(path))  # fmt: skip
    return path


@pytest.mark.slow
def test_fastvit_mci0_in_fp32(ct: Any, tmp_path: Path) -> None:
    import timm
    from timm.utils import reparameterize_model

    torch.manual_seed(3)
    model = timm.create_model("fastvit_mci0", pretrained=False).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "gamma" in name or "layer_scale" in name:
                parameter.normal_(0.15, 0.03)
    model = reparameterize_model(model)
    x = torch.rand(1, 3, 256, 256)
    image = ct.TensorType(name="image", shape=x.shape)
    program = MilProgram.load(convert(ct, model, (x,), [image], "FLOAT32", tmp_path / "mci0.mlpackage"))
    (got,) = outputs_in_order(program, [x.numpy()])
    with torch.inference_mode():
        expected = model(x).numpy()
    assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()


class Text(nn.Module):
    """A text tower in small: embedding, depthwise mixing, masked attention, first end token, projection, L2 norm."""

    def __init__(self, width: int = 32, length: int = 12) -> None:
        super().__init__()
        self.token = nn.Embedding(49408, width)
        self.position = nn.Parameter(torch.randn(length, width) * 0.1)
        self.mix = nn.Conv2d(width, width, (1, 11), padding=(0, 5), groups=width)
        self.norm = nn.BatchNorm2d(width)
        self.ln1, self.ln2, self.ln3 = (nn.LayerNorm(width) for _ in range(3))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.projection = nn.Parameter(torch.randn(width, 24) * 0.2)
        self.register_buffer("mask", torch.full((length, length), -1e4).triu(1))
        self.register_buffer("before", torch.ones(length, length).triu(1))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.token(ids) + self.position  # (B, T, C)
        x = x + self.norm(self.mix(x.transpose(1, 2).unsqueeze(2))).squeeze(2).transpose(1, 2)
        b, t, c = x.shape
        q, k, v = self.qkv(self.ln1(x)).reshape(b, t, 3, 4, c // 4).permute(2, 0, 3, 1, 4).unbind(0)
        weights = (q * (c // 4) ** -0.5 @ k.transpose(-1, -2) + self.mask).softmax(-1)
        x = x + self.out((weights @ v).transpose(1, 2).reshape(b, t, c))
        x = self.ln3(x + self.mlp(self.ln2(x)))
        end = (ids == 49407).to(x.dtype)
        first = end * ((end @ self.before) < 0.5).to(x.dtype)
        return F.normalize(torch.bmm(first.unsqueeze(1), x).squeeze(1) @ self.projection, dim=-1)


TEXT_IDS = np.full((2, 12), 49407, np.int32)
TEXT_IDS[0, :5] = [49406, 320, 1125, 539, 49405]
TEXT_IDS[1, :2] = [49406, 0]


@pytest.fixture(scope="module")
def text() -> Text:
    torch.manual_seed(5)
    return Text().eval()


@pytest.fixture(scope="module")
def text_package(ct: Any, text: Text, tmp_path_factory: pytest.TempPathFactory) -> Path:
    ids = ct.TensorType(name="input_ids", shape=TEXT_IDS.shape, dtype=np.int32)
    path = tmp_path_factory.mktemp("text") / "text.mlpackage"
    return convert(ct, text, (torch.from_numpy(TEXT_IDS),), [ids], "FLOAT16", path)


def test_text_tower_in_fp16(text: Text, text_package: Path) -> None:
    program = MilProgram.load(text_package)
    (got,) = outputs_in_order(program, [TEXT_IDS])
    with torch.inference_mode():
        expected = text(torch.from_numpy(TEXT_IDS)).numpy()
    assert got.dtype == np.float16
    cosine = (got.astype(np.float64) * expected).sum(1) / np.linalg.norm(got.astype(np.float64), axis=1)
    assert cosine.min() > 0.99999
    assert np.abs(got - expected).max() > 1e-6, "nothing was rounded to fp16"


def test_walk_shows_which_types_the_token_ids_pass_through(text_package: Path) -> None:
    program = MilProgram.load(text_package)
    users = [o for o in program.walk() if any(v.name == "input_ids" for vs in o.inputs.values() for v in vs)]
    assert {o.type for o in users} >= {"equal", "select"}
    for operation in users:
        assert all(v.dtype in ("int32", "bool") for vs in operation.inputs.values() for v in vs), operation
        assert all(v.dtype in ("int32", "bool") for v in operation.outputs), operation
    embedding = next(o for o in program.walk() if o.type == "gather")
    assert (embedding.inputs["x"][0].dtype, embedding.inputs["x"][0].constant) == ("float16", True)
    assert embedding.inputs["indices"][0].dtype == "int32"


def test_index_out_of_range_names_the_operation(text_package: Path) -> None:
    ids = TEXT_IDS.copy()
    ids[0, 1] = 49408
    with pytest.raises(BundleError, match=r"operator gather .*49408 are outside 0\.\.49407"):
        outputs_in_order(MilProgram.load(text_package), [ids])


def test_run_is_repeatable_and_leaves_threads_alone(text_package: Path) -> None:
    program, before = MilProgram.load(text_package, threads=2), torch.get_num_threads()
    first, second = (outputs_in_order(program, [TEXT_IDS])[0] for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    "feeds",
    [{}, {"ids": TEXT_IDS}, {"input_ids": TEXT_IDS.astype(np.int64)}, {"input_ids": TEXT_IDS[:1]}],
)
def test_wrong_feeds_are_refused(feeds: dict[str, np.ndarray], text_package: Path) -> None:
    with pytest.raises(InputError, match="input_ids"):
        MilProgram.load(text_package).run(feeds)


def test_loads_without_importing_all_of_coremltools(text_package: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from mobileclip.export.verify.mil import MilProgram;"
        f"MilProgram.load(Path({str(text_package)!r})); assert 'coremltools' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- damaged and hostile packages ------------------------------------------------------------------------------------


@pytest.fixture
def package(text_package: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(text_package, tmp_path / "text.mlpackage"))


def edit(package: Path, change: Callable[[Any], None]) -> None:
    model = model_proto().Model.FromString((package / SPEC).read_bytes())
    change(model)
    (package / SPEC).write_bytes(model.SerializeToString())


def operations(model: Any) -> Any:
    (block,) = model.mlProgram.functions["main"].block_specializations.values()
    return block.operations


def blob_of(model: Any) -> Any:
    """The embedding table, the largest blob."""
    return next(
        o.attributes["val"].blobFileValue
        for o in operations(model)
        if o.type == "const" and o.attributes["val"].type.tensorType.dimensions[:1]
        and o.attributes["val"].type.tensorType.dimensions[0].constant.size == 49408
    )  # fmt: skip


def refused(package: Path, *words: str) -> None:
    with pytest.raises(BundleError) as error:
        MilProgram.load(package)
    message = str(error.value)
    assert "\n" not in message
    assert str(package) in message
    for word in words:
        assert word in message


@pytest.mark.parametrize("name", ["Manifest.json", SPEC, WEIGHTS])
@pytest.mark.parametrize("part", [0, 1, 5, 16, 31, 48, 60, 63])
def test_truncated(name: str, part: int, package: Path) -> None:
    path = package / name
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * part // 64])
    refused(package)


@pytest.mark.parametrize("name", ["Manifest.json", SPEC, WEIGHTS])
def test_missing(name: str, package: Path) -> None:
    (package / name).unlink()
    refused(package, Path(name).name, "missing")


@pytest.mark.parametrize("offset", [0, 65, 1 << 20, (1 << 40), (1 << 63)])
def test_blob_offset_out_of_range(offset: int, package: Path) -> None:
    edit(package, lambda m: setattr(blob_of(m), "offset", offset))
    refused(package, "offset")


@pytest.mark.parametrize(
    ("field", "value", "word"),
    [(0, 0, "description"), (1, 2, "float32"), (2, 1 << 50, "bytes"), (3, 1 << 50, "outside"), (3, 0, "outside")],
)
def test_blob_description_that_lies(field: int, value: int, word: str, package: Path) -> None:
    data = bytearray((package / WEIGHTS).read_bytes())
    blob = blob_of(model_proto().Model.FromString((package / SPEC).read_bytes()))
    fields = list(struct.unpack_from("<IIQQ", data, blob.offset))
    fields[field] = value
    struct.pack_into("<IIQQ", data, blob.offset, *fields)
    (package / WEIGHTS).write_bytes(data)
    refused(package, word)


def test_weight_file_of_another_version(package: Path) -> None:
    data = bytearray((package / WEIGHTS).read_bytes())
    data[4] = 3
    (package / WEIGHTS).write_bytes(data)
    refused(package, "version 3")


def test_blobs_are_what_coremltools_reads(ct: Any, package: Path) -> None:
    from coremltools.libmilstoragepython import _BlobStorageReader

    offset = blob_of(model_proto().Model.FromString((package / SPEC).read_bytes())).offset
    ours = WeightFile(package, package / WEIGHTS).tensor(offset, "float16", (49408, 32))
    theirs = _BlobStorageReader(str(package / WEIGHTS)).read_fp16_data(offset)
    np.testing.assert_array_equal(ours.numpy().view(np.uint16).ravel(), np.asarray(theirs))


@pytest.mark.parametrize("name", [SPEC, WEIGHTS, "Data/com.apple.CoreML/weights"])
def test_links_are_refused(name: str, package: Path, tmp_path: Path) -> None:
    path, elsewhere = package / name, tmp_path / "elsewhere"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    refused(package, "link")


@pytest.mark.parametrize("path", ["../../outside", "/etc/passwd", "a\\..\\b", "", "com.apple.CoreML/../../../x"])
def test_manifest_that_leaves_the_package(path: str, package: Path) -> None:
    manifest = json.loads((package / "Manifest.json").read_text())
    manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]["path"] = path
    (package / "Manifest.json").write_text(json.dumps(manifest))
    refused(package)


@pytest.mark.parametrize("content", ["[]", "{}", "7", '{"itemInfoEntries": {}, "rootModelIdentifier": "a"}', "[" * 5000])
def test_manifest_of_another_form(content: str, package: Path) -> None:
    (package / "Manifest.json").write_text(content)
    refused(package, "Manifest.json")


@pytest.mark.parametrize("name", ["@model_path/../../../../x.bin", "/etc/passwd", "@model_path//etc/passwd", "x.bin"])
def test_weights_outside_the_package(name: str, package: Path) -> None:
    edit(package, lambda m: setattr(blob_of(m), "fileName", name))
    refused(package, "package")


@pytest.mark.parametrize("version", [0, 6, 99])
def test_wrong_specification_version(version: int, package: Path) -> None:
    edit(package, lambda m: setattr(m, "specificationVersion", version))
    refused(package, f"version {version}")


def test_not_an_ml_program(package: Path) -> None:
    edit(package, lambda m: m.neuralNetwork.SetInParent())
    refused(package, "neuralNetwork")


def test_not_a_package(tmp_path: Path) -> None:
    refused(tmp_path / "nothing.mlpackage", "not a CoreML package")


def first(model: Any, kind: str) -> Any:
    return next(o for o in operations(model) if o.type == kind)


def test_unknown_operator_names_itself(package: Path) -> None:
    edit(package, lambda m: setattr(first(m, "softmax"), "type", "hard_softmax"))
    refused(package, "hard_softmax", "not supported")


def test_unknown_option_names_itself(package: Path) -> None:
    edit(package, lambda m: first(m, "softmax").inputs["tau"].CopyFrom(first(m, "softmax").inputs["axis"]))
    refused(package, "softmax", "'tau'")


def test_missing_input_names_itself(package: Path) -> None:
    edit(package, lambda m: first(m, "linear").inputs.pop("weight"))
    refused(package, "linear", "'weight'")


def test_nested_blocks_are_refused(package: Path) -> None:
    edit(package, lambda m: first(m, "softmax").blocks.add())
    refused(package, "softmax", "nested block")


def test_value_used_before_it_is_computed(package: Path) -> None:
    def change(model: Any) -> None:
        first(model, "softmax").inputs["x"].arguments[0].name = "later"

    edit(package, change)
    refused(package, "'later'", "before it is computed")


def test_value_defined_twice(package: Path) -> None:
    edit(package, lambda m: setattr(first(m, "softmax").outputs[0], "name", "input_ids"))
    refused(package, "'input_ids'", "twice")


def test_description_that_lies(package: Path) -> None:
    edit(package, lambda m: m.description.input[0].type.multiArrayType.shape.append(3))
    refused(package, "input_ids", "described")


def test_unsupported_value_of_an_option_is_named_when_it_runs(package: Path) -> None:
    def change(model: Any) -> None:
        name = first(model, "gelu").inputs["mode"].arguments[0].name
        const = next(o for o in operations(model) if o.type == "const" and o.outputs[0].name == name)
        const.attributes["val"].immediateValue.tensor.strings.values[0] = "ROUGHLY"

    edit(package, change)
    with pytest.raises(BundleError, match=r"operator gelu .*'ROUGHLY'"):
        outputs_in_order(MilProgram.load(package), [TEXT_IDS])


def test_result_that_is_not_as_declared(package: Path) -> None:
    def change(model: Any) -> None:
        first(model, "softmax").outputs[0].type.tensorType.dimensions[0].constant.size = 9

    edit(package, change)
    with pytest.raises(BundleError, match=r"operator softmax .*declared"):
        outputs_in_order(MilProgram.load(package), [TEXT_IDS])


def test_any_changed_byte_of_the_specification_is_an_error_of_ours_or_none(package: Path) -> None:
    data = (package / SPEC).read_bytes()
    rng, messages = np.random.default_rng(9), []
    for _ in range(300):
        changed = bytearray(data)
        changed[rng.integers(len(data))] ^= int(rng.integers(1, 256))
        (package / SPEC).write_bytes(changed)
        try:
            MilProgram.load(package)
        except BundleError as e:
            messages.append(str(e))
    assert len(messages) > 100
    assert not [m for m in messages if "\n" in m]
