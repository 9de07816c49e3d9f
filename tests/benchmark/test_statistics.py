from __future__ import annotations

import numpy as np
import pytest

from mobileclip.benchmark import statistics
from mobileclip.benchmark.protocol import DeviceSamples, KeptOutput, Parity


def samples(n: int, ms: float, warmups: int = 10) -> DeviceSamples:
    return DeviceSamples(
        engine="e", load_ms=1, first_run_ms=1, warmup_ms=(1.0,) * warmups, latency_ms=(ms,) * n, block_samples=(n,),
        baseline_rss_bytes=1, peak_rss_bytes=2, kept=(),
    )  # fmt: skip


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


def test_each_shortfall_is_named() -> None:
    good = Parity(n=5, cosine_min=1, bar=0.999, passed=True)
    enough, few = samples(100, 100), samples(99, 50, warmups=9)
    assert statistics.invalid_reasons(enough, statistics.summarize(enough.latency_ms), good) == ()
    reasons = statistics.invalid_reasons(few, statistics.summarize(few.latency_ms), None)
    assert [r.split(",")[0] for r in reasons] == [
        "9 warm-up runs", "99 samples", "4.95 s of timed runs", "no output was compared with the model",
    ]  # fmt: skip


def test_inconsistent_device_answers_are_refused() -> None:
    base = samples(10, 1).model_dump()
    for change in ({"block_samples": (9,)}, {"wait_ms": (0.1,)}, {"kept": (KeptOutput.of(10, 0, np.ones((1, 4), np.float32)),)}):
        with pytest.raises(ValueError):
            DeviceSamples.model_validate(base | change)
