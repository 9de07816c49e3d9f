"""Tower to CoreML: an ML program in a `.mlpackage`, iOS 17 or later, written on any system."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mobileclip.errors import InputError
from mobileclip.export.bundle import TensorInfo
from mobileclip.export.exporter import Written
from mobileclip.export.graph import Plan, traced
from mobileclip.files import canonical_json


def export(tower: nn.Module, plan: Plan, path: Path) -> Written:
    """Write the tower to the folder `path` (`.mlpackage`).

    Raises:
        InputError: Baked preprocessing with a batch other than 1, as CoreML images have no batch.
    """
    if plan.preprocess and plan.input.shape[0] != 1:
        raise InputError("CoreML takes one picture at a time when preprocessing is baked in; use --batch 1")
    with _silent():
        import coremltools as ct

        program = traced(tower, plan, half=False, channels_last=False, input_dtype=torch.float32 if plan.preprocess else None)
        program = program.run_decompositions({})
        if plan.preprocess:
            shape = (1, 3, *plan.input.shape[1:3])
            source = ct.ImageType(name=plan.input.name, shape=shape, color_layout=ct.colorlayout.RGB)
        else:
            source = ct.TensorType(name=plan.input.name, shape=plan.input.shape, dtype=np.dtype(plan.input.dtype).type)
        model = ct.convert(
            program,
            inputs=[source],
            outputs=[ct.TensorType(name=plan.output.name, dtype=np.float32)],
            convert_to="mlprogram",
            minimum_deployment_target=ct.target.iOS17,
            compute_precision=_precision(program, plan),
            compute_units=ct.ComputeUnit.CPU_ONLY,
            skip_model_load=True,
        )
        model.save(str(path))
    _make_reproducible(path)
    return Written(backend="coreml")


def _precision(program: Any, plan: Plan) -> Any:
    """fp16 for the operators of the tower; fp32 for its pinned layers and for what stands around it (scaling in, normalisation).

    Operators are told by the number of the graph's node that they come from: the converter carries it along, while names change.
    """
    import coremltools as ct
    from coremltools.converters.mil.mil.scope import ScopeSource

    if not plan.half:
        return ct.precision.FLOAT32
    keep = set()
    for number, node in enumerate(program.graph.nodes, 1):
        node.meta["debug_handle"] = number
        paths = [str(path) for path, _ in (node.meta.get("nn_module_stack") or {}).values()]
        inside = [p.removeprefix("tower.") for p in paths if p.startswith("tower.")]
        outside_tower = not any(p == "tower" or p.startswith("tower.") for p in paths)
        if outside_tower or any(p == layer or p.startswith(f"{layer}.") for p in inside for layer in plan.fp32_layers):
            keep.add(number)

    def half(operation: Any) -> bool:
        return keep.isdisjoint(operation.scopes.get(ScopeSource.EXIR_DEBUG_HANDLE, ()))

    return ct.transform.FP16ComputePrecision(op_selector=half)


def _make_reproducible(path: Path) -> None:
    """Take out what differs between two exports: the date, the identifiers of the package's items, and a debugging aid."""
    from mobileclip.export.verify.mil_storage import model_proto

    file = next(path.rglob("*.mlmodel"))
    model = model_proto().Model()
    model.ParseFromString(file.read_bytes())
    model.description.metadata.userDefined.pop("com.github.apple.coremltools.conversion_date", None)
    file.write_bytes(model.SerializeToString(deterministic=True))
    manifest = json.loads((path / "Manifest.json").read_text())
    names = {old: str(uuid.uuid5(uuid.NAMESPACE_URL, item["path"])).upper() for old, item in manifest["itemInfoEntries"].items()}
    manifest["itemInfoEntries"] = {names[old]: item for old, item in manifest["itemInfoEntries"].items()}
    manifest["rootModelIdentifier"] = names[manifest["rootModelIdentifier"]]
    (path / "Manifest.json").write_bytes(canonical_json(manifest))
    (path / "executorch_debug_handle_mapping.json").unlink(missing_ok=True)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """coremltools prints progress bars and warnings that a user cannot act on."""
    previous = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(previous)


def interface(path: Path) -> tuple[TensorInfo, TensorInfo]:
    """Input and output as the finished package declares them."""
    from mobileclip.export.verify.mil import MilProgram

    program = MilProgram.load(path)

    def info(name: str, value: Any) -> TensorInfo:
        return TensorInfo.model_construct(name=name, dtype=str(value.dtype), shape=tuple(value.shape))

    return info(*next(iter(program.inputs.items()))), info(*next(iter(program.outputs.items())))


def broken_rules(path: Path) -> list[str]:
    """Graph rules that the finished program breaks."""
    from mobileclip.export.verify.mil import MilProgram

    program = MilProgram.load(path)
    broken = [f"constant {name} is not finite" for name in program.constants_not_finite()]
    for operation in program.walk():
        sources = [v for values in operation.inputs.values() for v in values]
        if operation.type == "reduce_argmax":
            broken.append(f"reduce_argmax ({operation.name})")
        of_tokens = operation.type != "gather" and any(v.name == "tokens" for v in sources)
        if of_tokens and any(o.dtype.startswith("float") for o in operation.outputs):
            broken.append(f"token ids pass through floating point ({operation.type} {operation.name})")
        if any(size < 1 for o in operation.outputs for size in o.shape):
            broken.append(f"a shape is not static ({operation.name})")
    return broken
