from __future__ import annotations

import numpy as np
import pytest

from mobileclip.benchmark import statistics
from mobileclip.benchmark.protocol import DeviceSamples, EarlyStopping, KeptOutput, Mode, Parity
from tests.benchmark.conftest import device_samples, request

GOOD = Parity(n=5, cosine_min=1, bar=0.999, passed=True)


def test_summary_of_known_numbers() -> None:
    s = statistics.summarize([float(v) for v in range(1, 101)], [0.5] * 100)
    assert (s.n, s.mean_ms, s.min_ms, s.p50_ms, s.p90_ms, s.p99_ms) == (100, 50.5, 1, 50.5, 90.1, 99.01)
    assert s.seconds == pytest.approx(5.05)
    assert s.cv_percent == pytest.approx(57.448, abs=1e-3)
    assert s.waiting_percent == pytest.approx(0.99)
    assert statistics.summarize([1.0]).cv_percent == 0
    assert statistics.summarize([1.0]).waiting_percent is None
    with pytest.raises(ValueError, match="no samples"):
        statistics.summarize([])


def test_parity_normalises_wraps_and_finds_the_wrong_row() -> None:
    reference = np.linalg.qr(np.random.default_rng(0).normal(size=(4, 4)))[0].astype(np.float32)
    good = KeptOutput.of(0, 3, 7 * reference[[3, 0]])
    assert statistics.parity([good], reference, 0.999) == Parity(n=2, cosine_min=1.0, bar=0.999, passed=True)
    wrong = statistics.parity([good, KeptOutput.of(1, 0, reference[[1]])], reference, 0.999)
    assert wrong is not None
    assert not wrong.passed
    assert wrong.cosine_min < 0.5
    assert statistics.parity([], reference, 0.999) is None


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_outputs_without_direction_fail(value: float) -> None:
    found = statistics.parity([KeptOutput.of(0, 0, np.full((1, 4), value, np.float32))], np.eye(4, dtype=np.float32), 0.999)
    assert found == Parity(n=1, cosine_min=-1, bar=0.999, passed=False)


def test_kept_outputs_of_another_size_are_an_error() -> None:
    with pytest.raises(ValueError):
        statistics.parity([KeptOutput.of(0, 0, np.ones((1, 3), np.float32))], np.eye(4, dtype=np.float32), 0.999)


def reasons(samples: DeviceSamples, mode: Mode = "burst", parity: Parity | None = GOOD) -> list[str]:
    return [r.split(",")[0] for r in statistics.invalid_reasons(mode, samples, statistics.summarize(samples.latency_ms), parity)]


def test_each_shortfall_is_named() -> None:
    enough = device_samples([100.0] * 100)
    assert reasons(enough) == []
    few = device_samples([50.0] * 99, warmup_ms=(1.0,) * 9)
    assert reasons(few, parity=None) == [
        "9 warm-up runs", "99 samples", "4.95 s of timed runs", "no output was compared with the model",
    ]  # fmt: skip
    assert reasons(enough, parity=Parity(n=5, cosine_min=0.5, bar=0.999, passed=False)) == [
        "wrong outputs: smallest cosine 0.500000 over 5"
    ]
    assert reasons(enough, "mlperf") == ["100 samples", "10.00 s of timed runs"]
    assert reasons(enough, "sustained") == ["10.00 s of timed runs"]
    shaky = device_samples([60.0, 1200.0] * 1024)
    assert reasons(shaky) == reasons(shaky, "mlperf") == ["unstable: CV 90.5 %"]
    assert reasons(shaky, "sustained") == []


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ({"thermal": "fair"}, "the device was warm at the start (thermal state fair); let it cool down"),
        ({"low_power": True}, "low-power mode was on; switch it off"),
        ({"thermal": "nominal", "low_power": False}, None),
        ({}, None),
    ],
)
def test_the_state_of_the_device_counts(state: dict, reason: str | None) -> None:
    hot_after = {"moment": "after", "thermal": "serious"}
    found = reasons(device_samples([100.0] * 100, states=[{"moment": "before", **state}, hot_after]))
    assert found == ([reason] if reason else [])


@pytest.mark.parametrize(("clock_ms", "counts"), [(None, True), (0.0, True), (4.9, True), (5.1, False)])
def test_a_coarse_clock_counts(clock_ms: float | None, counts: bool) -> None:
    assert (reasons(device_samples([100.0] * 100, clock_ms=clock_ms)) == []) is counts


def test_emulated_results_never_count() -> None:
    device = {"name": "x", "model": "x", "os": "x", "emulated": True}
    assert reasons(device_samples([100.0] * 100, device=device)) == ["emulated: the numbers say nothing about a device"]


@pytest.mark.parametrize("change", [
    {"block_samples": (9,)}, {"block_samples": ()}, {"wait_ms": (0.1,)}, {"start_ms": (0.1,)}, {"start_ms": (*range(9), 0)},
    {"latency_ms": (0.0,) * 10}, {"kept": (KeptOutput.of(10, 0, np.ones((1, 4), np.float32)),)},
])  # fmt: skip
def test_inconsistent_device_answers_are_refused(change: dict) -> None:
    base = device_samples([1.0] * 10).model_dump()
    with pytest.raises(ValueError):
        DeviceSamples.model_validate(base | change)


def test_windows_and_slope_of_a_device_that_slows_down() -> None:
    start_ms = np.arange(0, 60_000, 100.0)
    latency_ms = 10 + start_ms / 60_000  # a tenth more in a minute
    found = statistics.sustained(latency_ms.tolist(), start_ms.tolist())
    assert [w.start_s for w in found.windows] == list(range(0, 60, 5))
    assert {w.n for w in found.windows} == {50}
    assert found.windows[0].p50_ms == pytest.approx(10.0408, abs=1e-3)
    assert found.slope_percent_per_minute == pytest.approx(10, rel=0.01)
    assert statistics.sustained([1.0], [5.0]).slope_percent_per_minute == 0
    late = statistics.sustained([*latency_ms, 150.0], [*start_ms, 60_120.0])
    assert late == found, "a rest does not count"
    assert [w.n for w in statistics.sustained([1.0, 2.0], [0.0, 4_000.0]).windows] == [2], "unless it is all there is"
    for values in (([], []), ([1.0], [])):
        with pytest.raises(ValueError, match="its start"):
            statistics.sustained(*values)


# n and the number of queries that LoadGen says it would discard, from published summaries of MLPerf Inference runs
@pytest.mark.parametrize(("n", "discarded"), [(64, 0), (201, 9), (659, 47), (708, 51), (2048, 172), (2145, 181), (79_944, 7796)])
def test_early_stopping_is_mlperfs(n: int, discarded: int) -> None:
    values = np.random.default_rng(0).permutation(n) + 1.0
    found = statistics.early_stopping(values.tolist())
    assert found == EarlyStopping(p90_ms=n - discarded, discarded=discarded)
    assert statistics.early_stopping([1.0] * 63) is None


def test_which_outputs_are_kept() -> None:
    asked = request(keep=(3, 0), keep_of=5)
    assert [i for i in range(20) if asked.keeps(i)] == [3, 5, 13, 15]
    for keep in ((5,), (-1,), ()):
        with pytest.raises(ValueError):
            request(keep=keep, keep_of=5)
