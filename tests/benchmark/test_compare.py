from __future__ import annotations

import numpy as np
import pytest

from mobileclip.benchmark import statistics
from mobileclip.benchmark.compare import compare, compare_all, regressions
from mobileclip.benchmark.protocol import BenchResult, Measured, Parity
from mobileclip.errors import InputError
from tests.benchmark.conftest import device_samples, request


def series(seed: int, n: int) -> np.ndarray:
    """Latencies in ms around 10: slow drift, autocorrelated noise, a heavy tail, and for a third of the time a busy neighbour."""
    rng = np.random.default_rng(seed)
    noise = np.zeros(n)
    for i in range(1, n):
        noise[i] = 0.8 * noise[i - 1] + 0.006 * rng.normal()
    drift = 1 + 0.02 * np.sin(np.linspace(0, 3, n) + rng.uniform(0, 6))
    tail = 1 + 0.01 * rng.pareto(1.5, n)
    phase = int(rng.integers(n))
    busy = np.where((np.arange(n) + phase) % n < n // 3, rng.uniform(1.3, 1.8), 1.0)
    return 10 * np.exp(noise) * drift * tail * busy


def result(latency_ms: np.ndarray, wait_ms: np.ndarray | None = None, run_id: str = "a", **changes: object) -> BenchResult:
    values = tuple(float(v) for v in latency_ms.round(4))
    waits = () if wait_ms is None else tuple(float(v) for v in wait_ms.round(4))
    asked = request(target=changes.get("target", "onnx"), tower=changes.get("tower", "image"), mode=changes.get("mode", "burst"))
    return BenchResult(
        toolkit_version="0", started_utc="2026-01-01T00:00:00Z", run_id=run_id, interleaved=2, request=asked,
        measured=Measured(
            name="b", model="mobileclip_nano", form="open_clip", trained=False, precision="fp32", batch=1, normalize=True,
            bake_preprocessing=False, embed_dim=4, embedding_space=str(changes.get("space", "1" * 64)), weights_sha256="2" * 64,
            manifest_sha256="3" * 64, files=(),
        ),
        samples=device_samples(values, wait_ms=waits), summary=statistics.summarize(values, waits), sustained=None, mlperf=None,
        parity=changes.get("parity"),
        valid=True, reasons=(),
    )  # fmt: skip


CHECKED = {"parity": Parity(n=5, cosine_min=1, bar=0.999, passed=True)}


@pytest.mark.parametrize("n", [100, 1000])
@pytest.mark.parametrize("pair", range(20))
def test_no_alarm_between_equals(pair: int, n: int) -> None:
    found = compare(result(series(2 * pair, n)), result(series(2 * pair + 1, n)))
    assert found.verdict == "no difference", found


@pytest.mark.parametrize("n", [100, 1000])
@pytest.mark.parametrize("pair", range(20))
def test_twenty_percent_is_always_seen(pair: int, n: int) -> None:
    a, b = series(2 * pair, n), series(2 * pair + 1, n)
    assert compare(result(a), result(1.2 * b)).verdict == "slower"
    assert compare(result(1.2 * a), result(b)).verdict == "faster"


def mostly(factor: float, share: float, mode: str, at_end: bool = False) -> tuple[BenchResult, BenchResult]:
    """A pair of which B has a share of its runs slowed down, here and there or all at the end."""
    a, b, n = series(1, 1200), series(2, 1200), 1200
    slow = np.arange(n) >= (1 - share) * n if at_end else np.random.default_rng(0).random(n) < share
    return result(a, mode=mode), result(np.where(slow, factor, 1.0) * b, mode=mode)


@pytest.mark.parametrize(
    ("factor", "share", "mode", "at_end"), [(2, 0.9, "burst", False), (3, 0.3, "mlperf", False), (2, 0.7, "sustained", True)]
)
def test_what_slows_down_most_runs_is_seen_in_the_figure_of_the_mode(factor: float, share: float, mode: str, at_end: bool) -> None:
    a, b = mostly(factor, share, mode, at_end)
    assert compare(a, b).verdict == "slower"
    assert compare(b, a).verdict == "faster"


@pytest.mark.parametrize("mode", ["mlperf", "sustained"])
@pytest.mark.parametrize("pair", range(20))
def test_no_alarm_between_equals_in_the_other_modes(pair: int, mode: str) -> None:
    found = compare(result(series(2 * pair, 1200), mode=mode), result(series(2 * pair + 1, 1200), mode=mode))
    assert found.verdict == "no difference", found


def test_regressions_are_what_is_slower_wrong_unchecked_or_missing() -> None:
    image, text = result(series(0, 100), **CHECKED), result(series(1, 100), tower="text", **CHECKED)
    assert regressions([image, text], [image, text]) == ([], [])
    assert regressions([image, text], [image])[1] == ["b onnx text: was not measured"]
    slow = result(2 * series(0, 100), **CHECKED)
    assert [c.verdict for c in regressions([image], [slow])[0]] == ["slower"]
    assert regressions([image], [image.model_copy(update={"parity": None})])[1] == ["b onnx image: no output was compared with the model"]
    cut = image.model_copy(update={"samples": image.samples.model_copy(update={"ended_early": "unplugged"})})
    assert regressions([image], [cut])[1] == ["b onnx image: ended early (unplugged)"]
    with pytest.raises(InputError, match="in common"):
        regressions([image], [image.model_copy(update={"request": image.request.model_copy(update={"threads": 4})})])
    with pytest.raises(InputError, match="in common"):
        regressions([], [image])


def test_emulated_times_are_not_compared() -> None:
    a = result(series(0, 100))
    device = a.device.model_copy(update={"emulated": True})
    with pytest.raises(InputError, match="was emulated: its times say nothing"):
        compare(a.model_copy(update={"samples": a.samples.model_copy(update={"device": device})}), a)


def test_waiting_for_a_core_is_not_slowness() -> None:
    base, rng = series(1, 600), np.random.default_rng(0)
    waits = np.where(rng.random(600) < 0.97, 4.0, 0.0) * rng.uniform(0.5, 1, 600)
    quiet, busy = result(base, np.zeros(600)), result(base + waits, waits)
    assert busy.summary.p50_ms > 1.2 * quiet.summary.p50_ms
    assert compare(quiet, busy).verdict == "no difference"
    assert compare(quiet, result(1.2 * base + waits, waits)).verdict == "slower"


def test_starved_measurements_need_a_large_difference_unless_interleaved() -> None:
    base = series(1, 300)
    waits = np.full(300, 12.0)
    starved = result(1.3 * base + waits, waits, run_id="b")
    found = compare(result(base), starved)
    assert found.verdict == "no difference"
    assert any("waited for a core" in remark for remark in found.remarks)
    assert compare(result(base), starved.model_copy(update={"run_id": "a"})).verdict == "slower"
    assert compare(result(base), starved.model_copy(update={"run_id": "a", "interleaved": 1})).verdict == "no difference"
    assert compare(result(base), result(2 * base + waits, waits, run_id="b")).verdict == "slower"


def test_same_samples_give_the_same_verdict_twice() -> None:
    a, b = result(series(0, 200)), result(series(1, 200))
    assert compare(a, b) == compare(a, b)


@pytest.mark.parametrize(
    ("change", "word"), [({"tower": "text"}, "towers"), ({"space": "9" * 64}, "embedding spaces"), ({"mode": "mlperf"}, "modes")]
)
def test_unlike_things_are_refused(change: dict[str, str], word: str) -> None:
    with pytest.raises(InputError, match=word):
        compare(result(series(0, 100)), result(series(1, 100), **change))


def test_other_settings_are_remarked() -> None:
    b = result(series(1, 100))
    samples = b.samples.model_copy(update={"engine": "executorch 1", "provider": "xnnpack"})
    other = b.model_copy(update={"samples": samples, "valid": False, "reasons": ("too few",)})
    assert compare(result(series(0, 100)), other).remarks == (
        "runtime differs: onnxruntime 1, executorch 1", "provider differs: cpu, xnnpack", "B is not valid: too few",
    )  # fmt: skip


def test_sets_are_matched_by_kind() -> None:
    image, text = result(series(0, 100)), result(series(1, 100), tower="text")
    found, alone = compare_all([image, text], [result(series(2, 100))])
    assert [(c.label_a, c.verdict) for c in found] == [("b onnx image", "no difference")]
    assert alone == ["b onnx text"]
    with pytest.raises(InputError, match="of one kind"):
        compare_all([image, image], [image])
    with pytest.raises(InputError, match="in common"):
        compare_all([image, result(series(1, 100), target="executorch")], [text])
