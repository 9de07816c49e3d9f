"""What each operator of an artifact costs, where its runtime tells: ONNX Runtime's profile, ExecuTorch's ETDump, CoreML's compute plan.

Sources: ONNX Runtime's `profiler.cc` (events of the Chrome trace format, durations in whole microseconds), ExecuTorch's Inspector, and
coremltools' `MLComputePlan`.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt

from mobileclip.benchmark.protocol import BenchResult, OperatorRuns, Profiled
from mobileclip.export.bundle import ArtifactInfo

_KERNEL = "_kernel_time"
_NATIVE = "native_call_"


def of_reply(reply: Profiled) -> tuple[OperatorRuns, ...]:
    """The operators in a device's answer to `profile`, in the order in which they run.

    Raises:
        ValueError: ONNX Runtime's profile is no JSON, or what is told has the wrong form (`ValidationError` is one).
    """
    return of_onnx_profile(reply.onnx_profile) if reply.onnx_profile is not None else reply.operators or ()


def of_onnx_profile(text: str) -> tuple[OperatorRuns, ...]:
    """The operators in the text of a profile that ONNX Runtime has written.

    Raises:
        ValueError: Not such a text.
    """
    found: dict[str, dict[str, Any]] = {}
    try:
        for event in json.loads(text):
            if event["cat"] == "Node" and event["name"].endswith(_KERNEL):
                args = event["args"]
                name = event["name"].removesuffix(_KERNEL)
                provider = args["provider"].removesuffix("ExecutionProvider").lower()
                entry = found.setdefault(args["node_index"], {"name": name, "kind": args["op_name"], "where": provider, "ms": []})
                entry["ms"].append(event["dur"] / 1e3)
    except (TypeError, KeyError, AttributeError, RecursionError, ArithmeticError) as e:
        raise ValueError(f"the profile has the wrong form ({type(e).__name__})") from None
    return tuple(map(OperatorRuns.model_validate, found.values()))


def of_executorch(path: Path, artifact: ArtifactInfo, inputs: Sequence[npt.NDArray[np.generic]]) -> tuple[OperatorRuns, ...]:
    """Run an ExecuTorch program with its event tracer.

    Args:
        path: The program.
        artifact: Which it is.
        inputs: One a run.
    """
    import torch
    from executorch.devtools import Inspector
    from executorch.extension.pybindings import portable_lib

    module = portable_lib._load_for_executorch(str(path), enable_etdump=True)
    for value in inputs:
        module.forward([torch.from_numpy(value)])
    with tempfile.TemporaryDirectory() as folder:
        dump = str(Path(folder) / "etdump")
        module.write_etdump_result_to_file(dump)
        blocks = [block for block in Inspector(etdump_path=dump).event_blocks if block.name == "Execute"]
    found, part, where = [], 1, ""
    for event in blocks[0].events if blocks else ():
        if event.is_delegated_op:
            name, where = f"{event.name} of part {part}", artifact.backend
        elif event.name.startswith(_NATIVE):
            name, where = event.name.removeprefix(_NATIVE), "portable"
        else:  # a call of these, told after them: it would count the same time twice
            part += event.name == "DELEGATE_CALL"
            continue
        found.append(OperatorRuns(name=name, kind=name.partition(" #")[0], where=where, ms=tuple(max(v, 0) for v in event.perf_data.raw)))
    return tuple(found)


def of_coreml(compiled: Path, units: Any) -> tuple[OperatorRuns, ...]:
    """What CoreML plans for a compiled model: where each operator shall run, and what share of the time it estimates. On a Mac alone.

    Args:
        compiled: The `.mlmodelc` folder.
        units: A `coremltools.ComputeUnit`.
    """
    from coremltools.models.compute_plan import MLComputePlan

    plan = MLComputePlan.load_from_path(str(compiled), compute_units=units)
    found = []
    for function in plan.model_structure.program.functions.values():
        for operation in function.block.operations:
            usage = plan.get_compute_device_usage_for_mlprogram_operation(operation)
            if usage is None:  # constants
                continue
            cost = plan.get_estimated_cost_for_mlprogram_operation(operation)
            kind, where = operation.operator_name, type(usage.preferred_compute_device).__name__
            where = where.removeprefix("ML").removesuffix("ComputeDevice").lower()
            name = operation.outputs[0].name if operation.outputs else kind
            found.append(OperatorRuns(name=name, kind=kind, where=where, share=cost.weight if cost else None))
    return tuple(found)


def placement(operators: Sequence[OperatorRuns]) -> dict[str, int]:
    """How many operators run where."""
    return dict(Counter(operator.where for operator in operators))


def dearest(result: BenchResult, count: int = 10) -> list[tuple[str, str, str, str, str]]:
    """The operators that cost most.

    Returns:
        Rows for people: operator, kind, where it runs, median in ms (`-` where it is estimated), share of the whole in %.
    """
    operators = result.samples.operators
    costs = [median(o.ms) if o.ms else 0.0 for o in operators]
    whole = sum(costs)
    shares = [c / whole for c in costs] if whole else [o.share or 0.0 for o in operators]
    order = sorted(range(len(operators)), key=shares.__getitem__, reverse=True)[:count]
    return [(o.name, o.kind, o.where, f"{costs[i]:.3f}" if o.ms else "-", f"{100 * shares[i]:.1f}") for i in order for o in (operators[i],)]
