from __future__ import annotations

import json
from pathlib import Path

import coremltools as ct
import numpy as np
import pytest
from coremltools.models.compute_device import MLComputeDevice
from coremltools.models.compute_plan import MLComputePlan

from mobileclip.benchmark import operators
from mobileclip.benchmark.bench import bench
from mobileclip.benchmark.protocol import BenchRun, OperatorRuns
from mobileclip.export.bundle import ArtifactInfo
from tests.benchmark.test_bench import QUICK


@pytest.fixture(scope="module")
def profiled(tiny_bundle: Path) -> BenchRun:
    return bench([tiny_bundle], per_op=True, **QUICK)


def test_every_operator_is_timed_ten_times(profiled: BenchRun) -> None:
    image, text = profiled.results
    assert [o.kind for o in image.samples.operators] == ["AveragePool", "Reshape", "MatMul"]
    assert {o.kind for o in text.samples.operators} == {"Gather", "ReduceMean"}
    for r in profiled.results:
        assert {(o.where, len(o.ms)) for o in r.samples.operators} == {("cpu", 10)}
        assert r.samples.placement == {"cpu": len(r.samples.operators)}


def test_without_it_only_the_placement_is_told(tiny_bundle: Path) -> None:
    (found,) = bench([tiny_bundle], towers=["image"], **QUICK).results
    assert found.samples.operators == ()
    assert found.samples.placement == {"cpu": 3}


def test_the_dearest_come_first_with_their_share(profiled: BenchRun) -> None:
    result = profiled.results[0]
    costs = {"a": (1.0, 3.0, 2.0), "b": (6.0, 6.0, 6.0), "c": (0.0, 0.0, 0.0)}
    samples = result.samples.model_copy(
        update={"operators": tuple(OperatorRuns(name=n, kind="k", where="w", ms=ms) for n, ms in costs.items())}
    )
    timed = result.model_copy(update={"samples": samples})
    assert operators.dearest(timed, 2) == [("b", "k", "w", "6.000", "75.0"), ("a", "k", "w", "2.000", "25.0")]
    samples = samples.model_copy(update={"operators": (OperatorRuns(name="e", kind="k", where="gpu", share=0.25),)})
    assert operators.dearest(result.model_copy(update={"samples": samples})) == [("e", "k", "gpu", "-", "25.0")]


def event(**changes: object) -> dict[str, object]:
    args = {"node_index": "3", "op_name": "Conv", "provider": "XnnpackExecutionProvider"}
    return {"cat": "Node", "name": "conv_kernel_time", "dur": 1500, "args": args} | changes


def test_runs_of_a_node_are_one_operator() -> None:
    text = json.dumps([event(cat="Session"), event(), event(name="conv_fence_before"), event(dur=500)])
    assert operators.of_onnx_profile(text) == (OperatorRuns(name="conv", kind="Conv", where="xnnpack", ms=(1.5, 0.5)),)


@pytest.mark.parametrize(
    "text", ["", "{", "3", "[3]", "[" * 100_000, json.dumps([event(args=3)]), json.dumps([event(dur="x")]), json.dumps([event(dur=-1)])]
)
def test_a_profile_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        operators.of_onnx_profile(text)


def test_a_device_that_tells_nothing_of_use_costs_nothing_but_the_operators(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nonsense(answer: object) -> None:
        raise ValueError("not a profile")

    monkeypatch.setattr(operators, "of_reply", nonsense)
    told: list[str] = []
    found = bench([tiny_bundle], towers=["image"], per_op=True, progress=told.append, **QUICK)
    assert found.failures == ()
    assert found.results[0].samples.placement == {}
    assert "tiny onnx image: the operators' costs are not known (not a profile)" in told


def test_a_device_cannot_write_to_the_terminal() -> None:
    assert OperatorRuns(name="a\x1b[2Jb\n", kind="k", where="w").name == "a [2Jb "


class MLNeuralEngineComputeDevice(MLComputeDevice):
    total_core_count = 16


class Plan:
    """What coremltools gives on a Mac, of two operators and a constant."""

    class _Thing:
        def __init__(self, **values: object) -> None:
            self.__dict__ |= values

    def __init__(self) -> None:
        thing = self._Thing
        names = (("const", "w_0"), ("conv", "x_1"), ("softmax", "x_2"))
        operations = [thing(operator_name=kind, outputs=[thing(name=name)]) for kind, name in names]
        main = thing(block=thing(operations=operations))
        self.model_structure = thing(program=thing(functions={"main": main}))

    def get_compute_device_usage_for_mlprogram_operation(self, operation: _Thing) -> _Thing | None:
        return None if operation.operator_name == "const" else self._Thing(preferred_compute_device=MLNeuralEngineComputeDevice())

    def get_estimated_cost_for_mlprogram_operation(self, operation: _Thing) -> _Thing | None:
        return self._Thing(weight=0.75) if operation.operator_name == "conv" else None


def test_coreml_tells_where_it_would_run_an_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MLComputePlan, "load_from_path", lambda path, compute_units: Plan())
    found = operators.of_coreml(Path("compiled.mlmodelc"), ct.ComputeUnit.ALL)
    assert [(o.name, o.kind, o.where, o.share) for o in found] == [
        ("x_1", "conv", "neuralengine", 0.75),
        ("x_2", "softmax", "neuralengine", None),
    ]
    assert operators.placement(found) == {"neuralengine": 2}


def test_executorch_tells_what_its_delegate_does(tmp_path: Path) -> None:
    import torch
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(torch.cumsum(self.first(x), 1))  # XNNPACK has no cumsum: two parts

    lowered = to_edge_transform_and_lower(torch.export.export(Net(), (torch.zeros(1, 8),)), partitioner=[XnnpackPartitioner()])
    (tmp_path / "net.pte").write_bytes(lowered.to_executorch().buffer)
    artifact = ArtifactInfo.model_construct(backend="xnnpack")
    found = operators.of_executorch(tmp_path / "net.pte", artifact, [np.zeros((1, 8), np.float32)] * 3)
    linear = "Fully Connected (NC, F32) GEMM"
    assert [(o.kind, o.where, len(o.ms)) for o in found] == [(linear, "xnnpack", 3), ("cumsum.out", "portable", 3), (linear, "xnnpack", 3)]
    assert [o.name for o in found] == [f"{linear} #1 of part 1", "cumsum.out", f"{linear} #1 of part 2"]
