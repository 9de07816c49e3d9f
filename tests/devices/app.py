"""The benchmark app as a program: `python app.py FOLDER [FAULT]` does the plan in a folder as a phone's app would, with real models.

Only the turns are simpler: a measurement is one turn. The faults are the ones that apps have.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path


def tell(**values: object) -> None:
    sys.stdout.write(f"MOBILECLIP {json.dumps(values)}\n")
    sys.stdout.flush()


def main(folder: Path, fault: str = "") -> None:
    from mobileclip.benchmark.devices.host_worker import peak_rss_bytes
    from mobileclip.benchmark.protocol import BenchAnswer, BenchPlan, DeviceInfo, DeviceSamples, DeviceState

    plan = BenchPlan.model_validate_json((folder / "plan.json").read_bytes())
    device = DeviceInfo(name="Fake phone", model="Fake1,1", os="Fake 1", emulated=True)
    for i, planned in enumerate(plan.measurements):
        if fault in ("crash", "killed") and i:
            os.kill(os.getpid(), signal.SIGSEGV if fault == "crash" else signal.SIGKILL)
        if fault == "hang":
            parent, until = os.getppid(), time.monotonic() + 60
            while os.getppid() == parent and time.monotonic() < until:  # what has started it is ended, perhaps before this began
                time.sleep(0.2)
            return
        if fault == "nonsense":
            sys.stdout.write("MOBILECLIP {[" + "x" * 200_000 + "\n")
            (folder / f"answer-{i}.json").write_text('{"schema_version": 3')
            continue
        request = planned.request
        tell(progress=f"timing {request.label}")
        if fault == "refused":
            (folder / f"answer-{i}.json").write_text(BenchAnswer(samples=None, error="the model needs iOS 18").model_dump_json())
            continue
        measured = _measure(request, folder / planned.bundle, folder / planned.inputs)
        samples = DeviceSamples(
            **measured, device=device, states=(DeviceState(moment="before", thermal="nominal"),), peak_memory_bytes=peak_rss_bytes(),
            provider=request.provider, block_samples=(len(measured["latency_ms"]),),
        )  # fmt: skip
        half = folder / "half"
        half.write_text(BenchAnswer(samples=samples, error=None).model_dump_json())
        half.replace(folder / f"answer-{i}.json")
    if fault != "silent":
        tell(done=True)


def _measure(request, bundle: Path, inputs: Path) -> dict[str, object]:
    """One measurement by ONNX Runtime."""
    import numpy as np
    import onnxruntime

    from mobileclip.benchmark import operators
    from mobileclip.benchmark.protocol import PROFILED_RUNS, KeptOutput

    begin = time.perf_counter()
    session = onnxruntime.InferenceSession(bundle / request.artifact, providers=["CPUExecutionProvider"])
    load_ms = 1e3 * (time.perf_counter() - begin)
    shape = request.input.shape
    rows = np.fromfile(inputs, request.input.dtype).reshape(request.rows, *shape[1:])
    firsts, done = list(range(0, len(rows), shape[0])), 0

    def run() -> tuple[float, int, np.ndarray]:
        nonlocal done
        first = firsts[done % len(firsts)]
        done += 1
        batch = rows[(first + np.arange(shape[0])) % len(rows)]
        begin = time.perf_counter()
        (output,) = session.run([request.output.name], {request.input.name: batch})
        return 1e3 * (time.perf_counter() - begin), first, output

    first_run_ms, warmup_ms = run()[0], [run()[0] for _ in range(request.warmup_runs)]
    latency_ms, kept = [], []
    while len(latency_ms) < request.min_samples or sum(latency_ms) < 1e3 * request.min_seconds:
        ms, first, output = run()
        if request.keeps(len(latency_ms)):
            kept.append(KeptOutput.of(len(latency_ms), first, output))
        latency_ms.append(ms)
    if request.per_op:
        options = onnxruntime.SessionOptions()
        options.enable_profiling, options.profile_file_prefix = True, str(inputs)
        session = onnxruntime.InferenceSession(bundle / request.artifact, options, providers=["CPUExecutionProvider"])
        for _ in range(PROFILED_RUNS):
            run()
        told = operators.of_onnx_profile(Path(session.end_profiling()).read_text())
    else:
        told = ()
    return {
        "operators": told, "placement": operators.placement(told),
        "engine": f"onnxruntime {onnxruntime.__version__}", "load_ms": load_ms, "first_run_ms": first_run_ms, "warmup_ms": tuple(warmup_ms),
        "latency_ms": tuple(latency_ms), "kept": tuple(kept),
    }  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
