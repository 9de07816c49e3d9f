"""`make bench`: every path of a real variant runs, and the ratios are those of the measured medians."""

from __future__ import annotations

from pathlib import Path

import pytest

from mobileclip.benchmark.ratios import OPEN_CLIP_NAMES, Table, Way, measure, tables, ways_of
from mobileclip.errors import InputError
from mobileclip.specs import REGISTRY


def test_names_are_those_of_open_clip() -> None:
    open_clip = pytest.importorskip("open_clip")
    assert set(OPEN_CLIP_NAMES) <= set(REGISTRY)
    assert set(OPEN_CLIP_NAMES.values()) == {name for name in open_clip.list_models() if name.startswith("MobileCLIP")}


def test_a_variant_without_a_twin_is_refused() -> None:
    with pytest.raises(InputError, match="mobileclip_s0 has no twin"):
        next(tables(["mobileclip_s0"], lambda step: None))


def test_rows_are_ratios_of_medians() -> None:
    def way(name: str, *latency_ms: float, ours: bool = False) -> Way:
        return Way(name, lambda: None, ours, list(latency_ms))

    ways = [way("eager", 100, 90, 400), way("plain", 50, 51, 49), way("mine", 40, 40, 41, ours=True)]
    table = Table("v", "image", ways, macs=1e9, matmul=way("matmul", 20.0))
    assert table.gflops == pytest.approx(2 * 1024**3 / 20e-3 / 1e9)
    assert table.roofline_ms == pytest.approx(2e9 / (table.gflops * 1e9) * 1e3)
    assert [row[:4] for row in table.rows()] == [
        ("eager", "100.0", "1.000", "2.000"), ("plain", "50.0", "0.500", "1.000"), ("mine", "40.0", "0.400", "0.800"),
    ]  # fmt: skip


@pytest.mark.slow
def test_every_path_of_a_tower_runs(tmp_path: Path) -> None:
    ways, work = ways_of(REGISTRY["mobileclip2_s0"], "text", tmp_path)
    measure(ways, rounds=2)
    assert [w.name for w in ways] == [
        "open_clip eager", "open_clip torch.onnx.export", "fused eager", "onnx fp32", "onnx fp16", "executorch fp32", "executorch fp16",
    ]  # fmt: skip
    assert all(len(w.latency_ms) == 2 and w.p50_ms > 0 for w in ways)
    assert 1e9 < work < 1e10
