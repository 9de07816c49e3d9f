from __future__ import annotations

import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from mobileclip.benchmark import report
from mobileclip.benchmark.bench import bench
from mobileclip.benchmark.plots import Point, pareto, scatter
from mobileclip.benchmark.protocol import BenchResult, BenchRun, DeviceInfo
from mobileclip.benchmark.results import save
from mobileclip.errors import InputError
from mobileclip.export.bundle import Bundle
from mobileclip.specs import REGISTRY

VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Tags must close in order; collects the text and every attribute that could load something."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.tags: set[str] = set()
        self.text = ""
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [v or "" for k, v in attrs if k in ("src", "href", "srcset", "action", "data", "xlink:href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def run(tiny_bundle: Path) -> BenchRun:
    return bench([tiny_bundle], seconds=0.01, samples=40, warmup_runs=10)


def picture() -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(data, "PNG")
    return data.getvalue()


def prediction() -> report.Prediction:
    return report.Prediction(
        image=picture(), caption="cat.webp", rows=[("a cat", 0.75), ("a dog", 0.25)], labels=1914, query="a cup",
        found=[(picture(), "coffee", 0.3)], pictures=65, trained=False, engine="onnxruntime 1",
    )  # fmt: skip


def test_page_holds_everything_and_loads_nothing(tiny_bundle: Path, run: BenchRun) -> None:
    html = report.render([Bundle.open(tiny_bundle)], run.results, prediction())
    page = Page(html)
    assert [link[:22] for link in page.links] == ["data:image/png;base64,"] * 2
    assert "softmax over 1,914 labels" in html
    assert "The best of 65 pictures" in html
    assert not page.tags & {"script", "link", "iframe", "object"}
    assert not re.search(r"@import|url\(", html)
    for r in run.results:
        assert f"{r.summary.p99_ms:.3f}" in page.text
        assert f"n {r.summary.n}" in page.text
    for wanted in ("2 of 2", "0.9999991", "not valid", "75.0 %", "Published by Apple, iPhone 12 Pro Max; not measured by this toolkit"):
        assert wanted in page.text
    published = [name for name, spec in REGISTRY.items() if spec.published]
    assert all(name in page.text for name in published)
    assert page.text.count("Untrained weights") == 3


def test_trained_models_have_no_banner(tiny_bundle: Path, run: BenchRun) -> None:
    trained = [r.model_copy(update={"measured": r.measured.model_copy(update={"trained": True})}) for r in run.results]
    assert "Untrained" not in report.render([], trained)


def test_all_text_is_escaped(run: BenchRun) -> None:
    evil = "<script>alert(1)</script>\"'&"
    first = run.results[0]
    result = first.model_copy(
        update={
            "samples": first.samples.model_copy(
                update={"engine": evil, "provider": evil, "device": DeviceInfo(name=evil, model=evil, os=evil)}
            ),
            "reasons": (evil,),
            "request": first.request.model_copy(update={"bundle": evil}),
            "measured": first.measured.model_copy(update={"model": evil}),
        }
    )
    html = report.render(
        [],
        [result, result],
        replace(prediction(), caption=evil, rows=[(evil, 1.0)], query=evil, found=[(picture(), evil, 0.5)], engine=evil),
    )
    assert "<script" not in html
    assert html.count("&lt;script") > 10
    Page(html)


def test_bundles_alone_and_results_alone(tiny_bundle: Path, run: BenchRun, tmp_path: Path) -> None:
    save(run, tmp_path / "results")
    report.write(report.collect([tiny_bundle]), tmp_path / "a.html")
    report.write(report.collect([tmp_path / "results"]), tmp_path / "b.html")
    assert "Latency</h2>" not in (tmp_path / "a.html").read_text()
    assert "Verification</h2>" not in (tmp_path / "b.html").read_text()
    with pytest.raises(InputError, match="nothing to report"):
        report.collect([])


def test_markers_are_moved_apart_only_when_they_collide() -> None:
    same = [Point(1, 1, str(i), "s-onnx", "t") for i in range(1, 6)]
    centres = re.findall(r'circle cx="([\d.]+)" cy="([\d.]+)"', scatter([*same, Point(9, 9, "6", "s-onnx", "t")], "x", "y"))
    assert len(set(centres)) == 6
    exact = re.findall(r'circle cx="([\d.]+)" cy="([\d.]+)"', scatter(same, "x", "y", beside=True))
    assert len(set(exact)) == 1


@pytest.mark.parametrize("values", [(0.001, 0.002), (1e-9, 1.0), (5.0, 5.0), (0.3, 40_000.0)])
def test_axes_cope_with_any_range(values: tuple[float, float]) -> None:
    points = [Point(v, v, "1", "s-onnx", "t") for v in values]
    for log in (False, True):
        svg = scatter(points, "x", "y", log_x=log, log_y=log)
        assert svg.count('class="tick"') >= 4
        assert "nan" not in svg


def test_emulated_times_are_not_shown(tiny_bundle: Path, run: BenchRun) -> None:
    real, other = run.results
    device = real.device.model_copy(update={"name": "simulated phone", "emulated": True})
    summary = other.summary.model_copy(update={"p50_ms": 7001.5, "p90_ms": 7002.5, "p99_ms": 7003.5})
    emulated = other.model_copy(update={"samples": other.samples.model_copy(update={"device": device}), "summary": summary})
    page = Page(report.render([Bundle.open(tiny_bundle)], [real, emulated]))
    assert f"{real.summary.p50_ms:.3f}" in page.text
    assert not re.search(r"700[123]\.5", page.text)
    assert "simulated phone" in page.text
    assert "the times say nothing about a device" in page.text


def test_the_front_is_what_nothing_beats() -> None:
    places = [(1, 5), (2, 3), (2, 2), (3, 4), (4, 1), (4, 1), (5, 1)]
    points = [Point(x, y, str(i), "s-onnx", "t") for i, (x, y) in enumerate(places)]
    assert [(p.x, p.y) for p in pareto(points)] == [(1, 5), (2, 2), (4, 1)]
    assert [(p.x, p.y) for p in pareto(points, "high")] == [(1, 5)]
    assert scatter(points, "x", "y").count('class="front"') == 1


def on(result: BenchResult, name: str, model: str) -> BenchResult:
    device = DeviceInfo(name=name, model=model, os="x")
    return result.model_copy(update={"samples": result.samples.model_copy(update={"device": device})})


def test_results_of_many_devices(run: BenchRun, tmp_path: Path) -> None:
    phones = [on(run.results[0], "Anna's phone", "iPhone13,4"), on(run.results[0], "Google Pixel 8", "Pixel 8")]
    save(run.model_copy(update={"results": (run.results[0], *phones)}), tmp_path / "all.json")
    html = report.render([], report.collect([tmp_path / "all.json"]).results)
    assert Page(html).text.count("Anna's phone: onnxruntime") == 1
    assert html.count("Google Pixel 8, tiny") == 1
    for name in ("pixel8", "Google Pixel-8"):
        assert report.collect([tmp_path / "all.json"], device=name).results == [phones[1]]
    assert len(report.collect([tmp_path / "all.json"], runtime="onnx").results) == 3
    with pytest.raises(InputError, match=r"no result of iphone12; there are: host, .*; Anna's phone, iPhone13,4, onnx; Google"):
        report.collect([tmp_path / "all.json"], device="iphone12")


def test_a_sustained_run_is_drawn(tiny_bundle: Path) -> None:
    found = bench([tiny_bundle], towers=["text"], mode="sustained", seconds=0.05, samples=5).results
    page = Page(report.render([], found))
    assert "Sustained" in page.text
    assert "+0.0 % a minute" in page.text
