"""Tower to ExecuTorch: a `.pte` program for XNNPACK or the CoreML delegate."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import nn

from mobileclip.export import coreml
from mobileclip.export.bundle import TensorInfo
from mobileclip.export.coreml_delegate import extract, reproducible, wholly_lowered
from mobileclip.export.exporter import Written
from mobileclip.export.graph import Plan, traced
from mobileclip.export.xnnpack import split_depthwise
from mobileclip.files import staged_file


def export(tower: nn.Module, plan: Plan, path: Path) -> Written:
    """Write the tower to `path` (`.pte`), lowered to the plan's backend."""
    from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower

    program = traced(split_depthwise(tower) if plan.executorch_backend == "xnnpack" else tower, plan, half=True)
    for node in program.graph.nodes:
        for key in ("stack_trace", "from_node", "nn_module_stack"):  # copied at every pass; half of the time goes there
            node.meta.pop(key, None)
    with _silent():
        config = EdgeCompileConfig(_check_ir_validity=False)  # the gate checks the finished program instead
        edge = to_edge_transform_and_lower(program, partitioner=[_partitioner(plan)], compile_config=config)
        left = Counter(_operator(n.target) for n in edge.exported_program().graph.nodes if n.op == "call_function")
        lowered = edge.to_executorch()
    with staged_file(path) as tmp:
        tmp.write_bytes(lowered.buffer)
        if plan.executorch_backend == "coreml" and (blob := wholly_lowered(tmp)):
            tmp.write_bytes(reproducible(lowered.buffer, blob))
    delegated = {"executorch_call_delegate", "getitem"}
    return Written(
        backend=plan.executorch_backend,
        not_delegated=dict(sorted((name, n) for name, n in left.items() if name not in delegated)),
    )


def _partitioner(plan: Plan) -> Any:
    if plan.executorch_backend == "xnnpack":
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner

        return XnnpackPartitioner()
    import coremltools as ct
    from executorch.backends.apple.coreml.compiler import CoreMLBackend
    from executorch.backends.apple.coreml.partition import CoreMLPartitioner

    precision = ct.precision.FLOAT32  # as authored: the graph carries its fp16 and what stays fp32
    specs = CoreMLBackend.generate_compile_specs(compute_precision=precision, minimum_deployment_target=ct.target.iOS17)
    return CoreMLPartitioner(compile_specs=specs)


def _operator(target: object) -> str:
    name = getattr(target, "_name", None) or getattr(target, "__name__", None) or str(target)
    return str(name).removeprefix("aten::")


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Lowering prints and logs what a user cannot act on."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(previous)


def interface(path: Path) -> tuple[TensorInfo, TensorInfo]:
    """Input and output as the finished program declares them; ExecuTorch keeps no names, so the plan's stand for them."""
    from executorch.exir._serialize._program import deserialize_pte_binary
    from executorch.exir.schema import ScalarType
    from executorch.exir.schema import Tensor as EdgeTensor

    plan = deserialize_pte_binary(path.read_bytes()).program.execution_plan[0]
    dtypes = {ScalarType.FLOAT: "float32", ScalarType.INT: "int32", ScalarType.BYTE: "uint8"}

    def info(index: int, name: str) -> TensorInfo:
        tensor = plan.values[index].val
        assert isinstance(tensor, EdgeTensor)
        dtype = dtypes.get(tensor.scalar_type, str(tensor.scalar_type))
        return TensorInfo.model_construct(name=name, dtype=dtype, shape=tuple(tensor.sizes))

    value = info(plan.inputs[0], "image")
    if value.dtype == "int32":
        value = value.model_copy(update={"name": "tokens"})
    return value, info(plan.outputs[0], "embedding")


def broken_rules(path: Path) -> list[str]:
    """Graph rules that the finished program breaks: inside the CoreML delegate, or else as far as they show outside XNNPACK's."""
    from executorch.exir._serialize._program import deserialize_pte_binary
    from executorch.exir.schema import Tensor as EdgeTensor
    from executorch.exir.schema import TensorShapeDynamism

    plan = deserialize_pte_binary(path.read_bytes()).program.execution_plan[0]
    broken = [f"{op.name}" for op in plan.operators if "argmax" in op.name]
    if wholly_lowered(path):
        with tempfile.TemporaryDirectory() as folder:
            broken += coreml.broken_rules(extract(path, Path(folder))[0])
    tensors = [v.val for v in plan.values if isinstance(v.val, EdgeTensor)]
    if any(t.shape_dynamism != TensorShapeDynamism.STATIC for t in tensors):
        broken.append("a shape is not static")
    return broken
