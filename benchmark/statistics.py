"""Every statistic that this toolkit prints about latencies, computed from raw samples."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mobileclip.benchmark.protocol import (
    MAX_CLOCK_SHARE,
    MIN_WARMUP_RUNS,
    MODES,
    UNSTABLE_CV_PERCENT,
    DeviceSamples,
    EarlyStopping,
    KeptOutput,
    Mode,
    Parity,
    Summary,
    Sustained,
    Window,
)

WINDOW_S = 5.0
_MLPERF_PERCENTILE, _MLPERF_CONFIDENCE = 0.9, 0.99


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
        ValueError: An output has another size than the reference, or is of an input that does not exist.
    """
    cosines: list[float] = []
    for output in kept:
        if output.first_input >= len(reference):
            raise ValueError(f"input {output.first_input} of {len(reference)}")
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


def sustained(latency_ms: Sequence[float], start_ms: Sequence[float]) -> Sustained:
    """Median latency of each 5 s, and how it goes on.

    Args:
        latency_ms: One a timed run.
        start_ms: When each began, ascending.

    Raises:
        ValueError: No samples, or not one start each.
    """
    latency, start = np.asarray(latency_ms, np.float64), np.asarray(start_ms, np.float64)
    if not latency.size or latency.shape != start.shape:
        raise ValueError("each sample needs its start")
    number = ((start - start[0]) // (1e3 * WINDOW_S)).astype(int)
    end = start[-1] + np.diff(start, prepend=start[-1] - latency[-1])[-1]  # when a further run would have begun
    whole = (end - start[0]) // (1e3 * WINDOW_S)
    if whole:  # the few samples of a rest would weigh as much as a window
        latency, number = latency[number < whole], number[number < whole]
    numbers, firsts = np.unique(number, return_index=True)
    windows = [
        Window(start_s=float(k * WINDOW_S), n=len(part), p50_ms=round(float(np.median(part)), 4))
        for k, part in zip(numbers, np.split(latency, firsts[1:]), strict=True)
    ]
    slope = 0.0
    if len(windows) > 1:
        minutes, p50 = np.array([w.start_s for w in windows]) / 60, np.array([w.p50_ms for w in windows])
        slope = 100 * float(np.polyfit(minutes, p50, 1)[0]) / windows[0].p50_ms
    return Sustained(windows=tuple(windows), slope_percent_per_minute=round(slope, 3))


def early_stopping(latency_ms: Sequence[float]) -> EarlyStopping | None:
    """MLPerf Inference's early stopping estimate of the 90th percentile in single stream; None below 64 samples.

    It is the t-th largest of n latencies, for the largest t with P(Binomial(n, 0.1) <= t) <= 1 % (LoadGen, `early_stopping.cc`).
    """
    n, over = len(latency_ms), 1 - _MLPERF_PERCENTILE
    probability, t = 0.0, -1
    while t < n:
        log_p = math.lgamma(n + 1) - math.lgamma(t + 2) - math.lgamma(n - t) + (t + 1) * math.log(over) + (n - t - 1) * math.log1p(-over)
        probability += math.exp(log_p)
        if probability > 1 - _MLPERF_CONFIDENCE:
            break
        t += 1
    if t < 1:
        return None
    return EarlyStopping(p90_ms=round(sorted(latency_ms)[n - t], 4), discarded=t - 1)


def invalid_reasons(mode: Mode, samples: DeviceSamples, summary: Summary, found: Parity | None) -> tuple[str, ...]:
    """Why a measurement does not count; empty if it does."""
    reasons, limits = [], MODES[mode]
    if samples.ended_early:
        reasons.append(f"ended early: {samples.ended_early}")
    if samples.device.emulated:
        reasons.append("emulated: the numbers say nothing about a device")
    if "in software" in samples.provider:
        reasons.append(f"{samples.provider}: no real graphics processor ran it")
    if len(samples.warmup_ms) < MIN_WARMUP_RUNS:
        reasons.append(f"{len(samples.warmup_ms)} warm-up runs, {MIN_WARMUP_RUNS} are needed")
    if summary.n < limits.samples:
        reasons.append(f"{summary.n} samples, {limits.samples} are needed")
    if summary.seconds < limits.seconds:
        reasons.append(f"{summary.seconds:.2f} s of timed runs, {limits.seconds:g} s are needed")
    if summary.cv_percent > UNSTABLE_CV_PERCENT and mode != "sustained":
        reasons.append(f"unstable: CV {summary.cv_percent:.1f} %, {UNSTABLE_CV_PERCENT:g} % is allowed")
    if samples.clock_ms is not None and samples.clock_ms > MAX_CLOCK_SHARE * summary.p50_ms:
        reasons.append(
            f"the clock's step of {samples.clock_ms:g} ms is coarse for a median of {summary.p50_ms:g} ms; open the page locally"
        )
    before = next((s for s in samples.states if s.moment == "before"), None)
    if before and before.thermal not in ("nominal", "unknown"):
        reasons.append(f"the device was warm at the start (thermal state {before.thermal}); let it cool down")
    if any(s.low_power for s in samples.states):
        reasons.append("low-power mode was on; switch it off")
    if any(s.foreground is False for s in samples.states):
        reasons.append("it was in the background for a while; keep it in front")
    if found is None:
        reasons.append("no output was compared with the model")
    elif not found.passed:
        reasons.append(f"wrong outputs: smallest cosine {found.cosine_min:.6f} over {found.n}, {found.bar} is needed")
    return tuple(reasons)
