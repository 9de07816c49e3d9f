"""One measurement in a process of its own: `python -m mobileclip.benchmark.devices.host_worker`.

Commands come as JSON lines on standard input, see `rounds`; each is answered by one JSON line on what was standard output at the start.
Whatever a library prints goes to standard error. The end of the input ends the process.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, Any

REFRESH_SECONDS = 0.02
"""Untimed runs at the start of a block, one at least, if others ran before it and took the caches."""
PAUSE_SECONDS = 0.05
"""So long after its last run others may have run."""


_LIBRARIES = {
    "onnx": ("onnxruntime",),
    "executorch": ("torch", "executorch.extension.pybindings.portable_lib", "executorch.runtime"),
    "coreml": ("coremltools",),
}
"""Imported before the load is timed: an app has its runtime linked in."""


class Measurement:
    """A loaded tower, its inputs and the count of its timed runs."""

    def __init__(self, request: dict[str, Any], bundle: str, inputs: str) -> None:
        import numpy as np

        from mobileclip.benchmark.protocol import BenchRequest
        from mobileclip.export.bundle import Bundle

        self.request = BenchRequest.model_validate(request)
        opened = Bundle.open(Path(bundle))
        shape = self.request.input.shape
        rows = np.fromfile(inputs, self.request.input.dtype).reshape(self.request.rows, *shape[1:])
        batch = shape[0]
        self._batches = [rows[(first + np.arange(batch)) % len(rows)] for first in range(0, len(rows), batch)]
        self._batch, self._next, self._timed, self._first_ns, self._last_ns = batch, 0, 0, 0, 0
        self._wait = RunQueueWait()
        for library in _LIBRARIES[self.request.target]:
            importlib.import_module(library)
        self.baseline_memory_bytes = peak_rss_bytes()
        self._bundle = opened
        self.load_ms = self._load()
        self.engine = self._session.engine
        self.first_run_ms = self._run()[0]

    def _load(self) -> float:
        """Load the tower, ms."""
        from mobileclip.export.runtimes import load

        start = time.perf_counter_ns()
        self._session = load(self._bundle, self.request.target, self.request.tower, self.request.threads, self.request.provider)
        return _ms(time.perf_counter_ns() - start)

    def load_again(self) -> float:
        """Load the tower once more in place of the first, ms."""
        del self._session
        gc.collect()
        return self._load()

    def profile(self, runs: int) -> dict[str, Any]:
        """What each operator costs, in place of the loaded tower; see `mobileclip.benchmark.operators`."""
        from mobileclip.benchmark import operators

        artifact = self._bundle.artifact(self.request.target, self.request.tower)
        path, batches = self._bundle.path / artifact.path, [self._batches[i % len(self._batches)] for i in range(runs)]
        match self.request.target:
            case "onnx":
                from mobileclip.export.runtimes.onnx import cpu_session

                del self._session
                with tempfile.TemporaryDirectory() as folder:
                    session = cpu_session(path, self.request.threads, Path(folder) / "profile")
                    for batch in batches:
                        session.run(None, {artifact.input.name: batch})
                    return {"onnx_profile": Path(session.end_profiling()).read_text()}
            case "executorch":
                del self._session
                found = operators.of_executorch(path, artifact, batches)
            case "coreml":
                from mobileclip.export.runtimes.coreml import CoreMLSession

                assert isinstance(self._session, CoreMLSession)
                found = operators.of_coreml(self._session.compiled, self._session.units)
        return {"operators": [operator.model_dump() for operator in found]}

    def _run(self) -> tuple[float, int, Any]:
        """One run on the next input: latency in ms, index of the batch, output."""
        index = self._next
        self._next = (index + 1) % len(self._batches)
        value, run = self._batches[index], self._session.run
        start = time.perf_counter_ns()
        output = run(value)
        self._last_ns = time.perf_counter_ns()
        return _ms(self._last_ns - start), index, output

    def warm_up(self) -> list[float]:
        """The warm-up runs, ms each."""
        return [self._run()[0] for _ in range(self.request.warmup_runs)]

    def _refresh(self) -> None:
        until = time.perf_counter() + REFRESH_SECONDS
        self._run()
        while time.perf_counter() < until:
            self._run()

    def block(self, seconds: float, samples: int) -> dict[str, Any]:
        """Timed runs until both minima are reached: when each began, how long it waited for a core, and the outputs kept of them."""
        from mobileclip.benchmark.protocol import KeptOutput

        if time.perf_counter_ns() - self._last_ns > 1e9 * PAUSE_SECONDS:
            self._refresh()
        columns: dict[str, list[Any]] = {"latency_ms": [], "start_ms": [], "wait_ms": [], "kept": []}
        timed_ms = 0.0
        while timed_ms < 1e3 * seconds or len(columns["latency_ms"]) < samples:
            waited_before_ns = self._wait.total_ns()
            start_ns = time.perf_counter_ns()
            self._first_ns = self._first_ns or start_ns
            columns["start_ms"].append(_ms(start_ns - self._first_ns))
            elapsed_ms, index, output = self._run()
            if self._wait.known:
                columns["wait_ms"].append(_ms(self._wait.total_ns() - waited_before_ns))
            columns["latency_ms"].append(elapsed_ms)
            timed_ms += elapsed_ms
            if self.request.keeps(self._timed):
                columns["kept"].append(KeptOutput.of(self._timed, index * self._batch, output.copy()).model_dump())
            self._timed += 1
        return columns


class RunQueueWait:
    """How long this thread has been ready to run while another process had the core; Linux tells, other systems do not."""

    def __init__(self) -> None:
        path = Path("/proc/thread-self/schedstat")
        self.known = path.is_file()
        self._file = os.open(path, os.O_RDONLY) if self.known else -1

    def total_ns(self) -> int:
        """Since the thread began; 0 where it is not known."""
        return int(os.pread(self._file, 96, 0).split()[1]) if self.known else 0


def peak_rss_bytes() -> int:
    """Largest resident memory of this process so far."""
    if sys.platform == "linux":
        # getrusage's figure on Linux survives exec: it would be the parent's if that was larger.
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _ms(duration_ns: int) -> float:
    return round(duration_ns / 1e6, 4)


def _answer(command: dict[str, Any], state: list[Measurement]) -> dict[str, Any]:
    match command["do"]:
        case "load":
            measurement = Measurement(command["request"], command["bundle"], command["inputs"])
            state.append(measurement)
            gc.collect()
            gc.disable()
            return {
                "engine": measurement.engine,
                "provider": measurement.request.provider,
                "load_ms": measurement.load_ms,
                "first_run_ms": measurement.first_run_ms,
                "baseline_memory_bytes": measurement.baseline_memory_bytes,
                "clock_ms": 1e3 * time.get_clock_info("perf_counter").resolution,
            }
        case "warm_up":
            return {"warmup_ms": state[0].warm_up()}
        case "block":
            return state[0].block(command["seconds"], command["samples"])
        case "finish":
            return {"peak_memory_bytes": peak_rss_bytes(), "warm_load_ms": state[0].load_again()}
        case "profile":
            return state[0].profile(command["runs"])
        case other:
            raise ValueError(f"unknown command {other!r}")


def serve(commands: IO[str], answers: IO[str]) -> None:
    """Answer commands until the input ends."""
    from mobileclip.errors import MobileClipError

    state: list[Measurement] = []
    for line in commands:
        try:
            answer = _answer(json.loads(line), state)
        except MobileClipError as e:
            answer = {"error": type(e).__name__, "exit_code": e.exit_code, "message": str(e)}
        except Exception as e:
            first = next(iter(str(e).splitlines()), "")
            answer = {"error": "DeviceError", "exit_code": 4, "message": f"{type(e).__name__}: {first[:300]}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def main() -> None:
    """Take standard output for the protocol alone, then serve."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    protocol = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # also for what C libraries print
    serve(sys.stdin, protocol)


if __name__ == "__main__":
    main()
