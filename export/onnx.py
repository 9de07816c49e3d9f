"""Tower to ONNX: one self-contained file with static shapes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from mobileclip.errors import GateError
from mobileclip.export.bundle import TensorInfo
from mobileclip.export.exporter import Written
from mobileclip.export.graph import Plan, traced
from mobileclip.files import staged_file

OPSET = 20
MAX_BYTES = 2**31 - 1


def export(tower: nn.Module, plan: Plan, path: Path) -> Written:
    """Write the tower to `path` (`.onnx`).

    Raises:
        GateError: The file would break the format's rules or exceed 2 GB.
    """
    import onnx
    import torch

    program = torch.onnx.export(
        traced(tower, plan, half=True),
        dynamo=True,
        optimize=True,
        verbose=False,
        opset_version=OPSET,
        input_names=[plan.input.name],
    )
    assert program is not None
    model = program.model_proto
    _strip(model)
    _rename_output(model, plan.output.name)
    if model.ByteSize() > MAX_BYTES:
        raise GateError(f"{path.name}: would exceed the 2 GB that one ONNX file can hold; export fp16")
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as e:
        raise GateError(f"{path.name}: fails the ONNX checker: {str(e).splitlines()[0]}") from None
    with staged_file(path) as tmp:
        tmp.write_bytes(model.SerializeToString(deterministic=True))
    return Written(backend="cpu")


def _strip(model: Any) -> None:
    """Remove what differs between machines: stack traces, file names, module paths."""
    del model.metadata_props[:]
    model.graph.doc_string = ""
    for item in [*model.graph.node, *model.graph.initializer, *model.graph.input, *model.graph.output, *model.graph.value_info]:
        item.doc_string = ""
        del item.metadata_props[:]


def _rename_output(model: Any, name: str) -> None:
    """Give the output its name, which a value inside the graph may already bear."""
    renamed = {name: f"{name}_inner", model.graph.output[0].name: name}
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = [renamed.get(n, n) for n in names]
    for value in [*model.graph.value_info, *model.graph.output, *model.graph.initializer]:
        value.name = renamed.get(value.name, value.name)


def interface(path: Path) -> tuple[TensorInfo, TensorInfo]:
    """Input and output as the finished file declares them."""
    import onnx

    graph = onnx.load(str(path), load_external_data=False).graph

    def info(value: onnx.ValueInfoProto) -> TensorInfo:
        tensor = value.type.tensor_type
        dtype = str(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
        return TensorInfo.model_construct(name=value.name, dtype=dtype, shape=tuple(d.dim_value for d in tensor.shape.dim))

    return info(graph.input[0]), info(graph.output[0])


def broken_rules(path: Path) -> list[str]:
    """Graph rules that the finished file breaks."""
    import numpy as np
    import onnx

    model = onnx.shape_inference.infer_shapes(onnx.load(str(path), load_external_data=False))
    graph = model.graph
    broken = []
    types = {v.name: v.type.tensor_type for v in [*graph.value_info, *graph.input, *graph.output]}
    floats = (onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT)
    for node in graph.node:
        if node.op_type == "ArgMax":
            broken.append(f"ArgMax ({node.name})")
        of_tokens = node.op_type != "Gather" and "tokens" in node.input
        if of_tokens and any(types[o].elem_type in floats for o in node.output if o in types):
            broken.append(f"token ids pass through floating point ({node.op_type} {node.name})")
    for tensor in graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
            broken.append(f"constant {tensor.name} is not finite")
    if any(d.HasField("dim_param") for t in types.values() for d in t.shape.dim):
        broken.append("a shape is not static")
    return broken
