"""Is B faster or slower than A? A verdict from raw samples that other processes on the machine cannot easily fake.

A run on a shared machine is disturbed in three ways, and each has its remedy here:

- Another process takes the core. Linux tells how long each run waited for it; that is taken off.
- Neighbours take shared caches, memory or the other half of a core. That only ever adds time, in phases, so the 3rd percentile, the
  undisturbed cost, is compared instead of the median. A run that was taken off its core comes back to cold caches: where one measurement
  waited more than the other, the bar is raised by what that explains.
- Samples that follow each other are alike. Whole stretches of them are drawn anew in the bootstrap (Künsch 1989, the block bootstrap),
  so the interval is as wide as the number of independent stretches deserves.

A difference counts from 9 %, half way to 20 %, if the 95 % interval of the ratio leaves out 1. Where a measurement was starved, waiting
over 40 % of its time, no remedy holds and only 50 % counts, unless the two were interleaved in one call of the benchmark.

The undisturbed cost does not see what happens to most runs but not to all: a throttled device, a slow path that is taken now and then. So
the mode's own figure, which neighbours do move, counts as well, from 50 % on: the median of `burst` and `sustained`, the 90th percentile
of `mlperf`; not where one of the two waited for a core over 20 % of its time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from mobileclip.benchmark.protocol import BenchResult, Mode
from mobileclip.errors import InputError

MINIMAL_RATIO = 1.09
CONFIDENCE = 0.95
COST_PERCENTILE = 3
STRETCHES = 12
"""Consecutive samples are cut into this many stretches for the bootstrap."""
RESAMPLES = 2000
MAX_STRETCH_SAMPLES = 200
"""Longer stretches are thinned evenly: the interval depends on the number of stretches, not on this."""
STARVED_SHARE, STARVED_RATIO = 0.4, 1.5
BUSY_SHARE = 0.2
FIGURE_RATIO = 1.5
FIGURES: dict[Mode, float] = {"burst": 50, "mlperf": 90, "sustained": 50}
"""Percentile that a mode is about."""
WAITING_COST = 0.15
"""Undisturbed runs become this much longer, relatively, if the share of time spent waiting for a core goes from none to all."""

Verdict = Literal["faster", "slower", "no difference"]
Samples = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Comparison:
    """The verdict on B, seen from A, and what it rests on."""

    label_a: str
    label_b: str
    verdict: Verdict
    ratio: float
    """Undisturbed cost of B over that of A."""
    ratio_low: float
    ratio_high: float
    """95 % interval of the ratio."""
    needed: float
    """The ratio must lie beyond this, or below its inverse."""
    figure_ratio: float
    """The mode's own figure of B over that of A."""
    p50_a_ms: float
    p50_b_ms: float
    n_a: int
    n_b: int
    remarks: tuple[str, ...]
    """Settings in which the two differ, and doubts."""

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def compare(a: BenchResult, b: BenchResult, seed: int = 0) -> Comparison:
    """The verdict on B against A.

    Raises:
        InputError: The two measured different towers, embedding spaces, devices, modes or batch sizes, or were emulated.
    """
    for r in (a, b):
        if r.device.emulated:
            raise InputError(f"{r.label} was emulated: its times say nothing; compare measurements of real devices")
    for what, left, right in (
        ("towers", a.request.tower, b.request.tower),
        ("embedding spaces", a.measured.embedding_space[:16], b.measured.embedding_space[:16]),
        ("devices", *(f"{r.device.name}, {r.device.model}" for r in (a, b))),
        ("modes", a.request.mode, b.request.mode),
        ("batch sizes", a.measured.batch, b.measured.batch),
    ):
        if left != right:
            raise InputError(f"{a.label} and {b.label} are of different {what} ({left}, {right}); compare measurements of the same")
    cost_a, cost_b = cost_ms(a.samples.latency_ms, a.samples.wait_ms), cost_ms(b.samples.latency_ms, b.samples.wait_ms)
    ratio, low, high = ratio_interval(cost_a, cost_b, seed)
    more_waiting = (_waiting(b) - _waiting(a)) * (1 if ratio > 1 else -1)
    allowance = 1 + WAITING_COST * max(more_waiting, 0.0)
    in_turns = a.run_id == b.run_id and min(a.interleaved, b.interleaved) > 1
    starved = max(_waiting(a), _waiting(b)) > STARVED_SHARE and not in_turns
    needed = STARVED_RATIO if starved else MINIMAL_RATIO * allowance
    figure, figure_low, figure_high = ratio_interval(cost_a, cost_b, seed, FIGURES[a.request.mode])
    steady = max(_waiting(a), _waiting(b)) <= BUSY_SHARE
    verdict: Verdict = "no difference"
    if ratio > needed and low > allowance:
        verdict = "slower"
    elif ratio < 1 / needed and high < 1 / allowance:
        verdict = "faster"
    elif steady and figure > FIGURE_RATIO and figure_low > 1:
        verdict = "slower"
    elif steady and figure < 1 / FIGURE_RATIO and figure_high < 1:
        verdict = "faster"
    return Comparison(
        label_a=a.label,
        label_b=b.label,
        verdict=verdict,
        ratio=round(ratio, 4),
        ratio_low=round(low, 4),
        ratio_high=round(high, 4),
        needed=round(needed, 4),
        figure_ratio=round(figure, 4),
        p50_a_ms=a.summary.p50_ms,
        p50_b_ms=b.summary.p50_ms,
        n_a=a.summary.n,
        n_b=b.summary.n,
        remarks=_remarks(a, b),
    )


def compare_all(a: Sequence[BenchResult], b: Sequence[BenchResult]) -> tuple[list[Comparison], list[str]]:
    """Compare what two sets of results have in common: two single measurements with each other, else those of the same kind.

    Returns:
        The comparisons, and the labels of what only one set has.

    Raises:
        InputError: Nothing in common, or two measurements of one kind in a set.
    """
    if len(a) == len(b) == 1:
        return [compare(a[0], b[0])], []
    common, only_a, only_b = _matched(a, b)
    return [compare(left, right) for left, right in common], [*only_a, *only_b]


def regressions(baseline: Sequence[BenchResult], results: Sequence[BenchResult]) -> tuple[list[Comparison], list[str]]:
    """What has become worse since a baseline.

    Emulated measurements have no times and are left out.

    Returns:
        The comparisons with the verdict `slower`, and one line for each measurement whose outputs are wrong or were not checked, that
        ended early, or that is missing now.

    Raises:
        InputError: Nothing in common with the baseline.
    """
    common, missing, _ = _matched(*([r for r in part if not r.device.emulated] for part in (baseline, results)))
    slower = [c for c in (compare(left, right) for left, right in common) if c.verdict == "slower"]
    wrong = [f"{label}: was not measured" for label in missing]
    for r in results:
        if r.parity is None:
            wrong.append(f"{r.label}: no output was compared with the model")
        elif not r.parity.passed:
            wrong.append(f"{r.label}: smallest cosine {r.parity.cosine_min:.6f}")
        if r.samples.ended_early:
            wrong.append(f"{r.label}: ended early ({r.samples.ended_early})")
    return slower, wrong


def cost_ms(latency_ms: Sequence[float], wait_ms: Sequence[float] = ()) -> Samples:
    """Latencies without the time in which another process had the core, ms."""
    latency = np.asarray(latency_ms, np.float64)
    if not wait_ms:
        return latency
    # The system books a wait when it ends, now and then in the run after; what is left of such a run says nothing.
    cost = latency - np.asarray(wait_ms, np.float64)
    return np.where(cost > 0.2 * np.median(cost), cost, latency)


def ratio_interval(a: Samples, b: Samples, seed: int = 0, percentile: float = COST_PERCENTILE) -> tuple[float, float, float]:
    """Ratio of a percentile of B to that of A, and the bounds of its 95 % interval by block bootstrap."""
    rng = np.random.default_rng(seed)
    drawn_a, drawn_b = _bootstrap(a, rng, percentile), _bootstrap(b, rng, percentile)
    ratio = float(np.percentile(b, percentile) / np.percentile(a, percentile))
    tail = 50 * (1 - CONFIDENCE)
    low, high = (float(v) for v in np.percentile(drawn_b / drawn_a, (tail, 100 - tail)))
    return ratio, min(low, ratio), max(high, ratio)


def _bootstrap(samples: Samples, rng: np.random.Generator, percentile: float) -> Samples:
    stretches = np.array_split(samples, min(STRETCHES, len(samples)))
    size = min(len(s) for s in stretches)
    picks = np.linspace(0, 1, min(size, MAX_STRETCH_SAMPLES))
    even = np.stack([s[np.round(picks * (len(s) - 1)).astype(int)] for s in stretches])
    drawn = rng.integers(len(even), size=(RESAMPLES, len(even)))
    return np.asarray(np.percentile(even[drawn].reshape(RESAMPLES, -1), percentile, axis=1))


def _waiting(r: BenchResult) -> float:
    """Share of the timed runs in which another process had the core; 0 if unknown."""
    return sum(r.samples.wait_ms) / sum(r.samples.latency_ms) if r.samples.wait_ms else 0.0


def _matched(a: Sequence[BenchResult], b: Sequence[BenchResult]) -> tuple[list[tuple[BenchResult, BenchResult]], list[str], list[str]]:
    """Measurements of the same kind, and the labels of what only A and only B have."""
    left, right = _by_kind(a), _by_kind(b)
    common = [(r, right[kind]) for kind, r in left.items() if kind in right]
    if not common:
        raise InputError("the two have no measurement of the same model, precision, runtime, tower, threads and mode in common")
    only_a = [r.label for kind, r in left.items() if kind not in right]
    only_b = [r.label for kind, r in right.items() if kind not in left]
    return common, only_a, only_b


def _by_kind(results: Sequence[BenchResult]) -> dict[tuple[object, ...], BenchResult]:
    found: dict[tuple[object, ...], BenchResult] = {}
    for r in results:
        m, q = r.measured, r.request
        asked = (q.target, q.tower, q.provider, q.threads, q.mode)
        kind = (m.model, m.precision, m.batch, m.bake_preprocessing, m.normalize, r.device.name, r.device.model, *asked)
        if kind in found:
            raise InputError(f"{found[kind].label} and {r.label} are of one kind in the same set; give their result files one by one")
        found[kind] = r
    return found


def _remarks(a: BenchResult, b: BenchResult) -> tuple[str, ...]:
    pairs = (
        ("bundle", a.measured.manifest_sha256[:12], b.measured.manifest_sha256[:12]),
        ("precision", a.measured.precision, b.measured.precision),
        ("runtime", a.samples.engine, b.samples.engine),
        ("provider", a.samples.provider, b.samples.provider),
        ("threads", a.request.threads, b.request.threads),
        ("baked preprocessing", a.measured.bake_preprocessing, b.measured.bake_preprocessing),
        ("normalisation", a.measured.normalize, b.measured.normalize),
        ("system", a.device.os, b.device.os),
        ("toolkit", a.toolkit_version, b.toolkit_version),
    )
    remarks = [f"{name} differs: {left}, {right}" for name, left, right in pairs if left != right]
    for name, r in (("A", a), ("B", b)):
        if not r.valid:
            remarks.append(f"{name} is not valid: {'; '.join(r.reasons)}")
        if _waiting(r) > BUSY_SHARE:
            remarks.append(
                f"{name} waited for a core {100 * _waiting(r):.0f} % of the time; measure again when it is quiet, or both in one call"
            )
    return tuple(remarks)
