"""The page in a real browser: what it measures."""

from __future__ import annotations

import os
import re
import time

import pytest

from mobileclip.benchmark import devices
from mobileclip.benchmark.devices import web
from mobileclip.benchmark.protocol import PROFILED_RUNS
from mobileclip.errors import DeviceError
from tests.devices.page import SIZES, Call, heading
from tests.devices.phone import OWN_ADDRESS


@pytest.mark.parametrize("size", SIZES)
def test_a_bundle_is_timed_in_a_browser(runtime, browser, bundle, size):
    call = Call(bundle, per_op=True, threads=2)
    page = browser.new_page(viewport=SIZES[size])
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(call.address())
    heading(page, "Done").wait_for(timeout=60_000)
    found = call.result()
    assert problems == []
    assert page.evaluate("crossOriginIsolated"), "threads and a fine clock need it"
    assert [r.label for r in found.results] == ["tiny onnx image", "tiny onnx text"]
    for r in found.results:
        assert r.parity is not None
        assert r.parity.passed
        assert r.samples.engine == "onnxruntime-web 1.30.0"
        assert (r.samples.provider, r.request.threads) == ("wasm", 2)
        assert r.summary.n >= 40
        assert r.samples.warm_load_ms is not None
        assert {len(o.ms) for o in r.samples.operators} == {10}
        assert r.samples.placement == {"cpu": len(r.samples.operators)}
        assert (r.device.name, r.device.model, r.device.emulated) == ("web", "computer", False)
        assert "Chrom" in r.device.os
        assert [s.foreground for s in r.samples.states] == [True, True]
        shown = page.locator(".card", has=heading(page, f"{r.label}, wasm"))
        median = re.search(r"^(\d+\.\d\d) ms, median$", shown.inner_text(), re.MULTILINE)
        assert median is not None
        assert float(median[1]) == pytest.approx(r.summary.p50_ms, abs=0.0051)
        assert "not valid" in shown.inner_text()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing is cut off"
    if folder := os.environ.get("MOBILECLIP_SCREENSHOTS"):
        page.screenshot(path=f"{folder}/web-{size}.png", full_page=True)
    page.close()


def test_webgpu_without_a_gpu_says_so(runtime, browser, bundle):
    call = Call(bundle, provider="webgpu", towers=["image"], per_op=True)
    page = browser.new_page()
    page.goto(call.address())
    found = call.result()
    for r in found.results:
        assert r.samples.provider == "webgpu in software"
        assert r.samples.placement["webgpu"] > 0
        assert {len(operator.ms) for operator in r.samples.operators} == {PROFILED_RUNS}
        assert r.parity is not None
        assert r.parity.passed
    for failure in found.failures:  # where the browser has not even that
        assert "no WebGPU here" in failure.message
    page.close()


def test_a_page_that_is_closed_half_way(runtime, browser, bundle):
    call = Call(bundle, seconds=30)
    page = browser.new_page()
    page.goto(call.address())
    page.get_by_text("runs timed").first.wait_for(timeout=60_000)
    page.close(run_before_unload=False)
    browser.contexts[0].close() if browser.contexts else None
    found = call.result()
    assert all("the page was closed" in f.message for f in found.failures)
    assert len(found.failures) == 2
    assert found.results, "what was measured is kept"
    assert all("ended early: " in r.reasons[0] for r in found.results)


def test_the_second_browser_is_told(runtime, browser, bundle):
    call = Call(bundle, seconds=2)
    first, second = browser.new_page(), browser.new_page()
    first.goto(call.address())
    heading(first, "Measuring").wait_for()
    second.goto(call.address())
    heading(second, "Taken").wait_for()
    assert call.result().failures == ()
    first.close()
    second.close()


def test_nobody_opens_the_page(runtime, bundle, monkeypatch):
    monkeypatch.setattr(web, "OPEN_SECONDS", 0.3)
    call = Call(bundle)
    call.join(60)
    assert isinstance(call.error, DeviceError)
    assert str(call.error) == "no browser opened the page within 0.005 minutes"


def test_on_a_phone_the_page_is_local(runtime, launch, bundle, plug_in):
    """As its port is reversed: threads and a fine clock, with nothing served to the network."""
    phone = plug_in()
    call = Call(bundle, devices.find("pixel8", via="web"), threads=2)
    started = phone.root / "system/am"
    until = time.monotonic() + 60
    while not (started.exists() and started.read_text().endswith("\n")) and time.monotonic() < until:
        time.sleep(0.1)
    *words, address = started.read_text().split()
    assert words == ["start", "-a", "android.intent.action.VIEW", "-d"]
    opened = launch(f"--host-resolver-rules=MAP localhost {OWN_ADDRESS}")
    page = opened.new_page()
    page.goto(address)
    heading(page, "Done").wait_for(timeout=60_000)
    assert page.evaluate("crossOriginIsolated")
    opened.close()
    for r in call.result().results:
        assert r.parity is not None
        assert r.parity.passed
        assert (r.device.name, r.device.os.split(", ")[0]) == ("Google Pixel 8", "Android 15 (API 35)")
        assert {(s.thermal, s.battery_percent, s.foreground) for s in r.samples.states} == {("nominal", 83.0, True)}
    assert phone.asked[-1].startswith("reverse:killforward")
