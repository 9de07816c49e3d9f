"""This machine as a device: one process a measurement, all loaded, only one running at a time; for `burst` in short turns of random order.

Turns make ratios fair: whatever slows the machine down for a while slows all measurements alike. In the other modes a turn is the whole
measurement. All models of a call are in memory at the same time; measure in several calls where that is too much.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import queue
import random
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

from pydantic import ValidationError

from mobileclip import errors
from mobileclip.benchmark.protocol import BenchRequest, DeviceError, DeviceInfo, DeviceSamples, DeviceState
from mobileclip.errors import MobileClipError

BLOCK_SECONDS, BLOCK_SAMPLES = 0.5, 4
"""A turn of `burst` lasts until both are reached."""
LONG_BLOCK_SECONDS = 5.0
"""The other modes report so often, without a pause."""
TIMEOUT_S = 300.0
"""For one answer of a worker; loading a large model on a busy machine is the longest."""
MAX_ANSWER_CHARS = 64 * 2**20

_COLUMNS = ("latency_ms", "start_ms", "wait_ms", "kept")

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Job:
    """One measurement with the files that it needs."""

    request: BenchRequest
    bundle: Path
    inputs: Path
    """What `request.inputs` names."""


@dataclass
class _Collected:
    """What has been collected for one job so far."""

    loaded: dict[str, Any] = field(default_factory=dict)
    columns: dict[str, list[Any]] = field(default_factory=lambda: {name: [] for name in _COLUMNS})
    block_samples: list[int] = field(default_factory=list)
    states: list[DeviceState] = field(default_factory=list)

    def share(self, request: BenchRequest) -> float:
        """How much of what was asked for is there; 1 is enough."""
        latency_ms = self.columns["latency_ms"]
        seconds = sum(latency_ms) / 1e3
        return min(len(latency_ms) / request.min_samples, seconds / request.min_seconds if request.min_seconds else 1.0, 1.0)


class Worker:
    """A process that holds one measurement; see `host_worker` for the messages."""

    def __init__(self, job: Job, timeout_s: float, command: Sequence[str] | None = None) -> None:
        self.job, self._timeout_s = job, timeout_s
        threads = str(job.request.threads)
        environment = os.environ | {"ORT_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        self._stderr = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 (closed with the worker)
        # -P: nothing in the current folder is imported in place of an installed module.
        self._process = subprocess.Popen(
            command or [sys.executable, "-P", "-m", "mobileclip.benchmark.devices.host_worker"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._stderr,
            env=environment, text=True, encoding="utf-8", errors="replace",
        )  # fmt: skip
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin: IO[str] = self._process.stdin
        self._answers: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True).start()

    def _read(self, stdout: IO[str]) -> None:
        while line := stdout.readline(MAX_ANSWER_CHARS):
            self._answers.put(line)
        self._answers.put("")

    def ask(self, do: str, **values: Any) -> dict[str, Any]:
        """Send a command and wait for its answer.

        Raises:
            MobileClipError: What the worker reported, under its own class.
            DeviceError: It crashed, hung or answered nonsense.
        """
        with contextlib.suppress(BrokenPipeError):  # dead already: the missing answer tells
            self._stdin.write(json.dumps({"do": do, **values}) + "\n")
            self._stdin.flush()
        try:
            line = self._answers.get(timeout=self._timeout_s)
        except queue.Empty:
            raise self._error(f"no answer within {self._timeout_s:g} s of '{do}'; it was stopped") from None
        if not line:
            raise self._error(f"the process ended during '{do}' ({self._ending()})")
        try:
            answer = json.loads(line)
            if not isinstance(answer, dict):
                raise ValueError("not an object")
        except (ValueError, RecursionError):
            raise self._error(f"the answer to '{do}' is not valid JSON: {line[:80]!r}") from None
        if "error" in answer:
            raise self._reported(answer)
        return answer

    def _error(self, text: str) -> DeviceError:
        return DeviceError(f"{self.job.bundle}: {self.job.request.target} {self.job.request.tower}: {text}")

    def _reported(self, answer: dict[str, Any]) -> MobileClipError:
        kind = getattr(errors, str(answer["error"]), None)
        if isinstance(kind, type) and issubclass(kind, MobileClipError):
            return kind(str(answer.get("message")))
        return self._error(str(answer.get("message")))

    def _ending(self) -> str:
        code = self._process.wait(10)
        self._stderr.seek(0)
        lines = self._stderr.read()[-4000:].strip().splitlines()
        if code == -9:
            return "killed, out of memory perhaps"
        return f"exit code {code}" + (f": {lines[-1][:200]}" if lines else "")

    def close(self) -> None:
        """End the process, at once."""
        self._process.kill()
        self._process.wait()
        with contextlib.suppress(BrokenPipeError):
            self._stdin.close()
        self._stderr.close()


@contextlib.contextmanager
def _workers(jobs: Sequence[Job], timeout_s: float) -> Iterator[list[Worker]]:
    with contextlib.ExitStack() as stack:
        found = []
        for job in jobs:
            worker = Worker(job, timeout_s)
            stack.callback(worker.close)
            found.append(worker)
        yield found


def measure(
    jobs: Sequence[Job], *, seed: int = 0, timeout_s: float = TIMEOUT_S, progress: Progress = lambda _: None
) -> list[DeviceSamples | MobileClipError]:
    """Measure all jobs; those of mode `burst` interleaved.

    Args:
        jobs: What to measure.
        seed: Of the order of the turns.
        timeout_s: For one answer of a worker.
        progress: Told what is being done.

    Returns:
        One entry a job: its raw samples, or the error that ended it; the other jobs go on.
    """
    with _workers(jobs, timeout_s) as workers:
        return Rounds(workers, random.Random(seed), progress).run()


class Rounds:
    """Turns over the workers until each has enough samples."""

    def __init__(self, workers: Sequence[Worker], order: random.Random, progress: Progress) -> None:
        self._workers, self._order, self._progress = workers, order, progress
        self._collected = [_Collected() for _ in workers]
        self._ended: dict[int, DeviceSamples | MobileClipError] = {}
        self._told = -1

    def run(self) -> list[DeviceSamples | MobileClipError]:
        """Load all, warm all up, then take turns."""
        for i in range(len(self._workers)):
            self._try(i, self._load)
        for i in self._open:
            self._try(i, self._warm_up)
        while remaining := self._open:
            self._tell()
            self._order.shuffle(remaining)
            for i in remaining:
                self._try(i, self._turn)
        return [self._ended[i] for i in range(len(self._workers))]

    def _tell(self) -> None:
        if (done := self._percent_done() // 10 * 10) > self._told:
            self._told = done
            self._progress(f"timing {len(self._workers)} measurement(s): {done} % done")

    @property
    def _open(self) -> list[int]:
        return [i for i in range(len(self._workers)) if i not in self._ended]

    def _percent_done(self) -> int:
        shares = [
            1.0 if i in self._ended else collected.share(w.job.request)
            for i, (w, collected) in enumerate(zip(self._workers, self._collected, strict=True))
        ]
        return int(100 * sum(shares) / len(shares))

    def _try(self, i: int, step: Callable[[Worker, _Collected], DeviceSamples | None]) -> None:
        worker = self._workers[i]
        try:
            done = step(worker, self._collected[i])
        except MobileClipError as e:
            self._ended[i] = e
        except (KeyError, TypeError, ArithmeticError, ValidationError) as e:
            first = next(iter(str(e).splitlines()), "")
            self._ended[i] = worker._error(f"an answer has the wrong form ({type(e).__name__}: {first[:120]})")
        else:
            if done is None:
                return
            self._ended[i] = done
        worker.close()

    def _load(self, worker: Worker, collected: _Collected) -> None:
        self._progress(f"loading {worker.job.request.label}")
        request = worker.job.request.model_dump(mode="json")
        collected.loaded = worker.ask("load", request=request, bundle=str(worker.job.bundle), inputs=str(worker.job.inputs))

    def _warm_up(self, worker: Worker, collected: _Collected) -> None:
        self._progress(f"warming up {worker.job.request.label}")
        collected.loaded["warmup_ms"] = worker.ask("warm_up")["warmup_ms"]

    def _turn(self, worker: Worker, collected: _Collected) -> DeviceSamples | None:
        request, latency_ms = worker.job.request, collected.columns["latency_ms"]
        if not latency_ms:
            collected.states.append(state("before"))
        before = len(latency_ms)
        if request.mode == "burst":
            self._block(worker, collected, BLOCK_SECONDS, BLOCK_SAMPLES)
        else:
            while collected.share(request) < 1:
                self._block(worker, collected, LONG_BLOCK_SECONDS, 1)
                self._tell()
        collected.block_samples.append(len(latency_ms) - before)
        if collected.share(request) < 1:
            return None
        return DeviceSamples.model_validate(
            {
                **collected.loaded, **collected.columns, "peak_memory_bytes": worker.ask("finish")["peak_memory_bytes"],
                "provider": request.provider, "device": device(), "states": [*collected.states, state("after")],
                "block_samples": collected.block_samples,
            }
        )  # fmt: skip

    def _block(self, worker: Worker, collected: _Collected, seconds: float, samples: int) -> None:
        request = worker.job.request
        answer = worker.ask("block", seconds=min(seconds, request.min_seconds), samples=min(samples, request.min_samples))
        if not answer["latency_ms"] or not all(v > 0 for v in answer["latency_ms"]):
            raise TypeError("latency_ms must hold positive numbers")  # else it would never end
        for name in _COLUMNS:
            collected.columns[name] += answer[name]


def device() -> DeviceInfo:
    """What this machine is."""
    return DeviceInfo(
        name="host",
        model=_cpu_model(),
        os=_os_name(),
        architecture=platform.machine(),
        logical_cores=os.cpu_count() or 1,
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        emulated=sys.platform == "darwin" and _sysctl("sysctl.proc_translated") == "1",  # an Intel Python on Apple silicon
    )


def state(moment: Literal["before", "after"]) -> DeviceState:
    """How busy it is."""
    return DeviceState(moment=moment, load_average_1m=round(os.getloadavg()[0], 2))


def _cpu_model() -> str:
    if sys.platform == "darwin":
        return _sysctl("machdep.cpu.brand_string") or platform.processor()
    info = Path("/proc/cpuinfo")
    lines = info.read_text(errors="replace").splitlines() if info.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor() or "unknown")


def _sysctl(name: str) -> str:
    """A value of a Mac's kernel; empty if it has none of that name."""
    try:
        asked = subprocess.run(["/usr/sbin/sysctl", "-n", name], capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return asked.stdout.strip()


def _os_name() -> str:
    if sys.platform == "darwin":
        return f"macOS {platform.mac_ver()[0]}"
    try:
        name = platform.freedesktop_os_release().get("PRETTY_NAME", "Linux")
    except OSError:
        name = platform.system()
    return f"{name}, kernel {platform.release()}"
