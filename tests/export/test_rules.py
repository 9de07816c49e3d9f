"""What the finished file is checked for: each rule fires on a file that breaks it, and a failing export publishes nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from mobileclip.errors import GateError
from mobileclip.export import coreml
from mobileclip.export import onnx as target_onnx
from mobileclip.export.bundle import Options, TensorInfo
from mobileclip.export.exporter import write
from mobileclip.export.graph import Plan

FLOAT, INT32 = TensorProto.FLOAT, TensorProto.INT32


def onnx_file(path: Path, nodes: list, given: tuple, result: tuple, constants: tuple = ()) -> Path:
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info(*given)], [helper.make_tensor_value_info(*result)], list(constants)
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), path)
    return path


@pytest.mark.parametrize(
    ("nodes", "given", "result", "constants", "said"),
    [
        ([("ArgMax", ["tokens"], ["y"], {"axis": 1})], ("tokens", INT32, (1, 8)), ("y", TensorProto.INT64, (1, 1)), (), "ArgMax"),
        ([("Cast", ["tokens"], ["y"], {"to": FLOAT})], ("tokens", INT32, (1, 8)), ("y", FLOAT, (1, 8)), (), "through floating point (Cast"),
        ([("Add", ["x", "mask"], ["y"], {})], ("x", FLOAT, (1, 2)), ("y", FLOAT, (1, 2)), ([0, -np.inf],), "constant mask is not finite"),
        ([("Add", ["x", "mask"], ["y"], {})], ("x", FLOAT, (1, 2)), ("y", FLOAT, (1, 2)), ([0, np.nan],), "constant mask is not finite"),
        ([("Relu", ["x"], ["y"], {})], ("x", FLOAT, ("n", 2)), ("y", FLOAT, ("n", 2)), (), "a shape is not static"),
        ([("Relu", ["x"], ["y"], {})], ("x", FLOAT, (1, 2)), ("y", FLOAT, (1, 2)), (), None),
    ],
)
def test_onnx(nodes, given, result, constants, said, tmp_path):
    made = [helper.make_node(kind, inputs, outputs, **options) for kind, inputs, outputs, options in nodes]
    masks = tuple(numpy_helper.from_array(np.array(value, np.float32), "mask") for value in constants)
    broken = target_onnx.broken_rules(onnx_file(tmp_path / "m.onnx", made, given, result, masks))
    assert len(broken) == (said is not None)
    assert said is None or said in broken[0]


@pytest.mark.parametrize(
    ("kind", "said"),
    [("reduce_argmax", "reduce_argmax"), ("cast", "token ids pass through floating point"), ("mask", "is not finite"), ("relu", None)],
)
def test_coreml(kind, said, tmp_path):
    import coremltools as ct
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.mil import types

    def of_tokens(tokens):
        return mb.cast(x=tokens, dtype="fp32", name="y") if kind == "cast" else mb.reduce_argmax(x=tokens, name="y")

    def of_pixels(image):
        return mb.add(x=image, y=np.array([[0.0] * 7 + [-np.inf]], np.float32), name="y") if kind == "mask" else mb.relu(x=image, name="y")

    function, dtype = (of_tokens, types.int32) if kind in {"reduce_argmax", "cast"} else (of_pixels, types.fp32)
    program = mb.program(input_specs=[mb.TensorSpec(shape=(1, 8), dtype=dtype)], opset_version=ct.target.iOS17)(function)

    ios17, fp32 = ct.target.iOS17, ct.precision.FLOAT32
    made = ct.convert(program, convert_to="mlprogram", minimum_deployment_target=ios17, compute_precision=fp32, skip_model_load=True)
    made.save(str(tmp_path / "m.mlpackage"))
    broken = coreml.broken_rules(tmp_path / "m.mlpackage")
    assert bool(broken) == (said is not None)
    assert said is None or said in broken[0]


class Doubled(nn.Module):
    """A text tower of sorts with more outputs than its plan says."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens.sum(1, keepdim=True).float().expand(-1, 8) + torch.arange(8)


def plan(width: int) -> Plan:
    tokens = TensorInfo(name="tokens", dtype="int32", shape=(1, 8))
    return Plan("text", tokens, TensorInfo(name="embedding", dtype="float32", shape=(1, width)), None, normalize=False, half=False)


@pytest.mark.parametrize("target", ["onnx", "coreml", "executorch"])
def test_an_interface_that_is_not_the_plans(target, tmp_path):
    with pytest.raises(GateError, match=r"shape=\(1, 8\).* expected .*shape=\(1, 4\).*nothing was published"):
        write(target, Doubled(), plan(width=4), tmp_path)


def test_an_onnx_file_over_2_gb(tmp_path, monkeypatch):
    monkeypatch.setattr(target_onnx, "MAX_BYTES", 100)
    with pytest.raises(GateError, match="2 GB"):
        write("onnx", Doubled(), plan(width=8), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_failing_export_publishes_nothing(tmp_path, monkeypatch):
    from mobileclip.export.export import export_bundle
    from mobileclip.export.verify import gate
    from mobileclip.sources import load_model

    monkeypatch.setitem(gate.MIN_COSINE, "fp32", 1.1)
    model = load_model("untrained:mobileclip_nano")
    with pytest.raises(GateError, match=r"1 of 1 artifacts fail; .*needs 1\.1.*worst inputs: .+ \((0\.9{5}|1\.0)") as failed:
        export_bundle(model, Options(targets=("onnx",), towers=("text",)), tmp_path / "b", lambda step: None)
    assert failed.value.exit_code == 3
    assert [p.name for p in tmp_path.iterdir()] == [".b.lock"]
