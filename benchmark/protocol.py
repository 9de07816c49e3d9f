"""What is asked of a device and what is kept of its answer. A device only times; the host computes everything else from raw samples.

Schemas, generated from the models below, are in `conformance/`: `bench_request`, `bench_reply`, `bench_plan`, `bench_answer`,
`device_samples` and `bench_result.schema.json`.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import math
from dataclasses import dataclass
from typing import Annotated, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from mobileclip.errors import printable
from mobileclip.export.bundle import FileEntry, Precision, Sha256, Target, TensorInfo, Tower

SCHEMA_VERSION: Literal[3] = 3
MIN_WARMUP_RUNS = 10
UNSTABLE_CV_PERCENT = 5.0
MAX_CLOCK_SHARE = 0.05
"""Of the median, that the clock's smallest step may have."""
PARITY_SHARE = 0.05
"""Share of the timed outputs that are kept and compared with the model's own."""
PROFILED_RUNS = 10
PARITY_BAR: dict[Precision, float] = {"fp32": 0.99999, "fp16": 0.999}

MAX_TOLD_CHARS = 2000
Mode = Literal["burst", "sustained", "mlperf"]
Positive = Annotated[float, Field(gt=0, le=1e12)]
NotNegative = Annotated[float, Field(ge=0, le=1e12)]
Bytes = Annotated[int, Field(ge=0, lt=2**63)]
Told = Annotated[str, AfterValidator(lambda text: printable(text)[:MAX_TOLD_CHARS])]
"""A device's words, which go to terminals and pages."""
Thermal = Literal["nominal", "fair", "serious", "critical", "unknown"]
"""Apple's four states. Android's NONE is nominal, LIGHT and MODERATE are fair, SEVERE is serious, the rest critical."""


@dataclass(frozen=True)
class ModeLimits:
    """What a mode asks for at least; a result with less is not valid."""

    samples: int
    seconds: float
    """Of timed runs, added up."""
    max_seconds: float


MODES: dict[Mode, ModeLimits] = {
    "burst": ModeLimits(100, 10.0, math.inf),
    "sustained": ModeLimits(100, 60.0, 600.0),
    "mlperf": ModeLimits(1024, 60.0, math.inf),
}
"""`burst`: the cooled-down device, in turns with other measurements. `sustained`: without a pause but
for a look at the device's state every half a minute, to see it warm up. `mlperf`: single
stream as MLPerf Inference has it, the next query when the one before has ended."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class BenchRequest(_Strict):
    """One measurement: a tower of a bundle in one runtime."""

    schema_version: Literal[3] = SCHEMA_VERSION
    bundle: str = Field(min_length=1)
    """Name of the bundle's folder."""
    target: Target
    tower: Tower
    artifact: str
    """The file, or CoreML's folder, to load."""
    input: TensorInfo
    output: TensorInfo
    inputs: str
    """File of `rows` inputs, one behind the other, little-endian, of the dtype and shape of `input` without its batch."""
    rows: int = Field(ge=1)
    provider: str
    """What shall run it: `cpu`, `xnnpack`, `nnapi`, `qnn`, `webgpu`, `wasm`; or CoreML's `all`, `cpuOnly`, `cpuAndGPU`,
    `cpuAndNeuralEngine`."""
    threads: int = Field(ge=1)
    mode: Mode = "burst"
    warmup_runs: int = Field(default=MIN_WARMUP_RUNS, ge=0)
    min_samples: int = Field(ge=1)
    min_seconds: float = Field(ge=0)
    """Of timed runs, added up; a device goes on until this and `min_samples` are reached."""
    keep: tuple[int, ...] = Field(min_length=1)
    """Of each group of `keep_of` timed runs, which output is kept: of group g that of run `keep[g % len(keep)]`."""
    keep_of: int = Field(ge=1)
    per_op: bool = False
    """Whether the result shall say what each operator costs, see `OperatorRuns`."""

    @model_validator(mode="after")
    def _keeps_within_the_group(self) -> BenchRequest:
        if min(self.keep) < 0 or max(self.keep) >= self.keep_of:
            raise ValueError("keep has an index outside 0 to keep_of - 1")
        return self

    @property
    def label(self) -> str:
        """How messages and file names call the measurement."""
        return f"{self.bundle} {self.target} {self.tower}"

    def keeps(self, sample: int) -> bool:
        """Whether the output of a timed run is kept; the one rule for all devices."""
        group, place = divmod(sample, self.keep_of)
        return place == self.keep[group % len(self.keep)]


def unit(serial: str) -> str:
    """`DeviceInfo.unit` of a serial number or name."""
    return hashlib.sha256(serial.encode()).hexdigest()[:6] if serial else ""


class KeptOutput(_Strict):
    """One timed output, kept for the check of parity."""

    sample: int = Field(ge=0)
    """Which timed run it came from."""
    first_input: int = Field(ge=0)
    """Row of the verification set that was the first of the batch; the others follow and wrap around."""
    values: str
    """Base64 of little-endian float32, (batch, embed_dim)."""

    @classmethod
    def of(cls, sample: int, first_input: int, embedding: npt.NDArray[np.float32]) -> KeptOutput:
        """Wrap an output of shape (batch, embed_dim)."""
        data = np.ascontiguousarray(embedding, "<f4").tobytes()
        return cls(sample=sample, first_input=first_input, values=base64.b64encode(data).decode())

    def embedding(self, embed_dim: int) -> npt.NDArray[np.float32]:
        """The output, (batch, embed_dim).

        Raises:
            ValueError: Not base64, or not a whole number of rows.
        """
        return np.frombuffer(base64.b64decode(self.values, validate=True), "<f4").reshape(-1, embed_dim).astype(np.float32)


class DeviceInfo(_Strict):
    """The machine that ran it. Empty or None is what it does not tell."""

    name: Told
    """`host`, or what its owner calls it."""
    model: Told
    """`iPhone13,4`, `Pixel 8`, or the processor of a computer."""
    unit: Told = ""
    """Tells two of a model apart: the start of a hash of its serial number, or of a computer's name."""
    soc: Told = ""
    os: Told
    architecture: Told = ""
    logical_cores: int | None = None
    memory_bytes: Bytes | None = None
    emulated: bool = False
    """A simulator, an emulator or a translated processor: numbers that say nothing about a device."""


class DeviceState(_Strict):
    """What a device felt like at a moment."""

    moment: Literal["before", "during", "after"]
    """Of the timed runs."""
    thermal: Thermal = "unknown"
    battery_percent: float | None = Field(default=None, ge=0, le=100)
    charging: bool | None = None
    low_power: bool | None = None
    """A mode in which the system saves power."""
    foreground: bool | None = None
    """Whether the app or page has been in front since the moment before; in the background a phone slows it down."""
    load_average_1m: float | None = None
    """Of computers: far above 0 means that something else was running."""


class OperatorRuns(_Strict):
    """What one operator of an artifact costs, from `PROFILED_RUNS` runs after the timed ones: looking costs time."""

    name: Told
    kind: Told
    where: Told
    """The provider, delegate or compute unit that runs it."""
    ms: tuple[NotNegative, ...] = ()
    """One a run; empty where the runtime only estimates."""
    share: Annotated[float, Field(ge=0, le=1)] | None = None
    """Of the whole, as the runtime estimates it."""


class Loaded(_Strict):
    """What a device answers to `load`."""

    engine: Told
    """What ran the artifact, with version."""
    provider: Told
    """What it was loaded for; `DeviceSamples.placement` has what ran where."""
    load_ms: NotNegative
    """From the files to a session that can run, compiling included; the first time in this process."""
    first_run_ms: NotNegative
    baseline_memory_bytes: Bytes | None = None
    """Peak memory before the load: the process itself with its inputs."""
    clock_ms: NotNegative | None = None
    """The smallest step of the clock, where it is known: browsers make it coarse on purpose."""


class WarmedUp(_Strict):
    """What a device answers to `warm_up`."""

    warmup_ms: tuple[NotNegative, ...]


class Block(_Strict):
    """What a device answers to `block`: a few timed runs."""

    latency_ms: tuple[Positive, ...] = Field(min_length=1)
    """One timed run each, of one batch."""
    start_ms: tuple[NotNegative, ...] = ()
    """When each timed run began, from the first one's begin; for `sustained`."""
    wait_ms: tuple[NotNegative, ...] = ()
    """How much of each timed run its thread was ready but another process had the core; empty where the system does not tell."""
    kept: tuple[KeptOutput, ...]

    @model_validator(mode="after")
    def _one_for_each_run(self) -> Self:
        for name, values in (("wait_ms", self.wait_ms), ("start_ms", self.start_ms)):
            if values and len(values) != len(self.latency_ms):
                raise ValueError(f"{name} has another length than latency_ms")
        if any(a > b for a, b in itertools.pairwise(self.start_ms)):
            raise ValueError("start_ms goes back in time")
        return self


class Finished(_Strict):
    """What a device answers to `finish`."""

    peak_memory_bytes: Bytes | None = None
    warm_load_ms: NotNegative | None = None
    """The load once more, when whatever is compiled is cached."""


class Profiled(_Strict):
    """What a device answers to `profile`: one of the two."""

    onnx_profile: str | None = None
    """The text that ONNX Runtime's profiler has written."""
    operators: tuple[OperatorRuns, ...] | None = None

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if (self.onnx_profile is None) == (self.operators is None):
            raise ValueError("onnx_profile or operators, one of them")
        return self


class Refused(_Strict):
    """What a device answers to a command that fails."""

    error: str
    """Class of the error, see `mobileclip.errors`."""
    exit_code: int
    message: str


Reply = Loaded | WarmedUp | Block | Finished | Profiled | Refused
"""One JSON object for each command, see `mobileclip.benchmark.devices.rounds`."""


class DeviceSamples(Loaded, WarmedUp, Block, Finished):
    """What a device gives back for one request: times by a monotonic clock in the order in which they were taken, nothing computed."""

    schema_version: Literal[3] = SCHEMA_VERSION
    device: DeviceInfo
    states: tuple[DeviceState, ...]
    placement: dict[Told, Annotated[int, Field(ge=0)]] = {}
    """How many operators each provider, delegate or compute unit runs; empty where the runtime does not tell."""
    operators: tuple[OperatorRuns, ...] = ()
    """In the order in which they run; empty unless `per_op` was asked for."""
    block_samples: tuple[Annotated[int, Field(ge=1)], ...]
    """How many consecutive timed runs each turn of this measurement had; other measurements ran between turns."""
    ended_early: Told = ""
    """The error that ended it half way."""

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if sum(self.block_samples) != len(self.latency_ms):
            raise ValueError("block_samples does not add up to the number of latencies")
        if any(k.sample >= len(self.latency_ms) for k in self.kept):
            raise ValueError("an output was kept of a run that was not timed")
        return self


class PlannedMeasurement(_Strict):
    """A request with the places of its files, relative to the plan's folder."""

    request: BenchRequest
    bundle: str
    """Folder of the bundle."""
    inputs: str
    """The file that `request.inputs` names."""


class BenchPlan(_Strict):
    """All measurements of a call, for an app that takes the turns by itself. `plan.json` on a device.

    The app loads all, lets the device cool down, warms all up and then goes round and round over those that are not finished, in round r
    in the order `orders[r % len(orders)]`. A turn of `burst` lasts until both minima of a block are reached, in the other modes until the
    measurement is finished. Each measurement that ends is written as `answer-N.json` (`BenchAnswer`) at once, N from 0 on.
    Where `per_op` is asked for and its runtime tells, the answer has the operators as well. The app tells what it does at least twice a
    minute while models run: a host stops one that is silent. When it starts a plan it removes the folders of earlier ones, which a host
    that was killed has left.
    """

    schema_version: Literal[3] = SCHEMA_VERSION
    measurements: tuple[PlannedMeasurement, ...] = Field(min_length=1)
    orders: tuple[tuple[int, ...], ...] = Field(min_length=1)
    """Permutations of the measurements' numbers."""
    block_seconds: NotNegative
    block_samples: int = Field(ge=1)
    cool_seconds: NotNegative
    """How long a device that is warm may cool down first."""


class BenchAnswer(_Strict):
    """What an app gives back for one measurement: samples, an error, or both if it ended half way."""

    schema_version: Literal[3] = SCHEMA_VERSION
    samples: DeviceSamples | None
    error: Told | None
    """What went wrong, in one line."""

    @model_validator(mode="after")
    def _something(self) -> BenchAnswer:
        if self.samples is None and self.error is None:
            raise ValueError("neither samples nor an error")
        if self.samples is not None and bool(self.samples.ended_early) != (self.error is not None):
            raise ValueError("samples say in ended_early what error there was, and only then")
        return self


class Measured(_Strict):
    """The bundle that was measured, as its manifest describes it."""

    name: str
    model: str
    form: str
    trained: bool
    precision: Precision
    batch: int
    normalize: bool
    bake_preprocessing: bool
    embed_dim: int
    embedding_space: Sha256
    weights_sha256: Sha256
    manifest_sha256: Sha256
    files: tuple[FileEntry, ...]
    """Of the artifact that ran."""

    @property
    def size_bytes(self) -> int:
        """Of the artifact."""
        return sum(f.size_bytes for f in self.files)


class Summary(_Strict):
    """Statistics of the timed runs, computed by the host."""

    n: int = Field(ge=1)
    seconds: NotNegative
    """Of timed runs, added up."""
    mean_ms: Positive
    min_ms: Positive
    p50_ms: Positive
    p90_ms: Positive
    p99_ms: Positive
    cv_percent: NotNegative
    """Standard deviation over mean."""
    waiting_percent: NotNegative | None
    """Share of the timed runs spent waiting for a core that another process had; None where the system does not tell."""


class Window(_Strict):
    """A stretch of a sustained measurement."""

    start_s: NotNegative
    n: int = Field(ge=1)
    p50_ms: Positive


class Sustained(_Strict):
    """How latency went on."""

    windows: tuple[Window, ...] = Field(min_length=1)
    """Of 5 s each; a rest that is shorter is left out unless it is all there is."""
    slope_percent_per_minute: float
    """Of a line through the windows' p50, by least squares, relative to the first window's."""


class EarlyStopping(_Strict):
    """MLPerf's estimate of the 90th percentile: with 99 % confidence the true one is not above it."""

    p90_ms: float
    discarded: int
    """Runs slower than it."""


class Parity(_Strict):
    """Timed outputs against the model's own embeddings."""

    n: int
    """Embeddings compared."""
    cosine_min: float
    bar: float
    passed: bool


class BenchResult(_Strict):
    """One measurement with its raw samples."""

    schema_version: Literal[3] = SCHEMA_VERSION
    toolkit_version: str
    started_utc: str
    run_id: str
    """The same for all measurements of a call."""
    interleaved: int = Field(ge=1)
    """Number of measurements that took turns with each other, this one included."""
    request: BenchRequest
    measured: Measured
    samples: DeviceSamples
    """What the device gave back, without the outputs it kept."""
    summary: Summary
    sustained: Sustained | None
    mlperf: EarlyStopping | None
    parity: Parity | None
    valid: bool
    reasons: tuple[str, ...]
    """Why it is not valid."""

    @model_validator(mode="after")
    def _valid_without_reasons(self) -> BenchResult:
        if self.valid == bool(self.reasons):
            raise ValueError("valid contradicts reasons")
        return self

    @property
    def label(self) -> str:
        """How messages and tables call the measurement."""
        return self.request.label

    @property
    def device(self) -> DeviceInfo:
        """The machine that ran it."""
        return self.samples.device


class Failure(_Strict):
    """A measurement that gave no result."""

    bundle: str
    target: Target
    tower: Tower
    error: str
    """Class of the error."""
    exit_code: int
    message: str


class BenchRun(_Strict):
    """Everything that came of one call: results, what failed, and what was left out with its reason."""

    schema_version: Literal[3] = SCHEMA_VERSION
    results: tuple[BenchResult, ...]
    failures: tuple[Failure, ...]
    skipped: tuple[str, ...]
