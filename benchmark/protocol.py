"""What is asked of a device and what is kept of its answer. A device only times; the host computes everything else from raw samples.

Schemas: `conformance/bench_request.schema.json` and `conformance/bench_result.schema.json`, generated from the models below.
"""

from __future__ import annotations

import base64
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator

from mobileclip.errors import MobileClipError
from mobileclip.export.bundle import FileEntry, Precision, Sha256, Target, Tower

SCHEMA_VERSION: Literal[1] = 1
MIN_WARMUP_RUNS, MIN_SAMPLES, MIN_SECONDS = 10, 100, 10.0
"""A result below one of these is not valid."""
UNSTABLE_CV_PERCENT = 5.0
PARITY_SHARE = 0.05
"""Share of the timed outputs that are kept and compared with the model's own."""
PARITY_BAR: dict[Precision, float] = {"fp32": 0.99999, "fp16": 0.999}


class DeviceError(MobileClipError):
    """A device or its worker crashed, hung or answered nonsense in the middle of a measurement."""

    exit_code = 4


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class BenchRequest(_Strict):
    """One measurement: a tower of a bundle in one runtime."""

    schema_version: Literal[1] = SCHEMA_VERSION
    bundle: str = Field(min_length=1)
    """Name of the bundle's folder."""
    target: Target
    tower: Tower
    threads: int = Field(ge=1)
    mode: Literal["burst"] = "burst"
    """`burst`: warm up, then as many runs as fast as they go until both minima are reached."""
    warmup_runs: int = Field(default=MIN_WARMUP_RUNS, ge=0)
    min_samples: int = Field(default=MIN_SAMPLES, ge=1)
    min_seconds: float = Field(default=MIN_SECONDS, ge=0)
    """Of timed runs, added up."""
    parity_share: float = Field(default=PARITY_SHARE, gt=0, le=1)
    seed: int = Field(default=0, ge=0)
    """Of the choice of outputs to keep."""

    @property
    def label(self) -> str:
        """How messages and file names call the measurement."""
        return f"{self.bundle} {self.target} {self.tower}"


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


class DeviceSamples(_Strict):
    """What a device gives back for one request: times by a monotonic clock in the order in which they were taken, nothing computed."""

    engine: str
    """What ran the artifact, with version."""
    load_ms: float = Field(ge=0)
    """From the files to a session that can run."""
    first_run_ms: float = Field(ge=0)
    warmup_ms: tuple[float, ...]
    latency_ms: tuple[float, ...] = Field(min_length=1)
    """One timed run each, of one batch."""
    wait_ms: tuple[float, ...] = ()
    """How much of each timed run its thread was ready but another process had the core; empty where the system does not tell."""
    block_samples: tuple[int, ...]
    """How many consecutive timed runs each turn of this measurement had; other measurements ran between turns."""
    baseline_rss_bytes: int = Field(ge=0)
    """Peak resident memory before the load: the process itself with its inputs."""
    peak_rss_bytes: int = Field(ge=0)
    kept: tuple[KeptOutput, ...]

    @model_validator(mode="after")
    def _blocks_cover(self) -> DeviceSamples:
        if min(self.block_samples, default=0) < 1 or sum(self.block_samples) != len(self.latency_ms):
            raise ValueError("block_samples does not add up to the number of latencies")
        if self.wait_ms and len(self.wait_ms) != len(self.latency_ms):
            raise ValueError("wait_ms has another length than latency_ms")
        if any(k.sample >= len(self.latency_ms) for k in self.kept):
            raise ValueError("an output was kept of a run that was not timed")
        return self


class Environment(_Strict):
    """The machine that ran it."""

    device: str
    """`host`, later a phone's name."""
    cpu: str
    architecture: str
    logical_cores: int
    memory_bytes: int
    os: str
    python: str
    load_average_1m: float
    """At the start; far above 0 means that something else was running."""


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

    n: int
    seconds: float
    """Of timed runs, added up."""
    mean_ms: float
    min_ms: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    cv_percent: float
    """Standard deviation over mean."""
    waiting_percent: float | None
    """Share of the timed runs spent waiting for a core that another process had; None where the system does not tell."""


class Parity(_Strict):
    """Timed outputs against the model's own embeddings."""

    n: int
    """Embeddings compared."""
    cosine_min: float
    bar: float
    passed: bool


class BenchResult(_Strict):
    """One measurement with its raw samples."""

    schema_version: Literal[1] = SCHEMA_VERSION
    toolkit_version: str
    started_utc: str
    run_id: str
    """The same for measurements that were interleaved with each other."""
    interleaved: int = Field(ge=1)
    """Number of measurements in the run."""
    request: BenchRequest
    measured: Measured
    environment: Environment
    engine: str
    load_ms: float
    first_run_ms: float
    warmup_ms: tuple[float, ...]
    latency_ms: tuple[float, ...] = Field(min_length=1)
    wait_ms: tuple[float, ...] = ()
    block_samples: tuple[int, ...]
    baseline_rss_bytes: int
    peak_rss_bytes: int
    summary: Summary
    parity: Parity | None
    valid: bool
    reasons: tuple[str, ...]
    """Why it is not valid."""
    unstable: bool
    """The coefficient of variation is above 5 %."""

    @property
    def label(self) -> str:
        """How messages and tables call the measurement."""
        return self.request.label


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

    schema_version: Literal[1] = SCHEMA_VERSION
    results: tuple[BenchResult, ...]
    failures: tuple[Failure, ...]
    skipped: tuple[str, ...]
