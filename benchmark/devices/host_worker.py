"""One measurement in a process of its own: `python -m mobileclip.benchmark.devices.host_worker`.

Commands come as JSON lines on standard input, each is answered by one JSON line on what was standard output at the start; whatever
a library prints goes to standard error. The end of the input ends the process.

    {"do": "load", "request": BenchRequest, "bundle": PATH, "inputs": PATH.npy}
                                             -> {"engine", "load_ms", "first_run_ms", "baseline_rss_bytes"}
    {"do": "warm_up"}                        -> {"warmup_ms": [...]}
    {"do": "block", "seconds", "samples"}    -> {"latency_ms": [...], "wait_ms": [...], "kept": [KeptOutput, ...]}
    {"do": "finish"}                         -> {"peak_rss_bytes"}
    anything that fails                      -> {"error": CLASS, "exit_code", "message"}
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import random
import sys
import time
from pathlib import Path
from typing import IO, Any

REFRESH_SECONDS = 0.02
"""Untimed runs at the start of a block, one at least: others ran before it and took the caches."""


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
        from mobileclip.export.runtimes import load

        self.request = BenchRequest.model_validate(request)
        opened = Bundle.open(Path(bundle))
        artifact = opened.artifact(self.request.target, self.request.tower)
        rows, batch = np.load(inputs), artifact.input.shape[0]
        self._batches = [rows[(first + np.arange(batch)) % len(rows)] for first in range(0, len(rows), batch)]
        self._batch, self._next, self._timed = batch, 0, 0
        self._random = random.Random(self.request.seed)
        self._stride = max(round(1 / self.request.parity_share), 1)
        self._keep_next = 0
        self._wait = RunQueueWait()
        for library in _LIBRARIES[self.request.target]:
            importlib.import_module(library)
        self.baseline_rss_bytes = peak_rss_bytes()
        start = time.perf_counter_ns()
        self._session = load(opened, self.request.target, self.request.tower, self.request.threads)
        self.load_ms = _ms(time.perf_counter_ns() - start)
        self.engine = self._session.engine
        self.first_run_ms = self._run()[0]

    def _run(self) -> tuple[float, int, Any]:
        """One run on the next input: latency in ms, index of the batch, output."""
        index = self._next
        self._next = (index + 1) % len(self._batches)
        value, run = self._batches[index], self._session.run
        start = time.perf_counter_ns()
        output = run(value)
        return _ms(time.perf_counter_ns() - start), index, output

    def warm_up(self) -> list[float]:
        """The warm-up runs, ms each."""
        return [self._run()[0] for _ in range(self.request.warmup_runs)]

    def block(self, seconds: float, samples: int) -> dict[str, Any]:
        """Timed runs until both minima are reached, how long each waited for a core, and the outputs kept of them."""
        from mobileclip.benchmark.protocol import KeptOutput

        refresh_until = time.perf_counter() + REFRESH_SECONDS
        self._run()
        while time.perf_counter() < refresh_until:
            self._run()
        latency_ms: list[float] = []
        wait_ms: list[float] = []
        kept: list[dict[str, Any]] = []
        end = time.perf_counter() + seconds
        while time.perf_counter() < end or len(latency_ms) < samples:
            waited_before_ns = self._wait.total_ns()
            elapsed_ms, index, output = self._run()
            wait_ms.append(_ms(self._wait.total_ns() - waited_before_ns))
            latency_ms.append(elapsed_ms)
            if self._timed == self._keep_next:
                kept.append(KeptOutput.of(self._timed, index * self._batch, output.copy()).model_dump())
                # One of each group at random: a fixed step could meet the same few inputs over and over.
                self._keep_next = (self._timed // self._stride + 1) * self._stride + self._random.randrange(self._stride)
            self._timed += 1
        return {"latency_ms": latency_ms, "wait_ms": wait_ms if self._wait.known else [], "kept": kept}


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
                "load_ms": measurement.load_ms,
                "first_run_ms": measurement.first_run_ms,
                "baseline_rss_bytes": measurement.baseline_rss_bytes,
            }
        case "warm_up":
            return {"warmup_ms": state[0].warm_up()}
        case "block":
            return state[0].block(command["seconds"], command["samples"])
        case "finish":
            return {"peak_rss_bytes": peak_rss_bytes()}
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
