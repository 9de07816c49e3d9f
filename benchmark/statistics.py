"""Every statistic that this toolkit prints about latencies, computed from raw samples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mobileclip.benchmark.protocol import (
    MIN_SAMPLES,
    MIN_SECONDS,
    MIN_WARMUP_RUNS,
    DeviceSamples,
    KeptOutput,
    Parity,
    Summary,
)


def summarize(latency_ms: Sequence[float], wait_ms: Sequence[float] = ()) -> Summary:
    """Count, total, mean, percentiles (linear interpolation) and coefficient of variation of latencies in ms.

    Args:
        latency_ms: One a timed run.
        wait_ms: How much of each was waiting for a core; empty if unknown.

    Raises:
        ValueError: No samples.
    """
    values = np.asarray(latency_ms, np.float64)
    if not values.size:
        raise ValueError("no samples")
    p50, p90, p99 = (float(v) for v in np.percentile(values, (50, 90, 99)))
    mean = float(values.mean())
    deviation = float(values.std(ddof=1)) if values.size > 1 else 0.0
    return Summary(
        n=int(values.size),
        seconds=round(float(values.sum()) / 1e3, 4),
        mean_ms=round(mean, 4),
        min_ms=round(float(values.min()), 4),
        p50_ms=round(p50, 4),
        p90_ms=round(p90, 4),
        p99_ms=round(p99, 4),
        cv_percent=round(100 * deviation / mean, 3) if mean else 0.0,
        waiting_percent=round(100 * sum(wait_ms) / float(values.sum()), 2) if wait_ms else None,
    )


def parity(kept: Sequence[KeptOutput], reference: npt.NDArray[np.float32], bar: float) -> Parity | None:
    """Compare kept outputs with the model's own embeddings; None without outputs.

    Args:
        kept: Timed outputs; they need not be normalised.
        reference: (inputs, embed_dim), normalised, in the order in which the inputs were cycled.
        bar: Smallest cosine that passes.

    Raises:
        ValueError: An output has another size than the reference.
    """
    cosines: list[float] = []
    for output in kept:
        got = output.embedding(reference.shape[1]).astype(np.float64)
        rows = (output.first_input + np.arange(len(got))) % len(reference)
        want = reference[rows].astype(np.float64)
        norms = np.linalg.norm(got, axis=1) * np.linalg.norm(want, axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            cosine = (got * want).sum(1) / norms
        # An output without a direction (zero, NaN, infinite) is as wrong as an opposite one.
        cosines += np.where(np.isfinite(cosine), cosine, -1.0).tolist()
    if not cosines:
        return None
    return Parity(n=len(cosines), cosine_min=round(min(cosines), 9), bar=bar, passed=min(cosines) >= bar)


def invalid_reasons(samples: DeviceSamples, summary: Summary, found: Parity | None) -> tuple[str, ...]:
    """Why a measurement does not count; empty if it does."""
    reasons = []
    if len(samples.warmup_ms) < MIN_WARMUP_RUNS:
        reasons.append(f"{len(samples.warmup_ms)} warm-up runs, {MIN_WARMUP_RUNS} are needed")
    if summary.n < MIN_SAMPLES:
        reasons.append(f"{summary.n} samples, {MIN_SAMPLES} are needed")
    if summary.seconds < MIN_SECONDS:
        reasons.append(f"{summary.seconds:.2f} s of timed runs, {MIN_SECONDS:g} s are needed")
    if found is None:
        reasons.append("no output was compared with the model")
    elif not found.passed:
        reasons.append(f"wrong outputs: smallest cosine {found.cosine_min:.6f} over {found.n}, {found.bar} is needed")
    return tuple(reasons)
